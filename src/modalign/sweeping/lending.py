"""The initial model judged once: runs that judge the same model in the same way take over what the first one found.

It goes through the run folder's own resume: a run reads the evaluation of the initial model that an earlier try wrote,
after a look at the model's fingerprint.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

from modalign.recipe import Recipe
from modalign.training.checkpoint import write_atomically

RESULTS = Path("evaluation/before.json")
BESIDE = (Path("evaluation/before.safetensors"), Path("features/before.safetensors"), Path("features/rows.json"))


def keep(run: Path, recipe: Recipe, shelf: Path) -> None:
    """Puts what a finished run found of its initial model on the shelf, once.

    Args:
        run: the run folder.
        recipe: of the run.
        shelf: a folder of the sweep.
    """
    place = shelf / key(recipe)
    if place.is_dir() or not (run / RESULTS).is_file():
        return
    draft = place.with_name(f".{place.name}.{os.getpid()}")
    for name in (RESULTS, *BESIDE):
        if (run / name).is_file():
            (draft / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(run / name, draft / name)
    try:
        draft.rename(place)
    except OSError:  # another process was faster
        shutil.rmtree(draft, ignore_errors=True)


def lend(run: Path, recipe: Recipe, shelf: Path) -> None:
    """Begins a run's folder with what is on the shelf; does nothing where the run has begun, or nothing fits.

    Args:
        run: the run folder.
        recipe: of the run.
        shelf: a folder of the sweep.
    """
    place = shelf / key(recipe)
    if not place.is_dir() or (run.is_dir() and any(run.iterdir())):
        return
    run.mkdir(parents=True, exist_ok=True)
    write_atomically(run / "recipe.yaml", recipe.to_yaml())  # first: with it the folder may be resumed
    for name in (*BESIDE, RESULTS):
        if (place / name).is_file():
            (run / name).parent.mkdir(exist_ok=True)
            temporary = (run / name).with_name(f".{name.name}.tmp")
            shutil.copyfile(place / name, temporary)
            temporary.replace(run / name)


def key(recipe: Recipe) -> str:
    """A hash of all that the evaluation of the initial model depends on."""
    settings = recipe.model_dump(mode="json")
    judging = {name: value for name, value in settings["evaluation"].items() if name not in ("tolerance", "strict")}
    facts = [settings["model"], judging, settings["data"]["max_bad"], settings["seed"], settings["device"]]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
