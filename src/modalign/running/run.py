"""What is called to make a run, and what it returns."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from modalign import methods, models, run_folder
from modalign import recipe as recipes
from modalign.console import Reporter
from modalign.data import mixing
from modalign.data.feature_store import FeatureStore
from modalign.data.sources import Images, Pairs
from modalign.errors import OutputError, RecipeError, first_line
from modalign.evaluation.gate import Gate
from modalign.features import TrunkMemo
from modalign.methods import Method
from modalign.models import DualEncoder, VisionEncoder
from modalign.recipe import Recipe
from modalign.running.ingredients import gather
from modalign.running.job import Job
from modalign.training import distributed
from modalign.training.precision import device, tf32


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: where everything lies.
        gate: the verdict per metric, or None when no task was judged.
        strict: whether "cannot tell" fails.
        interpolation: where something got worse: which weights between before and after did not, in one line.
        certificate: where the text tower did not train: what is certain of the pictures judged, in one line.
    """

    folder: Path
    gate: Gate | None
    strict: bool = False
    interpolation: str = ""
    certificate: str = ""

    @classmethod
    def read(cls, folder: Path) -> Run:
        """A finished run, from what its folder holds.

        Raises:
            OutputError: what it holds is damaged.
        """
        try:
            record = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
            strict = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))["evaluation"]["strict"]
            gate = Gate.from_dict(record["gate"]) if record["gate"] is not None else None
            told = [(record.get(key) or {}).get("sentence", "") for key in ("interpolation", "certificate")]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise OutputError(
                f"{folder / 'evaluation.json'} is damaged ({first_line(error)}); remove it and go on with --resume"
            ) from None
        return cls(folder, gate, bool(strict), *told)

    @property
    def exit_code(self) -> int:
        """0, or 3 when a metric is worse (or, strictly, cannot be told)."""
        return 0 if self.gate is None else self.gate.exit_code(self.strict)

    @property
    def model(self) -> DualEncoder:
        """The refined model, loaded from the folder."""
        return models.load(str(self.folder))

    @property
    def report(self) -> Path:
        """The page."""
        return self.folder / "report.html"


def refine(
    model: str | DualEncoder | FeatureStore,
    data: str | Pairs | Images,
    method: str | Method | None = None,
    *,
    out: str | Path,
    target: str | VisionEncoder | FeatureStore | None = None,
    resume: bool = False,
    recipe: str | Path | None = None,
    silent: bool = False,
    **training: Any,
) -> Run:
    """Refines a model on image-text pairs and says, with intervals, what changed.

    Args:
        model: a spec for `modalign.load`, or a loaded model (a copy of it is trained).
        data: a spec for `modalign.pairs`, or pairs; `images:SPEC` or images for a method that reads no captions.
        method: a name, a method object, or None for the recipe's (CLIP-Refine where it names none).
        out: the run folder; must be new or empty unless `resume`.
        target: a spec for `modalign.load_vision`, or a loaded vision encoder, for a method that aligns with one.
        resume: go on with the run in `out`.
        recipe: a recipe file or the name of a shipped one, under everything given here.
        silent: no progress on standard error.
        training: recipe keys: top-level ones by name (epochs=5), deeper ones with two underscores
            (optimizer__lr=3e-4, data__batch_size=256, evaluation__tasks=["retrieval:flickr30k:data@test"]).

    Returns:
        The run; `run.exit_code` is 3 when a metric got worse.

    Raises:
        ModalignError: any of its kinds, in one line that says what to do.
    """
    model = model.spec if isinstance(model, FeatureStore) else model
    target = target.spec if isinstance(target, FeatureStore) else target
    spec = model if isinstance(model, str) else model.spec
    if isinstance(data, Images):
        data = mixing.without_captions(data)
    source = data if isinstance(data, str) else data.spec
    aligned = target.spec if isinstance(target, VisionEncoder) else target
    settings: dict[str, Any] = {"model": spec, "data__train": source, "target": aligned, **training}
    if isinstance(method, str):
        settings["method__name"] = method
    elif method is not None:
        settings["method"] = methods.to_config(method)
    resolved = recipes.load(recipe, **settings)
    return run_recipe(
        resolved,
        Path(out),
        resume=resume,
        model=None if isinstance(model, str) else model,
        pairs=None if isinstance(data, str) else data,
        target=target if isinstance(target, VisionEncoder) else None,
        reporter=Reporter(silent),
    )


def run_recipe(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    model: DualEncoder | None = None,
    pairs: Pairs | None = None,
    target: VisionEncoder | None = None,
    reporter: Reporter | None = None,
    memo: TrunkMemo | None = None,
    cache: Path | None = None,
) -> Run:
    """Runs a resolved recipe into a folder.

    Args:
        recipe: every setting.
        out: the run folder.
        resume: go on where the folder stands.
        model: the initial model where it is loaded already; a copy of it is trained.
        pairs: the training pairs where they are read already.
        target: the vision encoder where it is loaded already.
        reporter: what the user sees.
        memo: image-trunk outputs shared with other runs on the same frozen trunk.
        cache: where frozen features are kept, for runs that share them; None = in the run folder.
    """
    for key, value, example in (
        ("model", recipe.model, "--model hf:./my-clip"),
        ("data.train", recipe.data.train, "--data ./pairs"),
    ):
        if not value and not (key == "data.train" and recipe.model.startswith("vectors:")):
            raise RecipeError(f"the recipe names no {key}; add it, for example {example}")
    began = time.perf_counter()
    place = device(recipe.device)
    processes = distributed.start(place)
    reporter = reporter if processes.is_main and reporter is not None else Reporter(silent=not processes.is_main)
    if recipe.data.batch_size < processes.world:
        raise RecipeError(f"data.batch_size = {recipe.data.batch_size} is smaller than the {processes.world} processes")
    if run_folder.look(out, recipe, resume):
        reporter.say(f"{out} is finished already; nothing to do")
        return Run.read(out)
    with tf32(recipe.precision == "tf32"):
        made = gather(recipe, place, processes.world, model=model, pairs=pairs, target=target)
        cache = cache or (Path(recipe.store) if recipe.store else out / "cache")
        with Job(recipe, out, made, processes, reporter, memo or TrunkMemo(), cache, began) as job:
            job.claim(resume)
            job.prepare()
            job.judge_before()
            job.fit()
            job.train()
            job.conclude()
    return Run.read(out)
