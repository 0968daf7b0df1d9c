"""`modalign contrast`: how a model and a vision-only network disagree, in numbers and in pictures.

Before a run it helps to choose a target: whatever it can teach is in the pairs that it tells apart and the model does
not. After one, the same pairs show whether they came apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modalign import environment
from modalign.console import Reporter
from modalign.data import sources
from modalign.data.pictures import Picture, to_json
from modalign.data.records import Images
from modalign.data.store_lookup import picture_content
from modalign.embedder import Embedder
from modalign.embedding import store_root
from modalign.encoders import Encoder, Tower
from modalign.errors import DataError
from modalign.gap.blind_pairs import SimilarityRanks, blind_pairs
from modalign.gap.representations import centred_kernel_alignment, mutual_knn
from modalign.models import DualEncoder, load
from modalign.models.vision import VisionEncoder, load_vision
from modalign.objectives.kernel_fit import fit_kernel
from modalign.objectives.kernel_match import kernel_alignment
from modalign.objectives.kernels import PolynomialKernel
from modalign.training.precision import device as resolve
from modalign.training.precision import tf32

NEIGHBOURS = 10
FIT_PICTURES = 512
FEWEST = 4


@dataclass(frozen=True)
class Side:
    """How one model and the target agree about all pictures.

    Attributes:
        spec: the model.
        fingerprint: its hash.
        gamma: γ of the polynomial kernel that is fitted between it and the target.
        coef0: c of it.
        kernel_loss: mean squared difference of kernel values over pairs of different pictures, at that kernel.
        kernel_loss_at_first: the same at the kernel that is fitted to the first model: what a run sees that holds its
            kernel fixed. It also tells of features that changed their scale.
        cka: linear centred kernel alignment.
        mutual_knn: share of the nearest neighbours by cosine that both name.
    """

    spec: str
    fingerprint: str
    gamma: float
    coef0: float
    kernel_loss: float
    kernel_loss_at_first: float
    cka: float
    mutual_knn: float


@dataclass(frozen=True)
class Likeness:
    """How alike two pictures are for one network: their cosine similarity, and the share of all pairs less alike."""

    cosine: float
    rank: float


@dataclass(frozen=True)
class Pair:
    """Two pictures, alike for the model and unlike for the target; `against`: for the second model, where one is."""

    first: Picture
    second: Picture
    student: Likeness
    target: Likeness
    against: Likeness | None = None


@dataclass(frozen=True)
class Contrast:
    """A model beside a target.

    Attributes:
        student: the model, whose blind pairs are shown.
        target: the target's spec.
        target_fingerprint: its hash.
        against: a second model on the same pairs, None without one.
        data: what the pictures were asked for by.
        pictures: how many there are.
        left_out: how many could not be read.
        neighbours: k of the mutual nearest neighbours.
        pairs: the blind pairs, worst first.
    """

    student: Side
    target: str
    target_fingerprint: str
    against: Side | None
    data: str
    pictures: int
    left_out: int
    neighbours: int
    pairs: tuple[Pair, ...]

    def to_dict(self) -> dict[str, Any]:
        """All numbers, ready for JSON."""
        return {
            "format": 1,
            "model": asdict(self.student),
            "target": {"spec": self.target, "fingerprint": self.target_fingerprint},
            "against": asdict(self.against) if self.against else None,
            "data": {"spec": self.data, "pictures": self.pictures, "left_out": self.left_out},
            "protocol": {
                "kernel_loss": "estimator u, polynomial kernels of degree 3: target γ = 1/d and c = 1, model fitted",
                "neighbours": self.neighbours,
                "chance_of_a_neighbour": self.neighbours / (self.pictures - 1),
            },
            "blind_pairs": [
                {
                    "first": to_json(pair.first),
                    "second": to_json(pair.second),
                    "model": asdict(pair.student),
                    "target": asdict(pair.target),
                    "against": asdict(pair.against) if pair.against else None,
                }
                for pair in self.pairs
            ],
        }

    def rows(self) -> list[list[str]]:
        """The numbers as a table of text, the header first."""
        sides = [side for side in (self.student, self.against) if side is not None]
        return [
            ["agreement with the target", *(side.spec for side in sides)],
            ["kernel loss", *(f"{side.kernel_loss:.4g}" for side in sides)],
            ["CKA", *(f"{side.cka:.4f}" for side in sides)],
            [f"mutual {self.neighbours}-NN", *(f"{side.mutual_knn:.4f}" for side in sides)],
            ["fitted γ", *(f"{side.gamma:.4g}" for side in sides)],
            ["fitted c", *(f"{side.coef0:.4g}" for side in sides)],
        ]


def contrast(
    model: DualEncoder,
    target: VisionEncoder,
    images: Images,
    *,
    against: DualEncoder | None = None,
    pairs: int = 24,
    seed: int = 0,
    embedder: Embedder | None = None,
) -> Contrast:
    """Passes every picture once through each network and looks where they disagree.

    Args:
        model: whose blind pairs are sought.
        target: the network that tells them apart.
        images: at least four pictures.
        against: a second model, measured on the same pictures and shown on the same pairs.
        pairs: how many pairs at most.
        seed: draws the (up to 512) pictures that the kernel is fitted to.
        embedder: where features are read from and kept; None = the default store, silently.

    Raises:
        DataError: fewer than four pictures, or more unreadable ones than the embedder tolerates.
    """
    embedder = embedder or Embedder(store_root(), reporter=Reporter(silent=True))
    with tf32(False):
        seen = embedder.images(Tower(model), images.paths, images.wheres)
        pictures = [images.paths[position] for position in seen.kept.tolist()]
        wheres = [images.wheres[position] for position in seen.kept.tolist()]
        if len(pictures) < FEWEST:
            raise DataError(f"{images.spec} has {len(pictures)} picture(s) that can be read: pass {FEWEST} or more")
        student = seen.rows[:]
        encoders: list[Encoder] = [target, Tower(against)] if against is not None else [target]
        others = [embedder.images(encoder, pictures, wheres).rows[:] for encoder in encoders]
    of_target = others[0]
    chosen = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(seed))[:FIT_PICTURES].sort().values
    fitted = _fitted(student, of_target, chosen)
    neighbours = min(NEIGHBOURS, len(pictures) - 1)
    side = _side(model, student, of_target, fitted, fitted, neighbours)
    second = None
    if against is not None:
        second = _side(against, others[1], of_target, _fitted(others[1], of_target, chosen), fitted, neighbours)
    return Contrast(
        student=side,
        target=target.spec,
        target_fingerprint=target.fingerprint,
        against=second,
        data=images.spec,
        pictures=len(pictures),
        left_out=len(seen.bad),
        neighbours=neighbours,
        pairs=_blind(pictures, [student, *others], pairs),
    )


def run(
    model: str,
    target: str,
    data: str,
    *,
    against: str | None = None,
    out: Path,
    pairs: int = 24,
    store: Path | None = None,
    seed: int = 0,
    device: str = "auto",
    batch_size: int = 256,
    workers: int = 0,
    max_bad: int = 0,
    image_column: str | None = None,
    reporter: Reporter | None = None,
) -> Contrast:
    """`contrast` from specs, written as a page and as JSON beside it.

    Args:
        model: a spec for `modalign.load`.
        target: a spec for `modalign.load_vision`.
        data: a spec for `modalign.images`, with or without "images:" in front.
        against: a spec for `modalign.load`, or None.
        out: the page, an .html file; the numbers go beside it as .json.
        pairs: how many pairs at most.
        store: where features are kept; None = the default store.
        seed: of the pictures that the kernel is fitted to.
        device: where the networks compute.
        batch_size: pictures in one forward pass.
        workers: decoding processes.
        max_bad: unreadable pictures tolerated.
        image_column: as for `modalign.images`.
        reporter: what the user sees.

    Raises:
        OutputError: the page cannot be written.
    """
    from modalign.report import contrast as page

    place = resolve(device)
    reporter = reporter or Reporter()
    page.need_place(out)
    images = sources.images(data.removeprefix("images:"), image_column=image_column, max_bad=max_bad)
    embedder = Embedder(
        store if store is not None else store_root(),
        batch_size=batch_size,
        workers=workers,
        max_bad=max_bad,
        reporter=reporter,
    )
    found = contrast(
        load(model).to(place),
        load_vision(target).to(place),
        images,
        against=load(against).to(place) if against else None,
        pairs=pairs,
        seed=seed,
        embedder=embedder,
    )
    page.write(found, out, environment.describe(seed, str(place)))
    return found


def _fitted(student: Tensor, target: Tensor, chosen: Tensor) -> PolynomialKernel:
    try:
        kernel = fit_kernel(student[chosen], target[chosen])
    except ValueError as error:
        raise DataError(f"no kernel can be fitted to these pictures: {error}") from None
    assert isinstance(kernel, PolynomialKernel)
    return kernel


def _side(
    model: DualEncoder,
    student: Tensor,
    target: Tensor,
    fitted: PolynomialKernel,
    first: PolynomialKernel,
    neighbours: int,
) -> Side:
    of_target = PolynomialKernel(1 / target.shape[1], 1.0)

    @cache
    def loss(kernel: PolynomialKernel) -> float:
        return float(kernel_alignment(student, target, kernel, of_target, "u"))

    return Side(
        spec=model.spec,
        fingerprint=model.fingerprint,
        gamma=float(fitted.gamma),
        coef0=float(fitted.coef0),
        kernel_loss=loss(fitted),
        kernel_loss_at_first=loss(first),
        cka=float(centred_kernel_alignment(student, target)),
        mutual_knn=float(mutual_knn(student, target, neighbours).mean()),
    )


def _blind(pictures: Sequence[Picture], features: Sequence[Tensor], count: int) -> tuple[Pair, ...]:
    """The pairs of the first two features, likenesses of all."""

    @cache
    def content(row: int) -> bytes:
        return picture_content(pictures[row])

    ranks = [SimilarityRanks(each) for each in features]
    found = []
    for pair in blind_pairs(ranks[0], ranks[1], count, content):
        likenesses = [Likeness(*each.between(pair.first, pair.second)) for each in ranks]
        found.append(Pair(pictures[pair.first], pictures[pair.second], *likenesses))
    return tuple(found)
