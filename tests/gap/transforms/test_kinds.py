"""Every transform beside an independent NumPy, SciPy or scikit-learn oracle, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes, sqrtm
from sklearn import cross_decomposition
from sklearn.covariance import oas
from sklearn.linear_model import Ridge as SklearnRidge

from modalign import gap
from modalign.gap.transforms import (
    CCA,
    NNN,
    Center,
    DropDimensions,
    GaussianOT,
    Procrustes,
    ReAlign,
    Ridge,
    Shift,
    Standardize,
)
from modalign.gap.transforms.gaussian_ot import oracle_approximating

Array = np.ndarray


def pairs(rows: int = 300, width: int = 6, seed: int = 0) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(rows, width)) * np.linspace(0.3, 2, width) + 0.7
    return image, 0.6 * image[:, ::-1] + rng.normal(size=(rows, width)) - 0.4


def unit(rows: Array) -> Array:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def covariance(rows: Array) -> Array:
    return np.cov(rows.T, bias=True)


# ---- means --------------------------------------------------------------------------------------------------


def test_centring_closes_the_centroid_gap_and_leaves_the_distribution_gap() -> None:
    image, text = (3 * rows for rows in pairs())
    before = gap.measure(image, text, resamples=0)
    plain = gap.measure(*Center().fit_transform(image, text), normalize=False, resamples=0)
    assert plain.centroid_gap.value == pytest.approx(0, abs=1e-14)
    assert plain.distribution_gap.value == pytest.approx(before.distribution_gap.value, abs=1e-14)
    again = Center(renormalize=True).fit_transform(image, text)
    np.testing.assert_allclose(np.linalg.norm(again[0], axis=1), 1)
    after = gap.measure(*again, normalize=False, resamples=0)
    assert abs(after.distribution_gap.value - before.distribution_gap.value) > 0.05
    np.testing.assert_allclose(again[1], unit(unit(text) - unit(text).mean(0)), atol=1e-14)


def test_queries_and_fused_documents_have_means_of_their_own() -> None:
    image, text = pairs()
    query = text[:50] + 2
    centre = Center().fit(image, text, query)
    x, t, q = (unit(rows) for rows in (image, text, query))
    np.testing.assert_allclose(centre.transform(query, "query-text"), q - q.mean(0), atol=1e-14)
    np.testing.assert_allclose(centre.transform(query, "document-text"), q - t.mean(0), atol=1e-14)
    np.testing.assert_allclose(centre.transform(image, "query-image"), x - x.mean(0), atol=1e-14)
    fused = 0.3 * t + 0.7 * x
    expected = fused - (0.3 * t.mean(0) + 0.7 * x.mean(0))
    np.testing.assert_allclose(centre.transform_fused(fused, 0.3), expected, atol=1e-14)
    without = Center().fit(image, text)
    np.testing.assert_array_equal(without.transform(text, "query-text"), without.transform(text, "text"))


def test_shifting_by_hand() -> None:
    image, text = np.array([[3.0, 4.0], [5.0, 0.0]]), np.array([[0.0, 2.0], [0.0, 7.0]])
    # The means of the unit rows are (0.8, 0.4) and (0, 1): Δ = (0.8, −0.6).
    shift = Shift(amount=0.5).fit(image, text)
    np.testing.assert_allclose(shift.gap_, [0.8, -0.6])
    np.testing.assert_allclose(shift.transform(image, "image"), unit(np.array([[0.4, 0.95], [0.8, 0.15]])))
    np.testing.assert_allclose(shift.transform(text, "text"), unit(np.array([[0.2, 0.85], [0.2, 0.85]])))
    np.testing.assert_allclose(Shift(amount=0).fit(image, text).transform(image, "image"), unit(image))


def test_the_dimensions_that_part_the_means_are_dropped() -> None:
    rng = np.random.default_rng(0)
    image, text = rng.normal(size=(2, 400, 8)) * 0.01
    image[:, [2, 5]] += [3.0, -4.0]
    drop = DropDimensions(k=2, normalize=False).fit(image, text)
    assert drop.dropped_.tolist() == [2, 5] and drop.kept_.tolist() == [0, 1, 3, 4, 6, 7]
    assert drop.share_ == pytest.approx(1, abs=1e-4)
    np.testing.assert_array_equal(drop.transform(image, "image"), np.delete(image, [2, 5], axis=1))


# ---- means and spread ---------------------------------------------------------------------------------------


def test_standardised_texts_have_the_pictures_means_and_deviations() -> None:
    image, text = pairs()
    mapped = Standardize().fit(image, text).transform(text, "text")
    np.testing.assert_allclose(mapped.mean(0), unit(image).mean(0), atol=1e-14)
    np.testing.assert_allclose(mapped.std(0), unit(image).std(0), atol=1e-14)
    text[:, 2] = 4.0
    told = Standardize(normalize=False).fit(image, text).transform(text, "text")
    np.testing.assert_allclose(told[:, 2], image[:, 2].mean())  # no spread to scale


def test_realign_matches_mean_and_trace_then_goes_back_to_the_sphere() -> None:
    image, text = pairs()
    align = ReAlign().fit(image, text)
    x, t = unit(image), unit(text)
    scale = np.sqrt(np.trace(covariance(x)) / np.trace(covariance(t)))
    on_trace = x.mean(0) + scale * (t - t.mean(0))
    np.testing.assert_allclose(on_trace.mean(0), x.mean(0), atol=1e-14)
    assert np.trace(covariance(on_trace)) == pytest.approx(np.trace(covariance(x)))
    projected = unit(on_trace)
    np.testing.assert_allclose(align.drift_, projected.mean(0), atol=1e-14)
    expected = unit(projected - projected.mean(0) + x.mean(0))
    np.testing.assert_allclose(align.transform(text, "text"), expected, atol=1e-14)
    np.testing.assert_allclose(align.transform(image, "image"), x, atol=1e-14)
    assert align.scale_ == pytest.approx(scale, rel=1e-12)
    assert np.linalg.norm(expected.mean(0) - x.mean(0)) < np.linalg.norm(t.mean(0) - x.mean(0)) / 5


def test_optimal_transport_maps_mean_and_covariance_exactly() -> None:
    image, text = pairs()
    transport = GaussianOT().fit(image, text)
    assert transport.shrinkage_ == {"image": 0, "text": 0}
    mapped = transport.transform(text, "text")
    np.testing.assert_allclose(covariance(mapped), covariance(unit(image)), atol=1e-13)
    np.testing.assert_allclose(mapped.mean(0), unit(image).mean(0), atol=1e-14)
    first, second = covariance(unit(image)), covariance(unit(text))
    root = sqrtm(first)
    expected = root @ np.linalg.inv(sqrtm(root @ second @ root)) @ root
    np.testing.assert_allclose(transport.map_, expected, atol=1e-9)


def test_optimal_transport_shrinks_where_rows_are_few() -> None:
    image, text = pairs(40)
    transport = GaussianOT(normalize=False).fit(image, text)
    shrunk, intensity = oas(image)
    assert transport.shrinkage_["image"] == pytest.approx(intensity, rel=1e-10)
    assert oracle_approximating(torch.from_numpy(covariance(image)), 40) == pytest.approx(intensity, rel=1e-10)
    told = transport.map_.numpy() @ oas(text)[0] @ transport.map_.numpy().T
    np.testing.assert_allclose(told, shrunk, atol=1e-12)
    assert GaussianOT(shrinkage=None).fit(image, text).shrinkage_["text"] == 0
    assert GaussianOT(shrinkage=0.25).fit(image, text).shrinkage_ == {"image": 0.25, "text": 0.25}


# ---- pairs --------------------------------------------------------------------------------------------------


def test_procrustes_is_scipys_and_recovers_a_rotation() -> None:
    image, text = pairs()
    found = Procrustes(normalize=False).fit(image, text)
    expected, _ = orthogonal_procrustes(text - text.mean(0), image - image.mean(0))
    np.testing.assert_allclose(found.rotation_.T, expected, atol=1e-12)
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))[0]
    turned = (image - 1) @ turn
    back = Procrustes(normalize=False).fit(image, turned).transform(turned, "text")
    np.testing.assert_allclose(back, image, atol=1e-12)


def test_ridge_is_scikit_learns() -> None:
    image, text = pairs()
    text = text[:, :4]  # another width
    found = Ridge(normalize=False, ridge=0.3).fit(image, text)
    penalty = 0.3 * np.trace(covariance(text)) / 4 * len(text)
    expected = SklearnRidge(alpha=penalty).fit(text, image).predict(text)
    np.testing.assert_allclose(found.transform(text, "text"), expected, atol=1e-12)
    assert found.transform(text, "text").shape == image.shape


def test_cca_is_scikit_learns() -> None:
    image, text = pairs(500, 4)
    found = CCA(normalize=False, ridge=0, k=3).fit(image, text)
    a, b = cross_decomposition.CCA(n_components=3, max_iter=5_000, tol=1e-12).fit_transform(image, text)
    expected = [np.corrcoef(a[:, i], b[:, i])[0, 1] for i in range(3)]
    np.testing.assert_allclose(found.correlations_, expected, atol=1e-6)
    x, t = found.transform(image, "image"), found.transform(text, "text")
    np.testing.assert_allclose(covariance(x), np.eye(3), atol=1e-12)
    np.testing.assert_allclose(covariance(t), np.eye(3), atol=1e-12)
    np.testing.assert_allclose(x.T @ t / len(x), np.diag(found.correlations_), atol=1e-12)
    for column in range(3):
        assert abs(np.corrcoef(x[:, column], a[:, column])[0, 1]) == pytest.approx(1, abs=1e-5)


def test_the_ridge_of_cca_by_the_generalised_eigenproblem() -> None:
    from scipy.linalg import eigh

    image, text = pairs(40, 6)
    found = CCA(normalize=False, ridge=0.2).fit(image, text)
    first, second = (c + 0.2 * np.trace(c) / 6 * np.eye(6) for c in (covariance(image), covariance(text)))
    cross = (image - image.mean(0)).T @ (text - text.mean(0)) / 40
    squared = eigh(cross @ np.linalg.inv(second) @ cross.T, first, eigvals_only=True)[::-1]
    np.testing.assert_allclose(found.correlations_.square(), squared, atol=1e-12)


# ---- scores -------------------------------------------------------------------------------------------------


def test_nnn_is_the_formula() -> None:
    image, text = pairs(200)
    nnn = NNN(k=7, alpha=0.5).fit(image, text)
    x, t = unit(image), unit(text)
    expected = 0.5 * np.sort(x @ t.T, axis=1)[:, -7:].mean(1)
    np.testing.assert_allclose(nnn.bias(image, "document-image"), expected, atol=1e-14)
    scores = nnn.transform(text, "query-text") @ nnn.transform(image, "document-image").T
    np.testing.assert_allclose(scores, t @ x.T - expected, atol=1e-14)
    backward = nnn.transform(image, "query-image") @ nnn.transform(text, "document-text").T
    np.testing.assert_allclose(backward, x @ t.T - 0.5 * np.sort(t @ x.T, axis=1)[:, -7:].mean(1), atol=1e-14)
    assert (NNN().k, NNN().alpha) == (128, 0.75)
