from __future__ import annotations

from typing import Any

import pytest

from modalign.evaluation.gate import Gate, GateRow, Interpolation
from modalign.report.verdict import axis, headline, interpolation_sentence, task_tables


def row(metric: str, low: float, high: float, verdict: str, **more: Any) -> GateRow:
    middle = (low + high) / 2
    return GateRow(metric, 0.3, 0.3 + middle, middle, (low, high), 0.01, verdict, 500, **more)  # type: ignore[arg-type]


def judged(*rows: GateRow, tasks: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    results = {"tasks": tasks or []}
    return {"gate": Gate(rows, "paired bootstrap").to_dict(), "before": results, "after": results}


GOOD = row("retrieval.image_to_text_r1", 0.01, 0.05, "not worse")
SAME = row("retrieval.text_to_image_r1", -0.005, 0.02, "not worse")
OPEN = row("zero_shot.acc1", -0.03, 0.02, "cannot tell")
BAD = row("zero_shot.mean_per_class_recall", -0.06, -0.03, "worse")


def said(*rows: GateRow, interpolation: Any = None) -> tuple[str, str]:
    told = headline(task_tables(judged(*rows)), interpolation)
    return told.line, " ".join(told.details)


def test_worse_goes_before_cannot_tell_before_not_worse() -> None:
    assert said(GOOD, SAME)[0] == "Not worse"
    assert said(GOOD, OPEN)[0] == "Cannot tell: zero-shot acc@1"
    line, details = said(GOOD, OPEN, BAD)
    assert line == "Worse: zero-shot mean per-class recall"
    assert "more examples would tell: zero-shot acc@1" in details
    assert said()[0] == "No verdict: nothing was judged"


def test_better_is_claimed_only_where_the_interval_lies_above_zero() -> None:
    assert "in 1 of them it lies above zero" in said(GOOD, SAME)[1]
    assert "above zero" not in said(SAME)[1]
    lower = row("custom.error", -0.05, -0.01, "not worse", higher_is_better=False)
    assert task_tables(judged(lower))[0].rows[0].better


def test_many_metrics_are_counted_in_the_line_and_named_below_it() -> None:
    rows = [row(f"retrieval.text_to_image_r{k}", -0.2, -0.1, "worse") for k in (1, 5, 10)]
    line, details = said(BAD, *rows)
    assert line == "Worse: 1 zero-shot and 3 retrieval metrics"
    assert "text → image R@1, text → image R@5, text → image R@10" in details


def test_two_tasks_of_one_kind_keep_their_own_protocol_and_are_told_apart() -> None:
    specs = ["coco:data@val2017", "flickr30k:data@test"]
    metric = {"text_to_image_r1": {"value": 0.3, "interval": [0.28, 0.33]}}
    tasks = [
        {"task": "retrieval", "spec": s, "protocol": {"samples": n}, "metrics": metric} for n, s in enumerate(specs)
    ]
    rows = [row(f"retrieval[{spec}].text_to_image_r1", -0.3, -0.2, "worse") for spec in specs]
    tables = task_tables(judged(*rows, tasks=tasks))
    assert [(table.name, table.spec, table.protocol) for table in tables] == [
        ("retrieval", specs[0], (("samples", "0"),)),
        ("retrieval", specs[1], (("samples", "1"),)),
    ]
    assert tables[1].rows[0].before == (0.3, (0.28, 0.33))
    assert specs[1] in headline(tables).line


def test_all_intervals_share_one_axis_that_shows_no_change_and_the_tolerated_drop() -> None:
    lower = row("custom.error", -0.05, -0.01, "not worse", higher_is_better=False)
    shown = [each for table in task_tables(judged(GOOD, BAD, lower)) for each in table.rows]
    assert len({each.strip.zero for each in shown}) == 1
    for each in shown:
        ((left, at, right),) = each.strip.spans
        assert 0 <= left < at < right <= 100
    good, bad, error = (each.strip for each in shown)
    assert bad.spans[0][2] < bad.limit < bad.zero < good.spans[0][0]  # type: ignore[operator]
    assert error.limit > error.zero  # type: ignore[operator]


def test_an_axis_of_one_value_still_has_a_width() -> None:
    assert axis([0.0])(0.0) == axis([])(0.0) == 50
    assert axis([0.0, 1.0])(float("nan")) == 0


def test_the_mixture_that_is_not_worse_is_named_with_both_halves() -> None:
    kept = Gate((GOOD,), "")
    picked = Interpolation(0.4, ((0.9, "worse"), (0.4, "not worse")), kept, Gate((OPEN,), ""), (300, 301), 0)
    line, details = said(BAD, interpolation=picked.to_dict())
    assert line.startswith("Worse")
    assert "0.4 × refined + 0.6 × original" in details
    assert "selection half (300 pictures)" in details
    assert "other half (301 pictures) it is: cannot tell" in details


@pytest.mark.parametrize(
    ("stored", "told"),
    [
        (None, "No weights between before and after were tried."),
        (
            Interpolation(None, ((0.9, "worse"),), None, None, (30, 31), 0).to_dict(),
            "are not worse on the selection half (30",
        ),
    ],
)
def test_no_mixture_is_invented(stored: Any, told: str) -> None:
    assert told in interpolation_sentence(stored)
