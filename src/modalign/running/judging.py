"""What is said of a run: the model before, the model after, the gate between them, and weights that do better."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from modalign import environment, gap, run_folder
from modalign.console import Reporter
from modalign.embedder import Embedder
from modalign.errors import DataError
from modalign.evaluation.gate import Gate, check_tolerances, judge, pick_interpolation
from modalign.evaluation.results import Results
from modalign.evaluation.suite import Encoded, Suite
from modalign.evaluation.tasks import encode
from modalign.features import TrunkMemo
from modalign.moved import Moved
from modalign.recipe import Recipe
from modalign.running.ingredients import Ingredients
from modalign.training.between import Between
from modalign.training.precision import tf32


@dataclass
class Judging:
    """Judges the model of a run, which training changes in place, before and after.

    Args:
        recipe: every setting.
        made: the run's ingredients.
        suite: the tasks: the recipe's, or those on the held-out rows.
        out: the run folder.
        world: how many processes the run has; one of them judges.
        reporter: what the user sees.
        memo: trunk outputs that earlier evaluations took and this one may read, or None.
        cache: where the target's features are kept.
    """

    recipe: Recipe
    made: Ingredients
    suite: Suite
    out: Path
    world: int
    reporter: Reporter
    memo: TrunkMemo | None
    cache: Path

    def __post_init__(self) -> None:
        method = self.made.method
        fixed = "text" not in self.made.scope.parameters
        aligned = self.made.target is not None and method.towers != {"text"}
        self.moved = Moved(self.suite, self.out / "evaluation", self.recipe.model, text_fixed=fixed, aligned=aligned)
        self.between = Between(self.made.scope.changing)

    def before(self) -> Results:
        """The initial model, judged; read where an earlier try of this run wrote it.

        Raises:
            RecipeError: a tolerance names a metric that is not judged.
        """
        found = self._written() or self._judge("before")
        if found.tasks:
            check_tolerances(found, self.recipe.evaluation.tolerance)
        return found

    def after(self) -> Results:
        """The refined model, judged."""
        return self._judge("after")

    def gate(self, before: Results, after: Results) -> Gate | None:
        """The verdict per metric, or None where no task gives one."""
        if not after.tasks:
            return None
        settings = self.recipe.evaluation
        return judge(before, after, settings.tolerance, resamples=settings.resamples, seed=self.recipe.seed)

    def interpolate(self, before: Results) -> dict[str, Any]:
        """Names the weights between before and after that are not worse; leaves the model as it was."""
        self.reporter.say("something got worse: looking for weights between before and after that are not")
        settings = self.recipe.evaluation
        with self.between.kept() as refined:
            picked = pick_interpolation(
                lambda weight: self._at(weight, refined),
                settings.tolerance,
                before=before,
                seed=self.recipe.seed,
                resamples=settings.resamples,
            )
        return picked.to_dict()

    def picture_side(self) -> dict[str, Any]:
        """What the run did to the features of the pictures it is judged on."""
        return self.moved.record(self._target_features, self.made.method.kernels)

    # ---- one evaluation -------------------------------------------------------------------------------------

    def _written(self) -> Results | None:
        kept = self.out / "evaluation" / "before.json"
        if kept.is_file():
            with contextlib.suppress(DataError):
                found = Results.load(kept)
                if found.model["fingerprint"] == self.made.model.fingerprint and self.moved.recall():
                    return found
        return None

    def _judge(self, name: str) -> Results:
        encoded = self._encode(name)
        self.moved.keep(name, encoded)
        results = self._score(encoded)
        results.drift = self.moved.drift()
        if results.features is not None:
            run_folder.write_features(self.out / "features", name, results.features)
        kept = self.out / "evaluation" / f"{name}.json"
        kept.parent.mkdir(exist_ok=True)
        results.save(kept)
        return results

    def _encode(self, name: str) -> Encoded:
        with tf32(False), self.reporter.progress(f"evaluating {name}", len(self.suite.paths), "pictures") as update:
            encoded = encode(
                self.made.model,
                self.suite,
                batch_size=self.recipe.evaluation.batch_size,
                workers=self.recipe.data.workers,
                max_bad=self.recipe.data.max_bad,
                memo=self.memo,
                progress=lambda done, _: update(done),
            )
        if name == "after" and not self.made.method.towers:  # fitted, not trained
            stood_in = self.made.method.stand_in(self._target_features(encoded.kept))
            assert stood_in is not None
            encoded = replace(encoded, image=stood_in, trunk=None)
        return encoded

    def _score(self, encoded: Encoded) -> Results:
        settings, seed = self.recipe.evaluation, self.recipe.seed
        return self.suite.score(
            encoded,
            model={"spec": self.recipe.model, "fingerprint": self.made.model.fingerprint},
            environment=environment.describe(seed, str(self.made.place), self.world),
            # What a fitted map puts in place of image features is no model's: tasks that need one are refused.
            encoder=self.made.model if self.made.method.towers else None,
            resamples=settings.resamples,
            seed=seed,
            batch_size=settings.batch_size,
            workers=self.recipe.data.workers,
            max_bad=self.recipe.data.max_bad,
        )

    def _at(self, weight: float, refined: Mapping[str, Tensor]) -> Results:
        self.between.put(refined, weight)
        return self._score(self._encode(f"weight {weight:g}"))

    def _target_features(self, pictures: Tensor) -> Tensor:
        """What the target says of some of the suite's pictures, by number, through the run's store."""
        assert self.made.target is not None
        wanted = self.suite.of(pictures)
        embedder = Embedder(
            self.cache,
            batch_size=self.recipe.evaluation.batch_size,
            workers=self.recipe.data.workers,
            reporter=self.reporter,
        )
        return embedder.images(self.made.target, wanted.paths, wanted.wheres).rows[:]


def gap_moved(folder: Path, seed: int, reporter: Reporter) -> dict[str, Any] | None:
    """The gap before and after on the same pairs, with paired intervals of each change; None without enough pairs.

    Args:
        folder: the run's `features/`.
        seed: of the resampling.
        reporter: told where the features collapsed.
    """
    before, after = (run_folder.read_first_pairs(folder, name) for name in ("before", "after"))
    if before is None or after is None or len(before[0]) < 3:
        return None
    told = gap.compare(before, after, seed=seed)
    if told.collapse is not None:
        reporter.say(f"warning: {told.collapse}")
    return told.to_dict()
