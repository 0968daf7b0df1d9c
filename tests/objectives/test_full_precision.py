from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from modalign.objectives import (
    contrastive,
    effective_logit_scale,
    feature_anchor,
    geodesic_contrastive,
    hybrid_distillation,
    kernel_alignment,
    random_feature_alignment,
    squared_pair_distance,
)
from modalign.objectives.kernels import PolynomialKernel

KERNEL = PolynomialKernel(0.1, 1.0)
OBJECTIVES: dict[str, Callable[..., Tensor]] = {
    "contrastive": lambda image, text, *_: contrastive(image, text, 100.0),
    "contrastive, half scale": lambda image, text, *_: contrastive(image, text, image.new_tensor(100.0)),
    "rafa": lambda image, text, z, _: random_feature_alignment(image, text, z),
    "rafa, not shared": lambda image, text, z, y: random_feature_alignment(image, text, (z, y)),
    "hycd": lambda image, text, z, y: hybrid_distillation(image, text, z, y),
    "hycd, unit": lambda image, text, z, y: hybrid_distillation(image, text, z, y, features="unit", logit_scale=100.0),
    "pair pull": lambda image, text, *_: squared_pair_distance(image, text),
    "m2-mix": lambda image, text, *_: geodesic_contrastive(image, text, image.new_tensor(0.25)),
    "kernel alignment": lambda image, text, *_: kernel_alignment(image, text, KERNEL, KERNEL),
    "kernel alignment, in blocks": lambda image, text, *_: kernel_alignment(image, text, KERNEL, KERNEL, block=2),
    "feature anchor": lambda image, _, z, __: feature_anchor(image, z),
    "effective scale": lambda image, text, *_: effective_logit_scale(image, text),
}


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES.keys())
def test_half_inputs_under_autocast_equal_float32_on_the_upcast_inputs(objective: Callable[..., Tensor]) -> None:
    generator = torch.Generator().manual_seed(0)
    half = [(3 * torch.randn(6, 16, generator=generator)).bfloat16().requires_grad_() for _ in range(4)]
    full = [value.detach().float().requires_grad_() for value in half]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = objective(*half)
    expected = objective(*full)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)
    loss.backward()
    expected.backward()
    for a, b in zip(half, full, strict=True):
        if b.grad is not None:
            assert a.grad is not None and a.grad.dtype == torch.bfloat16
            assert torch.equal(a.grad, b.grad.bfloat16())


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES.keys())
def test_float64_students_take_float32_constants_with_them(objective: Callable[..., Tensor]) -> None:
    generator = torch.Generator().manual_seed(0)
    image, text, z, y = (torch.randn(6, 16, generator=generator) for _ in range(4))
    loss = objective(image.double(), text.double(), z, y)
    assert loss.dtype == torch.float64
    assert torch.equal(loss, objective(image.double(), text.double(), z.double(), y.double()))
