"""`modalign embed` and `modalign store`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

from modalign.cli import printing
from modalign.cli.options import (
    MACHINE,
    BatchOption,
    DeviceOption,
    ImageColumnOption,
    MaxBadOption,
    Precision,
    StoreRootOption,
    TextColumnOption,
    WorkersOption,
)
from modalign.cli.stopping import stoppable
from modalign.errors import RecipeError

EMBED_EXAMPLE = "Example: modalign embed --model hf:openai/clip-vit-base-patch32 --data coco:data/coco@train2017"
LS_EXAMPLE = "Example: modalign store ls"
RM_EXAMPLE = "Example: modalign store rm 3f2a --older-than 30"

app = typer.Typer(no_args_is_help=True, help="List and delete stored features.")


_SIDES: dict[str, tuple[Literal["image", "text"], ...]] = {
    "both": ("image", "text"),
    "image": ("image",),
    "text": ("text",),
}


class Towers(StrEnum):
    """Which sides of a model are embedded."""

    BOTH = "both"
    IMAGE = "image"
    TEXT = "text"


class Part(StrEnum):
    """Which output of a tower is stored."""

    FEATURES = "features"
    TRUNK = "trunk"


class Stored(StrEnum):
    """The number format on disk."""

    FP32 = "fp32"
    FP16 = "fp16"


def embed(
    data: Annotated[str, typer.Option("--data", help="Pairs spec; with --towers image any images spec.")],
    model: Annotated[str | None, typer.Option("--model", help="Model spec, for example hf:./my-clip.")] = None,
    vision: Annotated[
        str | None, typer.Option("--target", help="A vision model instead, for example timm:vit_base_patch14_dinov2.")
    ] = None,
    towers: Annotated[Towers, typer.Option("--towers", help="Which sides; all captions are embedded.")] = Towers.BOTH,
    part: Annotated[Part, typer.Option("--part", help="features, or the projections' inputs.")] = Part.FEATURES,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every picture and compare its bytes, not only size and time.")
    ] = False,
    npy: Annotated[
        Path | None, typer.Option("--npy", help="Also write image.npy and text.npy into this folder.")
    ] = None,
    max_bad: MaxBadOption = 0,
    image_column: ImageColumnOption = None,
    text_column: TextColumnOption = None,
    root: StoreRootOption = None,
    stored: Annotated[Stored, typer.Option("--dtype", help="On disk; fp16 is half the size.")] = Stored.FP32,
    precision: Annotated[
        Precision, typer.Option("--precision", help="The network's number format.", rich_help_panel=MACHINE)
    ] = Precision.FP32,
    device: DeviceOption = "auto",
    batch_size: BatchOption = 256,
    workers: WorkersOption = 0,
) -> None:
    """Run a frozen network over data once and store its features for refine, evaluate, gap and contrast."""
    import torch

    from modalign.embedding import embed as run
    from modalign.models.vision import load_vision
    from modalign.training.precision import device as resolve

    if (model is None) == (vision is None):
        raise RecipeError("name one network: --model SPEC, or --target SPEC for a vision model")
    with stoppable("what is stored stays: the same command goes on"):
        store = run(
            model if model is not None else load_vision(str(vision), device=resolve(device)),
            data,
            out=root,
            towers=_SIDES[towers.value],
            part=part.value,
            precision=precision.value,
            dtype=torch.float16 if stored is Stored.FP16 else None,
            batch_size=batch_size,
            device=device,
            workers=workers,
            max_bad=max_bad,
            image_column=image_column,
            text_column=text_column,
            verify=verify,
        )
    for row in store.bad:
        typer.echo(f"left out: {row}", err=True)
    for name, rows in (("image", store.image), ("text", store.text)):
        if rows is None:
            continue
        typer.echo(f"{name}: {len(rows):,} × {rows.dim} in {rows.folder.path}")
        if npy is not None:
            npy.mkdir(parents=True, exist_ok=True)
            rows.save_npy(npy / f"{name}.npy")
            typer.echo(f"written: {npy / f'{name}.npy'}", err=True)


@app.command("ls", epilog=LS_EXAMPLE)
def ls(root: StoreRootOption = None) -> None:
    """List stores, the last used first."""
    from modalign.data.store_listing import stores
    from modalign.embedding import store_root

    folder = root if root is not None else store_root()
    found = stores(folder)
    if not found:
        typer.echo(f"no stores in {folder}")
        return
    printing.rows([["key", "rows", "size", "last used", "state", "features of"], *(info.cells() for info in found)])


@app.command("rm", epilog=RM_EXAMPLE)
def rm(
    keys: Annotated[list[str] | None, typer.Argument(help="Keys, or their first letters.", show_default=False)] = None,
    everything: Annotated[bool, typer.Option("--all", help="Delete every store.")] = False,
    older_than: Annotated[
        float | None, typer.Option("--older-than", min=0, help="Delete those not used for so many days.")
    ] = None,
    root: StoreRootOption = None,
) -> None:
    """Delete stores that no process has open."""
    from modalign.data.store_listing import remove
    from modalign.embedding import store_root

    if not keys and not everything and older_than is None:
        raise RecipeError("name what to delete: a key of `modalign store ls`, --older-than DAYS or --all")
    folder = root if root is not None else store_root()
    for info in remove(folder, keys or (), everything=everything, older_than=older_than):
        typer.echo(f"deleted: {info.key}  {info.title}")
