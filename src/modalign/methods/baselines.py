"""The methods CLIP-Refine is compared with, from the same objectives.

Pairs of a batch that share a picture or a caption are positives of each other in all of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from modalign.embeddings import Embeddings
from modalign.methods.base import Method
from modalign.methods.drawing import generator
from modalign.methods.terms import distillation_sharpness, distillation_term, present, require_weights
from modalign.objectives import contrastive, geodesic_contrastive, sigmoid_contrastive, squared_pair_distance
from modalign.objectives.distillation import FEATURES
from modalign.objectives.validation import require_choice, require_range


@dataclass(kw_only=True)
class Contrastive(Method):
    """Contrastive fine-tuning: symmetric InfoNCE at the model's logit scale.

    On a model with a logit bias (SigLIP) the softmax over a row does not see it: what it adds cancels.

    Args:
        contrastive: the weight.

    Source: CLIP, arXiv 2103.00020.
    """

    name: ClassVar[str] = "contrastive"

    contrastive: float = 1.0

    def __post_init__(self) -> None:
        require_weights(contrastive=self.contrastive)

    def terms(self, embeddings: Embeddings, progress: float) -> dict[str, Tensor]:
        """The term "contrastive"."""
        image, text = present(embeddings, "image", "text")
        loss = contrastive(image, text, embeddings.logit_scale, embeddings.positives)
        return {"contrastive": self.contrastive * loss}


@dataclass(kw_only=True)
class Sigmoid(Method):
    """Sigmoid contrastive fine-tuning: SigLIP's own loss at the model's logit scale and logit bias.

    A model without a logit bias (CLIP) is refused: at its scale near 100 and a bias of 0 every negative pair would
    start at a probability near 1.

    Args:
        sigmoid: the weight.

    Source: SigLIP, arXiv 2303.15343.
    """

    name: ClassVar[str] = "sigmoid"
    needs_logit_bias = True

    sigmoid: float = 1.0

    def __post_init__(self) -> None:
        require_weights(sigmoid=self.sigmoid)

    def terms(self, embeddings: Embeddings, progress: float) -> dict[str, Tensor]:
        """The term "sigmoid"."""
        image, text = present(embeddings, "image", "text")
        bias = embeddings.logit_bias
        if bias is None:
            raise ValueError("the batch has no logit_bias; give Embeddings the model's, or use contrastive")
        loss = sigmoid_contrastive(image, text, embeddings.logit_scale, bias, embeddings.positives)
        return {"sigmoid": self.sigmoid * loss}


@dataclass(kw_only=True)
class SelfDistillation(Method):
    """Self-distillation: hybrid distillation with α = 0, the initial model's similarities alone.

    Args:
        self_kd: the weight (paper: 1).
        temperature: τ (released recipe: 1).
        features: "raw" inner products (released recipe), or "unit": the logit scale times cosines.

    Source: CLIP-Refine, arXiv 2504.12717, its baseline "self-KD".
    """

    name: ClassVar[str] = "self-kd"

    self_kd: float = 1.0
    temperature: float = 1.0
    features: Literal["raw", "unit"] = "raw"

    def __post_init__(self) -> None:
        require_weights(self_kd=self.self_kd)
        require_range("temperature", self.temperature, 0, open_low=True)
        require_choice("features", self.features, FEATURES)

    @property
    def needs(self) -> frozenset[str]:
        """The initial model's features."""
        return frozenset({"frozen_image", "frozen_text"})

    def effective_logit_scale(self, embeddings: Embeddings) -> float | None:
        """How sharp the distillation is on this batch."""
        return distillation_sharpness(embeddings, self.temperature, self.features)

    def terms(self, embeddings: Embeddings, progress: float) -> dict[str, Tensor]:
        """The term "self_kd"."""
        return {"self_kd": self.self_kd * distillation_term(embeddings, 0.0, self.temperature, self.features, None)}


@dataclass(kw_only=True)
class HybridDistillation(Method):
    """Hybrid contrastive distillation alone (HyCD): CLIP-Refine without random vectors.

    Args:
        hycd: the weight (paper: 1).
        alpha: share of the true pairs in the target (paper: 0.5).
        temperature: τ (released recipe: 1).
        features: "raw" inner products (released recipe), or "unit": the logit scale times cosines, for models
            whose raw norms are not near CLIP's 10 (SigLIP, whose logit bias cancels in the softmax).

    Source: CLIP-Refine, arXiv 2504.12717, its ablation "HyCD".
    """

    name: ClassVar[str] = "hycd"

    hycd: float = 1.0
    alpha: float = 0.5
    temperature: float = 1.0
    features: Literal["raw", "unit"] = "raw"

    def __post_init__(self) -> None:
        require_weights(hycd=self.hycd)
        require_range("alpha", self.alpha, 0, 1)
        require_range("temperature", self.temperature, 0, open_low=True)
        require_choice("features", self.features, FEATURES)

    @property
    def needs(self) -> frozenset[str]:
        """The initial model's features."""
        return frozenset({"frozen_image", "frozen_text"})

    def effective_logit_scale(self, embeddings: Embeddings) -> float | None:
        """How sharp the distillation is on this batch."""
        return distillation_sharpness(embeddings, self.temperature, self.features)

    def terms(self, embeddings: Embeddings, progress: float) -> dict[str, Tensor]:
        """The term "hycd"."""
        loss = distillation_term(embeddings, self.alpha, self.temperature, self.features, embeddings.positives)
        return {"hycd": self.hycd * loss}


@dataclass(kw_only=True)
class HybridDistillationPairPull(HybridDistillation):
    """HyCD with pairs pulled straight together, where CLIP-Refine pulls both to a random vector.

    Args:
        pair_pull: weight of mean‖x_i − t_i‖² on unit features (paper's ablation: 1). The others are
            `HybridDistillation`'s.

    Source: CLIP-Refine, arXiv 2504.12717, its ablation "HyCD + E‖I − T‖²".
    """

    name: ClassVar[str] = "hycd-pair-pull"
    aligning_terms = ("pair_pull",)

    pair_pull: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("pair_pull", self.pair_pull, 0, open_low=True)

    def terms(self, embeddings: Embeddings, progress: float) -> dict[str, Tensor]:
        """The terms "hycd" and "pair_pull"."""
        image, text = present(embeddings, "image", "text")
        pull = self.pair_pull * squared_pair_distance(image, text)
        return {**super().terms(embeddings, progress), "pair_pull": pull}


@dataclass(kw_only=True)
class GeodesicMix(Method):
    """m²-mix beside InfoNCE: mixtures of other pairs as hard negatives, λ ~ Beta(½, ½) anew for every batch.

        L = contrastive·InfoNCE + m2_mix·m²-mix, both at one fixed logit scale

    Args:
        m2_mix: weight of the mixtures (paper: 0.001 to 0.05; 0.01 is our choice inside that range).
        contrastive: weight of InfoNCE (paper: 1).
        logit_scale: fixed (paper: 100); the model's own is not used.

    Source: m²-mix, arXiv 2203.03897.
    """

    name: ClassVar[str] = "m2-mix"
    aligning_terms = ("m2_mix",)

    m2_mix: float = 0.01
    contrastive: float = 1.0
    logit_scale: float = 100.0

    def __post_init__(self) -> None:
        require_weights(m2_mix=self.m2_mix, contrastive=self.contrastive)
        require_range("logit_scale", self.logit_scale, 0, open_low=True)

    def draw(self, seed: int, step: int, rows: int, dim: int) -> dict[str, Tensor]:
        """λ as "mixing", one number."""
        if not self.m2_mix:
            return {}
        # Beta(½, ½) is the arcsine law: sin² of a uniform angle.
        return {"mixing": (torch.rand((), generator=generator(seed, step, "m2-mix")) * (math.pi / 2)).sin().square()}

    def terms(self, embeddings: Embeddings, progress: float) -> dict[str, Tensor]:
        """Those of "contrastive" and "m2_mix" that have a weight above 0."""
        image, text = present(embeddings, "image", "text")
        positives = embeddings.positives
        terms: dict[str, Tensor] = {}
        if self.contrastive:
            terms["contrastive"] = self.contrastive * contrastive(image, text, self.logit_scale, positives)
        if self.m2_mix:
            if "mixing" not in embeddings.draws:
                raise ValueError("the batch has no draw mixing; pass draws=method.draw(seed, step, B, d)")
            mixing = embeddings.draws["mixing"].to(image.device)
            loss = geodesic_contrastive(image, text, mixing, self.logit_scale, positives)
            terms["m2_mix"] = self.m2_mix * loss
        return terms
