"""TPC-CMA: both parts of the modality gap closed along a three-phase curriculum (a reconstruction)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from modalign.embeddings import Embeddings, unit
from modalign.methods.drawing import generator
from modalign.methods.paced import Paced
from modalign.methods.terms import present
from modalign.objectives import (
    bures,
    cauchy_schwarz,
    centroid_gap,
    coral,
    distribution_gap,
    geometry_gap,
    mmd,
    reweighted_contrastive,
    sliced_wasserstein,
)
from modalign.objectives.full_precision import full_precision
from modalign.objectives.validation import require_choice, require_range

FORMS = ("cma", "centroid+divergence")
MIXES = ("convex", "additive")
DIVERGENCES = ("mmd", "coral", "bures", "sliced-wasserstein", "cauchy-schwarz")
DIRECTIONS = 256


@dataclass(kw_only=True)
class TpcCma(Paced):
    """Contrastive fine-tuning that closes the centroid and the distribution gap as α(t) rises to α_target.

        form "cma":                  L = (1−a)·L_rw + a·(centroid·L_C + distribution·L_D + geometry·L_geo)
        form "centroid+divergence":  L = (1−a)·L_nce + a·(centroid·L_C + divergence_weight·D(Px‖Pt)),   a = α(t)

    D is taken between the centred features of the batch. With mix="additive" the base term keeps its weight of 1. At
    a = 0 both are plain contrastive fine-tuning, bit for bit. Only the paper's abstract and two summaries could be
    read: where they are silent, formulas and constants are this library's.

    Args:
        form: which loss.
        mix: "convex" or "additive".
        centroid: weight of L_C, the squared centroid gap (form "cma" and "centroid+divergence").
        distribution: weight of L_D, the squared distribution gap (form "cma").
        geometry: weight of L_geo, the mismatch of both modalities' similarities (form "cma").
        centre_geometry: compare double-centred similarities in L_geo.
        sharpness: g, how fast a negative's weight falls with its likeness inside both modalities (form "cma"); 0 leaves
            every negative the weight 1.
        divergence: D: "mmd", "coral", "bures", "sliced-wasserstein" (256 directions drawn anew at every step) or
            "cauchy-schwarz" (form "centroid+divergence").
        divergence_weight: weight of D.
        alpha_target: α_target in [0, 1]: 0.05 is conservative, 0.5 strong. The other fields are `Paced`'s.

    Source: reconstruction of arXiv 2604.00279.
    """

    name: ClassVar[str] = "tpc-cma"
    fewest_rows = 2  # a mean of several pairs is taken
    aligning_terms = ("centroid", "distribution", "geometry", "divergence")

    form: Literal["cma", "centroid+divergence"] = "cma"
    mix: Literal["convex", "additive"] = "convex"
    centroid: float = 1.0
    distribution: float = 1.0
    geometry: float = 1.0
    centre_geometry: bool = False
    sharpness: float = 5.0
    divergence: Literal["mmd", "coral", "bures", "sliced-wasserstein", "cauchy-schwarz"] = "mmd"
    divergence_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("form", self.form, FORMS)
        require_choice("mix", self.mix, MIXES)
        require_choice("divergence", self.divergence, DIVERGENCES)
        for name in ("centroid", "distribution", "geometry", "sharpness", "divergence_weight"):
            require_range(name, getattr(self, name), 0)
        if not any(self._weights().values()):
            raise ValueError(
                f"every weight of form {self.form!r} ({', '.join(self._weights())}) is 0, so nothing is aligned; "
                "set one above 0, or alpha_target to 0 for contrastive fine-tuning alone"
            )

    def _weights(self) -> dict[str, float]:
        if self.form == "cma":
            return {"centroid": self.centroid, "distribution": self.distribution, "geometry": self.geometry}
        return {"centroid": self.centroid, "divergence": self.divergence_weight}

    def draw(self, seed: int, step: int, rows: int, dim: int) -> dict[str, Tensor]:
        """The lines of sliced Wasserstein as "directions", d×256."""
        if self.form == "cma" or self.divergence != "sliced-wasserstein" or not self.divergence_weight:
            return {}
        return {"directions": torch.randn(dim, DIRECTIONS, generator=generator(seed, step, "tpc-cma"))}

    def terms(self, embeddings: Embeddings, progress: float) -> dict[str, Tensor]:
        """The term "contrastive" and, where a > 0, those of "centroid", "distribution", "geometry", "divergence"."""
        strength = self.strength(embeddings, progress)
        terms = {"contrastive": self._base(embeddings, strength)}
        if strength == 0:
            return terms
        if self.mix == "convex":
            terms["contrastive"] = (1 - strength) * terms["contrastive"]
        return terms | {name: strength * term for name, term in self._aligning(embeddings).items()}

    def parts(self, embeddings: Embeddings, progress: float) -> tuple[Tensor | None, Tensor | None]:
        """The contrastive loss, and the weighted sum of what aligns."""
        base = self._base(embeddings, self.strength(embeddings, progress))
        return base, torch.stack(list(self._aligning(embeddings).values())).sum()

    def _base(self, embeddings: Embeddings, strength: float) -> Tensor:
        image, text = present(embeddings, "image", "text")
        if self.form != "cma" or self.sharpness == 0:
            strength = 0.0
        sharpness = self.sharpness or 1.0  # at strength 0 it has no effect
        return reweighted_contrastive(
            image, text, embeddings.logit_scale, strength, sharpness, positives=embeddings.positives
        )

    def _aligning(self, embeddings: Embeddings) -> dict[str, Tensor]:
        """The aligning terms by name, times their weights but not times α."""
        image, text = present(embeddings, "image", "text")
        found: dict[str, Tensor] = {}
        for name, weight in self._weights().items():
            if not weight:
                continue
            match name:
                case "centroid":
                    found[name] = weight * centroid_gap(image, text)
                case "distribution":
                    found[name] = weight * distribution_gap(image, text)
                case "geometry":
                    found[name] = weight * geometry_gap(image, text, self.centre_geometry)
                case _:
                    found[name] = weight * self._divergence(*_centred(image, text), embeddings)
        return found

    def _divergence(self, image: Tensor, text: Tensor, embeddings: Embeddings) -> Tensor:
        match self.divergence:
            case "mmd":
                return mmd(image, text)
            case "coral":
                return coral(image, text)
            case "bures":
                return bures(image, text)
            case "cauchy-schwarz":
                return cauchy_schwarz(image, text)
        if "directions" not in embeddings.draws:
            raise ValueError("the batch has no draw directions; pass draws=method.draw(seed, step, B, d)")
        return sliced_wasserstein(image, text, embeddings.draws["directions"].to(image))


@full_precision
def _centred(image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    """Unit features minus their batch mean."""
    image, text = unit(image), unit(text)
    return image - image.mean(0), text - text.mean(0)
