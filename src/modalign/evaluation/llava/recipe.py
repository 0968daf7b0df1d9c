"""A row of the LLaVA table: which image tower, tuned or not, asked what."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from modalign.errors import RecipeError


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TuneRecipe(_Strict):
    """LoRA tuning; the defaults are KUEA's (its appendix B.3), and LLaVA-1.5's where it says nothing."""

    data: str = Field(description="LLaVA's instruction JSON")
    images: str = Field(description="the folder that its pictures are named from")
    rank: int = Field(128, ge=1)
    alpha: int = Field(256, ge=1)
    dropout: float = Field(0.05, ge=0, lt=1, description="LLaVA-1.5")
    lr: float = Field(2e-4, gt=0)
    projector_lr: float = Field(2e-5, ge=0, description="LLaVA-1.5; 0 = the projector stays")
    weight_decay: float = Field(0.0, ge=0)
    warmup: float = Field(0.03, ge=0, lt=1, description="share of the steps, LLaVA-1.5")
    batch_size: int = Field(128, ge=1)
    micro_batch: int = Field(8, ge=1, description="conversations in one forward pass; does not change the gradient")
    epochs: int = Field(1, ge=1)
    max_length: int = Field(2048, ge=16, description="tokens, LLaVA-1.5")
    precision: Literal["bf16", "fp32"] = "bf16"
    max_bad: int = Field(0, ge=0)


class MixRecipe(_Strict):
    """Additive-MoF: a second encoder's tokens."""

    encoder: str = Field(description="a spec of modalign.load_vision")
    share: float = Field(0.5, ge=0, le=1, description="of the second encoder")


class LlavaRecipe(_Strict):
    """One row: a LLaVA with an image tower, perhaps tuned, and what it is asked."""

    llava: str = Field(description="the folder of a transformers LLaVA")
    model: str = Field(description="a model spec or run folder, whose image tower is put in")
    mix: MixRecipe | None = None
    tune: TuneRecipe | None = None
    tasks: list[str] = Field(min_length=1, description="vqa:SPEC and mmvp:SPEC")
    seed: int = Field(0, ge=0)


def load_recipes(place: Path, changes: Sequence[str] = ()) -> dict[str, LlavaRecipe]:
    """Reads the YAML files of a folder, or one file: name → recipe, in the order baseline, align, peft, both, others.

    Args:
        place: the folder or file.
        changes: "key=value", for all of them; a dotted key reaches into a section that a recipe has.

    Raises:
        RecipeError: no recipe there, or a key or value that is not one; names the file and key.
    """
    import yaml

    files = sorted(place.glob("*.yaml")) if place.is_dir() else [place]
    if not files or not all(file.is_file() for file in files):
        raise RecipeError(f"{place} holds no recipe; name a folder of YAML files such as recipes/llava-2x2, or one")
    first = ("baseline", "align", "peft", "both")
    files.sort(key=lambda file: (first.index(file.stem) if file.stem in first else len(first), file.stem))
    found = {}
    for file in files:
        try:
            content: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError) as error:
            raise RecipeError(f"{file} cannot be read ({str(error).splitlines()[0]}); check it") from None
        if not isinstance(content, dict):
            raise RecipeError(f"{file} holds no keys; see recipes/llava-2x2")
        for change in changes:
            key, equals, value = change.partition("=")
            if not equals:
                raise RecipeError(f"--set {change}: write key=value")
            *path, last = key.split(".")
            section: Any = content
            for part in path:
                section = section.get(part) if isinstance(section, dict) else None
            if isinstance(section, dict):  # a row without tuning has no tuning to change
                section[last] = yaml.safe_load(value)
        try:
            found[file.stem] = LlavaRecipe.model_validate(content)
        except ValidationError as error:
            told = [f"{file.name}: {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
            raise RecipeError(*told, keys=[".".join(map(str, e["loc"])) for e in error.errors()]) from None
    return found
