"""The 2×2 of LLaVA rows: each tuned and asked, then beside the baseline by paired bootstrap."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from modalign.console import Reporter
from modalign.evaluation.gate import judge
from modalign.evaluation.llava.assembling import Parts, assemble
from modalign.evaluation.llava.recipe import LlavaRecipe
from modalign.evaluation.llava.tuning import tune
from modalign.evaluation.results import Results, in_unit
from modalign.models import load

logger = logging.getLogger("modalign")


def run_rows(
    recipes: Mapping[str, LlavaRecipe],
    out: Path,
    *,
    device: torch.device | str = "cpu",
    reporter: Reporter | None = None,
) -> dict[str, Results]:
    """Tunes and asks each row; what an earlier call finished is read again, what it began goes on.

    Args:
        recipes: name → row.
        out: takes a folder a row: recipe.yaml, adapter/, answers/, results.json.
        device: where they run.
        reporter: told which row is at work.

    Raises:
        RecipeError: a folder of another recipe.
        ModelError: a part that cannot be loaded.
        ExportError: a tower that does not fit its LLaVA.
    """
    return {
        name: _row(name, recipe, out / name, device, reporter or Reporter(silent=True))
        for name, recipe in recipes.items()
    }


def table(results: Mapping[str, Results]) -> str:
    """Markdown: a row a recipe, a column a metric; differences to the first row with their 95 % intervals."""
    names = list(results)
    first = results[names[0]]
    metrics = list(first.metrics)
    lines = [["", *metrics], ["---"] * (1 + len(metrics))]
    for name, found in results.items():
        cells = {key: in_unit(metric.value, metric.unit) for key, metric in found.metrics.items()}
        if name != names[0]:
            for row in judge(_plain(first), _plain(found)).rows:
                low, high = (in_unit(end, row.unit, "+") for end in row.interval)
                cells[row.metric] += f" ({in_unit(row.difference, row.unit, '+')} [{low}, {high}])"
        lines.append([name, *(cells.get(key, "") for key in metrics)])
    counts = ", ".join(f"{key}: n = {len(first.metrics[key].outcomes):,}" for key in metrics)
    body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return (
        f"{body}\n\nShares in per cent; in brackets the difference to {names[0]} on the same questions with its 95 % "
        f"interval (paired bootstrap). One training seed. {counts}."
    )


def _row(name: str, recipe: LlavaRecipe, folder: Path, device: torch.device | str, reporter: Reporter) -> Results:
    import yaml

    from modalign.errors import RecipeError
    from modalign.evaluation.suite import parse_task
    from modalign.evaluation.tasks import evaluate

    told = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
    folder.mkdir(parents=True, exist_ok=True)
    kept, done = folder / "recipe.yaml", folder / "results.json"
    if kept.is_file() and kept.read_text(encoding="utf-8") != told:
        raise RecipeError(f"{folder} was begun with another recipe; choose another --out, or remove it")
    kept.write_text(told, encoding="utf-8")
    if done.is_file():
        return Results.load(done)
    reporter.say(f"{name}: {recipe.model} in {recipe.llava}")
    model = load(recipe.model).to(device)
    parts = Parts(recipe.llava)
    if recipe.mix is not None:
        parts = replace(parts, mix=recipe.mix.encoder, share=recipe.mix.share)
    if recipe.tune is not None:
        parts = replace(parts, adapter=str(folder / "adapter"))
        if not (folder / "adapter" / "projector.safetensors").is_file():
            dtype = torch.bfloat16 if recipe.tune.precision == "bf16" else torch.float32
            made = assemble(replace(parts, adapter=""), model, device, dtype=dtype)
            losses = tune(made, recipe.tune, folder / "adapter", seed=recipe.seed)
            reporter.say(f"{name}: tuned in {len(losses)} steps, loss {losses[0]:.4g} → {losses[-1]:.4g}")
            del made
    given = {"llava": parts.llava, "answers": str(folder / "answers")}
    given |= {"adapter": parts.adapter} if parts.adapter else {}
    given |= {"mix": parts.mix, "share": f"{parts.share:g}"} if parts.mix else {}
    tasks = [parse_task(text) for text in recipe.tasks]
    tasks = [replace(task, options=tuple(sorted({**dict(task.options), **given}.items()))) for task in tasks]
    results = evaluate(model, tasks, seed=recipe.seed)
    results.save(done)
    return results


def _plain(results: Results) -> Results:
    """The same numbers under protocols that say of the LLaVA only what all rows share: the questions."""
    parts = ("llava", "adapter", "mixed_in")
    own = {*parts, *(f"{part}_content" for part in parts)}
    tasks = [
        replace(task, options={}, protocol={key: value for key, value in task.protocol.items() if key not in own})
        for task in results.tasks
    ]
    return replace(results, tasks=tasks)
