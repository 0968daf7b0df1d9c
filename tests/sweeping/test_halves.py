from __future__ import annotations

import numpy as np
import pytest

from modalign.errors import DataError
from modalign.evaluation.results import Metric, Results, TaskResult
from modalign.sweeping.halves import cut, half
from tests.sweeping.made import CLASSES, EACH, PAIRS, results


@pytest.mark.parametrize("seed", range(5))
def test_no_picture_class_or_caption_lies_in_both_halves(seed: int) -> None:
    judged = results("model")
    halves = cut(judged, seed)
    assert np.intersect1d(halves.validation, halves.test).size == 0
    assert len(halves.validation) + len(halves.test) == PAIRS + CLASSES * EACH
    sides = [set(part.tolist()) for part in (halves.validation, halves.test)]
    for side in sides:  # all six pictures of a class, and both pictures of a shared caption, or none
        for label in range(CLASSES):
            members = {PAIRS + EACH * label + i for i in range(EACH)}
            assert members <= side or not members & side
        for pair in range(5):
            assert {2 * pair, 2 * pair + 1} <= side or not {2 * pair, 2 * pair + 1} & side
    assert halves.classes == (5, 5) and abs(len(sides[0] & set(range(PAIRS))) - 30) <= 1
    parts = [half(judged, halves, which, resamples=50) for which in ("validation", "test")]
    for name, metric in judged.metrics.items():
        owners = [part.metrics[name].owners for part in parts]
        assert sum(map(len, owners)) == len(metric.owners) and not np.intersect1d(*owners).size


def test_the_cut_depends_on_what_is_judged_and_not_on_who_is_judged() -> None:
    one, other = results("one", right=range(30)), results("other", classified=range(9))
    assert np.array_equal(cut(one).validation, cut(other).validation)
    assert not np.array_equal(cut(one).validation, cut(one, seed=1).validation)


def test_what_cannot_be_parted_is_told() -> None:
    same = Metric.of("image_to_text_r1", np.ones(9), clusters=np.zeros(9, int), pictures=np.arange(9), resamples=50)
    with pytest.raises(DataError, match="share a class or a caption"):
        cut(Results({}, [TaskResult("retrieval", "x", {}, {"image_to_text_r1": same})]))
