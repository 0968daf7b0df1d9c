from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from modalign.errors import DataError
from modalign.evaluation.pairing import check_comparable, halves
from modalign.evaluation.results import Metric, Results, TaskResult


def two_tasks() -> Results:
    rng = np.random.default_rng(0)
    classes, pictures = np.repeat(np.arange(10), 6), np.arange(60)
    captions = np.repeat(np.arange(30, 90), 5)  # pictures 30…59 are in both tasks
    zero_shot = Metric.of("acc1", rng.random(60) < 0.5, clusters=pictures, strata=classes, resamples=50)
    retrieval = Metric.of(
        "text_to_image_r1", rng.random(300) < 0.5, clusters=captions // 2, pictures=captions, resamples=50
    )
    return Results(
        {},
        [
            TaskResult("zero_shot", "a", {}, {"acc1": zero_shot}),
            TaskResult("retrieval", "b", {}, {"text_to_image_r1": retrieval}),
        ],
    )


def test_no_picture_is_on_both_sides_and_none_is_lost() -> None:
    whole = two_tasks()
    sides = halves(whole, seed=1, resamples=50)
    owners = [set(np.concatenate([m.owners for m in side.metrics.values()]).tolist()) for side in sides]
    assert not owners[0] & owners[1] and owners[0] | owners[1] == set(range(90))
    assert abs(len(owners[0]) - len(owners[1])) <= 1
    for name, metric in whole.metrics.items():
        first, second = sides[0].metrics[name], sides[1].metrics[name]
        assert len(first.outcomes) + len(second.outcomes) == len(metric.outcomes)
        weighted = first.value * len(first.outcomes) + second.value * len(second.outcomes)
        assert weighted == pytest.approx(metric.value * len(metric.outcomes))


def test_every_class_is_cut_in_the_middle() -> None:
    for seed in range(5):
        for side in halves(two_tasks(), seed=seed, resamples=50):
            strata = side.metrics["zero_shot.acc1"].strata
            assert strata is not None and np.bincount(strata, minlength=10).tolist() == [3] * 10


def test_the_cut_depends_on_the_seed_alone() -> None:
    first, again, other = (halves(two_tasks(), seed=seed, resamples=50)[0] for seed in (0, 0, 1))
    after = two_tasks()
    after.tasks[0].metrics["acc1"].outcomes[:] = 0  # other outcomes, same pictures
    assert first.metrics["zero_shot.acc1"].owners.tolist() == again.metrics["zero_shot.acc1"].owners.tolist()
    assert first.metrics["zero_shot.acc1"].owners.tolist() != other.metrics["zero_shot.acc1"].owners.tolist()
    moved = halves(after, seed=0, resamples=50)[0].metrics["zero_shot.acc1"].owners
    assert moved.tolist() == first.metrics["zero_shot.acc1"].owners.tolist()


def test_one_picture_cannot_be_cut() -> None:
    metric = Metric.of("acc1", [1.0, 0.0], clusters=[4, 4], resamples=50)
    with pytest.raises(DataError, match="too few pictures to cut into halves"):
        halves(Results({}, [TaskResult("zero_shot", "a", {}, {"acc1": metric})]))


def one_task(metric: Metric, **protocol: object) -> Results:
    return Results({}, [TaskResult("retrieval", "spec", dict(protocol), {metric.name: metric})])


BASE = Metric.of("r1", [1.0, 0.0, 1.0], clusters=[0, 1, 1], resamples=50)


@pytest.mark.parametrize(
    ("after", "message"),
    [
        (one_task(Metric.of("r1", [1.0, 0.0], resamples=50), n=3), "3 examples before, 2 after"),
        (one_task(replace(BASE, clusters=np.array([0, 0, 1])), n=3), "pictures, classes or averaging differ"),
        (one_task(replace(BASE, clusters=None), n=3), "pictures, classes or averaging differ"),
        (one_task(replace(BASE, higher_is_better=False), n=3), "averaging differ"),
        (one_task(replace(BASE, name="r5"), n=3), "metrics r1 before and r5 after"),
        (one_task(BASE, n=4), "n differs, 3 before and 4 after"),
        (one_task(BASE), "n differs, 3 before and None after"),
        (Results({}, []), "before has the tasks retrieval, after has none"),
    ],
)
def test_results_of_other_examples_are_refused_with_the_reason(after: Results, message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_comparable(one_task(BASE, n=3), after)


def test_the_same_data_under_another_path_is_comparable() -> None:
    before, after = one_task(BASE, n=3), one_task(BASE, n=3)
    after.tasks[0].spec = "elsewhere"
    check_comparable(before, after)
