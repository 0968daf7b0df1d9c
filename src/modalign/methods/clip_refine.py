"""CLIP-Refine: random feature alignment kept in check by hybrid contrastive distillation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from modalign.embeddings import Embeddings
from modalign.methods.random_feature import RandomFeatureAlignment
from modalign.methods.terms import distillation_sharpness, distillation_term, present, require_weights
from modalign.objectives import contrastive, squared_pair_distance
from modalign.objectives.distillation import FEATURES
from modalign.objectives.validation import require_choice, require_range


@dataclass(kw_only=True)
class ClipRefine(RandomFeatureAlignment):
    """Random vectors close the gap between the modalities while the initial model's similarities are distilled.

        L = rafa·RaFA + hycd·HyCD + contrastive·InfoNCE + pair_pull·mean‖x_i − t_i‖²

    The defaults are the published recipe. Pairs of a batch that share a picture or a caption are positives of each
    other. The fields of the prior, `reduction` and `decay` (of RaFA's weight) are `RandomFeatureAlignment`'s.

    Args:
        hycd: weight of hybrid distillation (paper: 1).
        contrastive: weight of InfoNCE at the model's logit scale (paper: 0).
        pair_pull: weight of pulling pairs together (0; 1 with rafa=0 is the paper's ablation).
        alpha: share of the true pairs in the distillation target (paper: 0.5).
        temperature: of the distillation (released recipe: 1).
        features: "raw" inner products (released recipe), or "unit": the logit scale times cosines, for models
            whose raw norms are not near CLIP's 10 (SigLIP, whose logit bias cancels in the softmax).

    Source: CLIP-Refine, arXiv 2504.12717.
    """

    name: ClassVar[str] = "clip-refine"

    hycd: float = 1.0
    contrastive: float = 0.0
    pair_pull: float = 0.0
    alpha: float = 0.5
    temperature: float = 1.0
    features: Literal["raw", "unit"] = "raw"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("alpha", self.alpha, 0, 1)
        require_range("temperature", self.temperature, 0, open_low=True)
        require_choice("features", self.features, FEATURES)

    def _check_weights(self) -> None:
        require_weights(rafa=self.rafa, hycd=self.hycd, contrastive=self.contrastive, pair_pull=self.pair_pull)

    @property
    def needs(self) -> frozenset[str]:
        """The initial model's features, unless distillation has weight 0."""
        return frozenset({"frozen_image", "frozen_text"} if self.hycd else ())

    def effective_logit_scale(self, embeddings: Embeddings) -> float | None:
        """How sharp the distillation is on this batch; None when it has weight 0."""
        return distillation_sharpness(embeddings, self.temperature, self.features) if self.hycd else None

    def terms(self, embeddings: Embeddings, progress: float) -> dict[str, Tensor]:
        """Those of "rafa", "hycd", "contrastive", "pair_pull" that have a weight above 0."""
        image, text = present(embeddings, "image", "text")
        positives = embeddings.positives if self.hycd or self.contrastive else None
        terms: dict[str, Tensor] = {}
        if self.rafa:
            terms["rafa"] = self._random_feature_term(embeddings, progress)
        if self.hycd:
            terms["hycd"] = self.hycd * distillation_term(
                embeddings, self.alpha, self.temperature, self.features, positives
            )
        if self.contrastive:
            terms["contrastive"] = self.contrastive * contrastive(image, text, embeddings.logit_scale, positives)
        if self.pair_pull:
            terms["pair_pull"] = self.pair_pull * squared_pair_distance(image, text)
        return terms
