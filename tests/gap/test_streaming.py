from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from modalign import gap
from modalign.errors import DataError
from modalign.gap import resampling, streaming

MOMENTS = [
    *("raw_gap", "centroid_gap", "distribution_gap", "shape_gap", "centroid_gap_scale_free"),
    *("distribution_gap_scale_free", "shape_gap_scale_free", "relative_modality_gap", "cka", "alignment"),
    *("effective_rank_image", "effective_rank_text", "participation_ratio_image", "participation_ratio_text"),
    *("frechet_distance", "symmetric_kl", "published_gap"),
]


def pairs(rows: int = 500, width: int = 12, offset: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    image = rng.normal(size=(rows, width)) * np.linspace(0.3, 2, width)
    return image + offset, 0.6 * image + rng.normal(size=(rows, width)) - 0.4 + offset


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("shrinkage", [None, 0.1, "ledoit-wolf"])
def test_streamed_and_direct_agree(normalize: bool, shrinkage: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "BLOCK", 64)
    image, text = pairs()
    direct = gap.measure(image, text, normalize=normalize, resamples=0, shrinkage=shrinkage)  # type: ignore[call-overload]
    streams = [gap.StreamingMoments(normalize=normalize) for _ in range(3)]
    for stream, rows in zip(streams, (slice(0, 7), slice(7, 300), slice(300, None)), strict=True):
        stream.update(image[rows], text[rows])
    told = streams[1].merge(streams[2]).merge(streams[0]).report(shrinkage=shrinkage)  # type: ignore[arg-type]
    assert told.shrinkage == pytest.approx(direct.shrinkage, abs=1e-12)
    assert set(told.unavailable) == set(told.measures) - set(MOMENTS)
    for name in MOMENTS:
        assert told.measures[name] == pytest.approx(direct.measures[name], abs=1e-9), name


def test_an_offset_a_million_times_the_spread_costs_no_digits() -> None:
    image, text = pairs(offset=1e6)
    direct = gap.measure(image - 1e6, text - 1e6, normalize=False, resamples=0)
    stream = gap.StreamingMoments(normalize=False)
    for rows in np.array_split(np.arange(500), 11):
        stream.update(image[rows], text[rows])
    # The rounding of the given numbers themselves is 1e-10 here; sums of squares would be off by 1e-4.
    for name in ("centroid_gap", "distribution_gap", "shape_gap", "effective_rank_text"):
        assert stream.report().measures[name] == pytest.approx(direct.measures[name], abs=1e-8), name


def test_pairs_that_coincide_but_for_a_trace_keep_their_residual() -> None:
    image, _ = pairs()
    text = image + 1e-7 * np.sin(np.arange(image.size)).reshape(image.shape)
    stream = gap.StreamingMoments(normalize=False).update(image, text)
    direct = gap.measure(image, text, normalize=False, resamples=0)
    assert stream.report().distribution_gap == pytest.approx(direct.distribution_gap, rel=1e-6)


def test_files_are_read_in_blocks_and_the_rest_is_measured_on_a_subsample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resampling, "PAIRS_COMPARED", 50)
    for name, rows in zip(("image", "text"), pairs(), strict=True):
        np.save(tmp_path / f"{name}.npy", rows.astype(">f4"))
    mapped = [np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("image", "text")]
    told = gap.measure_streamed(*mapped, resamples=20, seed=2)
    whole = gap.measure(*mapped, resamples=0)
    for name in MOMENTS:
        assert told.measures[name] == pytest.approx(whole.measures[name], abs=1e-9), name
        assert told.measures[name].interval is None
    rows = resampling.compared_pairs(500, 2).numpy()
    sample = gap.measure(*(each[rows] for each in mapped), resamples=20, seed=2)
    for name in set(told.measures) - set(MOMENTS):
        assert told.measures[name] == sample.measures[name] and told.measures[name].interval is not None, name
    assert told.protocol == (
        "500 pairs × 12, unit length; moments of all pairs in one pass, without intervals;"
        " what compares all with all on 50 of them; 20 resamples, seed 2"
    )
    assert gap.GapReport.from_dict(told.to_dict()) == told


def test_refusals_name_the_row_in_the_whole_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "BLOCK", 10)
    image, text = pairs(60)
    stream = gap.StreamingMoments().update(image, text)
    bad = image.copy()
    bad[33] = np.nan
    with pytest.raises(DataError, match="image features hold NaN or infinity in row 93"):
        stream.update(bad, text)
    with pytest.raises(DataError, match="features of 5 dimensions after 12"):
        stream.update(image[:, :5], text[:, :5])
    with pytest.raises(DataError, match="60 image and 59 text features"):
        stream.update(image, text[:59])
    with pytest.raises(DataError, match="one stream normalises and the other does not"):
        stream.merge(gap.StreamingMoments(normalize=False))
    with pytest.raises(DataError, match="0 pairs are too few"):
        gap.StreamingMoments().report()
