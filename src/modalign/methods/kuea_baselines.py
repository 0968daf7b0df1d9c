"""The methods KUEA is compared with in its Table 1: a fitted map, a joint linear map, and distillation with heads.

All three are fitted to the stored features of the training set before the first step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from modalign.embeddings import Embeddings
from modalign.methods.base import Method
from modalign.methods.terms import present, require_weights
from modalign.objectives import feature_anchor
from modalign.objectives.adaptors import fit_linear_map, head_match, linear_match, mean_and_std
from modalign.objectives.validation import require_range


class FittedToTarget(Method):
    """Base: reads the initial image features and the target's, and is fitted to both before the first step."""

    @property
    def needs(self) -> frozenset[str]:
        """The initial image features and the target's."""
        return frozenset({"frozen_image", "target"})

    @property
    def needs_fit(self) -> bool:
        """Always: the maps, or the heads and their statistics, follow from the features."""
        return True


@dataclass(kw_only=True)
class Projection(FittedToTarget):
    """The target encoder and a linear map into CLIP's space stand in for the image tower; nothing is trained.

        W = argmin Σ_i ‖W g_i − f_i‖² + ridge·‖W‖²,   and W g is the image feature

    Args:
        ridge: in units of Σ_i g_i²; 0 is least squares (paper).

    Source: KUEA, arXiv 2506.02557, Table 1.
    """

    name: ClassVar[str] = "projection"
    towers = frozenset()

    ridge: float = 0.0

    def __post_init__(self) -> None:
        require_range("ridge", self.ridge, 0)
        self._map = LinearMap(learn=False)

    def fit(self, features: Mapping[str, Tensor]) -> None:
        """Fits W to all training pictures."""
        self._map.set(_least_squares(features, self.ridge))

    def module(self) -> nn.Module:
        """W as buffer "weight", d×d_t."""
        return self._map

    def stand_in(self, target: Tensor) -> Tensor:
        """W g, N×d."""
        return target @ self._map.fitting(target).to(target).T

    def terms(self, embeddings: Embeddings, progress: float) -> dict[str, Tensor]:
        """None: there is no step to take."""
        return {}


@dataclass(kw_only=True)
class FeatureMatching(FittedToTarget):
    """The image tower and a linear map of the target's features move towards each other.

        L = feature_weight·(1/N) Σ_i ‖x_i − W g_i‖² + anchor_weight·(1/N) Σ_i ‖x_i − f_i‖²

    W trains with the tower and starts at its least-squares fit to the initial features.

    Args:
        feature_weight: (paper: 1).
        anchor_weight: (paper: 1).

    Source: KUEA, arXiv 2506.02557, Table 1, "feature".
    """

    name: ClassVar[str] = "feature"
    towers = frozenset({"image"})

    feature_weight: float = 1.0
    anchor_weight: float = 1.0

    def __post_init__(self) -> None:
        require_range("feature_weight", self.feature_weight, 0, open_low=True)
        require_range("anchor_weight", self.anchor_weight, 0)
        self._map = LinearMap(learn=True)

    def fit(self, features: Mapping[str, Tensor]) -> None:
        """Starts W at its least-squares fit to all training pictures."""
        self._map.set(_least_squares(features))

    def module(self) -> nn.Module:
        """W as parameter "weight", d×d_t."""
        return self._map

    def terms(self, embeddings: Embeddings, progress: float) -> dict[str, Tensor]:
        """The terms "feature" and, if it has a weight, "anchor"."""
        image, frozen, target = present(embeddings, "image", "frozen_image", "target")
        terms = {"feature": self.feature_weight * linear_match(image, target, self._map.fitting(target))}
        if self.anchor_weight:
            terms["anchor"] = self.anchor_weight * feature_anchor(image, frozen)
        return terms


@dataclass(kw_only=True)
class AmRadio(FittedToTarget):
    """One image tower from two teachers, each matched by an adaptor head of its own (AM-RADIO-style distillation).

        L = Σ_k weight_k · mean_i [0.9·(1 − cos(h_k(x_i), y_ki)) + 0.1·smooth-L1(h_k(x_i), y_ki)]

    Teachers are the model's own initial image tower ("clip") and the target, their features y_k standardised per
    dimension over the training set. h_k is Linear–GELU–Linear, as wide inside as x. What is evaluated and shipped is
    the tower's own feature x: the heads are left behind, and nothing but the clip head holds x in the texts' space.

    Args:
        clip_weight: of the initial image tower (paper: all teachers weigh the same).
        target_weight: of the target.

    Source: AM-RADIO, arXiv 2312.06709, as compared with in KUEA, arXiv 2506.02557, Table 1.
    """

    name: ClassVar[str] = "am-radio"
    towers = frozenset({"image"})

    clip_weight: float = 1.0
    target_weight: float = 1.0

    def __post_init__(self) -> None:
        require_weights(clip_weight=self.clip_weight, target_weight=self.target_weight)
        self._seed = torch.initial_seed()  # the heads are made once widths are known, from the seed of this moment
        self._heads = nn.ModuleDict({"clip": Head(1, 1), "target": Head(1, 1)})

    def fit(self, features: Mapping[str, Tensor]) -> None:
        """Makes the heads and stores the teachers' mean and standard deviation per dimension."""
        student = features["frozen_image"]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed)
            for name, teacher in (("clip", student), ("target", features["target"])):
                head = Head(student.shape[1], teacher.shape[1]).to(wide(student))
                head.mean, head.std = (value.to(head.mean) for value in mean_and_std(teacher))
                self._heads[name] = head

    def module(self) -> nn.Module:
        """The heads "clip" and "target" with their teachers' statistics."""
        return self._heads

    def _head(self, name: str) -> Head:
        head = self._heads[name]
        assert isinstance(head, Head)
        return head

    def terms(self, embeddings: Embeddings, progress: float) -> dict[str, Tensor]:
        """Those of "clip" and "target" that have a weight above 0."""
        image, frozen, target = present(embeddings, "image", "frozen_image", "target")
        terms: dict[str, Tensor] = {}
        for name, weight, teacher in (("clip", self.clip_weight, frozen), ("target", self.target_weight, target)):
            if weight:
                head = self._head(name)
                terms[name] = weight * head_match(head(image), head.standardised(teacher))
        return terms


def wide(features: Tensor) -> torch.dtype:
    """float32, or the features' own type where that is wider."""
    return torch.promote_types(features.dtype, torch.float32)


def _least_squares(features: Mapping[str, Tensor], ridge: float = 0.0) -> Tensor:
    frozen, target = features["frozen_image"], features["target"]
    return fit_linear_map(target, frozen, ridge).to(wide(frozen))


class LinearMap(nn.Module):
    """W, d×d_t; empty until it is set.

    Args:
        learn: a parameter; False makes W a buffer.
    """

    weight: Tensor

    def __init__(self, learn: bool) -> None:
        super().__init__()
        if learn:
            self.weight = nn.Parameter(torch.empty(0, 0))
        else:
            self.register_buffer("weight", torch.empty(0, 0))

    def set(self, weight: Tensor) -> None:
        """Takes over a fitted W."""
        self.weight.data = weight

    def fitting(self, target: Tensor) -> Tensor:
        """W, for features of this width.

        Raises:
            RuntimeError: not set yet, or to features of another width.
        """
        if self.weight.shape[1] != target.shape[1]:
            raise RuntimeError(
                f"the linear map takes features of width {self.weight.shape[1]}, not {target.shape[1]}; "
                "call fit() with the training set's frozen_image and target first"
            )
        return self.weight


class Head(nn.Module):
    """Two linear layers with a GELU between, and the statistics of the teacher they are to match.

    Args:
        student: width of the student's features, and of the hidden layer.
        teacher: width of the teacher's.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, student: int, teacher: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(student, student), nn.GELU(), nn.Linear(student, teacher))
        self.register_buffer("mean", torch.zeros(teacher))
        self.register_buffer("std", torch.ones(teacher))

    def forward(self, features: Tensor) -> Tensor:
        """N×student → N×teacher."""
        first = self.layers[0]
        assert isinstance(first, nn.Linear)
        if first.in_features != features.shape[1]:
            raise RuntimeError(
                f"the head takes features of width {first.in_features}, not {features.shape[1]}; "
                "call fit() with the training set's frozen_image and target first"
            )
        predicted: Tensor = self.layers(features.to(first.weight.dtype))
        return predicted

    def standardised(self, teacher: Tensor) -> Tensor:
        """(y − mean) / std per dimension, N×teacher."""
        return (teacher - self.mean) / self.std
