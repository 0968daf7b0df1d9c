"""`modalign transform`: maps that need no training, fitted on stored vectors and applied to them."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from modalign.cli import printing
from modalign.cli.options import (
    DATA,
    BatchOption,
    DeviceOption,
    ImageColumnOption,
    JsonOption,
    MaxBadOption,
    SeedOption,
    StoreOption,
    TextColumnOption,
    WorkersOption,
)
from modalign.errors import RecipeError

FIT_EXAMPLE = (
    "Example: modalign transform fit --kind center --embeddings image.npy text.npy --out centre\n\n"
    "Example: modalign transform fit --kind ridge --set ridge=0.3 --model hf:./my-clip --data coco:data/coco@train2017 "
    "--out ridge"
)
APPLY_EXAMPLE = (
    "Example: modalign transform apply --transform centre --embeddings captions.npy --role text --out centred.npy"
)
VECTORS_HELP = ".npy, .parquet[#column], a FAISS index (.faiss, .index) or a store's folder"

app = typer.Typer(no_args_is_help=True, help="Fit maps that close the gap without training, and apply them.")


class Kind(StrEnum):
    """The transforms."""

    CENTER = "center"
    SHIFT = "shift"
    STANDARDIZE = "standardize"
    REALIGN = "realign"
    GAUSSIAN_OT = "gaussian-ot"
    PROCRUSTES = "procrustes"
    RIDGE = "ridge"
    CCA = "cca"
    DROP_DIMENSIONS = "drop-dimensions"
    NNN = "nnn"


class Role(StrEnum):
    """What vectors are."""

    IMAGE = "image"
    TEXT = "text"
    DOCUMENT_IMAGE = "document-image"
    DOCUMENT_TEXT = "document-text"
    QUERY_IMAGE = "query-image"
    QUERY_TEXT = "query-text"


@app.command("fit", epilog=FIT_EXAMPLE)
def fit(
    kind: Annotated[Kind, typer.Option("--kind", help="The transform.")],
    out: Annotated[Path, typer.Option("--out", help="The folder to write; new or empty.")],
    embeddings: Annotated[
        tuple[str, str] | None,
        typer.Option(
            "--embeddings",
            help=f"Pictures' and texts' vectors, row i of both being pair i: {VECTORS_HELP} (whose rows are no pairs).",
            metavar="IMAGE TEXT",
            rich_help_panel=DATA,
        ),
    ] = None,
    query: Annotated[
        str | None,
        typer.Option("--query", help="center: vectors of query texts, with a mean of their own.", rich_help_panel=DATA),
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="Or a model spec …", rich_help_panel=DATA)] = None,
    data: Annotated[str | None, typer.Option("--data", help="… and pairs for it.", rich_help_panel=DATA)] = None,
    max_bad: MaxBadOption = 0,
    image_column: ImageColumnOption = None,
    text_column: TextColumnOption = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="A parameter of the transform: renormalize=true, k=64, …; repeat.", metavar="NAME=VALUE"
        ),
    ] = None,
    json_file: JsonOption = None,
    device: DeviceOption = "auto",
    batch_size: BatchOption = 256,
    workers: WorkersOption = 0,
    store: StoreOption = None,
    seed: SeedOption = 0,
) -> None:
    """Fit a transform on all vectors, and show what one fitted on half of them does to the other half."""
    from modalign import transforming
    from modalign.diagnosing import pair_features
    from modalign.gap.transforms import stored_vectors

    parameters = dict(_setting(text) for text in settings or [])
    told: dict[str, Any] = {}
    if embeddings is not None:
        if model is not None or data is not None or store is not None:
            raise typer.BadParameter("give either --embeddings or --model and --data (and --store)")
        image, text, pairs = transforming.read_pair(*embeddings)
        told["embeddings"] = list(embeddings)
    elif model is not None and data is not None:
        seen = pair_features(
            model,
            data,
            seed=seed,
            device=device,
            batch_size=batch_size,
            workers=workers,
            max_bad=max_bad,
            image_column=image_column,
            text_column=text_column,
            store=store,
        )
        image, text, pairs = seen.image, seen.text, True
        told = seen.told
    else:
        raise typer.BadParameter("give --embeddings IMAGE TEXT, or --model and --data")
    found = transforming.fit(
        kind.value,
        image,
        text,
        query=None if query is None else stored_vectors(query),
        parameters=parameters,
        pairs=pairs,
        out=out,
        seed=seed,
    )
    typer.echo(f"{found.transform!r} fitted on {len(image):,} image and {len(text):,} text vectors")
    for name, error in getattr(found.transform, "standard_error_", {}).items():
        typer.echo(f"standard error of the {name} mean: {float(error.norm()):.2g}")
    _show(found.held_out)
    record = None if found.held_out is None else {**vars(found.held_out), "table": None}
    printing.json_file(json_file, {**told, "transform": repr(found.transform), "held_out": record})
    typer.echo(f"written: {out}", err=True)


@app.command("apply", epilog=APPLY_EXAMPLE)
def apply(
    folder: Annotated[Path, typer.Option("--transform", help="What `modalign transform fit` wrote.")],
    embeddings: Annotated[str, typer.Option("--embeddings", help=f"The vectors to map: {VECTORS_HELP}.")],
    role: Annotated[Role, typer.Option("--role", help="What they are.")],
    out: Annotated[Path, typer.Option("--out", help="The .npy file to write; it must not be there.")],
) -> None:
    """Map stored vectors."""
    from modalign import transforming

    shape = transforming.apply(folder, embeddings, role.value, out)
    typer.echo(f"written: {out}, {' × '.join(f'{count:,}' for count in shape)}", err=True)


def _show(held_out: Any) -> None:
    if held_out is None:
        typer.echo("no table: too few vectors to hold half of them out, or scores that need pairs to be judged")
        return
    fitted, measured = (f"{image:,} + {text:,}" for image, text in (held_out.fitted, held_out.measured))
    typer.echo(f"\nFitted on {fitted} vectors (images + texts), measured on {measured} held out, as mapped:")
    printing.rows(held_out.table)
    if held_out.warning is not None:
        typer.echo(f"warning: {held_out.warning}")


def _setting(text: str) -> tuple[str, Any]:
    import yaml

    name, sign, value = text.partition("=")
    if not sign or not name:
        raise RecipeError(f"--set {text}: write NAME=VALUE, for example renormalize=true")
    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError:
        raise RecipeError(f"--set {text}: {value!r} is no value; write a number, true, false or a word") from None
