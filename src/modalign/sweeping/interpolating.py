"""The weights between the model before and after a run, judged: (1 − w)·before + w·after.

Nothing is trained: each weight costs an evaluation, and where only projections trained not even the frozen trunk runs
again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modalign import models, run_folder
from modalign import recipe as recipes
from modalign.console import Reporter
from modalign.errors import OutputError, RecipeError
from modalign.evaluation.results import Features, Results
from modalign.evaluation.suite import parse_task
from modalign.evaluation.tasks import evaluate
from modalign.features import TrunkMemo
from modalign.models import DualEncoder
from modalign.recipe import Recipe
from modalign.sweeping import checkpoints
from modalign.sweeping.checkpoints import Checkpoint, Pairs
from modalign.training.between import Between
from modalign.training.precision import device, tf32

FOLDER = "between"
"""In a run folder: what is known of the weights between before and after."""

MOST_WEIGHTS = 1_000


def parse_weights(text: str) -> list[float]:
    """`0:1:0.1` is 0, 0.1, …, 1; `0.3,0.7` is these two.

    Raises:
        RecipeError: neither, more weights than anyone evaluates, or weights outside 0 … 1.
    """
    try:
        if ":" in text:
            start, stop, step = (float(part) for part in text.split(":"))
            if not (step > 0 and stop >= start):
                raise ValueError
            if (stop - start) / step > MOST_WEIGHTS:
                raise RecipeError(f"--interpolate {text}: these are over {MOST_WEIGHTS:,} weights; take longer steps")
            weights = [round(start + i * step, 9) for i in range(int((stop - start) / step + 1e-9) + 1)]
        else:
            weights = [float(part) for part in text.split(",")]
    except (ValueError, OverflowError):
        raise RecipeError(f"--interpolate {text}: write start:stop:step, as in 0:1:0.1, or weights 0.3,0.7") from None
    return check_weights(weights)


def check_weights(weights: Sequence[float]) -> list[float]:
    """The weights, ascending, each once.

    Raises:
        RecipeError: one lies outside 0 … 1.
    """
    for weight in weights:
        if not 0 <= weight <= 1:
            raise RecipeError(f"--interpolate: {weight:g} lies outside 0 (before) to 1 (after); leave it out")
    return sorted(set(weights))


def curve(
    run: str | Path,
    weights: Sequence[float] = (),
    *,
    values: Mapping[str, Any] | None = None,
    base: DualEncoder | None = None,
    memo: TrunkMemo | None = None,
    reporter: Reporter | None = None,
) -> list[Checkpoint]:
    """Judges the weights between the model before and after a finished run; what was judged before is read.

    Args:
        run: the run folder.
        weights: between 0 and 1; 0 and 1 are always there, and cost nothing.
        values: the swept settings of the run, kept with each checkpoint.
        base: the model before, where it is loaded already.
        memo: image-trunk outputs of the model before, shared with other evaluations of it.
        reporter: what the user sees.

    Returns:
        One checkpoint a weight, ascending, each with its metrics, its gap over the gap before, and intervals.

    Raises:
        OutputError: the run is not finished, or judged nothing that tells a gap.
        RecipeError: a weight outside 0 … 1.
    """
    folder = Path(run)
    finished = _Finished(folder, dict(values or {}), base, memo, reporter or Reporter(silent=True))
    return [finished.at(weight) for weight in sorted({0.0, 1.0, *check_weights(weights)})]


def model_at(run: str | Path, weight: float, base: DualEncoder | None = None) -> DualEncoder:
    """The model (1 − weight)·before + weight·after of a finished run.

    Args:
        run: the run folder.
        weight: between 0 and 1.
        base: the model before, where it is loaded already; a copy of it is changed.
    """
    check_weights([weight])
    line = _Line(Path(run), base)
    line.put(weight)
    line.model.spec = f"{line.model.spec}, {weight:g} of the way to {run}"
    return line.model


class _Line:
    """The model before, and the tensors that it lacks to be the one after."""

    def __init__(self, folder: Path, base: DualEncoder | None) -> None:
        self.model = (base or run_folder.began_with(folder)).frozen_copy()
        after = models.load(str(folder.absolute())).module.state_dict()
        changed: dict[str, Tensor] = {}
        for name, tensor in self.model.module.state_dict().items():
            if tensor.is_floating_point() and not torch.equal(tensor.cpu(), after[name]):
                changed[name] = tensor
        self.after = {name: after[name] for name in changed}
        self.between = Between(changed)

    def put(self, weight: float) -> None:
        self.between.put(self.after, weight)


class _Finished:
    """A finished run, its model loaded only where a weight in between was never judged."""

    def __init__(
        self,
        folder: Path,
        values: dict[str, Any],
        base: DualEncoder | None,
        memo: TrunkMemo | None,
        reporter: Reporter,
    ) -> None:
        self.folder, self.values, self.base, self.memo, self.reporter = folder, values, base, memo, reporter
        try:
            record = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise OutputError(f"{folder} is no finished run; finish it with --resume") from None
        if not record.get("before") or not record.get("after"):
            raise OutputError(f"{folder} judged no task; run it with --eval retrieval:SPEC")
        self.recipe: Recipe = recipes.load(folder / "recipe.yaml")
        self.before, self.after = Results.from_dict(record["before"]), Results.from_dict(record["after"])
        self.line: _Line | None = None
        self.start: Pairs | None = None

    def at(self, weight: float) -> Checkpoint:
        """Reads or judges one weight."""
        kept = self.folder / FOLDER / f"{weight}.json"
        identity = [self.before.model["fingerprint"], self.after.model["fingerprint"]]
        known = checkpoints.read(kept, identity)
        if known is not None:
            ends = {0.0: self.before, 1.0: self.after}
            return self._checkpoint(weight, known, ends.get(weight))
        self.start = self.start or self._pairs("before")
        if weight in (0.0, 1.0):
            results = self.before if weight == 0 else self.after
            pairs = self._pairs("before" if weight == 0 else "after")
        else:
            results, pairs = self._judged(weight)
        found = checkpoints.judge(
            self.before,
            results,
            self.start,
            pairs,
            resamples=self.recipe.evaluation.resamples,
            seed=self.recipe.seed,
        )
        kept.parent.mkdir(exist_ok=True)
        checkpoints.write(kept, identity, found, None if weight in (0.0, 1.0) else results)
        return self._checkpoint(weight, found, results)

    def _checkpoint(self, weight: float, found: checkpoints.Found, results: Results | None) -> Checkpoint:
        known = results or found.results
        assert known is not None
        return Checkpoint(
            run=self.folder,
            values=self.values,
            seed=self.recipe.seed,
            weight=weight,
            before=self.before,
            results=known,
            ratios=found.ratios,
            changes=found.changes,
            half_gaps=found.half_gaps,
        )

    def _pairs(self, side: str) -> Pairs:
        pairs = run_folder.read_first_pairs(self.folder / "features", side)
        if pairs is None or self.before.gap is None:
            raise OutputError(f"{self.folder} judged no pairs, so it tells no gap; run it with --eval retrieval:SPEC")
        return pairs

    def _judged(self, weight: float) -> tuple[Results, Pairs]:
        settings = self.recipe.evaluation
        if self.line is None:
            self.line = _Line(self.folder, self.base)
            self.line.model.to(device(self.recipe.device))
        self.line.put(weight)
        tasks = [task for task in settings.tasks if parse_task(task).kind != "drift"]
        title = f"{self.folder.name}: weight {weight:g}"
        with tf32(False), self.reporter.counted(title, "pictures") as update:
            results = evaluate(
                self.line.model,
                tasks or [f"retrieval:{self.folder / 'validation.jsonl'}"],
                **settings.reading,
                batch_size=settings.batch_size,
                workers=self.recipe.data.workers,
                max_bad=self.recipe.data.max_bad,
                resamples=settings.resamples,
                seed=self.recipe.seed,
                # Only a trunk that did not train says the same at every weight.
                memo=self.memo if self.recipe.train == "projection" else None,
                progress=update,
            )
        assert results.features is not None
        return results, first_pairs(results.features)


def first_pairs(features: Features) -> Pairs:
    """Each picture with its first caption: N×d image and text features, raw."""
    first = np.full(len(features.paths), -1)
    owners = features.image_of_text.numpy()
    first[owners[::-1]] = np.arange(len(owners))[::-1]
    return features.image.float(), features.text[torch.from_numpy(first)].float()
