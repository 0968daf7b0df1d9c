"""The run folder: whether it may be used, what claims it, and the files that later stages read back."""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from torch import Tensor, nn

from modalign import recipe as recipes
from modalign.data.pictures import to_json
from modalign.data.records import Pairs
from modalign.errors import ModelError, OutputError, RecipeError
from modalign.evaluation.results import Features
from modalign.models.dual_encoder import DualEncoder
from modalign.models.folder import STAND_IN
from modalign.models.loading import load
from modalign.recipe import Recipe
from modalign.tensor_files import write_tensors
from modalign.training.checkpoint import write_atomically

MAY_DIFFER_ON_RESUME = ("device", "data.workers", "evaluation.tolerance", "evaluation.strict", "trackers")
"""Settings that do not touch the weights; every other one must be what the run began with."""
MACHINE = ("device", "processes", "threads")
"""What the last bits of a number depend on beside versions."""
NOTHING_LOST = {".lock", "recipe.yaml", ".recipe.yaml.tmp", "environment.json", ".environment.json.tmp", "cache"}
"""What a run leaves that stopped before it computed anything (a corrupt picture, say): such a folder may be reused."""


def look(folder: Path, recipe: Recipe, resume: bool) -> bool:
    """Refuses a folder that is not this run's; writes nothing.

    Args:
        folder: where the run is to be.
        recipe: what it is to do.
        resume: go on with what is there.

    Returns:
        Whether the run is finished already.

    Raises:
        OutputError: the folder is occupied, or there is nothing to resume in it.
        RecipeError: the run began with another recipe; names the keys.
    """
    settings = folder / "recipe.yaml"
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; choose another --out")
    present = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if not resume:
        if present - NOTHING_LOST:
            hint = "add --resume to go on with it, or choose another --out"
            raise OutputError(f"{folder} is not empty; {hint if settings.is_file() else 'choose another --out'}")
        return False
    if present and not settings.is_file():
        raise OutputError(f"{folder} holds no recipe.yaml, so there is no run to resume; choose another --out")
    if not present:
        return False
    begun = _flat(recipes.load(settings).model_dump(mode="json"))  # settings younger than the run get their defaults
    now = _flat(recipe.model_dump(mode="json"))
    changed = [k for k in {**begun, **now} if begun.get(k) != now.get(k) and not k.startswith(MAY_DIFFER_ON_RESUME)]
    if changed:
        told = "; ".join(f"{key}: began with {begun.get(key)!r}, now {now.get(key)!r}" for key in changed[:5])
        raise RecipeError(f"{folder} cannot be resumed with another recipe ({told}); leave these as they were")
    return (folder / "report.html").is_file() and (folder / "evaluation.json").is_file()


def lock(folder: Path) -> IO[str]:
    """Keeps other runs out of the folder for as long as the returned file stays open.

    Raises:
        OutputError: another process runs in it, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = (folder / ".lock").open("w")
    except OSError as error:
        raise OutputError(f"{folder} cannot be written ({error.strerror}); choose another --out") from None
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        held.close()
        raise OutputError(f"another process is running in {folder}; wait for it, or choose another --out") from None
    return held


def claim(folder: Path, recipe: Recipe, environment: Mapping[str, Any]) -> None:
    """Writes what decides the run.

    Args:
        folder: created where it is missing.
        recipe: fully resolved.
        environment: versions, seed, and the identity of model and data.

    Raises:
        OutputError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "recipe.yaml", recipe.to_yaml())
        write_atomically(folder / "environment.json", json.dumps(environment, indent=1))
    except OSError as error:
        raise OutputError(f"{folder} cannot be written ({error.strerror}); choose another --out") from None


def begun_elsewhere(folder: Path, environment: Mapping[str, Any]) -> str | None:
    """On a resume: a warning where library versions changed since the run began.

    Args:
        folder: the run.
        environment: as `claim` takes it, of the present process.

    Raises:
        OutputError: the model or the data changed.
    """
    earlier = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    for what, value in environment["identity"].items():
        if earlier["identity"].get(what, value) != value:
            raise OutputError(f"the {what} changed since {folder} began; start a new run with another --out")
    versions = [name for name, version in environment["versions"].items() if earlier["versions"].get(name) != version]
    machine = [
        f"{what} ({earlier[what]}, now {environment[what]})" for what in MACHINE if earlier[what] != environment[what]
    ]
    if not versions and not machine:
        return None
    return (
        f"{folder} began with other {', '.join([*machine, *(f'{name} version' for name in versions)])}; not bit for bit"
    )


def tidy(folder: Path, recipe: Recipe) -> None:
    """On a resume: takes over settings that may differ, and removes what a kill left half written."""
    write_atomically(folder / "recipe.yaml", recipe.to_yaml())
    for draft in folder.glob(".model.*.part"):
        shutil.rmtree(draft, ignore_errors=True)


def write_pairs(path: Path, rows: Pairs) -> Path:
    """Lists rows of a run's data as a table of pairs, so that any command can judge on them; returns the path."""
    lines = (
        json.dumps({"file_name": to_json(row.path), "text": list(row.captions)}, ensure_ascii=False)
        for row in rows.rows
    )
    write_atomically(path, "".join(line + "\n" for line in lines))
    return path


def write_stand_in(folder: Path, module: nn.Module | None) -> None:
    """Keeps the map that a method without a tower fitted, in place of `model/`."""
    temporary = folder / f".{STAND_IN}.tmp"
    write_tensors(temporary, {} if module is None else module.state_dict())
    temporary.replace(folder / STAND_IN)


def write_features(folder: Path, side: str, features: Features) -> None:
    """Keeps the raw features of the evaluated pairs for the report and the gap.

    Args:
        folder: the run's `features/`.
        side: "before" or "after".
        features: of the first retrieval task.
    """
    folder.mkdir(exist_ok=True)
    temporary = folder / f".{side}.safetensors.tmp"
    write_tensors(temporary, {"image": features.image.float(), "text": features.text.float()})
    temporary.replace(folder / f"{side}.safetensors")
    rows = {
        "paths": [to_json(path) for path in features.paths],
        "captions": features.captions,
        "image_of_text": features.image_of_text.tolist(),
    }
    write_atomically(folder / "rows.json", json.dumps(rows, ensure_ascii=False))


def read_first_pairs(folder: Path, side: str) -> tuple[Tensor, Tensor] | None:
    """Each evaluated picture with its first caption: N×d image and text features, raw; None where there are none."""
    from safetensors.torch import load_file

    if not (folder / f"{side}.safetensors").is_file():
        return None
    tensors = load_file(folder / f"{side}.safetensors")
    owners = json.loads((folder / "rows.json").read_text(encoding="utf-8"))["image_of_text"]
    first: dict[int, int] = {}
    for caption, picture in enumerate(owners):
        first.setdefault(picture, caption)
    return tensors["image"], tensors["text"][[first[i] for i in range(len(tensors["image"]))]]


def began_with(folder: Path) -> DualEncoder:
    """The model that a run began with, loaded again by its recipe.

    Raises:
        ModelError: it cannot be loaded, or is no longer the one the run began with.
        OutputError: the folder's files cannot be read.
    """
    try:
        told = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
        place, known = Path(told["folder"]), told["identity"]["model"]
    except (OSError, ValueError, KeyError, TypeError):
        raise OutputError(f"{folder} has no environment.json that can be read; name the model before") from None
    spec = recipes.load(folder / "recipe.yaml").model
    with contextlib.chdir(place if place.is_dir() else Path.cwd()):  # where a relative spec begins
        model = load(spec)
    if model.fingerprint != known:
        raise ModelError(f"{spec} is no longer the model that {folder} began with; name the model before")
    return model


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
