"""The typed recipe: every setting of a run, its default, and where the default comes from.

Unknown keys are refused with the nearest valid one. `Recipe.to_yaml` writes what a run folder keeps.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from modalign.recipe import file as recipe_file
from modalign.recipe.problems import ClashError

SCOPES = ("full", "image", "text", "projection", "lora")
Precision = Literal["fp32", "bf16", "tf32"]
Tracker = Literal["tensorboard", "wandb", "trackio"]
DEFAULT_METHOD = "clip-refine"


class Section(BaseModel):
    """Base of every part of a recipe: unknown keys are errors, values keep their types."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, allow_inf_nan=False)


class SourceRecipe(Section):
    """One of several sources of training pairs."""

    spec: str = Field(min_length=1, description="pairs spec")
    weight: float | None = Field(
        None, gt=0, description="share of an epoch's draws, in proportion; null = each row once"
    )
    image_column: str | None = Field(None, description="the column of pictures; null = data.image_column")
    text_column: str | list[str] | None = Field(None, description="the column of captions; null = data.text_column")


class DataRecipe(Section):
    """What is trained on, and how it is read."""

    train: str | list[SourceRecipe] = Field("", description="pairs spec of the training data, or several, mixed")
    batch_size: int = Field(512, ge=2, description="pairs in a global batch, over all processes (CLIP-Refine: 512)")
    drop_last: bool = Field(True, description="leave out an epoch's last incomplete batch (CLIP-Refine: yes)")
    validation: float = Field(0.0, ge=0, lt=1, description="share of the pictures held out of training")
    workers: int = Field(0, ge=0, description="decoding processes beside the main one")
    max_bad: int = Field(0, ge=0, description="unreadable or empty rows tolerated before the run stops")
    fraction: float | None = Field(
        None, gt=0, le=1, description="train on this share of the pictures; 0.25 lies in 0.5"
    )
    limit: int | None = Field(
        None, ge=1, description="train on at most so many pictures; the first k lie in the first k + 1"
    )
    stratify: bool = Field(False, description="fraction and limit keep the classes of the pictures in proportion")
    image_column: str | None = Field(None, description="the column of pictures where the usual names do not fit")
    text_column: str | list[str] | None = Field(
        None, description="the column of captions, or several, where the usual names do not fit"
    )
    label_column: str | None = Field(None, description="the column of the classes that stratify reads")

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if isinstance(self.train, list):
            bare = [number for number, source in enumerate(self.train) if source.weight is None]
            if 0 < len(bare) < len(self.train):
                told = f"data.train.{bare[0]} ({self.train[bare[0]].spec}) has no weight while others have"
                raise ClashError(f"train.{bare[0]}", f"{told}; give every source a weight, or none")
        if self.stratify and self.fraction is None and self.limit is None:
            raise ClashError("stratify", "data.stratify: there is no data.fraction or data.limit that it could act on")
        if self.label_column is not None and not self.stratify:
            raise ClashError("label_column", "data.label_column is read by data.stratify; set data.stratify: true")
        return self


class GroupRecipe(Section):
    """Parameters whose name matches get their own rate or decay, or stay frozen."""

    match: str = Field(description="a regular expression searched in the library's parameter names")
    lr: float | None = Field(None, ge=0, description="their learning rate; null = optimizer.lr")
    weight_decay: float | None = Field(None, ge=0, description="their weight decay; null = optimizer.weight_decay")
    freeze: bool = Field(False, description="leave them as they are")

    @field_validator("match")
    @classmethod
    def _compiles(cls, value: str) -> str:
        return _expression(value)


class OptimizerRecipe(Section):
    """AdamW. The defaults are CLIP-Refine's (arXiv 2504.12717): decay on all parameters, no clipping."""

    lr: float = Field(1e-6, ge=0, le=1e6, description="base learning rate (CLIP-Refine: 1e-6)")
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        (0.9, 0.999), description="AdamW's decay of the two moments (CLIP-Refine: PyTorch's own)"
    )
    eps: float = Field(1e-8, gt=0, description="AdamW's ε (CLIP-Refine: PyTorch's own)")
    weight_decay: float = Field(0.1, ge=0, description="on all trained parameters (CLIP-Refine: 0.1)")
    clip_norm: float | None = Field(
        None, gt=0, description="largest global gradient norm; null = no clipping (CLIP-Refine: none)"
    )
    groups: list[GroupRecipe] = Field(
        default_factory=list, description="parameters with a rate or decay of their own; the first that matches counts"
    )


class ScheduleRecipe(Section):
    """How the learning rate moves."""

    name: Literal["constant", "cosine"] = Field(
        "constant", description="its course after warm-up (CLIP-Refine: constant)"
    )
    warmup_steps: int = Field(0, ge=0, description="steps of linear warm-up (CLIP-Refine: none)")
    published_lr: bool = Field(
        False, description="make the first update at the full base rate, as the published KUEA runs did"
    )


class LoraRecipe(Section):
    """Low-rank adapters: each targeted weight W acts as W + (alpha / rank)·B·A, and only A and B train."""

    rank: int = Field(16, ge=1, description="rows of A and columns of B")
    alpha: int = Field(32, ge=1, description="alpha / rank multiplies B·A")
    dropout: float = Field(0.0, ge=0, lt=1, description="of an adapter's input; needs dropout: on")
    target: str | None = Field(
        None, description="a regular expression searched in linear layers' names; null = every block's attention"
    )

    @field_validator("target")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        return None if value is None else _expression(value)


class CheckpointRecipe(Section):
    """When the training state is written."""

    every: int = Field(100, ge=1, description="steps between checkpoints; there is one at each epoch's end as well")
    keep: int = Field(2, ge=1, description="how many of the newest are kept")


class EvaluationRecipe(Section):
    """What is judged before and after, and how much worse is still tolerable."""

    tasks: list[str] = Field(default_factory=list, description="KIND:SPEC, such as zero-shot:SPEC or retrieval:SPEC")
    image_column: str | None = Field(None, description="the tasks' column of pictures, if unusual")
    text_column: str | list[str] | None = Field(None, description="the tasks' column of captions, or several")
    label_column: str | None = Field(None, description="the tasks' column of classes, if unusual")
    protocol: str = Field("default", description="default, standard (CLIP_benchmark's), clip-refine, kuea or tpc-cma")
    templates: str | None = Field(
        None, description="single, openai80, clip-benchmark, a data set's name or a file; null = the protocol's"
    )
    tolerance: float | dict[str, float] = Field(
        0.01, description="the drop that is tolerated (0.01 = one point), or one per metric name or pattern"
    )
    strict: bool = Field(False, description="treat 'cannot tell' as a failure")
    batch_size: int = Field(256, ge=1, description="pictures or captions in one forward pass")
    resamples: int = Field(10_000, ge=100, description="bootstrap resamples behind every interval")

    @property
    def reading(self) -> dict[str, Any]:
        """How its tasks are read, by the names that `modalign.evaluate` gives it."""
        names = ("protocol", "templates", "image_column", "text_column", "label_column")
        return {name: getattr(self, name) for name in names}

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
    target: str | None = Field(
        None, description="vision model spec, as for modalign.load_vision, that the method takes over (KUEA: DINOv2)"
    )
    target_preprocess: Literal["own", "student"] = Field(
        "own", description="the target sees its own transform, or its own size under the student's mean and deviation"
    )
    method: dict[str, Any] = Field(default_factory=lambda: {"name": DEFAULT_METHOD})
    train: str = Field(
        "full",
        description="which parameters train: full, image, text, projection (on stored trunk outputs), last:N blocks, "
        "lora, or a regular expression searched in parameter names (match:EXPRESSION where it looks like a word)",
    )
    lora: LoraRecipe | None = Field(None, description="the adapters of train: lora")
    epochs: int = Field(1, ge=1, description="passes over the data (CLIP-Refine: 1)")
    steps: int | None = Field(None, ge=1, description="stop after so many steps; null = all of the epochs")
    chunk: int | None = Field(None, ge=1, description="rows a process embeds at once; never changes the gradient")
    frozen: Literal["stored", "live"] = Field(
        "stored", description="compute the initial model's features once, or again at every step"
    )
    store: str | None = Field(
        None, description="folder where the stored features lie, for several runs to share; null = the run's own cache"
    )
    optimizer: OptimizerRecipe = Field(default_factory=lambda: OptimizerRecipe())
    schedule: ScheduleRecipe = Field(default_factory=lambda: ScheduleRecipe())
    checkpoint: CheckpointRecipe = Field(default_factory=lambda: CheckpointRecipe())
    evaluation: EvaluationRecipe = Field(default_factory=lambda: EvaluationRecipe())
    precision: Precision = Field("fp32", description="the towers' number format; losses are float32 or wider always")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:N or mps")
    seed: int = Field(0, ge=0, description="of everything random")
    trackers: list[Tracker] = Field(
        default_factory=list, description="where metrics.jsonl is logged to as well: tensorboard, wandb, trackio"
    )
    dropout: Literal["off", "on"] = Field("off", description="dropout in the towers that train, same masks per chunk")
    norm: Literal["frozen", "batch"] = Field(
        "frozen", description="BatchNorm by its running statistics, or by the batch's (whole batches on one process)"
    )
    ema: float | None = Field(
        None, gt=0, lt=1, description="decay of an average of the weights, which is what is validated, judged and saved"
    )
    gradient_checkpointing: bool = Field(False, description="recompute each block in the backward pass to save memory")
    probe_every: int = Field(10, ge=0, description="steps between measures of each term's gradient; 0 = never")

    @field_validator("train")
    @classmethod
    def _is_a_scope(cls, value: str) -> str:
        if value in SCOPES:
            return value
        if value.startswith("last"):
            if not re.fullmatch(r"last:[1-9]\d*", value):
                raise ValueError("write last:N for the last N blocks of each tower, for example last:2")
            return value
        if re.fullmatch("[a-z]+", value) and (near := difflib.get_close_matches(value, SCOPES, n=1, cutoff=0.7)):
            raise ValueError(f"did you mean {near[0]!r}? Write match:{value} for an expression over parameter names")
        _expression(value.removeprefix("match:"))
        return value

    @field_validator("trackers")
    @classmethod
    def _each_once(cls, value: list[Tracker]) -> list[Tracker]:
        if len(set(value)) < len(value):
            raise ValueError("a tracker is named twice; name each once")
        return value

    @field_validator("dropout", mode="before")
    @classmethod
    def _yaml_reads_on_and_off_as_booleans(cls, value: Any) -> Any:
        return {True: "on", False: "off"}[value] if isinstance(value, bool) else value

    @model_validator(mode="before")
    @classmethod
    def _with_adapters(cls, tree: Any) -> Any:
        if isinstance(tree, Mapping) and tree.get("train") == "lora" and tree.get("lora") is None:
            return {**tree, "lora": {}}
        return tree

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.train == "projection":
            for key, wrong, right, why in (
                ("frozen", "live", "stored", "reads stored trunk outputs"),
                ("dropout", "on", "off", "trains on stored trunk outputs, which were made without dropout"),
                ("gradient_checkpointing", True, "false", "runs no blocks"),
            ):
                if getattr(self, key) == wrong:
                    raise ClashError(key, f"{key}: train: projection {why}; it needs {key}: {right}")
        if self.lora is not None and self.train != "lora":
            raise ClashError(
                "lora", f"lora: train: {self.train} makes no adapters that these could set; set train: lora"
            )
        if self.lora is not None and self.lora.dropout > 0 and self.dropout == "off":
            raise ClashError("lora.dropout", "lora.dropout has no effect while dropout is off; set dropout: on as well")
        if self.norm == "batch":
            self._agree_with_batch_statistics()
        return self

    def _agree_with_batch_statistics(self) -> None:
        for clash, key, why, instead in (
            (self.chunk is not None, "chunk", "a chunk's statistics are not the batch's", "remove chunk"),
            (
                self.frozen == "stored",
                "frozen",
                "a picture's feature then depends on its batch, so what is stored for one is not comparable",
                "set frozen: live",
            ),
            (
                self.gradient_checkpointing,
                "gradient_checkpointing",
                "a recomputed block would count its statistics twice",
                "remove it",
            ),
            (
                not self.data.drop_last,
                "data.drop_last",
                "the last, smaller batch has other statistics",
                "set data.drop_last: true",
            ),
        ):
            if clash:
                raise ClashError(
                    key, f"{key}: norm: batch takes BatchNorm's statistics from each batch, and {why}; {instead}"
                )

    def to_yaml(self) -> str:
        """The fully resolved recipe."""
        return recipe_file.dump(self.model_dump(mode="json"))


def _expression(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None
    return value
