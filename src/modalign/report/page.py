"""`report.html`: one self-contained page made of nothing but a run folder's files."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import Any, TypeVar

import numpy as np

from modalign.errors import OutputError
from modalign.report import (
    captions,
    certificate,
    comparison,
    examples,
    figures,
    published,
    similarity,
    template,
    verdict,
    wording,
)
from modalign.report.figures import Chart
from modalign.report.run_folder import Absent, Features, RunFolder, read
from modalign.report.similarity import Floats

Made = TypeVar("Made")


def write(run: Path | str) -> Path:
    """Writes a run's `report.html` from the files of its folder; what is missing there is named on the page.

    Args:
        run: a run folder.

    Returns:
        The page's path.

    Raises:
        OutputError: the folder does not exist or cannot be written.
    """
    folder = Path(run)
    if not folder.is_dir():
        raise OutputError(f"{folder} is no folder; name the --out of `modalign refine`")
    target = folder / "report.html"
    temporary = folder / f".report.html.{os.getpid()}.tmp"
    html = render(read(folder))
    try:
        temporary.write_text(html, encoding="utf-8", errors="replace")
        temporary.replace(target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OutputError(
            f"{target} cannot be written ({error.strerror}); free it and run `modalign report`"
        ) from error
    return target


def render(run: RunFolder) -> str:
    """The page as text.

    Args:
        run: what could be read of the folder.
    """
    tables = _tolerantly(run, "evaluation.json", lambda: verdict.task_tables(run.evaluation)) or []
    return template.render(
        "page.html",
        run=run,
        absent=run.absent,
        summary=_summary(run),
        headline=_tolerantly(run, "evaluation.json", lambda: _headline(run, tables)) or verdict.headline(tables),
        tables=tables,
        published=_tolerantly(run, "evaluation.json", lambda: _published(run)) or [],
        captioned=_tolerantly(run, "evaluation.json", lambda: captions.captioned(run.evaluation)) or [],
        measures=_tolerantly(run, "evaluation.json", lambda: comparison.measure_rows(run.evaluation)) or [],
        gap_protocol=_tolerantly(run, "evaluation.json", lambda: comparison.gap_protocol(run.evaluation)),
        gap_collapse=_tolerantly(run, "evaluation.json", lambda: comparison.gap_collapse(run.evaluation)),
        certainties=_tolerantly(run, "evaluation.json", lambda: certificate.certainties(run.evaluation)) or [],
        nearness=_tolerantly(run, "evaluation.json", lambda: certificate.nearness(run.evaluation)),
        controls=_tolerantly(run, "evaluation.json", lambda: comparison.controls(run.evaluation)),
        training=_tolerantly(run, "metrics.jsonl", lambda: _training(run)),
        pairs=_tolerantly(run, "features/", lambda: _pairs(run.features, run.folder)),
        cost=_tolerantly(run, "cost.json", lambda: _cost(run.cost)),
        environment=_tolerantly(run, "environment.json", lambda: _environment(run.environment)) or [],
    )


def _tolerantly(run: RunFolder, name: str, make: Callable[[], Made]) -> Made | None:
    """A part of the page; where a file holds something else than it should, a sentence says so in its place."""
    try:
        return make()
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        sentence = f"{name} does not hold what it should ({type(error).__name__}: {error})."
        run.absent.setdefault(name, Absent(sentence, run.again))
        return None


def _recipe(run: RunFolder) -> dict[str, Any]:
    import yaml

    try:
        settings = yaml.safe_load(run.recipe)
    except yaml.YAMLError:
        return {}
    return settings if isinstance(settings, dict) else {}


def _published(run: RunFolder) -> list[published.Beside]:
    return published.published_beside(run.evaluation, str(_recipe(run).get("model") or ""))


def _summary(run: RunFolder) -> list[tuple[str, str]]:
    """What was refined, how and on what, in a few words each."""
    settings = _recipe(run)
    method, data = settings.get("method"), settings.get("data")
    told = {
        "model": settings.get("model"),
        "method": method.get("name") if isinstance(method, dict) else method,
        "trained on": data.get("train") if isinstance(data, dict) else data,
        "scope": settings.get("train"),
        "epochs": settings.get("epochs"),
        "seed": settings.get("seed", run.environment.get("seed")),
    }
    return [(what, str(value)) for what, value in told.items() if value not in (None, "")]


def _headline(run: RunFolder, tables: list[verdict.TaskTable]) -> verdict.Headline:
    if not tables and "evaluation.json" not in run.absent:
        model = _recipe(run).get("model") or "SPEC"
        command = f"modalign compare {quote(str(model))} {quote(str(run.folder))} --task retrieval:SPEC"
        run.absent["evaluation.json"] = Absent("No task was judged before and after.", command)
    said = verdict.headline(tables, run.evaluation.get("interpolation"))
    if not run.evaluation:
        said = replace(said, line="No verdict yet")
    before, after = (comparison.centroid_gap(run.evaluation, side) for side in ("before", "after"))
    if before is None or after is None:
        return said
    sentence = f"The centroid gap went from {wording.number(before)} to {wording.number(after)}."
    return replace(said, details=(*said.details, sentence))


MOST_PARTS = 6


@dataclass(frozen=True)
class Training:
    """The training part of the page: a curve for the loss and each term, what was probed at the boundary, and what a
    curriculum did."""

    curves: tuple[Chart, ...]
    boundary: tuple[Chart, ...]
    curriculum: tuple[Chart, ...]
    remarks: tuple[str, ...]


def _training(run: RunFolder) -> Training | None:
    if not run.steps:
        return None
    names = dict.fromkeys(name for entry in run.steps for name in entry.get("terms", ()))
    charts = []
    for name in ("loss", *names) if len(names) != 1 else names:
        drawn = [(entry["step"], value) for entry in run.steps if (value := _term(entry, name)) is not None]
        held = [
            (entry["step"], value)
            for entry in run.validations
            if (value := _term(entry["validation"], name)) is not None
        ]
        charts.append(figures.curve(*_columns(drawn), name, _columns(held)))
    boundary = []
    for key, title, limits in (
        ("norms", "gradient norm of each term", None),
        ("cosines", "cosine between terms", (-1.05, 1.05)),
    ):
        series: dict[str, list[tuple[float, float]]] = {}
        for entry in run.steps:
            for name, value in entry.get("boundary", {}).get(key, {}).items():
                series.setdefault(" · ".join(name.split("|")), []).append((entry["step"], value))
        if series:
            boundary.append(figures.lines({name: _columns(drawn) for name, drawn in series.items()}, title, limits))
    norms = [(entry["step"], entry["gradient_norm"]) for entry in run.steps if "gradient_norm" in entry]
    if norms:
        boundary.append(figures.curve(*_columns(norms), "gradient norm of all parameters"))
    remarks = []
    scale = run.steps[0].get("effective_logit_scale")
    if scale is not None:
        remarks.append(f"At the first step raw dot products implied a logit scale of {wording.number(scale)}.")
    if run.unreadable_lines:
        remarks.append(f"Unreadable lines of metrics.jsonl left out: {run.unreadable_lines:,}.")
    paced, said = _curriculum(run)
    return Training(tuple(charts), tuple(boundary), tuple(paced), (*remarks, *said))


def _curriculum(run: RunFolder) -> tuple[list[Chart], list[str]]:
    """How strongly the aligning terms acted, and what held them back."""
    told = [(entry["step"], entry["curriculum"]) for entry in run.steps if "curriculum" in entry]
    if not told:
        return [], []
    charts = []
    for title, keys, limits in (
        ("strength of the aligning terms", {"alpha": "α", "planned": "planned"}, None),
        ("κ, by which conflicts lower the strength", {"kappa": "κ"}, (-0.05, 1.05)),
        ("cosine of aligning and base gradient", {"cosine": "c"}, (-1.05, 1.05)),
        ("size of the aligning gradient beside the base one", {"ratio": "ρ"}, None),
    ):
        series = {
            name: _columns([(step, values[key]) for step, values in told if key in values])
            for key, name in keys.items()
            if any(key in values for _, values in told)
        }
        if series:
            charts.append(figures.lines(series, title, limits))
    rates: dict[str, list[tuple[float, float]]] = {}
    for step, values in told:
        for part, rate in values.get("learning_rates", {}).items():
            rates.setdefault(part, []).append((step, rate))
    if rates:
        lowest = dict(sorted(rates.items(), key=lambda item: min(rate for _, rate in item[1]))[:MOST_PARTS])
        drawn = {part: _columns(points) for part, points in lowest.items()}
        charts.append(figures.lines(drawn, "learning rates that conflicts lowered", (-0.05, 1.05)))
    wanted, realised = (max(values[key] for _, values in told) for key in ("planned", "alpha"))
    remarks = [f"The strength of the aligning terms was planned up to {wanted:.3g} and reached {realised:.3g}."]
    if wanted > 0 and all(values["kappa"] < 1 for _, values in told if values["planned"] > 0):
        remarks.append("Conflicting gradients held it back at every step: this run has not used its α_target.")
    return charts, remarks


def _term(entry: Mapping[str, Any], name: str) -> float | None:
    value = entry.get("terms", {}).get(name, entry.get("loss") if name == "loss" else None)
    return None if value is None else float(value)


def _columns(points: list[tuple[float, float]]) -> tuple[Floats, Floats]:
    table = np.asarray(points, dtype=np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


@dataclass(frozen=True)
class PairViews:
    """The parts of the page that are drawn from features."""

    histograms: tuple[Chart, Chart]
    planes: tuple[Chart, Chart] | None
    improved: list[examples.Example]
    lost: list[examples.Example]
    moved: dict[str, Any]


def _pairs(features: Features | None, folder: Path) -> PairViews | None:
    if features is None or not features.captions:
        return None
    first = np.full(len(features.paths), -1, dtype=np.int64)
    first[features.image_of_text[::-1]] = np.arange(len(features.captions))[::-1]
    changes = similarity.rank_changes(features)
    return PairViews(
        figures.histogram_pair(*similarity.histograms(features)),
        figures.plane_pair(similarity.plane(features), first),
        examples.examples(features, changes, changes.improved, folder),
        examples.examples(features, changes, changes.lost, folder),
        examples.summary(changes),
    )


@dataclass(frozen=True)
class Cost:
    """The cost block: (kind, seconds, share of the total) and (what, value) pairs."""

    parts: tuple[tuple[str, float, float], ...]
    facts: tuple[tuple[str, str, str], ...]
    colours: tuple[str, ...] = ("--amber", "--blue", "--purple", "--green", "--muted")


def _cost(cost: Mapping[str, Any]) -> Cost | None:
    if not cost:
        return None
    seconds = {kind: float(value) for kind, value in cost.get("wall_seconds", {}).items()}
    total = seconds.pop("total", sum(seconds.values()))
    passes = cost.get("forward_passes", {})
    facts = [("wall time", wording.duration(total), "")]
    if cost.get("peak_memory_bytes") is not None:
        facts.append(("peak memory", wording.memory(cost["peak_memory_bytes"]), ""))
    if cost.get("samples_seen") is not None:
        facts.append(("pairs seen", f"{cost['samples_seen']:,}", "repeats counted"))
    trained, frozen = cost.get("trainable_parameters"), cost.get("frozen_parameters")
    if trained is not None:
        facts.append(("parameters trained", f"{trained:,}", f"{frozen:,} frozen" if frozen is not None else ""))
    for tower, what in (("image", "image tower passes"), ("text", "text tower passes")):
        if tower in passes:
            facts.append((what, f"{passes[tower]:,}", f"{passes.get(f'saved_{tower}', 0):,} saved"))
    parts = ((kind, spent, 100 * spent / total if total else 0.0) for kind, spent in seconds.items())
    return Cost(tuple(parts), tuple(facts))


def _environment(told: Mapping[str, Any]) -> list[list[tuple[str, str]]]:
    """The versions, the other facts, and the identities, each as (what, value) pairs."""
    versions = told.get("versions") or {}
    identity = told.get("identity") or {}
    others = {key: value for key, value in told.items() if key not in ("versions", "identity") and value is not None}
    identities = {f"fingerprint of the {what}": value for what, value in identity.items()}
    return [[(what, str(value)) for what, value in facts.items()] for facts in (versions, others, identities) if facts]
