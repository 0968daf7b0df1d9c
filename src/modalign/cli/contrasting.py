"""`modalign contrast`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from modalign.cli import printing
from modalign.cli.options import (
    DATA,
    BatchOption,
    DeviceOption,
    ImageColumnOption,
    JudgedModelOption,
    MaxBadOption,
    SeedOption,
    StoreRootOption,
    VisionOption,
    WorkersOption,
)

EXAMPLE = (
    "Example: modalign contrast --model hf:openai/clip-vit-large-patch14 "
    "--target hf:facebook/dinov2-with-registers-large --data images:data/imagenet/val"
)


def contrast(
    model: JudgedModelOption,
    target: VisionOption,
    data: Annotated[str, typer.Option("--data", help="images:SPEC, the pictures.", rich_help_panel=DATA)],
    against: Annotated[
        str | None, typer.Option("--against", help="A second model (a run after training) on the same pairs.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="The page; its numbers go beside it as .json.")] = Path(
        "contrast.html"
    ),
    pairs: Annotated[int, typer.Option("--pairs", min=1, help="Blind pairs to show, at most.")] = 24,
    store: StoreRootOption = None,
    max_bad: MaxBadOption = 0,
    image_column: ImageColumnOption = None,
    device: DeviceOption = "auto",
    batch_size: BatchOption = 256,
    workers: WorkersOption = 0,
    seed: SeedOption = 0,
) -> None:
    """Show which pictures a model confuses and a vision-only network tells apart, and how far the two agree."""
    from modalign.contrasting import run

    found = run(
        model,
        target,
        data,
        against=against,
        out=out,
        pairs=pairs,
        store=store,
        seed=seed,
        device=device,
        batch_size=batch_size,
        workers=workers,
        max_bad=max_bad,
        image_column=image_column,
    )
    printing.rows(found.rows())
    typer.echo(f"blind pairs: {len(found.pairs)} of {found.pictures:,} pictures")
    typer.echo(f"page: {out}")
