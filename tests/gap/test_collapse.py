from __future__ import annotations

import numpy as np
import pytest

from modalign import gap
from modalign.gap.report import GapChange


def pairs(rows: int = 300, width: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Unit features of two narrow cones, as a dual encoder has them."""
    rng = np.random.default_rng(0)
    concept, apart = rng.normal(size=(rows, width)), np.zeros(width)
    apart[0] = 1.5
    image = concept + 0.6 * rng.normal(size=(rows, width)) + apart + 2
    text = concept + 0.6 * rng.normal(size=(rows, width)) - apart + 2
    return image / np.linalg.norm(image, axis=1)[:, None], text / np.linalg.norm(text, axis=1)[:, None]


def shrunk(share: float) -> tuple[np.ndarray, np.ndarray]:
    """Drawn towards the direction of their joint mean."""
    image, text = pairs()
    mean = image.mean(0) + text.mean(0)
    mean /= np.linalg.norm(mean)
    return (1 - share) * image + share * mean, (1 - share) * text + share * mean


@pytest.mark.parametrize("normalize", [True, False])
def test_features_that_draw_together_lose_the_raw_gaps_and_raise_the_warning(normalize: bool) -> None:
    told = gap.compare(pairs(), shrunk(0.8), normalize=normalize, resamples=0)
    for name in ("raw_gap", "centroid_gap", "distribution_gap"):
        assert told.change[name].after < 0.4 * told.change[name].before
    free = told.change["centroid_gap_scale_free"]
    assert abs(free.difference) < 0.05 * free.before
    assert told.collapse is not None and told.collapse.startswith("collapse: the raw gap fell by ")
    assert "centroid gap" in told.collapse and "distribution gap" in told.collapse


def test_a_gap_that_is_closed_raises_none() -> None:
    image, text = pairs()
    offset = image.mean(0) - text.mean(0)
    for better in ((image, text + 0.8 * offset), (image, text + 0.7 * (image - text)), (image, text)):
        assert gap.compare((image, text), better, resamples=0).collapse is None
    centred = (image - image.mean(0), text - text.mean(0))
    assert gap.compare((image, text), centred, normalize=False, resamples=0).collapse is None


def changes(raw: float, free: float) -> dict[str, GapChange]:
    """All three gaps 1 before, so that variances of both modalities sum to 1; G_C² = G_D² = ½."""
    ends = {
        "raw_gap": (1.0, raw),
        "centroid_gap": (1.0, 1.0),
        "distribution_gap": (1.0, 1.0),
        "centroid_gap_scale_free": (1.0, free),
        "distribution_gap_scale_free": (0.5, 0.5 * free**2),
    }
    return {name: GapChange(start, end, end - start, None) for name, (start, end) in ends.items()}


@pytest.mark.parametrize(
    ("raw", "free", "warned"),
    [
        (0.79, 0.9, True),  # −21 %, more than twice −10 %
        (0.81, 0.9, False),  # −19 %
        (0.89, 1.0, True),
        (0.91, 1.2, False),  # less than 10 %
        (0.8, 1.1, True),  # the scale-free form even grew
        (0.8, float("inf"), True),
        (0.8, float("nan"), False),
    ],
)
def test_the_limits(raw: float, free: float, warned: bool) -> None:
    assert (gap.collapse(changes(raw, free)) is not None) == warned


def test_no_gap_before_is_none_to_lose() -> None:
    same = np.eye(6)[:, :4] + 1
    assert gap.compare((same, same), (same, same[::-1]), resamples=0).collapse is None
