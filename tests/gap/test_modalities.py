from __future__ import annotations

import json

import numpy as np
import pytest

from modalign import gap
from modalign.errors import DataError


def modalities() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    concept = rng.normal(size=(40, 5))
    return {name: concept + rng.normal(size=(40, 5)) + place for place, name in enumerate(("image", "text", "audio"))}


def test_each_pair_is_measured_as_by_itself() -> None:
    given = modalities()
    told = gap.measure(given, resamples=20, seed=3)
    assert list(told.reports) == [("image", "text"), ("image", "audio"), ("text", "audio")]
    for pair, report in told.reports.items():
        assert report == gap.measure(given[pair[0]], given[pair[1]], resamples=20, seed=3)
    matrix = told.matrix("centroid_gap")
    assert matrix["audio"]["image"] == matrix["image"]["audio"] == told["image", "audio"].centroid_gap
    assert matrix["text"]["text"] == 0


def test_json_and_table() -> None:
    told = gap.measure(modalities(), resamples=20)
    assert gap.GapMatrix.from_dict(json.loads(json.dumps(told.to_dict(), allow_nan=False))) == told
    rows = told.to_table()
    assert rows[0] == ["measure", "image – text", "image – audio", "text – audio"] and len(rows) == 9
    assert told.table().endswith("40 pairs × 5, unit length; 20 resamples, seed 0")


def test_refusals_name_the_modality() -> None:
    given = modalities()
    with pytest.raises(DataError, match="1 modalities in a dictionary: pass two or more"):
        gap.measure({"image": given["image"]})
    with pytest.raises(DataError, match=r"image features \(40, 5\) and audio features \(39, 5\) must both be N×d"):
        gap.measure({**given, "audio": given["audio"][:39]})
    with pytest.raises(DataError, match="pass both, or a dictionary of modalities"):
        gap.measure(given["image"])  # type: ignore[call-overload]
