"""Whether a linear probe can tell a picture's feature from a caption's."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def held_out_accuracy(image: Tensor, text: Tensor, *, seed: int = 0) -> Tensor:
    """Accuracy, per pair, of a logistic probe that never saw the pair.

    Two-fold cross-fitting: the pairs are cut into two halves, a probe is fitted on each (label: which modality) and
    judged on the other; both members of a pair are always on the same side. Features are centred and divided by one
    number (their root mean square on the fitting half), so neither a rotation nor a rescaling changes the answer.
    It sees first-order differences only: it is at chance after mean-centring even where the neighbourhoods of the two
    modalities still do not mix.

    Args:
        image: N×d.
        text: N×d.
        seed: of the cut.

    Returns:
        N, in [0, 1]; the mean is the modality separability (½ = chance, 1 = fully separable).
    """
    from sklearn.linear_model import LogisticRegression

    order = np.random.default_rng(seed).permutation(len(image))
    halves = (torch.from_numpy(order[::2].copy()), torch.from_numpy(order[1::2].copy()))
    accuracy = torch.zeros(len(image), dtype=torch.float64)
    for seen, held_out in (halves, halves[::-1]):
        fitting = torch.cat([image[seen], text[seen]])
        centre = fitting.mean(0)
        scale = (fitting - centre).square().mean().sqrt().clamp_min(torch.finfo(fitting.dtype).tiny)
        labels = np.repeat([0, 1], len(seen))
        probe = LogisticRegression(C=1.0, max_iter=1000, tol=1e-6)
        probe.fit(((fitting - centre) / scale).numpy(), labels)
        # A point on the boundary is half right: identical modalities score ½, not 0.
        sides = [
            np.sign(probe.decision_function(((features[held_out] - centre) / scale).numpy()))
            for features in (image, text)
        ]
        accuracy[held_out] = torch.from_numpy((2 - sides[0] + sides[1]) / 4)
    return accuracy
