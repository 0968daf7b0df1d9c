"""The methods TPC-CMA is compared with: contrastive fine-tuning beside one more term.

Pairs of a batch that share a picture or a caption are positives of each other in the contrastive term of all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from modalign.embeddings import Embeddings, unit
from modalign.methods.base import Method
from modalign.methods.terms import present, require_weights
from modalign.objectives import (
    cauchy_schwarz,
    centroid_uniformity,
    contrastive,
    cross_modal_consistency,
    cross_modal_uniformity,
    in_modal_consistency,
    in_modal_uniformity,
    intra_modal_separation,
    squared_pair_distance,
)

Terms = Mapping[str, Callable[[], Tensor]]


@dataclass(kw_only=True)
class ContrastiveBeside(Method):
    """Base: contrastive·InfoNCE + the subclass's own terms, each with the weight of its name.

    Args:
        contrastive: weight of InfoNCE at the model's logit scale.
    """

    contrastive: float = 1.0

    def __post_init__(self) -> None:
        require_weights(contrastive=self.contrastive, **{name: getattr(self, name) for name in self.aligning_terms})

    def own_terms(self, embeddings: Embeddings, progress: float) -> Terms:
        """The terms beside the contrastive one, unweighted; those with a weight above 0 are called."""
        raise NotImplementedError(f"{type(self).__name__} does not define own_terms()")

    def terms(self, embeddings: Embeddings, progress: float) -> dict[str, Tensor]:
        """The term "contrastive" and the method's own, those with a weight above 0."""
        image, text = present(embeddings, "image", "text")
        terms: dict[str, Tensor] = {}
        if self.contrastive:
            loss = contrastive(image, text, embeddings.logit_scale, embeddings.positives)
            terms["contrastive"] = self.contrastive * loss
        for name, term in self.own_terms(embeddings, progress).items():
            if weight := getattr(self, name):
                terms[name] = weight * term()
        return terms


@dataclass(kw_only=True)
class AlignClip(ContrastiveBeside):
    """Intra-modal separation beside InfoNCE: pictures of different content are negatives of each other too.

    How alike two captions are is asked of the initial text tower, which stands for the paper's frozen sentence encoder.
    The paper also shares one tower between the modalities; a model that exists already keeps its own.

    Args:
        intra_modal: weight of the separation (paper: ½).
        contrastive: weight of InfoNCE (paper: 1).

    Source: AlignCLIP, arXiv 2406.17639.
    """

    name: ClassVar[str] = "align-clip"
    aligning_terms = ("intra_modal",)

    intra_modal: float = 0.5

    @property
    def needs(self) -> frozenset[str]:
        """The initial text features."""
        return frozenset({"frozen_text"})

    def own_terms(self, embeddings: Embeddings, progress: float) -> Terms:
        """The term "intra_modal"."""
        image, text, semantic = present(embeddings, "image", "text", "frozen_text")
        return {"intra_modal": lambda: intra_modal_separation(image, text, semantic, embeddings.logit_scale)}


@dataclass(kw_only=True)
class CsAligner(ContrastiveBeside):
    """The Cauchy–Schwarz divergence of both clouds of unit features beside InfoNCE.

    Args:
        cauchy_schwarz: weight of the divergence, under a Gaussian kernel of the median distance.
        contrastive: weight of InfoNCE, which carries the pairs' mutual information.

    Source: CS-Aligner, arXiv 2502.17028; its weights of 1 are this library's.
    """

    name: ClassVar[str] = "cs-aligner"
    fewest_rows = 2
    aligning_terms = ("cauchy_schwarz",)

    cauchy_schwarz: float = 1.0

    def own_terms(self, embeddings: Embeddings, progress: float) -> Terms:
        """The term "cauchy_schwarz"."""
        image, text = present(embeddings, "image", "text")
        return {"cauchy_schwarz": lambda: cauchy_schwarz(unit(image), unit(text))}


@dataclass(kw_only=True)
class CyClip(ContrastiveBeside):
    """Consistent similarities inside and across the modalities beside InfoNCE.

    Args:
        in_modal: weight of (x_i·x_j − t_i·t_j)² (paper: ¼).
        cross_modal: weight of (x_i·t_j − x_j·t_i)² (paper: ¼).
        contrastive: weight of InfoNCE (paper: 1).

    Source: CyCLIP, arXiv 2205.14459.
    """

    name: ClassVar[str] = "cyclip"
    aligning_terms = ("in_modal", "cross_modal")

    in_modal: float = 0.25
    cross_modal: float = 0.25

    def own_terms(self, embeddings: Embeddings, progress: float) -> Terms:
        """The terms "in_modal" and "cross_modal"."""
        image, text = present(embeddings, "image", "text")
        return {
            "in_modal": lambda: in_modal_consistency(image, text),
            "cross_modal": lambda: cross_modal_consistency(image, text),
        }


@dataclass(kw_only=True)
class Cua(ContrastiveBeside):
    """Alignment and uniformity, inside and across the modalities, beside InfoNCE.

    Args:
        align: weight of mean‖x_i − t_i‖².
        uniformity: weight of the crowding inside each modality.
        cross_uniformity: weight of the crowding between pictures and others' captions.
        contrastive: weight of InfoNCE.

    Source: CUA, arXiv 2405.18570; equal weights.
    """

    name: ClassVar[str] = "cua"
    fewest_rows = 2
    aligning_terms = ("align", "uniformity", "cross_uniformity")

    align: float = 1.0
    uniformity: float = 1.0
    cross_uniformity: float = 1.0

    def own_terms(self, embeddings: Embeddings, progress: float) -> Terms:
        """The terms "align", "uniformity" and "cross_uniformity"."""
        image, text = present(embeddings, "image", "text")
        return {
            "align": lambda: squared_pair_distance(image, text),
            "uniformity": lambda: in_modal_uniformity(image, text),
            "cross_uniformity": lambda: cross_modal_uniformity(image, text),
        }


@dataclass(kw_only=True)
class ModGap(ContrastiveBeside):
    """True pairs pulled together while their midpoints keep apart; no contrastive term unless asked for.

        L = u(p)·mean‖x_i − t_i‖² + v(p)·log mean e^{−2‖c_i−c_j‖²}

    After a flat fifth of the steps u rises linearly from 1 to 2 and v falls from 1 to 0.

    Args:
        true_pair: multiplies u.
        centroid_uniformity: multiplies v.
        contrastive: weight of InfoNCE.

    Source: ModGap, arXiv 2601.18525; that the two ramps follow the order of its two terms is our reading.
    """

    name: ClassVar[str] = "modgap"
    fewest_rows = 2
    aligning_terms = ("true_pair", "centroid_uniformity")

    true_pair: float = 1.0
    centroid_uniformity: float = 1.0
    contrastive: float = 0.0

    def own_terms(self, embeddings: Embeddings, progress: float) -> Terms:
        """The terms "true_pair" and "centroid_uniformity"."""
        image, text = present(embeddings, "image", "text")
        risen = max(0.0, progress - 0.2) / 0.8
        return {
            "true_pair": lambda: (1 + risen) * squared_pair_distance(image, text),
            "centroid_uniformity": lambda: (1 - risen) * centroid_uniformity(image, text),
        }
