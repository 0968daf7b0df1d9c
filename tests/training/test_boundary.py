from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from modalign import methods
from modalign.embeddings import Embeddings
from modalign.errors import NonFiniteError
from modalign.methods.base import Method
from modalign.training import boundary
from tests.training.toy import ToyEncoder

B = 23


def batch(model: ToyEncoder, method: Method, dtype: torch.dtype) -> tuple[Tensor, Tensor, Embeddings]:
    g = torch.Generator().manual_seed(1)
    pixels = torch.randn(B, 3, 2, 2, generator=g).to(dtype)
    tokens = torch.randint(0, 64, (B, 8), generator=g)
    teacher = ToyEncoder(seed=5, dtype=dtype)
    with torch.no_grad():
        frozen = {"frozen_image": 3 * teacher.encode_image(pixels), "frozen_text": 3 * teacher.encode_text(tokens)}
    frozen["target"] = torch.randn(B, 5, generator=g).to(dtype)
    if method.needs_fit:
        method.fit(frozen)
    caption_ids = torch.arange(B)
    caption_ids[4] = 2  # a shared caption makes the targets multi-positive
    rest = Embeddings(
        **frozen,
        image_ids=torch.arange(B),
        caption_ids=caption_ids,
        logit_scale=20.0,
        logit_bias=-10.0,
        draws=method.draw(0, 3, B, model.embed_dim),
    )
    return pixels, tokens, rest


def sides(model: ToyEncoder, pixels: Tensor, tokens: Tensor) -> dict:
    model.module.requires_grad_(True)
    return {
        "image": boundary.Side(model.encode_image, dict(model.named_parameters("image")), pixels),
        "text": boundary.Side(model.encode_text, dict(model.named_parameters("text")), tokens),
    }


def gradients(model: ToyEncoder) -> Tensor:
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in model.module.parameters()])


def trains_a_tower(name: str) -> bool:
    return name != "combine" and bool(methods.METHODS[name].towers)


@pytest.mark.parametrize("name", filter(trains_a_tower, methods.METHODS))
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_the_gradient_is_that_of_the_whole_batch_however_it_is_split(
    name: str, dtype: torch.dtype, tolerance: float
) -> None:
    method = methods.from_config({"name": name})
    model = ToyEncoder(dtype=dtype)
    pixels, tokens, rest = batch(model, method, dtype)
    if (module := method.module()) is not None:
        module.to(dtype)

    model.module.requires_grad_(True)
    features = replace(rest, image=model.encode_image(pixels), text=model.encode_text(tokens))
    sum(method.terms(features, 0.25).values()).backward()
    expected = gradients(model).clone()

    for chunk in (None, B, 10, 1):
        model.module.zero_grad(set_to_none=True)
        trained = {tower: side for tower, side in sides(model, pixels, tokens).items() if tower in method.towers}
        boundary.backward(trained, rest, slice(0, B), method, 0.25, chunk=chunk)
        assert torch.linalg.norm(gradients(model) - expected) <= tolerance * torch.linalg.norm(expected)


def test_with_one_chunk_the_first_graph_is_kept_and_with_more_each_row_is_embedded_twice() -> None:
    method = methods.from_config({"name": "contrastive"})
    model = ToyEncoder()
    pixels, tokens, rest = batch(model, method, torch.float32)
    whole = boundary.backward(sides(model, pixels, tokens), rest, slice(0, B), method, 0.5, chunk=64)
    assert (model.image_calls, whole.embedded) == (B, {"image": B, "text": B})
    model.image_calls = 0
    split = boundary.backward(sides(model, pixels, tokens), rest, slice(0, B), method, 0.5, chunk=4)
    assert (model.image_calls, split.embedded) == (2 * B, {"image": 2 * B, "text": 2 * B})


def test_a_tower_that_does_not_train_enters_as_features_and_gets_no_gradient() -> None:
    method = methods.from_config({"name": "contrastive"})
    model = ToyEncoder(dtype=torch.float64)
    pixels, tokens, rest = batch(model, method, torch.float64)
    only_image = {"image": sides(model, pixels, tokens)["image"]}
    with torch.no_grad():
        text = model.encode_text(tokens)
    boundary.backward(only_image, replace(rest, text=text), slice(0, B), method, 0.5, chunk=5)
    found = {name: p.grad for name, p in model.named_parameters("image")}
    assert all(p.grad is None for _, p in model.named_parameters("text"))
    model.module.zero_grad(set_to_none=True)
    terms = method.terms(replace(rest, image=model.encode_image(pixels), text=text), 0.5)
    sum(terms.values()).backward()
    for name, parameter in model.named_parameters("image"):
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-10, atol=1e-14)


def test_the_probe_measures_each_term_alone_and_leaves_the_gradient_bit_for_bit() -> None:
    method = methods.from_config({"name": "clip-refine"})
    model = ToyEncoder(dtype=torch.float64)
    pixels, tokens, rest = batch(model, method, torch.float64)
    plain = boundary.backward(sides(model, pixels, tokens), rest, slice(0, B), method, 0.5)
    without = gradients(model).clone()
    model.module.zero_grad(set_to_none=True)
    probed = boundary.backward(sides(model, pixels, tokens), rest, slice(0, B), method, 0.5, probe=True)
    assert torch.equal(gradients(model), without)
    assert plain.norms == {} and set(probed.norms) == set(probed.terms)

    image, text = (e.detach().requires_grad_() for e in (model.encode_image(pixels), model.encode_text(tokens)))
    flat = {}
    for name, term in method.terms(replace(rest, image=image, text=text), 0.5).items():
        flat[name] = torch.cat([g.flatten() for g in torch.autograd.grad(term, (image, text), retain_graph=True)])
    for name, norm in probed.norms.items():
        assert norm == pytest.approx(float(flat[name].norm()), rel=1e-9)
    (pair, cosine), *_ = probed.cosines.items()
    a, b = pair.split("|")
    assert cosine == pytest.approx(float(torch.cosine_similarity(flat[a], flat[b], dim=0)), abs=1e-9)


@dataclass
class Learned(Method):
    """A method with a parameter of its own and, on request, a term that breaks."""

    name: ClassVar[str] = "learned"
    broken: str = ""

    def __post_init__(self) -> None:
        self._module = nn.ParameterDict({"r": nn.Parameter(torch.tensor(2.0, dtype=torch.float64))})

    def terms(self, embeddings: Embeddings, progress: float) -> dict[str, Tensor]:
        image = embeddings.image
        good = self._module["r"] * image.square().mean()
        zero = (image - image).sum()
        bad = {"": zero, "value": zero / zero, "gradient": zero.abs().sqrt()}[self.broken]
        return {"good": good, "bad": bad}

    def module(self) -> nn.Module:
        return self._module


def test_the_methods_own_parameter_gets_its_gradient() -> None:
    model, method = ToyEncoder(dtype=torch.float64), Learned()
    pixels, tokens, rest = batch(model, method, torch.float64)
    boundary.backward(sides(model, pixels, tokens), rest, slice(0, B), method, 0.5, chunk=6)
    mean_square = model.encode_image(pixels).square().mean()
    torch.testing.assert_close(method._module["r"].grad, mean_square.detach(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("broken", ["value", "gradient"])
def test_a_term_that_is_not_finite_is_named(broken: str) -> None:
    model, method = ToyEncoder(dtype=torch.float64), Learned(broken=broken)
    pixels, tokens, rest = batch(model, method, torch.float64)
    with pytest.raises(NonFiniteError, match="'bad'"):
        boundary.backward(sides(model, pixels, tokens), rest, slice(0, B), method, 0.5)
    assert all(p.grad is None for p in model.module.parameters())


def test_losses_stay_float32_inside_autocast() -> None:
    method = methods.from_config({"name": "clip-refine"})
    model = ToyEncoder()
    pixels, tokens, rest = batch(model, method, torch.float32)
    seen = []

    @dataclass
    class Spy(Method):
        name: ClassVar[str] = "spy"

        def terms(self, embeddings: Embeddings, progress: float) -> dict[str, Tensor]:
            product = embeddings.image @ embeddings.text.T
            seen.append((embeddings.image.dtype, product.dtype))
            return method.terms(embeddings, progress)

    def precision() -> torch.autocast:
        return torch.autocast("cpu", dtype=torch.bfloat16)

    boundary.backward(sides(model, pixels, tokens), rest, slice(0, B), Spy(), 0.5, precision=precision)
    assert seen == [(torch.float32, torch.float32)]
