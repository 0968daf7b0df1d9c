"""Pictures and captions that differ in one detail, as maths over embeddings: which goes with which?"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modalign.errors import DataError

TIES = "a wrong choice that scores as high as the right one counts against it"


def pair_outcomes(image: Tensor, text: Tensor, *, chunk: int = 1024) -> dict[str, NDArray[np.float64]]:
    """Whether two pictures and their two captions find each other, one number an example.

        s_ab = cos(picture a, caption b)
        text   = [s_00 > s_01 and s_11 > s_10]      each picture chooses its caption
        image  = [s_00 > s_10 and s_11 > s_01]      each caption chooses its picture
        group  = text · image

    Chance is 1/4, 1/4 and 1/6. Constant features score 0.

    Args:
        image: N×2×d, raw or unit.
        text: N×2×d, raw or unit; caption b is that of picture b.
        chunk: examples at once.

    Returns:
        "text", "image" and "group" → N zeros and ones.

    Raises:
        DataError: shapes that differ, or features that are not finite.

    Source: Winoground, arXiv 2204.03162, equations 1 to 3. MMVP-VLM (arXiv 2401.06209) publishes "image".
    """
    if image.ndim != 3 or image.shape[1] != 2 or image.shape != text.shape or not len(image):
        raise DataError(
            f"image features {tuple(image.shape)} and text features {tuple(text.shape)} do not fit: pass N×2×d twice"
        )
    s = _cosines(image, text, chunk)
    chosen_text = (s[:, 0, 0] > s[:, 0, 1]) & (s[:, 1, 1] > s[:, 1, 0])
    chosen_image = (s[:, 0, 0] > s[:, 1, 0]) & (s[:, 1, 1] > s[:, 0, 1])
    outcomes = {"text": chosen_text, "image": chosen_image, "group": chosen_text & chosen_image}
    return {name: right.double().cpu().numpy() for name, right in outcomes.items()}


def caption_outcomes(image: Tensor, text: Tensor, *, chunk: int = 1024) -> NDArray[np.float64]:
    """Whether a picture prefers its caption to a wrong one, one number an example.

        acc = [cos(x, t_right) > cos(x, t_wrong)]

    Chance is 1/2. Constant features score 0.

    Args:
        image: N×d, raw or unit.
        text: N×2×d, raw or unit: the right caption, then the wrong one.
        chunk: examples at once.

    Returns:
        N zeros and ones.

    Raises:
        DataError: shapes that do not fit, or features that are not finite.

    Source: SugarCrepe, arXiv 2306.14610, section 3.
    """
    if image.ndim != 2 or text.shape != (len(image), 2, image.shape[-1]) or not len(image):
        raise DataError(
            f"image features {tuple(image.shape)} and text features {tuple(text.shape)} do not fit: pass N×d and N×2×d"
        )
    s = _cosines(image[:, None], text, chunk)[:, 0]
    right: NDArray[np.float64] = (s[:, 0] > s[:, 1]).double().cpu().numpy()
    return right


def _cosines(image: Tensor, text: Tensor, chunk: int) -> Tensor:
    """N×a×d, N×b×d → N×a×b; by products and sums, so that equal rows tie exactly, which a matrix product need not."""
    if not bool(image.isfinite().all()) or not bool(text.isfinite().all()):
        raise DataError("features hold NaN or infinity: check the model's weights and precision")
    parts = []
    for start in range(0, len(image), chunk):
        x, t = (torch.nn.functional.normalize(side[start : start + chunk].double(), dim=-1) for side in (image, text))
        parts.append((x[:, :, None] * t[:, None]).sum(dim=-1))
    return torch.cat(parts)
