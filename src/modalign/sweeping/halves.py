"""The judged examples cut in two: one half to choose on, the other to report on.

A picture's examples stay together over all tasks, and so do all pictures of one class: a labelled task is cut by class,
pairs are cut by picture, with every picture that shares a caption. Candidates (the gallery, the classes one chooses
among) stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modalign.errors import DataError
from modalign.evaluation.pairing import judged_on
from modalign.evaluation.results import Ids, Results

SEED = 0
"""Of the cut: one sweep has one pair of halves, whatever the seeds of its runs."""


@dataclass(frozen=True)
class Halves:
    """The pictures of either half, by number, and how many classes each holds (0 without a labelled task)."""

    validation: Ids
    test: Ids
    classes: tuple[int, int]

    @property
    def told(self) -> tuple[str, str]:
        """What each half holds, in words."""
        sides = zip((self.validation, self.test), self.classes, strict=True)
        validation, test = (f"{len(p):,} pictures" + (f", {c:,} classes" if c else "") for p, c in sides)
        return validation, test


def cut(results: Results, seed: int = SEED) -> Halves:
    """Cuts the judged pictures in two: a pure function of the seed, the pictures' numbers, classes and captions.

    Raises:
        DataError: what belongs together cannot be parted into two halves of at least a third each.
    """
    metrics = list(results.metrics.values())
    pictures = np.unique(np.concatenate([metric.owners for metric in metrics]))
    groups, classes = _groups(results, pictures)
    sizes = np.bincount(groups)
    labelled = np.zeros(sizes.size, np.int64)
    for group, _ in classes:
        labelled[group] += 1
    order = np.random.default_rng(seed).permutation(sizes.size)
    order = order[np.argsort(-sizes[order], kind="stable")]
    side = np.zeros(sizes.size, np.int64)
    for kind in (labelled > 0, labelled == 0):  # both halves get their share of either kind of task
        held = [0, 0]
        for group in order[kind[order]]:
            side[group] = int(held[1] < held[0])
            held[side[group]] += int(sizes[group])
    validation, test = (pictures[side[groups] == half] for half in (0, 1))
    if 3 * min(len(validation), len(test)) < len(pictures):
        raise DataError(
            f"{len(pictures):,} judged pictures cannot be cut into a half to choose on and one to report on: most of "
            "them share a class or a caption; judge more classes, or leave --pick out"
        )
    return Halves(validation, test, (int(labelled[side == 0].sum()), int(labelled[side == 1].sum())))


def half(results: Results, halves: Halves, which: str, *, resamples: int = 10_000, seed: int = 0) -> Results:
    """One half's results, with values and intervals of their own.

    Args:
        results: of all examples.
        halves: from `cut`.
        which: "validation" or "test".
        resamples: behind the intervals.
        seed: of the resamples.
    """
    pictures: Ids = getattr(halves, which)
    return judged_on(results, pictures, f"{which} half, seed {SEED}", resamples=resamples, seed=seed)


def _groups(results: Results, pictures: Ids) -> tuple[NDArray[np.int64], set[tuple[int, tuple[int, int]]]]:
    """What stays together: the group of each picture, and the classes (task, label) with their group."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ends: list[NDArray[np.int64]] = []
    known: dict[tuple[int, int, int], int] = {}  # (kind, task, id) → node behind the pictures

    def link(kind: int, task: int, owners: Ids, ids: Ids) -> None:
        nodes = [known.setdefault((kind, task, int(i)), len(pictures) + len(known)) for i in ids]
        ends.append(np.stack([np.searchsorted(pictures, owners), np.asarray(nodes, np.int64)]))

    for number, task in enumerate(results.tasks):
        for metric in task.metrics.values():
            if metric.strata is not None:
                link(0, number, metric.owners, metric.strata)
            if metric.clusters is not None and metric.pictures is not None:
                link(1, number, metric.owners, metric.clusters)
    size = len(pictures) + len(known)
    first, second = np.concatenate(ends, axis=1) if ends else np.zeros((2, 0), np.int64)
    graph = coo_array((np.ones(first.size), (first, second)), shape=(size, size))
    labels = connected_components(graph, directed=False)[1]
    _, groups = np.unique(labels[: len(pictures)], return_inverse=True)
    of_label = dict(zip(labels[: len(pictures)].tolist(), groups.tolist(), strict=True))
    classes = {(of_label[int(labels[node])], (task, label)) for (kind, task, label), node in known.items() if kind == 0}
    return groups.astype(np.int64), classes
