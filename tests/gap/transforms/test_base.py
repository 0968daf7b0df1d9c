"""What all transforms share: parts, types, parameters, disk, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.base import clone

from modalign.errors import ModelError, RecipeError
from modalign.gap.features import FeatureError
from modalign.gap.transforms import (
    CCA,
    KINDS,
    NNN,
    Center,
    DropDimensions,
    GaussianOT,
    NotFittedError,
    Procrustes,
    ReAlign,
    Ridge,
    Shift,
    Transform,
    load,
    of_kind,
)
from tests.gap.transforms.test_kinds import pairs, unit

ALL = sorted(KINDS)
PARAMETERS = {"nnn": {"k": 5}}


def made(kind: str) -> Transform:
    return of_kind(kind, **PARAMETERS.get(kind, {}))


def roles(kind: str) -> tuple[str, str]:
    return ("document-image", "query-text") if kind == "nnn" else ("image", "text")


@pytest.mark.parametrize("kind", ALL)
def test_three_parts_give_what_all_rows_give(kind: str) -> None:
    image, text = pairs()
    image += 50  # moments that are not centred would lose their digits
    whole, parts = made(kind).set_params(normalize=False), made(kind).set_params(normalize=False)
    whole.fit(image, text)
    for rows in (slice(0, 40), slice(40, 210), slice(210, None)):
        parts.partial_fit(image[rows], text[rows])
    for features, role in zip((image, text), roles(kind), strict=True):
        np.testing.assert_allclose(parts.transform(features, role), whole.transform(features, role), atol=1e-9)


@pytest.mark.parametrize("kind", ALL)
def test_saved_and_loaded_it_maps_bit_for_bit_the_same(kind: str, tmp_path: Path) -> None:
    image, text = pairs()
    fitted = made(kind).fit(image, text)
    fitted.save(tmp_path / "folder")
    loaded = load(tmp_path / "folder")
    assert type(loaded) is type(fitted) and repr(loaded) == repr(fitted)
    assert loaded.fingerprint == fitted.fingerprint
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == ["transform.json", "transform.safetensors"]
    for features, role in zip((image, text), roles(kind), strict=True):
        np.testing.assert_array_equal(loaded.transform(features, role), fitted.transform(features, role))
    if kind == "realign":
        with pytest.raises(RecipeError, match="call fit"):
            loaded.partial_fit(image, text)
    else:
        more = made(kind).fit(image[:100], text[:100])
        more.save(tmp_path / "some")
        grown = load(tmp_path / "some").partial_fit(image[100:], text[100:])
        for features, role in zip((image, text), roles(kind), strict=True):
            np.testing.assert_allclose(grown.transform(features, role), fitted.transform(features, role), atol=1e-9)


@pytest.mark.parametrize("kind", ALL)
def test_library_and_type_are_kept(kind: str) -> None:
    image, text = pairs()
    fitted = made(kind).fit(torch.from_numpy(image), text)
    _, role = roles(kind)
    for wide, narrow in ((np.float64, np.float32), (torch.float64, torch.float32)):
        given = text if isinstance(wide, type) else torch.from_numpy(text)
        cast = given.astype if isinstance(given, np.ndarray) else given.to
        full = fitted.transform(cast(wide), role)
        assert type(full) is type(given) and full.dtype == wide
        half = fitted.transform(cast(narrow), role)
        assert half.dtype == narrow
        np.testing.assert_allclose(np.asarray(half), np.asarray(full), atol=2e-6 * float(abs(full).max()))
    assert fitted.transform(torch.from_numpy(text).half(), role).dtype == torch.float32
    assert len(fitted.transform(text[:0], role)) == 0


@pytest.mark.parametrize("kind", ALL)
def test_parameters_are_scikit_learns(kind: str) -> None:
    changed = of_kind(kind, normalize=False)
    twin = clone(changed)
    assert type(twin) is type(changed) and twin.get_params() == changed.get_params()
    assert repr(twin) == f"{type(changed).__name__}(normalize=False)"
    with pytest.raises(RecipeError, match="did you mean normalize"):
        changed.set_params(normalise=True)


def test_what_a_map_depends_on_and_what_it_does_not() -> None:
    image, text = pairs()
    turn = np.linalg.qr(np.random.default_rng(3).normal(size=(6, 6)))[0]
    for kind in ("center", "shift", "realign", "gaussian-ot", "procrustes", "ridge"):
        plain = of_kind(kind).fit(image, text).transform(text, "text")
        turned = of_kind(kind).fit(image @ turn, text @ turn).transform(text @ turn, "text")
        np.testing.assert_allclose(turned, plain @ turn, atol=1e-9)
        scaled = of_kind(kind).fit(7 * image, text / 3).transform(text, "text")
        np.testing.assert_allclose(scaled, plain, atol=1e-9)
    order = np.random.default_rng(4).permutation(len(text))
    for kind in ("center", "shift", "standardize", "realign", "gaussian-ot", "drop-dimensions"):
        plain = of_kind(kind).fit(image, text).transform(text, "text")
        np.testing.assert_allclose(of_kind(kind).fit(image, text[order]).transform(text, "text"), plain, atol=1e-9)


def test_the_standard_error_of_the_means_is_told() -> None:
    image, text = pairs()
    for transform in (Center(), Procrustes()):
        told = transform.fit(image, text).standard_error_
        for name, rows in (("image", image), ("text", text)):
            expected = unit(rows).std(0, ddof=1) / np.sqrt(len(rows))
            np.testing.assert_allclose(told[name], expected, rtol=1e-10)
        assert transform.rows_ == {"image": 300, "text": 300}
    # Its length is what repeated draws of the mean show.
    rng = np.random.default_rng(0)
    means = [rng.normal(size=(50, 4)).mean(0) for _ in range(2_000)]
    sample = Center(normalize=False).fit(rng.normal(size=(50, 4)), rng.normal(size=(50, 4)))
    drawn = np.sqrt(np.square(means).sum(1).mean())
    assert float(sample.standard_error_["image"].norm()) == pytest.approx(drawn, rel=0.2)


def test_modalities_without_pairs_may_differ_in_number() -> None:
    image, text = pairs()
    centre = Center().fit(image[:100], text)
    assert centre.rows_ == {"image": 100, "text": 300}
    np.testing.assert_allclose(centre.image_mean_, unit(image[:100]).mean(0), atol=1e-14)
    with pytest.raises(FeatureError, match="100 image and 300 text features: procrustes needs pairs"):
        Procrustes().fit(image[:100], text)


def test_realign_draws_the_texts_of_its_drift_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    image, text = pairs(3_000)
    text[1_500:] += 2
    whole = ReAlign().fit(image, text)
    monkeypatch.setattr(ReAlign, "SAMPLE", 600)
    parts = ReAlign()
    for rows in np.array_split(np.arange(3_000), 10):
        parts.partial_fit(image[rows], text[rows])
    assert float((parts.drift_ - whole.drift_).norm()) < 0.08
    assert parts.scale_ == pytest.approx(whole.scale_, rel=1e-12)


def test_a_failed_fit_adds_nothing() -> None:
    image, text = pairs(9_000)
    centre = Center().fit(image, text)
    before = centre.image_mean_.clone()
    text[8_500, 1] = np.nan
    with pytest.raises(FeatureError, match="text features hold NaN or infinity in row 8500: leave"):
        centre.partial_fit(image + 1, text)
    assert torch.equal(centre.image_mean_, before) and centre.rows_ == {"image": 9_000, "text": 9_000}


@pytest.mark.parametrize("kind", ALL)
def test_asked_too_early(kind: str, tmp_path: Path) -> None:
    for ask in (lambda: made(kind).transform(pairs()[0], roles(kind)[0]), lambda: made(kind).save(tmp_path / "x")):
        with pytest.raises(NotFittedError, match=r"not fitted: call fit\(image, text\) first") as told:
            ask()
        assert "\n" not in str(told.value) and isinstance(told.value, ValueError)


def test_features_that_cannot_be_mapped_are_told_in_one_line() -> None:
    image, text = pairs()
    centre = Center().fit(image, text)
    zero, broken = text.copy(), text.copy()
    zero[3], broken[[5, 9]] = 0, np.inf
    for given, role, told in (
        (text[:, :4], "text", r"text features have 4 dimensions and Center\(\) was fitted on 6"),
        (text, "caption", "no role 'caption': pass image, text, document-image"),
        (zero, "text", "text features are zero in row 3: leave"),
        (broken, "text", "NaN or infinity in row 5, 9"),
        (text[0], "text", r"shape \(6,\): pass N×d"),
        (text.astype(int), "text", "are int64: pass floating-point"),
        ([[1.0]], "text", "are a list: pass an N×d array or tensor"),
    ):
        with pytest.raises(FeatureError, match=told) as error:
            centre.transform(given, role)
        assert "\n" not in str(error.value)
    with pytest.raises(FeatureError, match="nnn treats queries and documents apart: pass the role query-text"):
        NNN(k=5).fit(image, text).transform(text, "text")
    with pytest.raises(FeatureError, match="0 to 1"):
        centre.transform_fused(text, 1.5)
    with pytest.raises(FeatureError, match="image features of 6 dimensions and text features of 4"):
        Center().fit(image, text[:, :4])
    with pytest.raises(FeatureError, match="5 dimensions after 6"):
        centre.partial_fit(image[:, :5], text[:, :5])
    with pytest.raises(FeatureError, match="fewer than 2 text"):
        Center().fit(image, text[:1])
    with pytest.raises(FeatureError, match="k is 128 and there are 20"):
        NNN().fit(image[:20], text[:20])


@pytest.mark.parametrize(
    ("transform", "told"),
    [
        (Center(renormalize="yes"), "center: renormalize is 'yes'; pass True or False"),
        (Shift(amount=float("nan")), "shift: amount is nan"),
        (DropDimensions(k=0), "drop-dimensions: k is 0"),
        (DropDimensions(k=6), "fewer than the 6 dimensions"),
        (GaussianOT(shrinkage="ledoit-wolf"), "gaussian-ot: shrinkage is 'ledoit-wolf'"),
        (GaussianOT(shrinkage=2), "above 0 up to 1"),
        (Ridge(ridge=-1), "ridge: ridge is -1"),
        (CCA(k=7), "at most the 6 dimensions"),
        (NNN(alpha="a"), "nnn: alpha is 'a'"),
    ],
)
def test_parameters_that_make_no_sense(transform: Transform, told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        transform.fit(*pairs())


def test_a_singular_covariance_asks_for_a_ridge() -> None:
    image, text = pairs()
    text[:, 0] = text[:, 1]
    with pytest.raises(RecipeError, match="more than 0: the text features do not vary"):
        Ridge(ridge=0, normalize=False).fit(image, text)


def test_a_folder_that_holds_no_transform(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no transform\.json"):
        load(tmp_path)
    Center().fit(*pairs()).save(tmp_path / "good")
    record = tmp_path / "good" / "transform.json"
    told = json.loads(record.read_text())
    for change, message in (
        ({"format": "other/2"}, "format 'other/2' is unknown"),
        ({"kind": "centre"}, "did you mean center"),
        ({"parameters": {"normalize": "no"}}, "normalize is 'no'"),
        ({"numbers": "0"}, "does not belong to transform.json"),
    ):
        record.write_text(json.dumps({**told, **change}))
        with pytest.raises(ModelError, match=message):
            load(tmp_path / "good")
    record.write_text("{")
    with pytest.raises(ModelError, match="cannot be read as a transform"):
        load(tmp_path / "good")
    record.write_text(json.dumps(told))
    (tmp_path / "good" / "transform.safetensors").unlink()
    with pytest.raises(ModelError, match="cannot be read as a transform"):
        load(tmp_path / "good")
