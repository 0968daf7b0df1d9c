"""results.json and results.csv: every checkpoint of a sweep, and what was concluded of them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modalign.gap import Measure
from modalign.sweeping.checkpoints import RATIOS, Checkpoint
from modalign.sweeping.front import Setting, wins
from modalign.training.checkpoint import write_atomically

if TYPE_CHECKING:
    from modalign.sweeping.running import Sweep

FORMAT = "modalign.sweep-results/1"


def write(sweep: Sweep, numbers: Path, table: Path) -> None:
    """Writes both files.

    Args:
        sweep: what was found.
        numbers: the JSON file.
        table: the CSV file, one row a checkpoint.
    """
    write_atomically(numbers, json.dumps(to_dict(sweep), indent=1, ensure_ascii=False))
    write_atomically(table, to_csv([*sweep.checkpoints, *sweep.transforms], [axis.key for axis in sweep.axes]))


def to_dict(sweep: Sweep) -> dict[str, Any]:
    """A JSON-ready dictionary."""
    return {
        "format": FORMAT,
        "over": {axis.key: list(axis.values) for axis in sweep.axes},
        "checkpoints": [_checkpoint(checkpoint) for checkpoint in sweep.checkpoints],
        "training_free": [_checkpoint(checkpoint) for checkpoint in sweep.transforms],
        "training_free_wins": _wins(sweep),
        "settings": [_setting(setting) for setting in (*sweep.settings, *sweep.baselines)],
        "trends": [{**asdict(trend), "sentence": trend.sentence} for trend in sweep.trends],
        "quality": sweep.quality and sweep.quality.to_dict(),
        "picked": sweep.picked and {**sweep.picked.to_dict(), "model": sweep.model},
        "failed": dict(sweep.failed),
        "remarks": list(sweep.remarks),
    }


def to_csv(checkpoints: Iterable[Checkpoint], keys: list[str]) -> str:
    """One row a checkpoint: swept values, seed, weight, metrics, gap measures, and gaps over the gap before.

    Args:
        checkpoints: those of the runs and of the transforms.
        keys: what was swept.
    """
    rows = []
    for checkpoint in checkpoints:
        row: dict[str, Any] = {"run": checkpoint.run.name}
        row |= {key: checkpoint.values.get(key, "") for key in keys}
        row |= {"seed": checkpoint.seed, "weight": checkpoint.weight}
        row |= {name: metric.value for name, metric in checkpoint.results.metrics.items()}
        row |= {f"gap.{name}": value for name, value in checkpoint.gap.items()}
        row |= {f"{name} / before": float(value) for name, value in checkpoint.ratios.items()}
        rows.append(row)
    columns = dict.fromkeys(name for row in rows for name in row)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "run": str(checkpoint.run),
        "values": dict(checkpoint.values),
        "seed": checkpoint.seed,
        "weight": checkpoint.weight,
        "metrics": {
            name: {"value": metric.value, "interval": list(metric.interval)}
            for name, metric in checkpoint.results.metrics.items()
        },
        "changes": _measures(checkpoint.changes),
        "gap": checkpoint.gap,
        "normalised_gap": _measures(checkpoint.ratios),
    }


def _wins(sweep: Sweep) -> list[dict[str, Any]]:
    """The settings of the front that each transform beats, by measure and metric."""
    found = []
    for measure in RATIOS:
        ran, free = ([s for s in group if measure in s.ratios] for group in (sweep.settings, sweep.baselines))
        for name, metric in sweep.checkpoints[0].results.metrics.items() if sweep.checkpoints else ():
            for transform, beaten in wins(ran, free, measure, name, higher_is_better=metric.higher_is_better):
                found.append({"measure": measure, "metric": name, "transform": transform, "beats": beaten})
    return found


def _setting(setting: Setting) -> dict[str, Any]:
    return {
        "name": setting.name,
        "values": dict(setting.values),
        "weight": setting.weight,
        "seeds": list(setting.seeds),
        "metrics": dict(setting.values_of),
        "changes": _measures(setting.changes),
        "normalised_gap": _measures(setting.ratios),
    }


def _measures(told: Any) -> dict[str, Any]:
    measures: dict[str, Measure] = dict(told)
    return {name: value.to_dict() for name, value in measures.items()}
