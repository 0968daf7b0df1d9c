"""The options of `modalign refine` and `modalign sweep`: each lies over a key of the recipe and has no default."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from modalign.cli.options import (
    DATA,
    JUDGING,
    MACHINE,
    MAX_BAD_HELP,
    METHODS_HELP,
    PROTOCOLS_HELP,
    TASK_HELP,
    TRAINING,
    Precision,
)

OutOption = Annotated[Path, typer.Option("--out", help="The run folder; new or empty unless --resume.")]
ModelOption = Annotated[str | None, typer.Option("--model", help="Model spec, for example hf:./my-clip.")]
DataOption = Annotated[
    str | None, typer.Option("--data", help="Pairs spec of the training data; images:SPEC for pictures alone.")
]
MethodOption = Annotated[str | None, typer.Option("--method", help=METHODS_HELP, show_default="clip-refine")]
TargetOption = Annotated[
    str | None,
    typer.Option("--target", help="Vision model that kuea takes over, for example hf:facebook/dinov2-base."),
]
RecipeOption = Annotated[
    str | None,
    typer.Option("--recipe", help="A recipe file, a run folder or the name of a shipped recipe."),
]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on with the run in --out, exactly.")]
SharedStoreOption = Annotated[
    str | None,
    typer.Option(
        "--store", help="Folder of stored features that several runs share.", show_default="the run's own cache"
    ),
]
TrackOption = Annotated[
    list[str] | None,
    typer.Option("--track", help="Log to tensorboard, wandb or trackio as well; repeat for several."),
]
FractionOption = Annotated[
    float | None,
    typer.Option("--fraction", help="Train on this share of the pairs.", show_default="1", rich_help_panel=DATA),
]
LimitOption = Annotated[
    int | None, typer.Option("--limit", help="Train on at most so many pairs.", rich_help_panel=DATA)
]
StratifyOption = Annotated[
    bool | None,
    typer.Option(
        "--stratify",
        help="Keep classes in proportion under --fraction or --limit.",
        show_default="no",
        rich_help_panel=DATA,
    ),
]
BadRowsOption = Annotated[
    int | None,
    typer.Option("--max-bad", min=0, help=MAX_BAD_HELP, show_default="0", rich_help_panel=DATA),
]
TrainOption = Annotated[
    str | None,
    typer.Option(
        "--train",
        help="What trains: full, image, text, projection, last:N, lora, or a regex over parameter names.",
        show_default="full",
        rich_help_panel=TRAINING,
    ),
]
EpochsOption = Annotated[
    int | None,
    typer.Option("--epochs", min=1, help="Passes over the data.", show_default="1", rich_help_panel=TRAINING),
]
GlobalBatchOption = Annotated[
    int | None,
    typer.Option("--batch-size", min=2, help="Pairs in a global batch.", show_default="512", rich_help_panel=TRAINING),
]
ChunkOption = Annotated[
    int | None,
    typer.Option(
        "--chunk",
        min=1,
        help="Rows embedded at once; never changes the gradient.",
        show_default="the whole batch",
        rich_help_panel=TRAINING,
    ),
]
RateOption = Annotated[
    float | None,
    typer.Option("--lr", min=0, help="Base learning rate.", show_default="1e-06", rich_help_panel=TRAINING),
]
RecipeSeedOption = Annotated[
    int | None,
    typer.Option("--seed", min=0, help="Seed of everything random.", show_default="0", rich_help_panel=TRAINING),
]
EvalOption = Annotated[list[str] | None, typer.Option("--eval", help=TASK_HELP, rich_help_panel=JUDGING)]
RecipeProtocolOption = Annotated[
    str | None, typer.Option("--protocol", help=PROTOCOLS_HELP, show_default="default", rich_help_panel=JUDGING)
]
StrictOption = Annotated[
    bool | None,
    typer.Option("--strict", help="Fail on 'cannot tell' too.", show_default="no", rich_help_panel=JUDGING),
]
RecipeWorkersOption = Annotated[
    int | None,
    typer.Option("--workers", min=0, help="Decoding processes.", show_default="0", rich_help_panel=MACHINE),
]
RecipeDeviceOption = Annotated[
    str | None,
    typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.", show_default="auto", rich_help_panel=MACHINE),
]
RecipePrecisionOption = Annotated[
    Precision | None,
    typer.Option("--precision", help="The towers' number format.", show_default="fp32", rich_help_panel=MACHINE),
]
