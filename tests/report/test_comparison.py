from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest

from modalign.gap import change, measure
from modalign.report.comparison import controls, gap_protocol, measure_rows


def pair(seed: int, offset: float) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    concepts = generator.normal(size=(60, 8))
    return concepts + offset, concepts + 0.3 * generator.normal(size=(60, 8))


@pytest.fixture(scope="module")
def gap() -> dict[str, object]:
    before, after = pair(0, 2.0), pair(0, 0.5)
    return {
        "before": measure(*before, resamples=50).to_dict(),
        "after": measure(*after, resamples=50).to_dict(),
        "change": {name: asdict(told) for name, told in change(before, after, resamples=50).items()},
    }


def test_every_measure_stands_before_and_after_with_its_change(gap: dict[str, object]) -> None:
    rows = {row.name: row for row in measure_rows({"gap": gap})}
    assert len(rows) == len(gap["before"]["measures"])  # type: ignore[index]
    centroid = rows["centroid gap"]
    assert centroid.before is not None and centroid.after is not None and centroid.change is not None
    assert centroid.change[0] == pytest.approx(centroid.after[0] - centroid.before[0])
    assert centroid.reading.startswith("‖μx−μt‖")
    assert centroid.strip is not None and centroid.strip.zero is not None
    (_, before, _), (_, after, _) = centroid.strip.spans
    lengths = (after - centroid.strip.zero) / (before - centroid.strip.zero)
    assert lengths == pytest.approx(centroid.after[0] / centroid.before[0], abs=1e-3)


def test_gap_reports_inside_the_results_do_as_well(gap: dict[str, object]) -> None:
    inside = {"before": {"gap": gap["before"]}, "after": {"gap": gap["after"]}, "gap": None}
    rows = measure_rows(inside)
    assert [row.before for row in rows] == [row.before for row in measure_rows({"gap": gap})]
    assert all(row.change is None for row in rows)
    assert gap_protocol(inside).startswith("60 pairs")


def test_a_measure_that_only_one_side_has_is_shown_without_a_comparison() -> None:
    known = {"measures": {"new_measure": {"value": 0.5, "interval": None}, "broken": {"value": None, "interval": None}}}
    (row,) = measure_rows({"gap": {"before": {"measures": {}}, "after": known}})
    assert (row.name, row.before, row.after, row.strip) == ("new measure", None, (0.5, None), None)
    assert gap_protocol({"gap": {"after": known}}) == ""


def gate(after: float, verdict: str) -> dict[str, object]:
    told = {"metric": "retrieval.text_to_image_r1", "before": 0.2, "after": after, "difference": after - 0.2}
    return {"rows": [{**told, "interval": [0, 0], "tolerance": 0.01, "verdict": verdict, "n": 100}]}


def test_controls_stand_in_the_columns_beside_the_run(gap: dict[str, object]) -> None:
    evaluation = {
        "gate": gate(0.25, "not worse"),
        "gap": gap,
        "controls": [
            {"name": "contrastive", "gate": gate(0.1, "worse"), "gap": gap["before"]},
            {"name": "mean-centring", "gate": None, "results": {"gap": gap["after"]}},
        ],
    }
    told = controls(evaluation)
    assert told is not None
    assert told.names == ("this run", "contrastive", "mean-centring")
    (recall,) = told.groups["retrieval"]
    assert recall.before == "20.00"
    assert [(cell.value, cell.change, cell.verdict) for cell in recall.cells] == [
        ("25.00", "+5.00", "not worse"),
        ("10.00", "−10.00", "worse"),
        ("–", "", ""),
    ]
    centroid = next(row for row in told.groups["modality gap"] if row.name == "centroid gap")
    run, contrastive, centring = (cell.value for cell in centroid.cells)
    assert contrastive == centroid.before and centring == run


def test_no_controls_no_table() -> None:
    assert controls({"gate": gate(0.2, "not worse")}) is None
