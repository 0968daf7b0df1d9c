"""`modalign export`, `modalign report` and `modalign doctor`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from modalign.cli.stopping import stoppable
from modalign.errors import OutputError

EXPORT_EXAMPLE = "Example: modalign export runs/coco --to transformers --out exported/clip"
REPORT_EXAMPLE = "Example: modalign report runs/coco"
DOCTOR_EXAMPLE = "Example: modalign doctor"


class Format(StrEnum):
    """What a checkpoint can be exported to."""

    OPEN_CLIP = "open_clip"
    TRANSFORMERS = "transformers"
    LLAVA = "llava"


def export(
    run: Annotated[str, typer.Argument(help="A run folder, or any model spec.")],
    to: Annotated[Format, typer.Option("--to", help="The library that will load it.")],
    out: Annotated[Path, typer.Option("--out", help="The folder to write; new or empty.")],
    llava: Annotated[
        Path | None,
        typer.Option("--llava", help="With --to llava: the LLaVA whose image tower is replaced.", show_default=False),
    ] = None,
) -> None:
    """Write a checkpoint another library loads, and prove that it does before saying so."""
    from modalign.exporting import export as write

    with stoppable("nothing was exported, and what was moved aside for the proof is back"):
        folder = write(run, out, to.value, llava=llava)
    typer.echo(f"exported and verified: {folder}")


def report(run: Annotated[Path, typer.Argument(help="A run folder.")]) -> None:
    """Write a run's report.html again from what the run folder holds."""
    from modalign.report import page, run_folder

    if not (run / "recipe.yaml").is_file():
        raise OutputError(f"{run} is not a run folder (it holds no recipe.yaml); name the --out of `modalign refine`")
    found = run_folder.read(run)
    if "evaluation.json" in found.absent and (run / "evaluation.json").is_file():
        told = found.absent["evaluation.json"].sentence.removesuffix(".")
        raise OutputError(f"{run}: {told}, so there is no verdict to report; remove it and go on with {found.resume}")
    typer.echo(f"report: {page.write(run)}")


def doctor() -> None:
    """Say what this machine and environment can do: versions, devices, extras, cache."""
    from modalign.doctor import lines

    for line in lines():
        typer.echo(line)
