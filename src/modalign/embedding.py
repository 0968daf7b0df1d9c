"""`modalign.embed`: a data set through a frozen network, once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from modalign.console import Reporter
from modalign.data import sources
from modalign.data.feature_store import FeatureStore
from modalign.data.mixing import IMAGES
from modalign.data.records import Images, Labelled, Pairs
from modalign.demo.cache import cache_dir
from modalign.embedder import Embedder
from modalign.encoders import Encoder, Tower
from modalign.errors import DataError, ModelError
from modalign.features import Part
from modalign.models.dual_encoder import DualEncoder, TowerName
from modalign.models.loading import load
from modalign.recipe import Precision
from modalign.training import distributed
from modalign.training.precision import autocast, tf32
from modalign.training.precision import device as resolve


def store_root() -> Path:
    """Where stores lie unless a command, a recipe or `out` says otherwise: `store` in modalign's cache."""
    return cache_dir() / "store"


def embed(
    model: str | DualEncoder | Encoder,
    data: str | Pairs | Images | Labelled,
    *,
    out: str | Path | None = None,
    towers: Sequence[TowerName] = ("image", "text"),
    part: Part = "features",
    precision: Precision = "fp32",
    dtype: torch.dtype | None = None,
    batch_size: int = 256,
    device: str = "auto",
    workers: int = 0,
    max_bad: int = 0,
    image_column: str | None = None,
    text_column: str | Sequence[str] | None = None,
    verify: bool = False,
    silent: bool = False,
) -> FeatureStore:
    """Runs a frozen network once over a data set and keeps what it says; what is stored already is only read.

    Args:
        model: a spec for `modalign.load`, a loaded model, or a vision encoder (`modalign.load_vision`).
        data: a spec (of pairs where captions are to be embedded, else of images, with or without `images:`), or rows.
        out: where stores lie; None = `$MODALIGN_CACHE/store`. Several models and data sets may share it.
        towers: which sides of a dual encoder. All captions of a picture are embedded.
        part: "features" = raw features; "trunk" = the inputs of the projections.
        precision: of the network: fp32, bf16 or tf32.
        dtype: `torch.float16` stores half the bytes; rows are read back as float32.
        batch_size: inputs in one forward pass; the last bits of a row depend on it.
        device: where a model given as a spec computes; a loaded one stays where it is.
        workers: decoding processes beside this one.
        max_bad: how many pictures may be unreadable; they are left out and named in `bad`.
        image_column: of `data` given as a spec, as for `modalign.pairs`.
        text_column: likewise, where captions are embedded.
        verify: read every picture again and compare its bytes with those its row was computed from.
        silent: no progress on standard error.

    Returns:
        The rows, memory-mapped.

    Raises:
        ModelError: no such model, or one whose features are not always the same (random transform, dropout, …).
        DataError: pictures that cannot be read beyond `max_bad`.
        OutputError: the disk is too small, or cannot be written.

    Example:
        >>> store = modalign.embed("hf:openai/clip-vit-base-patch32", "coco:data/coco@val2017")  # doctest: +SKIP
        >>> store.image[:8].shape, len(store.text)  # doctest: +SKIP
        (torch.Size([8, 512]), 25014)
    """
    processes = distributed.start(resolve(device) if isinstance(model, str) else model.device)
    encoder = load(model).to(resolve(device)) if isinstance(model, str) else model
    if isinstance(encoder, DualEncoder):
        sides = {tower: Tower(encoder, tower, part) for tower in towers}
    elif "image" not in towers:
        raise ModelError(f"{encoder.spec} has no text tower to embed; leave towers out, or name a model of two towers")
    elif part == "features":
        sides = {}
    else:
        raise ModelError(f"{encoder.spec} has no projection apart from its trunk; leave part as 'features'")
    if text_column is not None and "text" not in sides:
        raise DataError("no captions are embedded here, so a text column names nothing; leave it out")
    if isinstance(data, str) and data.startswith(IMAGES) and "text" in sides:
        raise DataError(
            f"{data} reads pictures alone and captions are to be embedded; name pairs, or embed images only"
        )
    if isinstance(data, str) and "text" in sides:
        data = sources.pairs(data, image_column=image_column, text_column=text_column, max_bad=max_bad)
    elif isinstance(data, str):
        data = sources.images(data.removeprefix(IMAGES), image_column=image_column, max_bad=max_bad)
    elif image_column is not None or text_column is not None:
        raise DataError(f"{data.spec} is read already, so columns name nothing; leave them out")
    embedder = Embedder(
        Path(out) if out is not None else store_root(),
        precision=precision,
        context=autocast(precision, encoder.device),
        dtype=dtype,
        batch_size=batch_size,
        workers=workers,
        max_bad=max_bad,
        verify=verify,
        processes=processes,
        reporter=Reporter(silent or not processes.is_main),
    )
    store = FeatureStore(pictures=list(data.paths), kept=torch.arange(len(data)))
    with tf32(precision == "tf32"):
        image = encoder if not isinstance(encoder, DualEncoder) else sides.get("image")
        if image is not None:
            seen = embedder.images(image, data.paths, list(data.wheres))
            store.image, store.kept, store.bad = seen.rows, seen.kept, seen.bad
            store.pictures = [data.paths[position] for position in seen.kept.tolist()]
            store.passes["image"] = seen.passes
        if "text" in sides and isinstance(data, Pairs):
            store.captions = data.take(store.kept).captions
            said = embedder.texts(sides["text"], store.captions)
            store.text, store.passes["text"] = said.rows, said.passes
    embedder.reporter.say(f"frozen features: {store}")
    return store
