"""`modalign gap`: the gap of a model on pairs, or of two files of embeddings with no model at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modalign import environment
from modalign.console import Reporter
from modalign.data import sources
from modalign.errors import DataError
from modalign.features import image_features, text_features
from modalign.gap import GapReport, measure
from modalign.models import load
from modalign.training.precision import device as resolve
from modalign.training.precision import tf32


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
        reporter: what the user sees.

    Returns:
        The report, and what it was measured on (for the JSON file).
    """
    reporter = reporter or Reporter()
    place = resolve(device)
    pairs = sources.pairs(data, max_bad=max_bad)
    encoder = load(model).to(place)
    wheres = [row.where for row in pairs.rows]
    with tf32(False), reporter.progress("embedding", len(set(pairs.paths)), "pictures") as update:
        seen = image_features(
            encoder,
            pairs.paths,
            wheres,
            batch_size=batch_size,
            workers=workers,
            max_bad=max_bad,
            progress=lambda done, _: update(done),
        )
    for row in seen.bad:
        reporter.say(f"left out: {row}")
    captions = [pairs[i].captions[0] for i in seen.kept.tolist()]
    with tf32(False):
        text = text_features(encoder, captions, batch_size=batch_size)
    told = {
        "model": {"spec": model, "fingerprint": encoder.fingerprint},
        "data": {"spec": data, "pairs": len(captions), "left_out": len(seen.bad), "caption": "the first of each row"},
        "environment": environment.describe(seed, str(place)),
    }
    return measure(seen.features, text, normalize=normalize, seed=seed), told


def measure_files(
    image: Path, text: Path, *, normalize: bool = True, seed: int = 0
) -> tuple[GapReport, dict[str, Any]]:
    """Measures stored embeddings; no model is loaded.

    Args:
        image: a .npy file, N×d; row i belongs to row i of `text`.
        text: a .npy file, N×d.
        normalize: scale rows to length 1 first.
        seed: of the resamples and the probe.

    Raises:
        DataError: a file that is missing, is no array of numbers, or does not fit the other.
    """
    told = {"embeddings": [str(image), str(text)], "environment": environment.describe(seed)}
    return measure(_array(image), _array(text), normalize=normalize, seed=seed), told


def _array(path: Path) -> Tensor:
    import numpy as np

    try:
        array = np.load(path, allow_pickle=False)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or 'cannot be read'}; name a .npy file of shape N×d") from None
    except (ValueError, EOFError):
        raise DataError(f"{path} is not a .npy array (or holds pickled objects); write it with numpy.save") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        raise DataError(f"{path} does not hold one array of numbers; save one N×d array with numpy.save")
    return torch.from_numpy(array.astype("float64"))
