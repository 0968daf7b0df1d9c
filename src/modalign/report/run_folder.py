"""What a run folder holds, read tolerantly: a file that is missing or damaged becomes a sentence, never a traceback."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modalign.data.pictures import Picture, from_json

Array = NDArray[np.float32]
FEATURE_FILES = frozenset({"before.safetensors", "after.safetensors", "rows.json"})


@dataclass(frozen=True)
class Absent:
    """Something the page cannot show.

    Args:
        sentence: what is missing or damaged.
        command: what would make it.
    """

    sentence: str
    command: str


@dataclass(frozen=True)
class Features:
    """The raw features of the evaluation pairs, before and after.

    Args:
        image_before: N×d, raw.
        image_after: N×d, raw.
        text_before: M×d, raw.
        text_after: M×d, raw.
        paths: N pictures; equal ones are the same.
        captions: M captions.
        image_of_text: M integers: which of the N rows each caption belongs to.
    """

    image_before: Array
    image_after: Array
    text_before: Array
    text_after: Array
    paths: tuple[Picture, ...]
    captions: tuple[str, ...]
    image_of_text: NDArray[np.int64]


@dataclass
class RunFolder:
    """What `report.html` is made of; what is not there is named in `absent` by its file name."""

    folder: Path
    recipe: str = ""
    environment: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    cost: dict[str, Any] = field(default_factory=dict)
    steps: list[dict[str, Any]] = field(default_factory=list)
    validations: list[dict[str, Any]] = field(default_factory=list)
    features: Features | None = None
    absent: dict[str, Absent] = field(default_factory=dict)
    unreadable_lines: int = 0

    @property
    def resume(self) -> str:
        """The command that finishes this run."""
        return f"modalign refine --out {_quoted(self.folder)} --resume"

    @property
    def again(self) -> str:
        """The command that does it all again in another folder."""
        recipe = self.folder / "recipe.yaml"
        known = f"--recipe {_quoted(recipe)}" if recipe.is_file() else "--model SPEC --data SPEC"
        return f"modalign refine {known} --out {_quoted(self.folder.with_name(self.folder.name + '-again'))}"


def read(folder: Path) -> RunFolder:
    """Reads a run folder.

    Args:
        folder: what `modalign refine --out` wrote; any file in it may be missing or damaged.

    Returns:
        What could be read, and a sentence for each thing that could not.
    """
    run = RunFolder(folder)

    def note(name: str, error: Exception | str, command: str) -> None:
        run.absent[name] = Absent(f"{name} {_problem(error)}.", command)

    try:
        run.recipe = (folder / "recipe.yaml").read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        note("recipe.yaml", error, run.again)
    # A run that holds its evaluation counts as finished and is not resumed: what else is missing needs another run.
    resumable = bool(run.recipe) and not (folder / "evaluation.json").is_file()
    command = run.resume if resumable else run.again
    judged = command if resumable else f"{command} --eval retrieval:SPEC"
    for name in ("environment", "evaluation", "cost"):
        try:
            setattr(run, name, _read_object(folder / f"{name}.json"))
        except (OSError, ValueError) as error:
            note(f"{name}.json", error, judged if name == "evaluation" else command)
    try:
        run.steps, run.validations, run.unreadable_lines = read_metrics(folder / "metrics.jsonl")
        if not run.steps:
            note("metrics.jsonl", "holds no step", command)
    except OSError as error:
        note("metrics.jsonl", error, command)
    try:
        run.features = read_features(folder / "features")
    except (OSError, ValueError) as error:
        note("features/", error, judged)
    return run


def read_metrics(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]], int]:
    """The logged steps and validations in order; what is logged twice counts once, as last.

    Args:
        path: one JSON object a line; the last line may have been cut by a kill.

    Returns:
        The training steps, the validations, and how many lines *other than a cut last one* could not be read.
    """
    steps: dict[int, dict[str, Any]] = {}
    validations: dict[int, dict[str, Any]] = {}
    unreadable = 0
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
                if "validation" in entry:
                    validations[int(entry["step"])] = entry
                if "validation" not in entry or "terms" in entry:  # an epoch's last step holds both
                    steps[int(entry["step"])] = entry
            except (ValueError, KeyError, TypeError):
                unreadable += line.endswith("\n")
    ordered = [[entries[step] for step in sorted(entries)] for entries in (steps, validations)]
    return ordered[0], ordered[1], unreadable


def read_features(folder: Path) -> Features:
    """The features and rows of the evaluation pairs.

    Raises:
        OSError: a file is missing.
        ValueError: a file is damaged, or the files do not belong together.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    arrays: dict[str, Array] = {}
    for side in ("before", "after"):
        path = folder / f"{side}.safetensors"
        if not path.is_file():
            raise FileNotFoundError(2, "missing", str(path))
        try:
            tensors = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"holds a damaged {path.name} ({error})") from error
        for kind in ("image", "text"):
            if kind not in tensors:
                raise ValueError(f"holds no tensor {kind!r} in {path.name}")
            arrays[f"{kind}_{side}"] = np.asarray(tensors[kind], dtype=np.float32)
    try:
        rows = _read_object(folder / "rows.json")
    except ValueError as error:
        raise ValueError(f"holds a rows.json that {error}") from error
    for key in ("paths", "captions", "image_of_text"):
        if not isinstance(rows.get(key), list):
            raise ValueError(f"holds no list {key!r} in rows.json")
    features = Features(
        **arrays,
        paths=tuple(map(_picture, rows["paths"])),
        captions=tuple(map(str, rows["captions"])),
        image_of_text=np.asarray(rows["image_of_text"], dtype=np.int64),
    )
    pictures, captions = len(features.paths), len(features.captions)
    for kind, expected in (("image", pictures), ("text", captions)):
        for side in ("before", "after"):
            found = arrays[f"{kind}_{side}"]
            if found.ndim != 2 or len(found) != expected:
                shape = "×".join(map(str, found.shape))
                raise ValueError(f"holds {shape} {kind} features ({side}) for {expected:,} rows of rows.json")
    owner = features.image_of_text
    if len(owner) != captions or (captions and not (owner.min() >= 0 and owner.max() < pictures)):
        raise ValueError("holds an image_of_text in rows.json that does not fit its paths and captions")
    return features


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"is damaged ({error})") from error
    if not isinstance(value, dict):
        raise ValueError("is damaged (it holds no JSON object)")
    return value


def _picture(value: Any) -> Picture:
    try:
        return from_json(value)
    except ValueError as error:
        raise ValueError(f"holds a rows.json where {error}") from None


def _problem(error: Exception | str) -> str:
    if isinstance(error, FileNotFoundError):
        name = Path(str(error.filename)).name
        return f"holds no {name}" if name in FEATURE_FILES else "is missing"
    if isinstance(error, OSError):
        return f"cannot be read ({error.strerror})"
    if isinstance(error, UnicodeDecodeError):
        return "is damaged (not UTF-8)"
    return str(error)


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
