from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies
from scipy.linalg import sqrtm
from sklearn.covariance import ledoit_wolf

from modalign import gap
from modalign.errors import DataError
from modalign.gap import resampling


def pairs(rows: int = 60, width: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(rows, width)) * np.linspace(0.3, 2, width) + 0.5
    return image, 0.6 * image + rng.normal(size=(rows, width)) - 0.4


def oracle(image: np.ndarray, text: np.ndarray) -> dict[str, float]:
    difference = image.mean(0) - text.mean(0)
    sx, st = np.cov(image.T, bias=True), np.cov(text.T, bias=True)
    variance = np.trace(sx) + np.trace(st)
    residual = np.mean(np.sum(((image - image.mean(0)) - (text - text.mean(0))) ** 2, axis=1))
    union = np.concatenate([image, text])
    squared = ((union[:, None] - union[None]) ** 2).sum(-1)

    def rank(covariance: np.ndarray) -> float:
        eigenvalues = np.clip(np.linalg.eigvalsh(covariance), 1e-300, None)
        shares = eigenvalues / eigenvalues.sum()
        return float(np.exp(-(shares * np.log(shares)).sum()))

    def bures() -> float:
        root = sqrtm(sx)
        return float(np.trace(sx + st - 2 * sqrtm(root @ st @ root)).real)

    count = len(image)
    cross = (image - image.mean(0)).T @ (text - text.mean(0)) / count
    wide = {
        "shape_gap": math.sqrt(bures()),
        "shape_gap_scale_free": bures() / variance,
        "frechet_distance": float(difference @ difference + bures()),
        "symmetric_kl": gaussian_kl(difference, sx, st) + gaussian_kl(difference, st, sx),
    }
    return {
        **(wide if count >= image.shape[1] else {}),
        "relative_modality_gap": relative_gap(image, text),
        "cka": float((cross**2).sum() / math.sqrt((sx**2).sum() * (st**2).sum())),
        "participation_ratio_image": float(np.trace(sx) ** 2 / (sx**2).sum()),
        "participation_ratio_text": float(np.trace(st) ** 2 / (st**2).sum()),
        "uniformity_image": float(np.exp(-2 * squared[:count, :count]).mean()),
        "uniformity_text": float(np.exp(-2 * squared[count:, count:]).mean()),
        "uniformity_cross": float(np.exp(-2 * squared[:count, count:]).mean()),
        "raw_gap": math.sqrt(np.mean(np.sum((image - text) ** 2, axis=1))),
        "centroid_gap": float(np.linalg.norm(difference)),
        "distribution_gap": math.sqrt(residual),
        "centroid_gap_scale_free": float(np.linalg.norm(difference) / np.sqrt(variance / 2)),
        "distribution_gap_scale_free": float(residual / variance),
        "alignment": float(np.mean(np.sum((image - text) ** 2, axis=1))),
        "uniformity": float(np.exp(-2 * squared).mean()),
        "published_gap": float(difference @ difference / image.shape[1]),
        "effective_rank_image": rank(sx),
        "effective_rank_text": rank(st),
    }


def gaussian_kl(difference: np.ndarray, first: np.ndarray, second: np.ndarray) -> float:
    """KL(N(μ₁, first) ‖ N(μ₂, second)), by its textbook formula, log-determinants and all."""
    shape = np.trace(np.linalg.solve(second, first)) - len(first)
    shape += np.linalg.slogdet(second)[1] - np.linalg.slogdet(first)[1]
    return float((shape + difference @ np.linalg.solve(second, difference)) / 2)


def relative_gap(image: np.ndarray, text: np.ndarray) -> float:
    """m / (m + ½(d_x + d_t)) with ‖a − b‖²/4, which is (1 − cos)/2 for unit rows."""
    distinct = ~np.eye(len(image), dtype=bool)
    inside = [(((rows[:, None] - rows) ** 2).sum(-1) / 4)[distinct].mean() for rows in (image, text)]
    near = (((image - text) ** 2).sum(1) / 4).mean()
    return float(near / (near + sum(inside) / 2))


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(("rows", "width"), [(60, 8), (9, 20)])
def test_every_measure_against_numpy(normalize: bool, rows: int, width: int) -> None:
    image, text = pairs(rows, width)
    report = gap.measure(image, text, normalize=normalize, resamples=0)
    expected = oracle(unit(image), unit(text)) if normalize else oracle(image, text)
    for name, value in expected.items():
        assert report.measures[name] == pytest.approx(value, abs=1e-10), name


@given(strategies.integers(0, 10_000), strategies.integers(3, 30), strategies.integers(2, 12), strategies.booleans())
@settings(max_examples=25, deadline=None)
def test_the_decomposition_is_exact(seed: int, rows: int, width: int, normalize: bool) -> None:
    image, text = pairs(rows, width, seed)
    report = gap.measure(torch.from_numpy(image), torch.from_numpy(text), normalize=normalize, resamples=0)
    assert abs(report.raw_gap**2 - report.centroid_gap**2 - report.distribution_gap**2) < 1e-12 * max(
        1, report.raw_gap**2
    )


def test_neither_the_order_of_pairs_nor_a_joint_rotation_changes_anything() -> None:
    image, text = pairs(80, 6)
    report = gap.measure(image, text, resamples=200)
    order = np.random.default_rng(1).permutation(80)
    rotation = np.linalg.qr(np.random.default_rng(2).normal(size=(6, 6)))[0]
    for other in (
        gap.measure(image[order], text[order], resamples=200),
        gap.measure(image @ rotation, text @ rotation, resamples=200),
    ):
        for name, value in report.measures.items():
            assert other.measures[name] == pytest.approx(value, abs=1e-10), name
            assert other.measures[name].interval == pytest.approx(value.interval, abs=1e-9), name


def test_centring_removes_the_centroid_gap_and_leaves_the_distribution_gap() -> None:
    image, text = pairs()
    before = gap.measure(image, text, normalize=False, resamples=200)
    after = gap.measure(image - image.mean(0), text - text.mean(0), normalize=False, resamples=200)
    assert after.centroid_gap == pytest.approx(0, abs=1e-12)
    assert after.distribution_gap == pytest.approx(before.distribution_gap, abs=1e-12)
    assert after.separability < before.separability
    # A resampled mean is never exactly zero; the interval of a gap of zero must hold zero all the same.
    assert after.centroid_gap.interval is not None and after.centroid_gap.interval[0] == 0


def test_a_pure_contraction_moves_the_raw_forms_and_not_the_scale_free_ones() -> None:
    image, text = pairs()
    before = gap.measure(image, text, normalize=False, resamples=0)
    after = gap.measure(0.1 * image, 0.1 * text, normalize=False, resamples=0)
    assert after.centroid_gap == pytest.approx(0.1 * before.centroid_gap)
    for name in ("centroid_gap_scale_free", "distribution_gap_scale_free", "effective_rank_text", "separability"):
        assert after.measures[name] == pytest.approx(before.measures[name], abs=1e-10), name


def test_unrelated_pairs_have_scale_free_distribution_gap_one_and_identical_ones_zero() -> None:
    rng = np.random.default_rng(0)
    image, text = rng.normal(size=(2, 1500, 5))
    assert gap.measure(image, text, normalize=False, resamples=0).distribution_gap_scale_free == pytest.approx(
        1, abs=0.06
    )
    same = gap.measure(image, image, resamples=0)
    assert same.distribution_gap_scale_free == 0 and same.raw_gap == 0
    assert same.separability == pytest.approx(0.5, abs=1e-12)


def test_collapsed_features_are_measured_not_refused() -> None:
    image = np.tile([1.0, 0.0, 0.0], (10, 1))
    report = gap.measure(image, np.tile([0.0, 1.0, 0.0], (10, 1)), resamples=50)
    assert report.uniformity == pytest.approx((1 + math.exp(-4)) / 2)
    assert report.effective_rank_image == 0
    assert math.isinf(report.centroid_gap_scale_free) and report.centroid_gap_scale_free.interval is None
    assert report.distribution_gap_scale_free == 0
    json.dumps(report.to_dict(), allow_nan=False)


def test_half_precision_is_measured_in_float64() -> None:
    image, text = (torch.from_numpy(rows).half() for rows in pairs())
    wide = gap.measure(image.double(), text.double(), resamples=0)
    assert gap.measure(image, text, resamples=0).measures == wide.measures


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    truth, hits = 0.5 * math.sqrt(6), 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        image = rng.normal(size=(80, 6))
        text = image + rng.normal(size=(80, 6)) - 0.5
        low, high = gap.measure(image, text, normalize=False, resamples=200, seed=seed).centroid_gap.interval or (0, 0)
        hits += low <= truth <= high
    assert 0.86 <= hits / 60 <= 1


def test_large_sets_are_subsampled_for_the_quadratic_measures_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resampling, "PAIRS_COMPARED", 50)
    image, text = pairs(400)
    report = gap.measure(image, text, resamples=100, seed=1)
    assert (report.pairs, report.compared) == (400, 50)
    assert "on 50 of them" in report.protocol
    whole = oracle(unit(image), unit(text))["uniformity"]
    assert report.uniformity != whole and report.uniformity == pytest.approx(whole, rel=0.2)


def test_fewer_pairs_than_dimensions_need_a_shrinkage_and_say_so() -> None:
    image, text = pairs(20, 30)
    refused = gap.measure(image, text, resamples=20)
    for name in ("shape_gap", "shape_gap_scale_free", "frechet_distance", "symmetric_kl"):
        assert math.isnan(refused.measures[name]) and refused.measures[name].interval is None
        assert refused.to_dict()["measures"][name] == {"value": None, "interval": None}
    assert "shape gap" in refused.table() and "not available: 20 pairs are fewer than 30 dimensions" in refused.table()
    for shrinkage in ("ledoit-wolf", 0.2):
        told = gap.measure(image, text, resamples=20, shrinkage=shrinkage)
        assert not told.unavailable and told.symmetric_kl.interval is not None
        assert told.frechet_distance == pytest.approx(told.centroid_gap**2 + told.shape_gap**2, abs=1e-12)
        assert "covariances shrunk by" in told.protocol


def test_ledoit_wolf_shape_gap_against_scikit_learn_and_scipy() -> None:
    image, text = (unit(rows) for rows in pairs(40, 6))
    sx, st = (ledoit_wolf(rows)[0] for rows in (image, text))
    root = sqrtm(sx)
    expected = math.sqrt(np.trace(sx + st - 2 * sqrtm(root @ st @ root)).real)
    assert gap.measure(image, text, resamples=0, shrinkage="ledoit-wolf").shape_gap == pytest.approx(expected, abs=1e-9)


def test_a_singular_covariance_refuses_kl_alone() -> None:
    image, text = pairs(40, 4)
    report = gap.measure(image * [1, 1, 1, 0], text, normalize=False, resamples=0)
    assert report.unavailable == {"symmetric_kl": "a covariance is singular; pass a shrinkage"}
    assert math.isnan(report.symmetric_kl) and report.shape_gap > 0


def test_few_pairs_have_no_neighbourhoods_and_say_so() -> None:
    report = gap.measure(*pairs(10, 4), resamples=20)
    told = {"mutual_knn", "hubness_image_to_text", "hubness_text_to_image", "knn_mixing"}
    assert set(report.unavailable) == told and all(math.isnan(report.measures[name]) for name in told)
    assert not gap.measure(*pairs(11, 4), resamples=0).unavailable


def test_change_is_paired() -> None:
    image, text = pairs(200)
    moved = text + 0.2 * (image.mean(0) - text.mean(0))
    told = gap.change((image, text), (image, moved), normalize=False, resamples=300)["centroid_gap"]
    assert told.after == pytest.approx(0.8 * told.before)
    assert told.interval is not None and told.interval[0] <= told.difference <= told.interval[1] < 0
    alone = gap.measure(image, text, normalize=False, resamples=300).centroid_gap.interval or (0, 0)
    # The same pairs on both sides: the change is known far better than either gap.
    assert told.interval[1] - told.interval[0] < 0.5 * (alone[1] - alone[0])
    still = gap.change((image, text), (image, text), resamples=50)
    assert all(c.difference == 0 and c.interval == (0, 0) for c in still.values())


def test_compare_gives_both_reports_on_the_same_pairs() -> None:
    image, text = pairs(80)
    told = gap.compare((image, text), (image, text - 0.5), resamples=50)
    assert told.before == gap.measure(image, text, resamples=50)
    assert told.after.centroid_gap == pytest.approx(gap.measure(image, text - 0.5, resamples=0).centroid_gap, abs=1e-12)
    for name, change in told.change.items():
        assert change.difference == told.after.measures[name] - told.before.measures[name]
    json.dumps(told.to_dict(), allow_nan=False)


@pytest.mark.parametrize("shrinkage", [0, -0.1, 1.5, "oracle"])
def test_a_shrinkage_that_is_none_is_refused(shrinkage: object) -> None:
    with pytest.raises(DataError, match=r"shrinkage is .*: pass a number above 0 up to 1, 'ledoit-wolf' or None"):
        gap.measure(*pairs(), shrinkage=shrinkage)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("image", "text", "message"),
    [
        (np.ones((5, 3)), np.ones((4, 3)), "must both be N×d"),
        (np.ones((5, 3)), np.ones((5, 2)), "must both be N×d"),
        (np.ones(5), np.ones(5), "must both be N×d"),
        (np.ones((2, 3)), np.ones((2, 3)), "at least 3"),
        (np.ones((0, 3)), np.ones((0, 3)), "at least 3"),
        (np.ones((4, 3)), np.where(np.eye(4, 3) == 1, np.nan, 1.0), r"text features hold NaN.* in 3 rows \(0, 1, 2\)"),
        (np.diag([1.0, 1.0, 0.0]), np.ones((3, 3)), "image features are zero in row 2"),
    ],
)  # fmt: skip
def test_bad_input_is_named(image: np.ndarray, text: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        gap.measure(image, text)
    assert isinstance(caught.value, DataError) and "\n" not in str(caught.value)


def test_zero_rows_are_fine_when_nothing_is_normalised() -> None:
    assert gap.measure(np.diag([1.0, 1.0, 0.0]), np.ones((3, 3)), normalize=False, resamples=0).pairs == 3
