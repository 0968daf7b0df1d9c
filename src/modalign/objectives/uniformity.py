"""Uniformity: features spread over the sphere, inside each modality, across both, or of the pairs' midpoints."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from modalign.objectives.full_precision import full_precision
from modalign.objectives.validation import require_pairs


@full_precision
def in_modal_uniformity(image: Tensor, text: Tensor) -> Tensor:
    """The crowding inside each modality, averaged over both.

        L = ½ [log mean_{i≠j} e^{−2‖x_i−x_j‖²} + log mean_{i≠j} e^{−2‖t_i−t_j‖²}],   x, t unit

    Args:
        image: B×d, raw or unit (normalised here); B ≥ 2.
        text: B×d, raw or unit (normalised here).

    Returns:
        A scalar in [−8, 0]; lower is more uniform.

    Raises:
        ValueError: shapes that differ, or a single pair.

    Source: CUA, arXiv 2405.18570; distinct points only, as in arXiv 2005.10242.
    """
    _require_two(image, text)
    return (_crowding(F.normalize(image, dim=-1)) + _crowding(F.normalize(text, dim=-1))) / 2


@full_precision
def cross_modal_uniformity(image: Tensor, text: Tensor) -> Tensor:
    """The crowding between pictures and the captions of other pictures.

        L = log mean_{i≠j} e^{−2‖x_i−t_j‖²},   x, t unit

    Args:
        image: B×d, raw or unit (normalised here); B ≥ 2.
        text: B×d, raw or unit (normalised here).

    Returns:
        A scalar in [−8, 0].

    Raises:
        ValueError: shapes that differ, or a single pair.

    Source: CUA, arXiv 2405.18570.
    """
    _require_two(image, text)
    return _log_mean_off_diagonal(F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T)


@full_precision
def centroid_uniformity(image: Tensor, text: Tensor) -> Tensor:
    """The crowding of the pairs' midpoints on the sphere.

        L = log mean_{i≠j} e^{−2‖c_i−c_j‖²},   c_i = unit((x_i + t_i)/2),   x, t unit

    Beside the pair pull (`squared_pair_distance`) it keeps pairs apart while their members meet.

    Args:
        image: B×d, raw or unit (normalised here); B ≥ 2.
        text: B×d, raw or unit (normalised here).

    Returns:
        A scalar in [−8, 0].

    Raises:
        ValueError: shapes that differ, or a single pair.

    Source: ModGap, arXiv 2601.18525.
    """
    _require_two(image, text)
    return _crowding(F.normalize(F.normalize(image, dim=-1) + F.normalize(text, dim=-1), dim=-1))


def _crowding(points: Tensor) -> Tensor:
    return _log_mean_off_diagonal(points @ points.T)


def _log_mean_off_diagonal(cosines: Tensor) -> Tensor:
    """log mean_{i≠j} exp(−2·(2 − 2 cos_ij)): the squared distance of unit vectors by their cosine."""
    count = len(cosines)
    own = torch.eye(count, dtype=torch.bool, device=cosines.device)
    exponents = (4 * cosines - 4).masked_fill(own, -torch.inf)
    return exponents.flatten().logsumexp(0) - torch.log(cosines.new_tensor(count * (count - 1)))


def _require_two(image: Tensor, text: Tensor) -> None:
    require_pairs(image=image, text=text)
    if len(image) < 2:
        raise ValueError("uniformity compares different pairs; pass at least two")
