from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from modalign.embeddings import Embeddings
from modalign.methods import (
    ClipRefine,
    Combine,
    Contrastive,
    GeodesicMix,
    HybridDistillation,
    Method,
    RandomFeatureAlignment,
)
from tests.methods.batches import batch, drawn


@dataclass
class ImageOnly(Method):
    """A method with its own parameter that trains one tower."""

    name: ClassVar[str] = "image-only"
    towers: ClassVar[frozenset[str]] = frozenset({"image"})

    def __post_init__(self) -> None:
        self.head = nn.Linear(8, 1, dtype=torch.float64)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"target"})

    def module(self) -> nn.Module:
        return self.head

    def terms(self, embeddings: Embeddings, progress: float) -> dict[str, Tensor]:
        assert not embeddings.draws
        return {"head": self.head(embeddings.image).mean()}


def test_terms_are_those_of_the_parts_under_their_own_names() -> None:
    parts = [RandomFeatureAlignment(), HybridDistillation()]
    combined = Combine(parts)
    embeddings = drawn(combined, batch())
    # The first method draws what it draws alone: Combine([rafa, hycd]) is clip-refine, number for number.
    whole = ClipRefine().terms(drawn(ClipRefine(), batch()), 1.0)
    assert combined.terms(embeddings, 1.0) == whole


def test_colliding_names_are_prefixed_and_only_those() -> None:
    combined = Combine([ClipRefine(contrastive=1), GeodesicMix(), GeodesicMix()])
    terms = combined.terms(drawn(combined, batch()), 1.0)
    assert list(terms) == [
        "rafa",
        "hycd",
        "clip-refine.contrastive",
        "m2-mix.contrastive",
        "m2-mix.m2_mix",
        "m2-mix#2.contrastive",
        "m2-mix#2.m2_mix",
    ]
    assert terms["m2-mix.m2_mix"].item() != terms["m2-mix#2.m2_mix"].item()  # each has its own λ


def test_needs_towers_modules_and_fit_are_joined() -> None:
    image_only, fitted = ImageOnly(), RandomFeatureAlignment(prior="fitted")
    combined = Combine([HybridDistillation(), image_only, fitted])
    assert combined.needs == {"frozen_image", "frozen_text", "target"}
    assert combined.towers == {"image"}
    assert combined.needs_fit and not Combine([Contrastive(), image_only]).needs_fit
    combined.fit({"frozen_image": torch.randn(20, 8), "frozen_text": torch.randn(20, 8)})
    embeddings = drawn(combined, replace(batch(), target=torch.randn(6, 3)))
    sum(combined.terms(embeddings, 1.0).values()).backward()
    assert image_only.head.weight.grad is not None
    assert [id(p) for p in combined.module().parameters()] == [id(p) for p in image_only.head.parameters()]
    assert Combine([Contrastive()]).module() is None


def test_effective_scale_comes_from_the_part_that_distils() -> None:
    part = HybridDistillation(features="unit", temperature=2)
    assert Combine([Contrastive(), part]).effective_logit_scale(batch()) == 10.0
    assert Combine([Contrastive()]).effective_logit_scale(batch()) is None


def test_combinations_of_nothing_or_of_disjoint_towers_are_refused() -> None:
    with pytest.raises(ValueError, match="combine at least one"):
        Combine([])

    @dataclass
    class TextOnly(ImageOnly):
        name: ClassVar[str] = "text-only"
        towers: ClassVar[frozenset[str]] = frozenset({"text"})

    with pytest.raises(ValueError, match="image-only, text-only share no tower"):
        Combine([ImageOnly(), TextOnly()])
