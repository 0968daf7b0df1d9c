"""How alike two encoders arrange the same pictures, whatever their widths."""

from __future__ import annotations

import torch
from torch import Tensor

SIMILARITIES_AT_ONCE = 4_000_000


def centred_kernel_alignment(first: Tensor, second: Tensor) -> Tensor:
    """Linear centred kernel alignment (CKA) of two sets of features.

        ‖XᵀG‖_F² / (‖XᵀX‖_F ‖GᵀG‖_F),   X and G centred

    It is that of the linear kernels XXᵀ and GGᵀ without the N×N matrices; rotations and a common scale of either side
    do not change it. The plug-in estimate, which is biased upwards where N is not well above d.

    Args:
        first: N×d, raw.
        second: N×e, raw, of the same pictures.

    Returns:
        A scalar in [0, 1], float64; 1 for equal up to rotation, scale and shift, 0 where a side is constant.

    Raises:
        ValueError: shapes that do not fit, or features that are not finite.

    Source: arXiv 1905.00414, section 3.
    """
    x, g = _checked(first, second)
    x, g = x - x.mean(dim=0), g - g.mean(dim=0)
    cross = (x.T @ g).square().sum()
    return _ratio(cross, (x.T @ x).square().sum().sqrt() * (g.T @ g).square().sum().sqrt())


def centred_kernel_alignment_influence(first: Tensor, second: Tensor) -> Tensor:
    """First-order effect of each picture on the logarithm of `centred_kernel_alignment`.

        IF_i = 2 x_iᵀC g_i / ‖C‖² − x_iᵀSx x_i / ‖Sx‖² − g_iᵀSg g_i / ‖Sg‖²,   C, Sx, Sg the (cross-)covariances

    Args:
        first: N×d, raw.
        second: N×e, raw, of the same pictures.

    Returns:
        N, float64, of mean zero; zeros where the alignment is 0.
    """
    x, g = _checked(first, second)
    x, g = x - x.mean(dim=0), g - g.mean(dim=0)
    effects = torch.zeros(len(x), dtype=torch.float64)
    for left, right, times in ((x, g, 2), (x, x, -1), (g, g, -1)):
        products = left.T @ right / len(x)
        size = products.square().sum()
        if float(size) == 0:
            return torch.zeros_like(effects)
        effects += times * ((left @ products) * right).sum(dim=1) / size
    return effects


def kernel_cka(first: Tensor, second: Tensor) -> Tensor:
    """Centred kernel alignment of two kernel matrices.

        ⟨HKH, HLH⟩ / (‖HKH‖_F ‖HLH‖_F),   H = I − 11ᵀ/N

    Args:
        first: K, N×N, symmetric.
        second: L, N×N, symmetric, of the same pictures.

    Returns:
        A scalar in [0, 1] for positive semi-definite kernels, float64; 0 where a side is constant.

    Raises:
        ValueError: matrices that are not N×N, or not finite.

    Source: arXiv 1905.00414, section 3.
    """
    if first.shape != second.shape or first.dim() != 2 or first.shape[0] != first.shape[1]:
        raise ValueError(f"kernels are {tuple(first.shape)} and {tuple(second.shape)}; pass two N×N matrices")
    k, l = (_centred_kernel(matrix) for matrix in _checked(first, second))  # noqa: E741 (K and L of the paper)
    return _ratio((k * l).sum(), k.square().sum().sqrt() * l.square().sum().sqrt())


def mutual_knn(first: Tensor, second: Tensor, k: int = 10) -> Tensor:
    """The share of each picture's k nearest neighbours that two encoders agree on.

        m_i = |N_k(x_i) ∩ N_k(g_i)| / k,   neighbours by cosine, a picture not its own

    Chance gives k/(N−1). Among neighbours that tie, the rows that come first count.

    Args:
        first: N×d, raw or unit.
        second: N×e, raw or unit, of the same pictures.
        k: from 1 to N − 1.

    Returns:
        N, float64; its mean is the mutual k-NN alignment.

    Raises:
        ValueError: shapes that do not fit, features that are not finite, or another k.

    Source: arXiv 2405.07987, section 3.
    """
    x, g = _checked(first, second)
    if not 1 <= k < len(x):
        raise ValueError(f"k is {k} for {len(x)} pictures; use 1 to {len(x) - 1}")
    x, g = (torch.nn.functional.normalize(features, dim=1) for features in (x, g))
    shares = []
    rows = max(1, SIMILARITIES_AT_ONCE // len(x))
    for start in range(0, len(x), rows):
        near, other = (_neighbours(features, slice(start, start + rows), k) for features in (x, g))
        shares.append((near[:, :, None] == other[:, None, :]).sum(dim=(1, 2)).double() / k)
    return torch.cat(shares)


def _neighbours(features: Tensor, rows: slice, k: int) -> Tensor:
    """The k nearest of some rows, by row number."""
    similarity = features[rows] @ features.T
    own = torch.arange(rows.start, rows.start + len(similarity), device=features.device)
    similarity[own - rows.start, own] = -torch.inf
    nearest = similarity.topk(k, dim=1)
    # Which of several that tie for the last place `topk` gives is not defined: there, and only there, all are sorted.
    tied = (similarity >= nearest.values[:, -1:]).sum(dim=1) > k
    found = nearest.indices
    if bool(tied.any()):
        found[tied] = similarity[tied].sort(dim=1, descending=True, stable=True).indices[:, :k]
    return found


def _centred_kernel(kernel: Tensor) -> Tensor:
    return kernel - kernel.mean(dim=0) - kernel.mean(dim=1, keepdim=True) + kernel.mean()


def _ratio(value: Tensor, scale: Tensor) -> Tensor:
    return value / scale if float(scale) > 0 else torch.zeros_like(value)


def _checked(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    if first.dim() != 2 or second.dim() != 2 or len(first) != len(second) or 0 in (*first.shape, *second.shape):
        raise ValueError(
            f"features are {tuple(first.shape)} and {tuple(second.shape)}; pass N×d and N×e of the same N pictures"
        )
    if not bool(first.isfinite().all()) or not bool(second.isfinite().all()):
        raise ValueError("features hold NaN or infinity; check the model's weights and precision")
    return first.detach().double(), second.detach().double()
