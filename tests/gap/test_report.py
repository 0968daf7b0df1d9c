from __future__ import annotations

import json
import math

import numpy as np
import pytest

from modalign import gap
from modalign.gap.report import GROUPS, READINGS


@pytest.fixture(scope="module")
def report() -> gap.GapReport:
    rng = np.random.default_rng(0)
    image = rng.normal(size=(60, 8)) * np.linspace(0.3, 2, 8) + 0.5
    return gap.measure(image, 0.6 * image + rng.normal(size=(60, 8)) - 0.4, resamples=50, shrinkage=0.1)


def test_json_gives_the_report_back(report: gap.GapReport) -> None:
    again = gap.GapReport.from_dict(json.loads(json.dumps(report.to_dict(), allow_nan=False)))
    assert again == report
    assert [m.interval for m in again.measures.values()] == [m.interval for m in report.measures.values()]


def test_the_table_holds_each_measure_once_the_gap_first(report: gap.GapReport) -> None:
    rows = report.to_table()
    assert len(rows) == 29 and all(len(row) == 4 for row in rows)
    assert [row[0] for row in rows[1:4]] == ["raw gap", "centroid gap", "distribution gap"]
    lines = report.table().splitlines()
    assert [line for line in lines if line.isupper() and "  " not in line] == [title.upper() for title in GROUPS]
    assert lines[-1] == "60 pairs × 8, unit length; covariances shrunk by 0.1 and 0.1; 50 resamples, seed 0"
    assert "with permuted labels" in report.reading("knn_mixing")


def test_a_report_of_the_first_format_is_read() -> None:
    old = {
        "format": "modalign.gap/1",
        **{"pairs": 60, "dim": 8, "normalized": True, "compared": 60, "resamples": 0, "seed": 0},
        "measures": {
            name: {"value": 0.5, "interval": [0.4, 0.6]}
            for name in (
                *("raw_gap", "centroid_gap", "distribution_gap", "centroid_gap_scale_free"),
                *("distribution_gap_scale_free", "alignment", "uniformity", "published_gap"),
                *("effective_rank_image", "effective_rank_text", "separability"),
            )
        },
    }
    report = gap.GapReport.from_dict(old)
    assert report.raw_gap == 0.5 and report.raw_gap.interval == (0.4, 0.6)
    assert math.isnan(report.shape_gap) and "not measured when this was written" in report.table()
    assert len(report.unavailable) == len(READINGS) - 11
    assert gap.GapReport.from_dict(json.loads(json.dumps(report.to_dict(), allow_nan=False))).pairs == 60
