from __future__ import annotations

import pytest

from modalign.errors import RecipeError
from modalign.recipe import Recipe
from modalign.sweeping.interpolating import parse_weights
from modalign.sweeping.machine import jobs_that_fit
from modalign.sweeping.plan import Axis, check_axes, parse_axes, parse_seeds, points_of


def test_values_are_yaml_and_every_combination_is_one_folder_of_its_own() -> None:
    axes = parse_axes(["optimizer.lr=1e-5,1e-4", "method.kernel=[a,b],null", "train=full,'last:2'"])
    assert [axis.values for axis in axes] == [(1e-5, 1e-4), (["a", "b"], None), ("full", "last:2")]
    assert [axis.numeric for axis in axes] == [True, False, False]
    points = points_of(axes, [0, 3], lambda values, seed: Recipe(seed=seed))
    assert len(points) == 16 and len({point.name for point in points}) == 16
    assert points[0].values == {"optimizer.lr": 1e-5, "method.kernel": ["a", "b"], "train": "full"}
    assert [point.seed for point in points[:2]] == [0, 3] == [point.recipe.seed for point in points[:2]]
    assert not any("/" in point.name or ":" in point.name for point in points)


def test_keys_that_end_alike_keep_their_whole_name() -> None:
    axes = [Axis("optimizer.lr", (0.1,)), Axis("method.lr", (0.2,)), Axis("epochs", (1,))]
    (point,) = points_of(axes, [0], lambda values, seed: Recipe())
    assert point.name == "optimizer.lr=0.1,method.lr=0.2,epochs=1,seed=0"


@pytest.mark.parametrize(
    ("text", "weights"),
    [("0:1:0.1", [i / 10 for i in range(11)]), ("0.3,0.7,0.3", [0.3, 0.7]), ("0.2:0.9:0.3", [0.2, 0.5, 0.8])],
)
def test_weights(text: str, weights: list[float]) -> None:
    assert parse_weights(text) == pytest.approx(weights)
    assert all(weight in parse_weights(text) for weight in weights if weight in (0.3, 0.7))  # no 0.30000000000000004


def test_seeds() -> None:
    assert parse_seeds("3") == [0, 1, 2] and parse_seeds("5,1") == [5, 1] and parse_seeds("4,") == [4]


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: parse_axes(["method.alpha"]), "write key=value,value"),
        (lambda: check_axes([Axis("a", (1,)), Axis("a", (2,))]), "given 2 times"),
        (lambda: check_axes([Axis("a", (1, 2, 1))]), "1 is named twice"),
        (lambda: check_axes([Axis("a", (0, 0.0))]), "0 is named twice"),
        (lambda: check_axes([Axis("seed", (1, 2))]), "--seeds 3"),
        (lambda: parse_seeds("0"), "at least one seed"),
        (lambda: parse_seeds("a"), "--seeds 3"),
        (lambda: parse_seeds("1,1"), "each once"),
        (lambda: parse_weights("0:1"), "start:stop:step"),
        (lambda: parse_weights("0:1:0"), "start:stop:step"),
        (lambda: parse_weights("0:1:1e-12"), "over 1,000 weights; take longer steps"),
        (lambda: parse_seeds("20240607"), "20,240,607 seeds; to name one seed write --seeds 20240607,"),
        (lambda: parse_weights("0:1.5:0.5"), "outside 0"),
        (lambda: parse_weights("nan"), "outside 0"),
    ],
)
def test_refusals_say_what_to_write(call: object, told: str) -> None:
    with pytest.raises(RecipeError, match=told) as caught:
        call()  # type: ignore[operator]
    assert "\n" not in str(caught.value)


def test_jobs_are_bounded_by_points_cores_and_memory() -> None:
    gib = 2**30
    assert jobs_that_fit(17, 2 * gib, free=100 * gib, threads=16) == 8
    assert jobs_that_fit(3, 2 * gib, free=100 * gib, threads=16) == 3
    assert jobs_that_fit(17, 20 * gib, free=100 * gib, threads=16) == 4  # 80 of 100 GiB
    assert jobs_that_fit(17, 200 * gib, free=100 * gib, threads=16) == 1
