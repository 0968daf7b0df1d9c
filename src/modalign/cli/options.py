"""Options that several commands share, and the panels that group them in `--help`."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from modalign.errors import OutputError

DATA = "Data"
TRAINING = "Training"
JUDGING = "Judging"
MACHINE = "Machine"

METHODS_HELP = "The method: clip-refine, or a baseline (contrastive, hycd, rafa, …; all: modalign doctor)."
TASK_HELP = "KIND:SPEC, such as zero-shot:SPEC, retrieval:SPEC, knn:SPEC or drift:SPEC; repeat for several."
TEMPLATES_HELP = "single, openai80, clip-benchmark (chosen by data set), a data set's name, or a file of templates."
MAX_BAD_HELP = "Unreadable rows tolerated; each is named and left out."


class Precision(StrEnum):
    """The towers' number format."""

    FP32 = "fp32"
    BF16 = "bf16"
    TF32 = "tf32"


JudgedModelOption = Annotated[
    str, typer.Option("--model", help="Model spec, for example hf:./my-clip or a run folder.")
]
VisionOption = Annotated[str, typer.Option("--target", help="Vision model spec: timm:…, hf:…, open_clip:… or demo.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any recipe key, as a.b=c; repeat for several.", metavar="KEY=VALUE"),
]
TASK = typer.Option("--task", help=TASK_HELP, show_default=False, rich_help_panel=JUDGING)
PROTOCOLS_HELP = "default, standard (CLIP_benchmark's), clip-refine, kuea or tpc-cma."
ProtocolOption = Annotated[
    str | None,
    typer.Option("--protocol", help=PROTOCOLS_HELP, show_default="default, or the suite's", rich_help_panel=JUDGING),
]
ProtocolTemplatesOption = Annotated[
    str | None,
    typer.Option("--templates", help=TEMPLATES_HELP, show_default="the protocol's", rich_help_panel=JUDGING),
]
SuiteOption = Annotated[
    str | None,
    typer.Option(
        "--suite",
        help="A list of tasks: clip-refine, kuea, tpc-cma, vtab, core or demo; what is missing is named.",
        show_default=False,
        rich_help_panel=JUDGING,
    ),
]
DataRootOption = Annotated[
    Path | None,
    typer.Option(
        "--data-root", help="The folder with the suite's data sets.", show_default=False, rich_help_panel=JUDGING
    ),
]
MaxBadOption = Annotated[int, typer.Option("--max-bad", min=0, help=MAX_BAD_HELP, rich_help_panel=DATA)]
ImageColumnOption = Annotated[
    str | None,
    typer.Option("--image-column", help="The table's column of pictures, if unusual.", rich_help_panel=DATA),
]
TextColumnOption = Annotated[
    str | None,
    typer.Option("--text-column", help="The table's column of captions, if unusual.", rich_help_panel=DATA),
]
LabelColumnOption = Annotated[
    str | None,
    typer.Option("--label-column", help="The table's column of classes, if unusual.", rich_help_panel=DATA),
]


def _writable(path: Path | None) -> Path | None:
    """Refuses a path that cannot be written, before anything is computed for it."""
    if path is None:
        return None
    if path.is_dir():
        raise OutputError(f"--json {path} is a folder: name a file in it, such as {path / 'numbers.json'}")
    above = next(folder for folder in path.absolute().parents if os.path.lexists(folder))
    if not above.is_dir():
        raise OutputError(f"--json {path}: {above} is no folder; name another path")
    if not os.access(above, os.W_OK | os.X_OK):
        raise OutputError(f"--json {path}: {above} cannot be written; name another path")
    return path


JsonOption = Annotated[
    Path | None,
    typer.Option("--json", help="Also write the numbers here.", show_default=False, callback=_writable),
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.", rich_help_panel=MACHINE)]
BatchOption = Annotated[
    int,
    typer.Option("--batch-size", min=1, help="Pictures or captions in one forward pass.", rich_help_panel=MACHINE),
]
WorkersOption = Annotated[
    int, typer.Option("--workers", min=0, help="Decoding processes beside the main one.", rich_help_panel=MACHINE)
]
StoreOption = Annotated[
    Path | None,
    typer.Option(
        "--store", help="Read features from this folder of stores, and keep them there.", rich_help_panel=MACHINE
    ),
]
StoreRootOption = Annotated[
    Path | None,
    typer.Option("--store", help="The folder of stores.", show_default="store/ in modalign's cache"),
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Seed of everything random.")]
