"""What a sweep is made of: the values of each swept key, the seeds, and one run for every combination."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modalign.errors import RecipeError
from modalign.recipe import Recipe
from modalign.recipe.file import dump, parse_value

LONGEST_NAME = 120
MOST_SEEDS = 1_000


@dataclass(frozen=True)
class Axis:
    """One swept recipe key, dotted, and its values."""

    key: str
    values: tuple[Any, ...]

    @property
    def numeric(self) -> bool:
        """Whether every value is a number."""
        return all(isinstance(value, int | float) and not isinstance(value, bool) for value in self.values)


@dataclass(frozen=True)
class Point:
    """One run of the sweep.

    Attributes:
        name: of its folder.
        values: swept key → value.
        seed: of the run.
        recipe: every setting.
    """

    name: str
    values: dict[str, Any]
    seed: int
    recipe: Recipe


def parse_axes(texts: Iterable[str]) -> list[Axis]:
    """Reads `--over key=v1,v2` texts; the values are read as YAML.

    Raises:
        RecipeError: a text without key or values.
    """
    axes = []
    for text in texts:
        key, equals, values = text.partition("=")
        if not equals or not key.strip() or not values.strip():
            raise RecipeError(f"--over {text}: write key=value,value, for example --over method.alpha_target=0,0.1,0.5")
        axes.append(Axis(key.strip(), tuple(parse_value(f"[{values}]", f"--over {text}"))))
    return axes


def check_axes(axes: Sequence[Axis]) -> None:
    """Refuses what cannot be swept.

    Raises:
        RecipeError: the seed, a key or a value named twice, or no value.
    """
    for key, times in Counter(axis.key for axis in axes).items():
        if times > 1:
            raise RecipeError(f"--over {key} is given {times} times; give all its values at once")
    for axis in axes:
        if axis.key == "seed":
            raise RecipeError("--over seed: seeds are no setting to choose; write --seeds 3, or --seeds 0,1,2")
        told = [dump(_whole(value), flow=True) for value in axis.values]
        if twice := [value for value, times in Counter(told).items() if times > 1]:
            raise RecipeError(f"--over {axis.key}: {twice[0]} is named twice; name each value once")
        if not told:
            raise RecipeError(f"--over {axis.key}: name at least one value")


def _whole(value: Any) -> Any:
    """1.0 as 1, which are one value; 1 and true are two."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def parse_seeds(text: str) -> list[int]:
    """`3` is the seeds 0, 1, 2; `0,4` is these two.

    Raises:
        RecipeError: neither, or more seeds than anyone runs.
    """
    if not re.fullmatch(r"\d+(,\d+)*,?", text):
        raise RecipeError(f"--seeds {text}: write how many, as in --seeds 3, or which, as in --seeds 0,1,5")
    numbers = [int(part) for part in text.split(",") if part]
    if "," not in text and numbers[0] > MOST_SEEDS:
        raise RecipeError(f"--seeds {text}: this asks for {numbers[0]:,} seeds; to name one seed write --seeds {text},")
    seeds = numbers if "," in text else list(range(numbers[0]))
    if not seeds or len(set(seeds)) < len(seeds):
        raise RecipeError(f"--seeds {text}: name at least one seed, and each once")
    return seeds


def points_of(
    axes: Sequence[Axis], seeds: Sequence[int], recipe_of: Callable[[Mapping[str, Any], int], Recipe]
) -> list[Point]:
    """Every combination of values, each with every seed.

    Args:
        axes: what is swept.
        seeds: of the runs.
        recipe_of: swept values and seed → the recipe of one run.
    """
    short = _short_names([axis.key for axis in axes])
    points = []
    for values in itertools.product(*(axis.values for axis in axes)):
        chosen = {axis.key: value for axis, value in zip(axes, values, strict=True)}
        for seed in seeds:
            told = [f"{short[key]}={dump(value, flow=True)}" for key, value in chosen.items()]
            points.append(Point(_folder_name([*told, f"seed={seed}"]), chosen, seed, recipe_of(chosen, seed)))
    return points


def _short_names(keys: Sequence[str]) -> dict[str, str]:
    """A key's last part, or all of it where two keys end alike."""
    last = Counter(key.rpartition(".")[2] for key in keys)
    return {key: key if last[end] > 1 else end for key in keys for end in [key.rpartition(".")[2]]}


def _folder_name(parts: Sequence[str]) -> str:
    """The values as a folder's name; what a file system may not take becomes `-`, and a hash tells such names apart."""
    whole = ",".join(parts)
    name = re.sub(r"[^\w.,=+-]+", "-", whole)
    if name == whole and len(name) <= LONGEST_NAME:
        return name
    return f"{name[:LONGEST_NAME]}-{hashlib.sha256(whole.encode()).hexdigest()[:6]}"
