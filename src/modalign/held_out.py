"""What a transform does to vectors it was not fitted on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from modalign.evaluation.mixed_retrieval import mixed_retrieval
from modalign.evaluation.retrieval import linked_captions
from modalign.evaluation.statistics import paired_bootstrap
from modalign.gap import GapReport, compare, measure
from modalign.gap.gaussian import bures_squared, covariance
from modalign.gap.moments import centroid_gap, total_variance
from modalign.gap.transforms import NNN, Transform
from modalign.gap.transforms.vectors import unit

if TYPE_CHECKING:
    from modalign.gap.transforms.vectors import Vectors

MEASURED = 5_000
"""Held-out pairs that are measured, at most."""

SHOWN = (
    "raw_gap",
    "centroid_gap",
    "distribution_gap",
    "centroid_gap_scale_free",
    "distribution_gap_scale_free",
    "relative_modality_gap",
    "separability",
    "knn_mixing",
    "effective_rank_image",
    "effective_rank_text",
)
WAYS = {"text_to_image_r1": "text → image R@1, %", "image_to_text_r1": "image → text R@1, %"}


@dataclass(frozen=True)
class HeldOut:
    """Before and after a transform, on rows it was not fitted on.

    Attributes:
        table: rows of text, the first being the header.
        fitted: how many rows of each modality the judged transform was fitted on.
        measured: how many rows of each modality were measured.
        numbers: measure → (before, after), JSON-ready; None where there is no such number.
        warning: that features only drew together, if they did.
    """

    table: list[list[str]]
    fitted: tuple[int, int]
    measured: tuple[int, int]
    numbers: dict[str, tuple[float | None, float | None]]
    warning: str | None = None


class _Picked:
    """Some of the rows, read when they are asked for."""

    def __init__(self, vectors: Vectors, rows: Tensor) -> None:
        self._vectors, self._rows = vectors, rows
        self.shape = (len(rows), vectors.shape[1])
        self.dtype = getattr(vectors, "dtype", torch.float32)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: slice) -> Any:
        rows = self._rows[index]
        return self._vectors[rows.numpy()] if isinstance(self._vectors, np.ndarray) else self._vectors[rows]

    def tensor(self) -> Tensor:
        """All of them, float64."""
        rows = self[:]
        return torch.from_numpy(rows.astype(np.float64)) if isinstance(rows, np.ndarray) else rows.double().cpu()


def judge_pairs(transform: Transform, image: Vectors, text: Vectors, seed: int, resamples: int) -> HeldOut | None:
    """Fits on half of the pairs and measures the others; pairs that share a picture or a caption stay on one side.

    Args:
        transform: unfitted.
        image: N×d.
        text: N×d', row i of both is pair i.
        seed: of the halves, and of the rows measured where there are more than `MEASURED`.
        resamples: of the intervals.

    Returns:
        What was found; None where there are too few rows.
    """
    pictures, captions = _ids(image), _ids(text)
    first, second = _halves(linked_captions(pictures, captions), seed)
    if len(first) < 3 or len(second) < 3 or (isinstance(transform, NNN) and len(first) < transform.k):
        return None
    transform.fit(_Picked(image, first), _Picked(text, first))  # type: ignore[arg-type]
    rows = _some(second, seed)
    before = [_Picked(vectors, rows).tensor() for vectors in (image, text)]
    numbers: dict[str, tuple[float | None, float | None]] = {}
    table, warning = [["", "before", "after", "change, 95 % interval"]], None
    if transform.normalize:
        before = [unit(each) for each in before]
    comparable = before[0].shape[1] == before[1].shape[1]
    if not isinstance(transform, NNN):
        after = transform.transform(before[0], "image"), transform.transform(before[1], "text")
        if comparable:
            found = compare((before[0], before[1]), after, normalize=False, seed=seed, resamples=resamples)
            told, warning, reports = found.change, found.collapse, (found.before, found.after)
            intervals = {name: change.interval for name, change in told.items()}
            table += [_row(name, _pair(reports, name), intervals.get(name)) for name in SHOWN]
            numbers |= {name: _pair(reports, name) for name in SHOWN}
        else:
            report = measure(*after, normalize=False, seed=seed, resamples=0)
            numbers |= {name: (None, report.measures[name].value) for name in SHOWN}
            table += [_row(name, numbers[name], None) for name in SHOWN]
    for name, title in WAYS.items():
        way = "text", "image"
        one, other = way if name.startswith("text") else way[::-1]
        sides = {"image": (before[0], pictures[rows]), "text": (before[1], captions[rows])}
        plain = _hits(sides[one], sides[other]) if comparable else None
        hits = _hits(sides[one], sides[other], transform, f"query-{one}", f"document-{other}")
        change = None if plain is None else paired_bootstrap(plain, hits, resamples=resamples, seed=seed)
        numbers[name] = (None if plain is None else float(plain.mean()), float(hits.mean()))
        shown = tuple(None if value is None else 100 * value for value in numbers[name])
        ends = None if change is None else (100 * change.low, 100 * change.high)
        table.append(_row(title, (shown[0], shown[1]), ends, 1))
    return HeldOut(table, (len(first), len(first)), (len(rows), len(rows)), numbers, warning)


def judge_each(transform: Transform, image: Vectors, text: Vectors, seed: int) -> HeldOut | None:
    """As `judge_pairs` where no row of one modality belongs to one of the other: what needs no pairs.

    Args:
        transform: unfitted.
        image: N×d.
        text: M×d.
        seed: as in `judge_pairs`.

    Returns:
        What was found; None where there are too few rows, and for `NNN`, which scores pairs.
    """
    if isinstance(transform, NNN):
        return None
    halves = [_halves(_ids(vectors), seed) for vectors in (image, text)]
    if min(len(half) for pair in halves for half in pair) < 3:
        return None
    fitted = [_Picked(vectors, first) for vectors, (first, _) in zip((image, text), halves, strict=True)]
    transform.fit(*fitted)  # type: ignore[arg-type]
    picked = [_Picked(vectors, _some(second, seed)) for vectors, (_, second) in zip((image, text), halves, strict=True)]
    before = [unit(rows.tensor()) if transform.normalize else rows.tensor() for rows in picked]
    after = [transform.transform(before[0], "image"), transform.transform(before[1], "text")]
    numbers: dict[str, tuple[float | None, float | None]] = {
        "centroid_gap": (float(centroid_gap(*before)), float(centroid_gap(*after))),
        "total_variance_image": (float(total_variance(before[0])), float(total_variance(after[0]))),
        "total_variance_text": (float(total_variance(before[1])), float(total_variance(after[1]))),
    }
    if all(len(rows) >= rows.shape[1] for rows in before):
        shapes = [float(bures_squared(covariance(x), covariance(t)).sqrt()) for x, t in (before, after)]
        numbers["shape_gap"] = (shapes[0], shapes[1])
    table = [["", "before", "after", "change"], *(_row(name, pair, None) for name, pair in numbers.items())]
    measured = len(before[0]), len(before[1])
    return HeldOut(table, (len(fitted[0]), len(fitted[1])), measured, numbers)


def _hits(
    queries: tuple[Tensor, Tensor],
    documents: tuple[Tensor, Tensor],
    transform: Transform | None = None,
    *roles: str,
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """For each distinct query, whether a right document comes first: one that stands beside it in a pair.

    Args:
        queries: n×d, and n ids: equal rows have equal ones.
        documents: n×d, and n ids.
        transform: what both go through.
        roles: of queries and documents.
    """
    distinct = [_first_of_each(ids) for _, ids in (queries, documents)]
    rows = [features[first] for (features, _), (first, _) in zip((queries, documents), distinct, strict=True)]
    if transform is not None:
        rows = [transform.transform(features, role) for features, role in zip(rows, roles, strict=True)]
    judged = torch.unique(torch.stack([place for _, place in distinct], dim=1), dim=0)
    names = ["document"] * len(rows[1])
    found = mixed_retrieval(rows[0], rows[1], names, judged, ks=(1,), normalize=not isinstance(transform, NNN))
    return found.outcomes["ndcg1"]  # with grades of 1 it says whether the first is right


def _first_of_each(ids: Tensor) -> tuple[Tensor, Tensor]:
    """The first row of each id, and each row's place among those."""
    _, place = torch.unique(ids, return_inverse=True)
    first = torch.full((int(place.max()) + 1,), len(ids)).scatter_reduce_(0, place, torch.arange(len(ids)), "amin")
    return first, place


def _ids(vectors: Vectors) -> Tensor:
    """Equal numbers for equal rows."""
    known: dict[bytes, int] = {}
    ids = []
    for start in range(0, len(vectors), 4096):
        rows: Any = vectors[start : start + 4096]
        array = np.ascontiguousarray(rows.detach().cpu().numpy() if isinstance(rows, Tensor) else rows)
        ids += [known.setdefault(hashlib.blake2b(row.tobytes(), digest_size=16).digest(), len(known)) for row in array]
    return torch.tensor(ids, dtype=torch.long)


def _halves(groups: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Two sets of rows, groups kept whole, of about the same size; ascending."""
    _, group = torch.unique(groups, return_inverse=True)
    sizes = torch.bincount(group)
    order = torch.randperm(len(sizes), generator=torch.Generator().manual_seed(seed))
    before = torch.empty_like(sizes)
    before[order] = sizes[order].cumsum(0) - sizes[order]
    first = (before + sizes // 2 < len(groups) / 2)[group]
    return first.nonzero().flatten(), (~first).nonzero().flatten()


def _some(rows: Tensor, seed: int) -> Tensor:
    if len(rows) <= MEASURED:
        return rows
    drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:MEASURED]
    return rows[drawn.sort().values]


def _pair(reports: tuple[GapReport, GapReport], name: str) -> tuple[float | None, float | None]:
    values = [report.measures[name].value for report in reports]
    return values[0], values[1]


def _row(
    name: str, values: tuple[float | None, float | None], interval: Sequence[float] | None, digits: int = 3
) -> list[str]:
    before, after = (None if value is None or value != value else value for value in values)
    change = ""
    if before is not None and after is not None:
        change = f"{after - before:+.{digits}f}"
        if interval is not None:
            change += f" [{interval[0]:+.{digits}f}, {interval[1]:+.{digits}f}]"
    told = ["–" if value is None else f"{value:.{digits}f}" for value in (before, after)]
    return [name.replace("_", " "), *told, change]
