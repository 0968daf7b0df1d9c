"""A model of the user's own code: two functions and a torch module that no library made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import modalign
from modalign.encoders import Tower
from modalign.errors import ExportError, ModelError, RecipeError
from modalign.models import load
from modalign.models.wrapped import Wrapped
from tests import tiny


class Net(nn.Module):
    """BatchNorm and dropout in the image tower, an embedding in the text tower, a temperature of neither."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.pixels = nn.Sequential(
                nn.Conv2d(3, 8, 4, 4), nn.BatchNorm2d(8), nn.Tanh(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(512, 12)
            )
            self.words = nn.Embedding(128, 10)
            self.image_out, self.text_out = nn.Linear(12, 6), nn.Linear(10, 6)
            self.temperature = nn.Parameter(torch.tensor(2.0))
            self.pixels[1].running_mean.normal_()

    def encode_image(self, pixels: Tensor) -> Tensor:
        out: Tensor = self.image_out(self.pixels(pixels))
        return out

    def encode_text(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.text_out(torch.tanh(self.words(tokens)).mean(1))
        return out


def preprocess(image: Any) -> Tensor:
    pixels = torch.frombuffer(bytearray(image.convert("RGB").resize((32, 32)).tobytes()), dtype=torch.uint8)
    return pixels.reshape(32, 32, 3).permute(2, 0, 1).float() / 128 - 1


def tokenize(captions: list[str]) -> Tensor:
    return torch.tensor([[min(ord(c), 127) for c in caption[:20].ljust(20)] for caption in captions])


def wrapped(net: nn.Module | None = None, **changes: Any) -> Wrapped:
    net = net if net is not None else Net()
    settings: dict[str, Any] = {
        "identity": "net-1",
        "module": net,
        "towers": {"image": "^(pixels|image_out)", "text": "^(words|text_out)"},
    }
    return modalign.wrap(net.encode_image, net.encode_text, preprocess, tokenize, **settings | changes)


def pixels(rows: int = 4) -> Tensor:
    return torch.randn(rows, 3, 32, 32, generator=torch.Generator().manual_seed(0))


CAPTIONS = ["a red cat", "two dogs on a boat", ""]


def test_features_are_the_functions_own() -> None:
    net = Net().eval()
    model = wrapped(net, logit_scale=7.0, logit_bias=-1.0)
    assert torch.equal(model.encode_image(pixels()), net.encode_image(pixels()))
    assert torch.equal(model.encode_text(tokenize(CAPTIONS)), net.encode_text(tokenize(CAPTIONS)))
    assert (model.embed_dim, model.logit_scale, model.logit_bias) == (6, 7.0, -1.0)
    assert model.encode_image(pixels().double()).dtype == torch.float32
    assert model.to("cpu", torch.float64).encode_image(pixels()).dtype == torch.float64


@pytest.mark.parametrize(
    "functions",
    [
        lambda net: (Net.encode_image, Net.encode_text),
        lambda net: (lambda n, x: n.image_out(n.pixels(x)), lambda n, t: Net.encode_text(n, t)),
        lambda net: (net.encode_image, net.encode_text),
    ],
    ids=["unbound", "functions", "bound"],
)
def test_a_copy_shares_nothing_with_the_module_that_was_wrapped(functions: Any) -> None:
    net = Net().eval()
    image, text = functions(net)
    towers = {"image": "pixels|image_out", "text": "words|text_out"}
    model = modalign.wrap(image, text, preprocess, tokenize, identity="n", module=net, towers=towers)
    before = net.encode_image(pixels()), net.encode_text(tokenize(CAPTIONS))
    twin = model.frozen_copy()
    with torch.no_grad():
        for parameter in twin.module.parameters():
            parameter.mul_(2)
    assert torch.equal(model.encode_image(pixels()), before[0])
    assert not torch.allclose(twin.encode_image(pixels()), before[0])
    assert not torch.allclose(twin.encode_text(tokenize(CAPTIONS)), before[1])
    assert torch.equal(net.encode_image(pixels()), before[0])


def test_submodules_as_functions_and_as_towers() -> None:
    net = nn.ModuleDict({"see": nn.Sequential(nn.Flatten(), nn.Linear(3072, 6)), "read": nn.EmbeddingBag(128, 6)})
    towers = {"image": net["see"], "text": net["read"]}
    model = modalign.wrap(net["see"], net["read"], preprocess, tokenize, identity="n", module=net, towers=towers)
    assert torch.equal(model.encode_image(pixels()), net["see"](pixels()))
    assert [name for name, _ in model.named_parameters("image")] == ["see.1.weight", "see.1.bias"]
    assert [name for name, _ in model.named_parameters("text")] == ["read.weight"]
    twin = model.frozen_copy()
    twin.module["read"].weight.zero_()
    assert twin.encode_text(tokenize(CAPTIONS)).abs().sum() == 0 < model.encode_text(tokenize(CAPTIONS)).abs().sum()


def test_functions_alone_can_be_measured() -> None:
    net = Net().eval()
    model = modalign.wrap(net.encode_image, net.encode_text, preprocess, tokenize, identity="net-1", embed_dim=6)
    assert torch.equal(model.encode_image(pixels()), net.encode_image(pixels()))
    assert model.device.type == "cpu" and model.dtype == torch.float32 and not list(model.named_parameters("image"))
    assert len(model.fingerprint) == 64


def test_fingerprint_is_of_weights_and_identity() -> None:
    base = wrapped().fingerprint
    assert base == wrapped().fingerprint
    assert len({base, wrapped(Net(1)).fingerprint, wrapped(identity="net-2").fingerprint}) == 3


def test_a_projection_that_is_the_last_layer_can_train_alone() -> None:
    net = Net().eval()
    model = wrapped(net, projections={"image": net.image_out, "text": "text_out"})
    assert model.projection_names("image") == ["image_out.weight", "image_out.bias"]
    hidden = model.image_trunk(pixels())
    assert hidden.shape == (4, 12) and torch.equal(hidden, net.pixels(pixels()))
    assert torch.equal(model.project_image(hidden), net.encode_image(pixels()))
    assert torch.equal(model.encode_image(pixels()), net.encode_image(pixels()))
    assert isinstance(net.image_out, nn.Linear)
    before = Tower(model, "image", "trunk").fingerprint
    with torch.no_grad():
        net.image_out.weight.add_(1)
    assert Tower(model, "image", "trunk").fingerprint == before
    with torch.no_grad():
        net.temperature.add_(1)  # of neither tower, so it may be used by both
    assert Tower(model, "image", "trunk").fingerprint != before


def test_a_projection_that_is_not_last_is_refused() -> None:
    net = Net()
    model = wrapped(net, projections={"image": net.pixels[5]})
    with pytest.raises(ModelError, match=r"pixels\.5 is not the last layer of encode_image"):
        model.encode_image(pixels())
    with pytest.raises(ModelError, match="without a projection of its text tower"):
        model.projection_names("text")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"towers": None}, "say which parameters are whose"),
        ({"towers": {"image": "visual", "text": "words"}}, "'visual': it matches none of temperature, pixels.0.weight"),
        ({"towers": {"image": "p", "text": "w"}}, "both towers name"),
        ({"towers": {"image": "pixels", "txt": "words"}}, "there are image and text"),
        ({"towers": {"image": "(", "text": "words"}}, "no regular expression"),
        ({"projections": {"image": nn.Linear(2, 2)}}, "Linear is not in the module"),
        ({"projections": {"image": "proj"}}, "proj is not in the module"),
    ],
)
def test_what_names_nothing_is_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ModelError) as caught:
        wrapped(**changes)
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_functions_that_return_something_else_are_refused() -> None:
    towers = {"image": "pixels", "text": "words"}

    def made(image: Any, text: Any, words: Any = tokenize) -> Wrapped:
        return modalign.wrap(image, text, preprocess, words, identity="n", module=Net(), towers=towers)

    with pytest.raises(ModelError, match=r"encode_image\(module, inputs\)"):
        made(lambda x: x, Net.encode_text)
    with pytest.raises(ModelError, match="encode_text returned 20×10 for 1 rows"):
        made(Net.encode_image, lambda n, t: n.words(t)[0])
    with pytest.raises(ModelError, match="tokenize returned list for 1 captions"):
        made(Net.encode_image, Net.encode_text, lambda captions: [[1]])
    with pytest.raises(ModelError, match="encode_image returned tuple for 4 rows"):
        made(lambda n, x: (x,), Net.encode_text).encode_image(pixels())
    with pytest.raises(ModelError, match="Net"):
        made(Net.encode_image, Net.encode_text).encode_tokens(pixels())


def metrics(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["terms"] for line in lines if "terms" in line]


def test_refined_whole_and_in_chunks_and_read_back(tmp_path: Path) -> None:
    pairs = tiny.write_pairs(tmp_path / "pairs", n=20)
    net = Net()
    model = wrapped(net).to("cpu", torch.float64)
    start = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    for name, chunk in (("whole", None), ("chunks", 3)):
        modalign.refine(
            model,
            pairs,
            "clip-refine",
            out=tmp_path / name,
            silent=True,
            chunk=chunk,
            epochs=4,
            data__batch_size=8,
            data__drop_last=True,
            optimizer__lr=0.01,
            evaluation__tasks=[f"retrieval:{pairs}"],
            data__validation=0.0,
        )
    assert all(torch.equal(tensor, start[name]) for name, tensor in net.state_dict().items())  # a copy was trained
    whole, chunks = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "chunks"))
    for name, tensor in whole.items():
        torch.testing.assert_close(chunks[name], tensor, rtol=0, atol=1e-9)
        frozen = name == "temperature" or "running" in name or "num_batches" in name
        assert torch.equal(tensor, start[name]) == frozen, name
    for mine, theirs in zip(metrics(tmp_path / "whole"), metrics(tmp_path / "chunks"), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-6)

    again = wrapped(Net(3)).load_weights(tmp_path / "whole")
    record = json.loads((tmp_path / "whole" / "model" / "modalign.json").read_text())
    assert again.fingerprint == record["fingerprint"] and again.dtype == torch.float64
    with pytest.raises(ModelError, match=r"modalign\.wrap\(…\)\.load_weights") as caught:
        load(tmp_path / "whole")
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match=r"load_weights"):
        load("wrapped:net-1")
    with pytest.raises(ModelError, match="saved under the identity 'net-1', and this model has 'net-2'"):
        wrapped(identity="net-2").load_weights(tmp_path / "whole")
    with pytest.raises(ModelError, match="holds no model that was wrapped"):
        wrapped().load_weights(tmp_path)
    with pytest.raises(ExportError, match="code of your own"):
        modalign.export(again, tmp_path / "out", "open_clip")


@pytest.mark.parametrize(
    ("train", "moved"),
    [("image", {"pixels", "image_out"}), ("text", {"words", "text_out"}), ("projection", {"image_out", "text_out"})],
)
def test_scopes(train: str, moved: set[str], tmp_path: Path) -> None:
    net = Net()
    model = wrapped(net, projections={"image": net.image_out, "text": net.text_out})
    run = modalign.refine(
        model,
        tiny.write_pairs(tmp_path / "pairs", n=8),
        "clip-refine",
        out=tmp_path / "run",
        train=train,
        silent=True,
        optimizer__lr=0.01,
        data__batch_size=4,
        data__validation=0.0,
    )
    after = load_file(run.folder / "model" / "model.safetensors")
    changed = {name.split(".")[0] for name, tensor in net.state_dict().items() if not torch.equal(after[name], tensor)}
    assert changed == moved


def test_functions_alone_are_evaluated_but_not_trained(tmp_path: Path) -> None:
    net = Net().eval()
    model = modalign.wrap(net.encode_image, net.encode_text, preprocess, tokenize, identity="net-1")
    pairs = tiny.write_pairs(tmp_path / "pairs", n=8)
    told = modalign.evaluate(model, [f"retrieval:{pairs}"])
    expected = modalign.evaluate(wrapped(net), [f"retrieval:{pairs}"])
    assert {k: v.value for k, v in told.metrics.items()} == {k: v.value for k, v in expected.metrics.items()}
    with pytest.raises(RecipeError, match="holds no parameters to train; wrap it with module="):
        modalign.refine(model, pairs, out=tmp_path / "run", silent=True, data__batch_size=4)
