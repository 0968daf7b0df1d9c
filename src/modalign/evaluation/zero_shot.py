"""Zero-shot classification as maths over embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modalign.errors import DataError

TIES = "a class that scores as high as the right one counts against it"


def class_weights(prompts: Tensor) -> Tensor:
    """The classifier: each class is the unit mean of its unit prompt features.

    w_c = unit(mean_t unit(p_ct))

    Args:
        prompts: C×T×d, raw or unit: T prompts of each of C classes.

    Returns:
        C×d, unit.

    Source: arXiv 2103.00020, section 3.1.4 (prompt ensembling in embedding space), as open_clip builds it.
    """
    unit = torch.nn.functional.normalize(prompts, dim=-1)
    return torch.nn.functional.normalize(unit.mean(1), dim=-1)


def zero_shot_outcomes(
    image: Tensor, weights: Tensor, labels: Tensor, ks: Sequence[int] = (1, 5), *, chunk: int = 4096
) -> dict[str, NDArray[np.float64]]:
    """Whether each picture's class is among the k highest, one number an example.

    Correct at k = fewer than k *other* classes score at least as high as the right one. Without ties this is top-k
    accuracy; constant features score 0 (with more than k classes), never 100 %.

    Args:
        image: N×d, raw or unit.
        weights: C×d, unit, as `class_weights` makes them.
        labels: N class numbers.
        ks: the k; those ≥ C, for which everything is correct, are left out.
        chunk: pictures at once.

    Returns:
        "acc<k>" → N zeros and ones.

    Raises:
        DataError: features that are not finite, labels outside 0…C−1, lengths that differ.
    """
    classes = len(weights)
    if image.ndim != 2 or image.shape != (len(labels), weights.shape[-1]) or not len(labels):
        raise DataError(
            f"image features {tuple(image.shape)}, classifier {tuple(weights.shape)} and {len(labels)} labels "
            "do not fit: pass N×d, C×d and N"
        )
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise DataError(
            f"labels reach from {int(labels.min())} to {int(labels.max())}: {classes} classes allow 0…{classes - 1}"
        )
    if not bool(image.isfinite().all()) or not bool(weights.isfinite().all()):
        raise DataError("features hold NaN or infinity: check the model's weights and precision")
    # Equal classifiers must tie exactly, which two columns of one matrix product need not: score distinct rows only.
    distinct, column = torch.unique(weights, dim=0, return_inverse=True)
    ahead = torch.empty(len(image), dtype=torch.int64)
    for start in range(0, len(image), chunk):
        rows = slice(start, start + chunk)
        features = torch.nn.functional.normalize(image[rows].to(weights.dtype), dim=-1)
        scores = (features @ distinct.T)[:, column]
        right = scores.gather(1, labels[rows, None])
        ahead[rows] = (scores >= right).sum(1).cpu() - 1
    return {f"acc{k}": (ahead < k).double().numpy() for k in ks if k < classes}
