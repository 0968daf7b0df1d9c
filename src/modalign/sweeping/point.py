"""One point of a sweep: its run and the weights between, with everything frozen shared with the other points."""

from __future__ import annotations

import json
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from modalign import models, run_folder
from modalign.console import Reporter
from modalign.data.pictures import from_json, to_json
from modalign.errors import InterruptedRunError, ModalignError
from modalign.features import TrunkMemo
from modalign.models import DualEncoder
from modalign.models.vectors import KIND as VECTORS
from modalign.recipe import Recipe
from modalign.running import run_recipe
from modalign.sweeping import lending
from modalign.sweeping.interpolating import curve
from modalign.sweeping.plan import Point
from modalign.training.precision import device

CACHE, BEFORE = "cache", "before"


@dataclass
class Shared:
    """What the points of a sweep have in common in one process.

    Attributes:
        out: the sweep's folder.
        weights: between before and after, to be judged of each run.
        models: initial models by spec.
        memos: image-trunk outputs of the initial models, by spec.
    """

    out: Path
    weights: tuple[float, ...] = ()
    models: dict[str, DualEncoder] = field(default_factory=dict)
    memos: dict[str, TrunkMemo] = field(default_factory=dict)

    def base(self, spec: str) -> DualEncoder:
        """An initial model, loaded once."""
        if spec not in self.models:
            self.models[spec] = models.load(spec)
        return self.models[spec]

    def memo(self, spec: str) -> TrunkMemo:
        """The memo of an initial model's frozen trunk."""
        return self.memos.setdefault(spec, TrunkMemo())

    def run(self, point: Point, reporter: Reporter) -> None:
        """Runs a point to its end, or from where it stands to its end.

        Raises:
            ModalignError: what stops this point; others may go on.
        """
        folder, recipe = self.out / point.name, point.recipe
        if not run_folder.look(folder, recipe, (folder / "recipe.yaml").is_file()):
            self._train(folder, recipe, reporter)
        if self.weights:
            base = self.base(recipe.model).to(device(recipe.device))
            curve(folder, self.weights, base=base, memo=self.memo(recipe.model), reporter=reporter)

    def _train(self, folder: Path, recipe: Recipe, reporter: Reporter) -> None:
        shelf = self.out / CACHE / BEFORE
        lending.lend(folder, recipe, shelf)
        run_recipe(
            recipe,
            folder,
            resume=(folder / "recipe.yaml").is_file(),
            model=None if recipe.model.startswith(f"{VECTORS}:") else self.base(recipe.model),
            reporter=reporter,
            memo=self.memo(recipe.model),
            cache=Path(recipe.store) if recipe.store else self.out / CACHE,
        )
        lending.keep(folder, recipe, shelf)


@dataclass(frozen=True)
class Outcome:
    """How a point ended.

    Attributes:
        point: its name.
        problem: why it failed, in one line; "" where it did not.
        trace: where, for a failure that is nobody's foreseen.
        stopped: whether it was asked to stop.
    """

    point: str
    problem: str = ""
    trace: str = ""
    stopped: bool = False


def attempt(shared: Shared, point: Point, reporter: Reporter) -> Outcome:
    """Runs a point; what stops it is told, not raised."""
    try:
        shared.run(point, reporter)
    except InterruptedRunError:
        return Outcome(point.name, stopped=True)
    except ModalignError as error:
        return Outcome(point.name, str(error))
    except Exception as error:  # one point's failure, whatever it is, must not cost the others
        told = str(error).strip().splitlines() or [""]
        return Outcome(point.name, f"{type(error).__name__}: {told[0]}", traceback.format_exc())
    return Outcome(point.name)


def write_memos(folder: Path, memos: Mapping[str, TrunkMemo]) -> None:
    """Keeps trunk outputs for the other processes of this sweep."""
    from safetensors.torch import save_file

    folder.mkdir(exist_ok=True)
    for number, (spec, memo) in enumerate(memos.items()):
        if not memo.rows:
            continue
        keys = [str(key) if isinstance(key, Path) else to_json(key) for key in memo.rows]
        save_file({"rows": torch.stack(list(memo.rows.values()))}, folder / f"{number}.safetensors")
        (folder / f"{number}.json").write_text(json.dumps({"model": spec, "keys": keys}), encoding="utf-8")


def read_memos(folder: Path) -> dict[str, TrunkMemo]:
    """Reads what `write_memos` kept."""
    from safetensors.torch import load_file

    memos = {}
    for path in sorted(folder.glob("*.json")):
        told = json.loads(path.read_text(encoding="utf-8"))
        rows = load_file(path.with_suffix(".safetensors"))["rows"]
        keys = [Path(key) if isinstance(key, str) else from_json(key) for key in told["keys"]]
        memos[told["model"]] = TrunkMemo(dict(zip(keys, rows, strict=True)))
    return memos
