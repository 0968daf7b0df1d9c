"""`modalign probe-batch`."""

from __future__ import annotations

from typing import Annotated

import typer

from modalign.cli import printing
from modalign.cli.options import (
    DATA,
    BatchOption,
    DeviceOption,
    ImageColumnOption,
    JsonOption,
    JudgedModelOption,
    MaxBadOption,
    SeedOption,
    StoreRootOption,
    VisionOption,
    WorkersOption,
)
from modalign.errors import RecipeError

EXAMPLE = (
    "Example: modalign probe-batch --model hf:openai/clip-vit-large-patch14 "
    "--target hf:facebook/dinov2-with-registers-large --data images:data/imagenet/train --sizes 32,64,128"
)


def probe_batch(
    model: JudgedModelOption,
    target: VisionOption,
    data: Annotated[str, typer.Option("--data", help="images:SPEC, the training pictures.", rich_help_panel=DATA)],
    sizes: Annotated[
        str, typer.Option("--sizes", help="Batch sizes, with commas; those above the pictures are left out.")
    ] = "32,64,128,256,512,1024,2048,4096,8192",
    trials: Annotated[int, typer.Option("--trials", min=1, help="Batches drawn of each size.")] = 8,
    json_file: JsonOption = None,
    store: StoreRootOption = None,
    max_bad: MaxBadOption = 0,
    image_column: ImageColumnOption = None,
    device: DeviceOption = "auto",
    batch_size: BatchOption = 256,
    workers: WorkersOption = 0,
    seed: SeedOption = 0,
) -> None:
    """Tell what batch kuea needs: how far a batch's gradient is from that of all pictures, by its size."""
    try:
        wanted = [int(size) for size in sizes.split(",")]
    except ValueError:
        raise RecipeError(f"--sizes {sizes!r}: write whole numbers with commas, such as 32,64,128") from None
    from modalign.batch_probing import probe_batch as probe
    from modalign.data import sources
    from modalign.embedder import Embedder
    from modalign.embedding import store_root
    from modalign.models import load
    from modalign.models.vision import load_vision
    from modalign.training.precision import device as resolve

    images = sources.images(data.removeprefix("images:"), image_column=image_column, max_bad=max_bad)
    place = resolve(device)
    embedder = Embedder(
        store if store is not None else store_root(), batch_size=batch_size, workers=workers, max_bad=max_bad
    )
    found = probe(
        load(model).to(place),
        load_vision(target).to(place),
        images,
        sizes=wanted,
        trials=trials,
        seed=seed,
        embedder=embedder,
    )
    printing.rows(found.rows())
    for remark in found.remarks:
        typer.echo(remark)
    typer.echo(found.sentence)
    printing.json_file(json_file, found.to_dict())
