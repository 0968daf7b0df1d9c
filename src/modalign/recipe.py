"""The typed recipe: every setting of a run, its default, and where the default comes from.

Unknown keys are refused with the nearest valid one. `load` reads YAML and applies `--set a.b=c` overrides;
`Recipe.to_yaml` writes what a run folder keeps.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from modalign.errors import RecipeError

Scope = Literal["full", "image", "text", "projection"]
Precision = Literal["fp32", "bf16", "tf32"]
DEFAULT_METHOD = "clip-refine"


class Section(BaseModel):
    """Base of every part of a recipe: unknown keys are errors, values keep their types."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, allow_inf_nan=False)


class DataRecipe(Section):
    """What is trained on, and how it is read."""

    train: str = Field("", description="pairs spec of the training data")
    batch_size: int = Field(512, ge=2, description="pairs in a global batch, over all processes (CLIP-Refine: 512)")
    drop_last: bool = Field(True, description="leave out an epoch's last incomplete batch (CLIP-Refine: yes)")
    validation: float = Field(0.0, ge=0, lt=1, description="share of the pictures held out of training")
    workers: int = Field(0, ge=0, description="decoding processes beside the main one")
    max_bad: int = Field(0, ge=0, description="unreadable or empty rows tolerated before the run stops")
    image_column: str | None = Field(None, description="the image-path column where the usual names do not fit")
    text_column: str | None = Field(None, description="the caption column where the usual names do not fit")


class GroupRecipe(Section):
    """Parameters whose name matches get their own rate or decay, or stay frozen."""

    match: str = Field(description="a regular expression searched in the library's parameter names")
    lr: float | None = Field(None, ge=0)
    weight_decay: float | None = Field(None, ge=0)
    freeze: bool = False

    @field_validator("match")
    @classmethod
    def _compiles(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return value


class OptimizerRecipe(Section):
    """AdamW. The defaults are CLIP-Refine's (arXiv 2504.12717): decay on all parameters, no clipping."""

    lr: float = Field(1e-6, ge=0, le=1e6)
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.1, ge=0)
    clip_norm: float | None = Field(None, gt=0, description="largest global gradient norm; null = no clipping")
    groups: list[GroupRecipe] = Field(default_factory=list)


class ScheduleRecipe(Section):
    """How the learning rate moves."""

    name: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = Field(0, ge=0)


class CheckpointRecipe(Section):
    """When the training state is written."""

    every: int = Field(100, ge=1, description="steps between checkpoints; there is one at each epoch's end as well")
    keep: int = Field(2, ge=1, description="how many of the newest are kept")


class EvaluationRecipe(Section):
    """What is judged before and after, and how much worse is still tolerable."""

    tasks: list[str] = Field(default_factory=list, description="zero-shot:SPEC or retrieval:SPEC")
    templates: str = Field("single", description="single, openai80 or a file of templates")
    tolerance: float | dict[str, float] = Field(
        0.01, description="the drop that is tolerated (0.01 = one point), or one per metric name or pattern"
    )
    strict: bool = Field(False, description="treat 'cannot tell' as a failure")
    batch_size: int = Field(256, ge=1)
    resamples: int = Field(10_000, ge=100)

    @field_validator("tolerance")
    @classmethod
    def _not_negative(cls, value: float | dict[str, float]) -> float | dict[str, float]:
        for number in value.values() if isinstance(value, dict) else [value]:
            if number < 0:
                raise ValueError("a tolerance is a drop and cannot be negative")
        return value


class Recipe(Section):
    """Everything that decides a run's numbers."""

    model: str = Field("", description="model spec, as for modalign.load")
    data: DataRecipe = Field(default_factory=lambda: DataRecipe())
    method: dict[str, Any] = Field(default_factory=lambda: {"name": DEFAULT_METHOD})
    train: Scope = Field("full", description="which parameters train")
    epochs: int = Field(1, ge=1)
    steps: int | None = Field(None, ge=1, description="stop after so many steps; null = all of the epochs")
    chunk: int | None = Field(None, ge=1, description="rows a process embeds at once; never changes the gradient")
    frozen: Literal["stored", "live"] = Field(
        "stored", description="compute the initial model's features once, or again at every step"
    )
    optimizer: OptimizerRecipe = Field(default_factory=lambda: OptimizerRecipe())
    schedule: ScheduleRecipe = Field(default_factory=lambda: ScheduleRecipe())
    checkpoint: CheckpointRecipe = Field(default_factory=lambda: CheckpointRecipe())
    evaluation: EvaluationRecipe = Field(default_factory=lambda: EvaluationRecipe())
    precision: Precision = "fp32"
    device: str = Field("auto", description="auto, cpu, cuda, cuda:N or mps")
    seed: int = Field(0, ge=0)
    probe_every: int = Field(10, ge=0, description="steps between measures of each term's gradient; 0 = never")

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.train == "projection" and self.frozen == "live":
            raise ValueError("train: projection reads stored trunk outputs; it needs frozen: stored")
        return self

    def to_yaml(self) -> str:
        """The fully resolved recipe."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load(source: str | Path | None, overrides: Iterable[str] = (), **values: Any) -> Recipe:
    """Reads a recipe and lays overrides over it.

    Args:
        source: a YAML file, the name of a recipe that modalign ships ("clip-refine-vit-b-32"), or None for defaults.
        overrides: texts "a.b=c"; c is read as YAML.
        values: dotted keys with "__" for the dots ("data__train"); None means not given.

    Raises:
        RecipeError: names the key, its value and the nearest valid key.
    """
    tree: dict[str, Any] = {} if source is None else _read(source)
    for key, value in values.items():
        if value is None:
            continue
        if key == "method__name":
            given = tree.get("method")
            if not isinstance(given, dict) or given.get("name", DEFAULT_METHOD) != value:
                tree["method"] = {}  # another method's settings mean nothing to this one
        _put(tree, key.split("__"), value)
    for text in overrides:
        key, separator, value = text.partition("=")
        if not separator or not key.strip():
            raise RecipeError(f"--set {text}: write key=value, for example --set optimizer.lr=1e-5")
        try:
            _put(tree, key.strip().split("."), _number(yaml.safe_load(value)))
        except yaml.YAMLError:
            raise RecipeError(f"--set {text}: {value!r} is not a YAML value; quote it") from None
    if tree.get("method") is None:
        tree["method"] = {}
    if isinstance(tree["method"], str):
        tree["method"] = {"name": tree["method"]}
    if isinstance(tree["method"], dict):
        tree["method"].setdefault("name", DEFAULT_METHOD)
    return validate(tree)


def validate(tree: Mapping[str, Any]) -> Recipe:
    """Turns a plain mapping into a recipe; every error names its key."""
    from modalign.methods import from_config, to_config

    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        raise RecipeError(_explain(error)) from None
    recipe.method = to_config(from_config(recipe.method))  # with every default written out
    return recipe


def shipped() -> dict[str, Path]:
    """The recipes that come with modalign, by name."""
    here = Path(__file__).resolve().parent
    for folder in (here / "recipes", here.parents[1] / "recipes"):
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    return {}


def _read(source: str | Path) -> dict[str, Any]:
    path = Path(source)
    if not path.is_file():
        known = shipped()
        if str(source) in known:
            path = known[str(source)]
        else:
            near = difflib.get_close_matches(str(source), known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; shipped recipes: {', '.join(known) or 'none'}"
            raise RecipeError(f"recipe {str(source)!r} is neither a file nor a shipped recipe{hint}")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = getattr(error, "problem_mark", None)
        line = f" line {where.line + 1}" if where is not None else ""
        raise RecipeError(f"{path}:{line} is not YAML; correct the file") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of keys to values, this file holds a {type(tree).__name__}")
    return {str(key): _number(value) for key, value in tree.items()}


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-6 as a string; people mean the number."""
    if isinstance(value, dict):
        return {str(key): _number(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_number(item) for item in value]
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
        return float(value)
    return value


def _put(tree: dict[str, Any], path: list[str], value: Any) -> None:
    for key in path[:-1]:
        below = tree.setdefault(key, {})
        if not isinstance(below, dict):
            raise RecipeError(f"{'.'.join(path)}: {key!r} is not a section of the recipe")
        tree = below
    tree[path[-1]] = value


def _explain(error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        place = [str(part) for part in problem["loc"] if not str(part).startswith("dict[")]
        key = ".".join(place)
        if problem["type"] == "extra_forbidden":
            valid = _keys_at(place[:-1])
            near = difflib.get_close_matches(place[-1], valid, n=1, cutoff=0.5)
            hint = f"did you mean {'.'.join([*place[:-1], near[0]])!r}?" if near else f"valid here: {', '.join(valid)}"
            lines.append(f"unknown recipe key {key!r} (value {problem['input']!r}); {hint}")
        elif problem["type"] == "missing":
            lines.append(f"recipe key {key!r} is missing; add it")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            what = f"{key} = {problem['input']!r}" if key else "recipe"
            lines.append(f"{what}: {message[0].lower()}{message[1:]}")
    return "; ".join(dict.fromkeys(lines))


def _keys_at(place: list[str]) -> list[str]:
    section: type[BaseModel] = Recipe
    for key in place:
        if key.isdigit():
            continue
        field = section.model_fields.get(key)
        inner = _section_in(field.annotation) if field is not None else None
        if inner is None:
            return []
        section = inner
    return list(section.model_fields)


def _section_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (list, Union):
        for part in get_args(annotation):
            found = _section_in(part)
            if found is not None:
                return found
    return None
