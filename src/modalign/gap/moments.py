"""Gap measures made of first and second moments.

Every function is a plug-in estimate: means and covariances divide by N. Features are N×d, row i of both modalities
is pair i, and nothing is normalised here.
"""

from __future__ import annotations

from torch import Tensor


def centred(features: Tensor) -> Tensor:
    """Features minus their mean: x_i − μ.

    Args:
        features: N×d.

    Returns:
        N×d, of mean zero.
    """
    return features - features.mean(0)


def raw_gap(image: Tensor, text: Tensor) -> Tensor:
    """Root mean square distance of a pair: G_raw = √E‖x − t‖².

    Args:
        image: N×d.
        text: N×d.

    Returns:
        Scalar ≥ 0; at most 2 for unit features.

    Source: arXiv 2604.00279 (the decomposition G_raw² = G_C² + G_D² is exact).
    """
    return (image - text).square().sum(1).mean().sqrt()


def centroid_gap(image: Tensor, text: Tensor) -> Tensor:
    """Distance of the two means: G_C = ‖μx − μt‖.

    Args:
        image: N×d.
        text: N×d; rows need not be paired.

    Returns:
        Scalar ≥ 0; at most 2 for unit features.

    Source: arXiv 2203.02053; arXiv 2604.00279.
    """
    return (image.mean(0) - text.mean(0)).square().sum().sqrt()


def distribution_gap(image: Tensor, text: Tensor) -> Tensor:
    """What is left of a pair's distance once both means are removed: G_D = √E‖(x − μx) − (t − μt)‖².

    Args:
        image: N×d.
        text: N×d.

    Returns:
        Scalar ≥ 0.

    Source: arXiv 2604.00279 (the paired residual).
    """
    return raw_gap(centred(image), centred(text))


def total_variance(features: Tensor) -> Tensor:
    """Trace of the covariance: tr S = E‖x − μ‖².

    Args:
        features: N×d.

    Returns:
        Scalar ≥ 0; at most 1 for unit features.
    """
    return centred(features).square().sum(1).mean()


def relative_modality_gap(image: Tensor, text: Tensor) -> Tensor:
    """How much farther apart a pair is than what is near anyway: RMG = m / (m + ½(d_x + d_t)).

    m = E(1 − x·t)/2 over pairs, d the mean of (1 − cos)/2 over distinct pairs of rows inside a modality. On unit rows
    (1 − cos)/2 = ‖a − b‖²/4, and the mean over distinct rows is a variance, so that exactly

        RMG = G_raw² / (G_raw² + N/(N − 1) · (tr Sx + tr St))

    which is also what is computed where rows are not unit. A common factor of all features does not change it.

    Args:
        image: N×d, unit.
        text: N×d, unit.

    Returns:
        Scalar in [0, 1]; 0 = pairs coincide, ½ = a pair is as far apart as two unrelated rows of one modality.

    Source: arXiv 2404.07983 (RMG, with the cosine dissimilarity scaled to [0, 1]).
    """
    squared = raw_gap(image, text).square()
    spread = (total_variance(image) + total_variance(text)) * len(image) / (len(image) - 1)
    return squared / (squared + spread) if float(squared) > 0 else squared
