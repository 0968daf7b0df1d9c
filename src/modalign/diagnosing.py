"""`modalign gap`: the gap of a model on pairs, or of two files of embeddings with no model at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from modalign import environment
from modalign.console import Reporter
from modalign.data import sources
from modalign.embedder import Embedder
from modalign.encoders import Tower
from modalign.errors import DataError
from modalign.features import image_features, text_features
from modalign.gap import GapReport, measure, measure_streamed
from modalign.gap.gaussian_pair import Shrinkage
from modalign.models import load
from modalign.training.precision import device as resolve
from modalign.training.precision import tf32

STREAMED = 50_000
"""Beyond this many pairs stored embeddings are read in one pass, block by block, and never held as a whole."""


def measure_model(
    model: str,
    data: str,
    *,
    normalize: bool = True,
    seed: int = 0,
    device: str = "auto",
    batch_size: int = 256,
    workers: int = 0,
    max_bad: int = 0,
    image_column: str | None = None,
    text_column: str | Sequence[str] | None = None,
    store: Path | None = None,
    shrinkage: Shrinkage = None,
    reporter: Reporter | None = None,
) -> tuple[GapReport, dict[str, Any]]:
    """Embeds pairs and measures their gap; a row with several captions counts with its first.

    Args:
        model: a spec for `modalign.load`.
        data: a spec for `modalign.pairs`.
        normalize: scale rows to length 1 first.
        seed: of the resamples and the probe.
        device: where the model computes.
        batch_size: rows in one forward pass.
        workers: decoding processes.
        max_bad: unreadable rows tolerated.
        image_column: as for `modalign.pairs`.
        text_column: likewise.
        store: a folder where features are read from and kept (see `modalign.embed`); None = computed and forgotten.
        shrinkage: as for `modalign.gap.measure`.
        reporter: what the user sees.

    Returns:
        The report, and what it was measured on (for the JSON file).
    """
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
        reporter=reporter,
    )
    return measure(seen.image, seen.text, normalize=normalize, seed=seed, shrinkage=shrinkage), seen.told


@dataclass(frozen=True)
class PairFeatures:
    """A model's features of pairs.

    Attributes:
        image: N×d, raw, the pictures that could be read.
        text: N×d, raw, of each picture's first caption.
        told: what was embedded and by what, for a JSON file.
    """

    image: Tensor
    text: Tensor
    told: dict[str, Any]


def pair_features(
    model: str,
    data: str,
    *,
    seed: int = 0,
    device: str = "auto",
    batch_size: int = 256,
    workers: int = 0,
    max_bad: int = 0,
    image_column: str | None = None,
    text_column: str | Sequence[str] | None = None,
    store: Path | None = None,
    reporter: Reporter | None = None,
) -> PairFeatures:
    """Embeds pairs; a row with several captions counts with its first.

    Args:
        model: a spec for `modalign.load`.
        data: a spec for `modalign.pairs`.
        seed: told in the record.
        device: where the model computes.
        batch_size: rows in one forward pass.
        workers: decoding processes.
        max_bad: unreadable rows tolerated.
        image_column: as for `modalign.pairs`.
        text_column: likewise.
        store: a folder where features are read from and kept (see `modalign.embed`); None = computed and forgotten.
        reporter: what the user sees.
    """
    reporter = reporter or Reporter()
    place = resolve(device)
    pairs = sources.pairs(data, image_column=image_column, text_column=text_column, max_bad=max_bad)
    encoder = load(model).to(place)
    with tf32(False):
        if store is None:
            with reporter.progress("embedding", len(set(pairs.paths)), "pictures") as update:
                seen = image_features(
                    encoder,
                    pairs.paths,
                    pairs.wheres,
                    batch_size=batch_size,
                    workers=workers,
                    max_bad=max_bad,
                    progress=lambda done, _: update(done),
                )
            image, kept, bad = seen.features, seen.kept, seen.bad
            captions = [pairs[i].captions[0] for i in kept.tolist()]
            text = text_features(encoder, captions, batch_size=batch_size)
        else:
            embedder = Embedder(store, batch_size=batch_size, workers=workers, max_bad=max_bad, reporter=reporter)
            known = embedder.images(Tower(encoder), pairs.paths, pairs.wheres)
            image, kept, bad = known.rows[:], known.kept, known.bad
            captions = [pairs[i].captions[0] for i in kept.tolist()]
            text = embedder.texts(Tower(encoder, "text"), captions).rows[:]
    for row in bad:
        reporter.say(f"left out: {row}")
    told = {
        "model": {"spec": model, "fingerprint": encoder.fingerprint},
        "data": {"spec": data, "pairs": len(captions), "left_out": len(bad), "caption": "the first of each row"},
        "environment": environment.describe(seed, str(place)),
    }
    return PairFeatures(image, text, told)


def measure_files(
    image: Path, text: Path, *, normalize: bool = True, seed: int = 0, shrinkage: Shrinkage = None
) -> tuple[GapReport, dict[str, Any]]:
    """Measures stored embeddings; no model is loaded, and beyond 50,000 pairs no whole file either.

    Args:
        image: a .npy file, N×d; row i belongs to row i of `text`.
        text: a .npy file, N×d.
        normalize: scale rows to length 1 first.
        seed: of the resamples and the probe.
        shrinkage: as for `modalign.gap.measure`.

    Raises:
        DataError: a file that is missing, is no array of numbers, or does not fit the other.
    """
    told = {"embeddings": [str(image), str(text)], "environment": environment.describe(seed)}
    arrays = _array(image), _array(text)
    # What does not fit is refused by `measure`, by name.
    large = arrays[0].ndim == 2 and arrays[0].shape == arrays[1].shape and len(arrays[0]) > STREAMED
    take = measure_streamed if large else measure
    return take(*arrays, normalize=normalize, seed=seed, shrinkage=shrinkage), told


def _array(path: Path) -> NDArray[Any]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or 'cannot be read'}; name a .npy file of shape N×d") from None
    except (ValueError, EOFError):
        raise DataError(f"{path} is not a .npy array (or holds pickled objects); write it with numpy.save") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        raise DataError(f"{path} does not hold one array of numbers; save one N×d array with numpy.save")
    return array
