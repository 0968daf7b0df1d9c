from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from modalign import methods
from modalign import recipe as recipes
from modalign.embeddings import Embeddings
from modalign.models import DualEncoder
from modalign.training import blocks, boundary, scope
from tests.training.families import MAKERS, inputs

METHOD = methods.from_config({"name": "contrastive"})
ROWS = 5


def gradients(model: DualEncoder, checkpointed: bool, chunk: int | None) -> tuple[dict[str, Tensor], int, int]:
    """Every gradient, how often the innards of the image tower's blocks ran, and the bytes kept for the backward."""
    found = scope.choose(model, METHOD, recipes.load(None, gradient_checkpointing=checkpointed))
    pixels, tokens = inputs(model, ROWS)
    sides = {
        "image": boundary.Side(model.encode_image, found.parameters["image"], pixels),
        "text": boundary.Side(model.encode_text, found.parameters["text"], tokens),
    }
    rest = Embeddings(image_ids=torch.arange(ROWS), caption_ids=torch.arange(ROWS), logit_scale=20.0)
    told = blocks.find(model, "image")
    assert told is not None
    calls, kept = [], []
    inner = next(module for module in blocks.modules(model, told)[0].modules() if not list(module.children()))
    handle = inner.register_forward_hook(lambda *_: calls.append(1))
    with found.training(), torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, lambda t: t):
        boundary.backward(sides, rest, slice(0, ROWS), METHOD, 0.5, chunk=chunk)
    handle.remove()
    found_gradients = {name: p.grad for name, p in found.trained.items() if p.grad is not None}
    model.module.zero_grad(set_to_none=True)
    return found_gradients, len(calls), sum(kept)


@pytest.mark.parametrize("family", list(MAKERS))
def test_blocks_run_again_in_the_backward_pass_keep_less_and_give_the_same_bits(
    family: str, loaded: Callable[[str], DualEncoder]
) -> None:
    model = loaded(family)
    plain, once, kept = gradients(model, False, None)
    recomputed, twice, less = gradients(model, True, None)
    assert twice == 2 * once  # though the towers are in eval()
    assert less < kept
    assert plain.keys() == recomputed.keys()
    assert all(torch.equal(plain[name], recomputed[name]) for name in plain)


def test_chunks_and_recomputed_blocks_together_give_the_gradient_of_the_whole(
    loaded: Callable[[str], DualEncoder],
) -> None:
    model = loaded("open_clip").to("cpu", torch.float64)
    whole, *_ = gradients(model, False, None)
    both, *_ = gradients(model, True, 2)
    for name, gradient in whole.items():
        assert torch.linalg.norm(both[name] - gradient) <= 1e-12 + 1e-10 * torch.linalg.norm(gradient)


def test_the_model_is_as_before_afterwards(loaded: Callable[[str], DualEncoder]) -> None:
    model = loaded("hf_clip")
    gradients(model, True, None)
    assert all("forward" not in vars(module) for module in model.module.modules())
