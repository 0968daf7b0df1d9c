"""What would stop a recipe before it computes anything: keys, values, specs that do not parse, paths that do not exist.

No weights are read, no table is opened, no hub is asked.
"""

from __future__ import annotations

import difflib
import importlib.util
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from modalign import methods
from modalign import recipe as recipes
from modalign.data import arrow_files, sources, tar_shards, torchvision_sets
from modalign.data.mixing import IMAGES
from modalign.errors import DataError, ModelError, RecipeError
from modalign.evaluation.prompts import read_prompts
from modalign.evaluation.protocols import protocol_of
from modalign.evaluation.suite import parse_task
from modalign.models.loading import KINDS
from modalign.models.tower_file import split_tower
from modalign.recipe import Recipe
from modalign.training.scope import target_problem

HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def check(source: str | Path, overrides: Iterable[str] = ()) -> list[str]:
    """Everything that is wrong with a recipe, in one line each; none where it can start.

    Args:
        source: a file, a run folder or the name of a shipped recipe.
        overrides: texts "a.b=c".
    """
    try:
        given = recipes.gather(source, overrides)
    except RecipeError as error:
        return list(error.problems)
    found: list[str] = []
    try:
        resolved = recipes.resolve(given)
    except RecipeError as error:
        found += error.problems
    else:
        found += [recipes.located(given, key, problem) for key, problem in _clashes(resolved, given.tree)]
    for key, spec, problem_of in _specs(given.tree):
        try:
            problem = problem_of(spec)
        except (DataError, ModelError, RecipeError) as error:
            problem = str(error)
        if problem:
            found.append(recipes.located(given, key, f"{key}: {problem}"))
    return list(dict.fromkeys(found))


def _specs(tree: Mapping[str, Any]) -> Iterator[tuple[str, str, Callable[[str], str]]]:
    """(key, text, what is wrong with such a text) for what names a model, data, a task or a file."""
    data, evaluation = _section(tree, "data"), _section(tree, "evaluation")
    yield "model", _text(tree.get("model")), _model
    yield "target", _text(tree.get("target")), _target
    train = data.get("train")
    if isinstance(train, list):
        for number, item in enumerate(train):
            if isinstance(item, Mapping):
                yield f"data.train.{number}.spec", _text(item.get("spec")), _data
    else:
        yield "data.train", _text(train), _data
    tasks = evaluation.get("tasks")
    for number, task in enumerate(tasks if isinstance(tasks, list) else []):
        yield f"evaluation.tasks.{number}", _text(task), _task
    yield "evaluation.protocol", _text(evaluation.get("protocol")), _protocol
    yield "evaluation.templates", _text(evaluation.get("templates")), _templates
    yield "device", _text(tree.get("device")), _device


def _clashes(recipe: Recipe, tree: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(key, what is wrong) where settings that are right alone do not go together."""
    method, data = methods.from_config(recipe.method), recipe.data
    problem = target_problem(method, recipe)
    if problem:
        yield "target", problem
    if recipe.train in ("image", "text") and method.towers and recipe.train not in method.towers:
        other = next(iter(method.towers))
        yield "train", f"train: {recipe.train} trains a tower that method {method.name!r} leaves alone; use {other}"
    if recipe.precision == "tf32" and recipe.device == "cpu":
        yield "precision", "precision: tf32 needs an NVIDIA GPU and device is cpu; use fp32 or bf16"
    if _section(tree, "data").get("train") in ("", []) and not recipe.model.startswith("vectors:"):
        yield "data.train", "data.train is empty; name pairs, such as data.train: ./pairs"
    if isinstance(data.train, str) and data.train:
        pictures = data.train.startswith(IMAGES)
        if pictures and ("text" in method.towers or "frozen_text" in method.needs):
            yield "data.train", f"method {method.name!r} reads captions and {data.train} has none; name pairs"
        for key in ("image_column", "text_column"):
            column = getattr(data, key)
            if column is not None and not sources.has_columns(data.train.removeprefix(IMAGES)):
                yield f"data.{key}", f"data.{key} = {column!r}: {data.train} has no columns; leave it out"


def _section(tree: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    section = tree.get(key)
    return section if isinstance(section, Mapping) else {}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _model(spec: str) -> str:
    if not spec:
        return ""  # given on the command line
    base, tower = split_tower(spec)
    if tower is not None and not tower.is_file():
        return f"{spec!r}: there is no file {tower}"
    kind, colon, rest = base.partition(":")
    if kind == "open_clip" and colon:
        return _open_clip(rest, base)
    if kind == "hf" and colon:
        name = rest.partition("@")[0]
        wrong = name.startswith((".", "/", "~")) or not HUB_NAME.fullmatch(name)
        return f"{base!r}: there is no folder {rest}" if wrong and not _path(rest).is_dir() else ""
    if kind == "demo":
        return "" if (rest or "0").isdecimal() else f"{base!r}: the demo takes a whole number as its seed, as in demo:1"
    if kind == "vectors" and colon:
        return "" if rest and _path(rest).exists() else f"{base!r}: there is no file {rest}"
    if kind == "wrapped":
        KINDS[kind](rest, base)  # says why it cannot be loaded
    if _path(base).is_dir():
        return ""
    near = difflib.get_close_matches(kind.lower(), KINDS, n=1)
    told = f"did you mean {near[0]}:{rest}?" if near and rest else "write open_clip:…, hf:…, demo or a folder"
    return f"{base!r} is no folder and begins with no kind of model; {told}"


def _target(spec: str) -> str:
    kind, colon, rest = spec.partition(":")
    if kind != "timm" or not colon:
        return _model(spec)
    if rest.startswith("local-dir:"):
        folder = rest.removeprefix("local-dir:")
        return "" if folder and _path(folder).is_dir() else f"{spec!r}: there is no folder {folder}"
    _, at, file = rest.partition("@")
    hub = rest.startswith("hf-hub:")  # where @ names a revision
    return f"{spec!r}: there is no file {file}" if at and not hub and not _path(file).is_file() else ""


def _open_clip(rest: str, spec: str) -> str:
    if rest.startswith("local-dir:"):
        folder = rest.removeprefix("local-dir:")
        return "" if folder and _path(folder).is_dir() else f"{spec!r}: there is no folder {folder}"
    if rest.startswith("hf-hub:"):
        name = rest.removeprefix("hf-hub:").partition("@")[0]
        return "" if HUB_NAME.fullmatch(name) else f"{spec!r}: write open_clip:hf-hub:<owner>/<name>"
    architecture, at, file = rest.partition("@")
    if not at:
        architecture, slash, _ = rest.rpartition("/")
        if not slash:
            return f"{spec!r} names no weights; write open_clip:<architecture>/<tag> or open_clip:<architecture>@<file>"
    elif not _path(file).is_file():
        return f"{spec!r}: there is no file {file}"
    known = _architectures()
    if known and architecture not in known:
        near = difflib.get_close_matches(architecture, known, n=1)
        told = f"; did you mean {near[0]!r}?" if near else ""
        return f"{spec!r}: open_clip has no architecture {architecture!r}{told}"
    return ""


def _architectures() -> list[str]:
    """open_clip's built-in architectures, from the files it keeps them in: importing it takes seconds."""
    found = importlib.util.find_spec("open_clip")
    if found is None or found.origin is None:
        return []
    return sorted(path.stem for path in (Path(found.origin).parent / "model_configs").glob("*.json"))


def _data(spec: str) -> str:
    spec = spec.removeprefix(IMAGES)
    if not spec:
        return ""
    kind, _, rest = spec.partition(":")
    if kind in sources.PUBLISHED:
        root, at, _ = rest.rpartition("@")
        if not at:
            return f"{spec!r} names no split; write {kind}:<root>@<split>"
        return "" if _path(root).is_dir() else f"{spec!r}: there is no folder {root}"
    if kind == "hf":
        name = re.split("[@:]", rest)[0]
        return "" if HUB_NAME.fullmatch(name) else f"{spec!r}: write hf:<owner>/<name>[:config][@split]"
    if spec.partition(":")[0] == "demo":
        return ""
    if kind == "wds" or spec.endswith(".tar") or ".tar::" in spec:
        tar_shards.shards(spec, rest if kind == "wds" else spec)
        return ""
    if kind == "torchvision":
        torchvision_sets.located(spec, rest)
        return ""
    path, split = arrow_files.path_and_split(rest if kind == "datasets" else spec)
    if arrow_files.is_saved(path):
        arrow_files.saved(path, split)
        return ""
    if kind == "datasets" and path.is_dir():
        return f"{spec!r}: {path} was not written by save_to_disk"
    if path.exists():
        return ""
    near = difflib.get_close_matches(kind, sources.KINDS, n=1) if rest else []
    return f"{spec!r}: there is no such file or folder" + (f"; did you mean {near[0]}:{rest}?" if near else "")


def _task(text: str) -> str:
    return _data(parse_task(text).spec)


def _protocol(name: str) -> str:
    if name:
        protocol_of(name)
    return ""


def _templates(text: str) -> str:
    if text and text != "openai80":  # which comes with open_clip, and importing that takes seconds
        read_prompts(text)
    return ""


def _device(text: str) -> str:
    known = not text or re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", text)
    return "" if known else f"{text!r} is not a device; use auto, cpu, cuda, cuda:N or mps"


def _path(text: str) -> Path:
    return Path(text).expanduser()
