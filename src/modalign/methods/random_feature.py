"""Random Feature Alignment alone, and the prior that CLIP-Refine shares with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from modalign.embeddings import Embeddings
from modalign.methods.base import Method
from modalign.methods.drawing import generator
from modalign.methods.terms import present, require_weights
from modalign.objectives import random_feature_alignment
from modalign.objectives.random_feature import REDUCTIONS, draw_normal, draw_point, draw_uniform, fit_prior
from modalign.objectives.validation import require_choice, require_range


@dataclass(kw_only=True)
class RandomFeatureAlignment(Method):
    """Pulls both features of each pair to one random vector, drawn afresh at every step.

        L = rafa · decay(progress) · RaFA(I, T, z)

    The prior's fields, `reduction` and the defaults are those of the released recipe; low and high are ours.

    Args:
        rafa: the weight (paper: 1, for reduction "mean").
        reduction: "mean" over rows and dimensions, or "paper" (½ mean over rows; d/2 times as large).
        decay: "none", or "linear": the weight times 1 − step/steps, step counted from 1.
        prior: "normal" N(mean, std²); "uniform" U[low, high); "fitted": N(m_j, s_j²) per dimension, of the initial
            model's features of the training set; "point": one constant vector.
        mean: of "normal" and of a constant "point".
        std: of "normal"; 0 makes z the mean.
        low: of "uniform".
        high: of "uniform".
        point: what "point" is: "constant" = `mean` in every dimension, or "fitted" = the features' mean.
        shared: one vector for both features of a pair; False draws one per modality (the paper's ablation).

    Source: CLIP-Refine, arXiv 2504.12717.
    """

    name: ClassVar[str] = "rafa"
    aligning_terms = ("rafa",)

    rafa: float = 1.0
    reduction: Literal["mean", "paper"] = "mean"
    decay: Literal["none", "linear"] = "none"
    prior: Literal["normal", "uniform", "fitted", "point"] = "normal"
    mean: float = 0.0
    std: float = 1.0
    low: float = -1.0
    high: float = 1.0
    point: Literal["constant", "fitted"] = "constant"
    shared: bool = True

    def __post_init__(self) -> None:
        self._check_weights()
        require_choice("reduction", self.reduction, REDUCTIONS)
        require_choice("decay", self.decay, ("none", "linear"))
        require_choice("prior", self.prior, ("normal", "uniform", "fitted", "point"))
        require_choice("point", self.point, ("constant", "fitted"))
        require_range("mean", self.mean, -float("inf"))
        require_range("std", self.std, 0)
        require_range("low", self.low, -float("inf"))
        require_range("high", self.high, self.low)
        self._fitted = FittedPrior() if self.needs_fit else None

    def _check_weights(self) -> None:
        require_weights(rafa=self.rafa)

    @property
    def needs_fit(self) -> bool:
        """True for a prior that is fitted to the initial model's features."""
        return self.rafa > 0 and (self.prior == "fitted" or (self.prior == "point" and self.point == "fitted"))

    def fit(self, features: Mapping[str, Tensor]) -> None:
        """Fits the prior's mean and standard deviation per dimension (both modalities weigh the same)."""
        if self._fitted is not None:
            mean, std = fit_prior(features["frozen_image"], features["frozen_text"], self.shared)
            self._fitted.mean, self._fitted.std = mean.to(self._fitted.mean), std.to(self._fitted.std)

    def module(self) -> nn.Module | None:
        """The fitted prior's buffers, if there is one."""
        return self._fitted

    def draw(self, seed: int, step: int, rows: int, dim: int) -> dict[str, Tensor]:
        """z as "reference", or as "image_reference" and "text_reference" when it is not shared."""
        if self.rafa == 0:
            return {}
        if self.shared:
            return {"reference": self._reference(generator(seed, step, "rafa"), rows, dim, 0)}
        return {
            f"{side}_reference": self._reference(generator(seed, step, f"rafa {side}"), rows, dim, row)
            for row, side in enumerate(("image", "text"))
        }

    def _reference(self, source: torch.Generator, rows: int, dim: int, modality: int) -> Tensor:
        if self.prior == "uniform":
            return draw_uniform(rows, dim, source, self.low, self.high)
        mean: float | Tensor = self.mean
        std: float | Tensor = self.std
        if self._fitted is not None:
            mean, std = self._fitted.of(modality, dim)
        return draw_point(rows, dim, mean) if self.prior == "point" else draw_normal(rows, dim, source, mean, std)

    def terms(self, embeddings: Embeddings, progress: float) -> dict[str, Tensor]:
        """The term "rafa"."""
        return {"rafa": self._random_feature_term(embeddings, progress)}

    def _random_feature_term(self, embeddings: Embeddings, progress: float) -> Tensor:
        image, text = present(embeddings, "image", "text")
        names = ("reference",) if self.shared else ("image_reference", "text_reference")
        missing = [name for name in names if name not in embeddings.draws]
        if missing:
            raise ValueError(f"the batch has no draws {', '.join(missing)}; pass draws=method.draw(seed, step, B, d)")
        drawn = tuple(embeddings.draws[name].to(image.device) for name in names)
        reference = drawn[0] if self.shared else (drawn[0], drawn[1])
        # Where the decay reaches 0, at the very last step, the term stays: every step logs the same terms.
        weight = self.rafa * (1 - progress if self.decay == "linear" else 1)
        return weight * random_feature_alignment(image, text, reference, self.reduction)


class FittedPrior(nn.Module):
    """The mean and standard deviation of each dimension; checkpointed like any buffer, empty until fitted.

    Attributes:
        mean: 1×d, or 2×d for one prior per modality (image, text).
        std: the same shape.
    """

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.empty(0))
        self.register_buffer("std", torch.empty(0))

    def of(self, modality: int, dim: int) -> tuple[Tensor, Tensor]:
        """The d means and d standard deviations of one modality (0 image, 1 text), on CPU.

        Raises:
            RuntimeError: not fitted yet, or fitted to features of another width.
        """
        if self.mean.shape[-1] != dim:
            raise RuntimeError(
                f"the prior is fitted to {self.mean.shape[-1]} dimensions, not {dim}; "
                "call fit() with the initial model's frozen_image and frozen_text first"
            )
        row = min(modality, len(self.mean) - 1)
        return self.mean[row].cpu(), self.std[row].cpu()

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        # A resumed run loads the prior without fitting it first, so the sizes come from the checkpoint.
        for name in ("mean", "std"):
            if prefix + name in state_dict:
                setattr(self, name, torch.empty_like(state_dict[prefix + name], device=self.mean.device))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
