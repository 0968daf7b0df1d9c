from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from modalign.errors import DataError
from modalign.evaluation.drift import certify, loose_bounds, margins, tight_bounds

SIZES = st.floats(-1e3, 1e3).map(lambda v: 0.0 if abs(v) < 1e-6 else v)
SCALES = st.sampled_from([1e-140, 1e-30, 1.0, 1e30, 1e140])


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Row by row, rows brought to the size of 1 first; 0 for a zero row."""
    a, b = (m / np.maximum(np.abs(m).max(1, keepdims=True), 1e-300) for m in (a, b))
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.divide((a * b).sum(1), lengths, out=np.zeros(len(a)), where=lengths > 0)


@settings(max_examples=200, deadline=None)
@given(arrays.arrays(np.float64, (3, 4, 3), elements=SIZES), SCALES, SCALES, st.booleans())
def test_no_text_ever_sees_more_than_the_bounds(rows: np.ndarray, scale: float, other: float, near: bool) -> None:
    image, frozen, text = rows[0] * scale, rows[1] * other, rows[2]
    if near:
        frozen = image + 1e-3 * rows[1] * scale
    change = np.abs(cosine(image, text) - cosine(frozen, text))
    tight, loose = (f(torch.tensor(image), torch.tensor(frozen)).numpy() for f in (tight_bounds, loose_bounds))
    assert (change <= tight + 1e-14).all()
    assert (tight <= loose + 1e-14).all()
    assert (loose <= 4 + 1e-14).all()


def test_the_tight_bound_is_reached_along_the_difference() -> None:
    image, frozen = (np.random.default_rng(s).normal(size=(5, 6)) for s in (0, 1))
    difference = image / np.linalg.norm(image, axis=1)[:, None] - frozen / np.linalg.norm(frozen, axis=1)[:, None]
    change = np.abs(cosine(image, difference) - cosine(frozen, difference))
    np.testing.assert_allclose(change, tight_bounds(torch.tensor(image), torch.tensor(frozen)), rtol=1e-12)


def test_bounds_by_hand() -> None:
    image, frozen = (
        torch.tensor([[3.0, 0.0], [0.0, 2.0], [0.0, 0.0]]),
        torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 0.0]]),
    )
    assert loose_bounds(image, frozen).tolist() == pytest.approx([4 / 3, 2 * 2**0.5, 0])
    assert tight_bounds(image, frozen).tolist() == pytest.approx([0, 2**0.5, 0])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 1e-3, 0.03, 0.3]))
def test_a_certified_label_has_not_changed(seed: int, move: float) -> None:
    rng = np.random.default_rng(seed)
    frozen, weights = rng.normal(size=(40, 5)), rng.normal(size=(6, 5))
    image = frozen + move * rng.normal(size=(40, 5))
    image[0] = frozen[0] = 0
    unit = weights / np.linalg.norm(weights, axis=1)[:, None]
    before, after = (unit @ (m / np.maximum(np.linalg.norm(m, axis=1), 1e-9)[:, None]).T for m in (frozen, image))
    top = np.sort(before, axis=0)
    bounds = tight_bounds(torch.tensor(image), torch.tensor(frozen)).numpy()
    certain = top[-1] - top[-2] > 2 * bounds
    assert (before.argmax(0) == after.argmax(0))[certain].all()
    found = certify(torch.tensor(image), torch.tensor(frozen), torch.tensor(weights))
    assert found.certified == pytest.approx(certain.mean())
    assert found.unchanged is not None and found.certified_loosely is not None
    assert found.certified_loosely <= found.certified <= found.unchanged


def test_quantiles_are_over_pictures_and_the_record_is_plain() -> None:
    image, frozen = (torch.randn(101, 8, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    found = certify(image, frozen)
    np.testing.assert_allclose(found.tight, np.quantile(tight_bounds(image, frozen).numpy(), found.levels), rtol=1e-12)
    np.testing.assert_allclose(found.loose, np.quantile(loose_bounds(image, frozen).numpy(), found.levels), rtol=1e-12)
    record = json.loads(json.dumps(found.to_dict()))
    assert record["pictures"] == 101 and record["certified"] is None and len(record["tight"]) == len(record["levels"])


def test_a_tower_that_did_not_move_certifies_every_label_but_ties() -> None:
    frozen = torch.tensor([[1.0, 0.2], [1.0, 1.0], [0.0, 0.0]])
    found = certify(frozen, frozen, torch.eye(2))
    assert found.certified == pytest.approx(1 / 3) and found.unchanged == 1
    labels, leads = margins(frozen, torch.eye(2))
    assert labels[0] == 0 and leads.tolist() == pytest.approx([0.8 / 1.04**0.5, 0, 0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(3, 4), torch.ones(2, 4)), r"\(3, 4\) and before \(2, 4\) do not fit"),
        ((torch.ones(0, 4), torch.ones(0, 4)), "do not fit"),
        ((torch.full((3, 4), float("nan")), torch.ones(3, 4)), "NaN or infinity"),
        ((torch.ones(3, 4), torch.ones(3, 4), torch.ones(1, 4)), "two classes or more"),
        ((torch.ones(3, 4), torch.ones(3, 4), torch.ones(5, 3)), "do not fit"),
        ((torch.ones(3, 4), torch.ones(3, 4), torch.full((2, 4), float("inf"))), "NaN or infinity"),
    ],
)
def test_refusals_say_what_to_pass(arguments: tuple[torch.Tensor, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        certify(*arguments)
