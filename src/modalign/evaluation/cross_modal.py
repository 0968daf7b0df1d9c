"""Cross-modal transfer: a classifier learned on one modality and judged on the other.

    transfer = accuracy on M of the probe learned on the other modality / accuracy on M of the probe learned on M

1 means that, for a linear classifier, the two modalities can take each other's place; chance over the accuracy within M
that they cannot. Both probes are judged on the same held-out examples of M, and both choose their penalty on examples
of the modality they learn from, so nothing of the other modality is seen before it is judged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from modalign.evaluation.linear_probe import PENALTIES, Probe, Scale, fit_probe


@dataclass(frozen=True)
class Transfer:
    """Accuracies within and across modalities.

    Attributes:
        outcomes: "<learned on>_to_<judged on>" → zeros and ones, one a held-out example.
        ratios: "<learned on>_to_<judged on>_transfer" → numbers, one an example, whose mean is the ratio and whose
            spread is that of the ratio (its linearisation); missing where the probe within a modality is never right.
        notes: of each probe.
    """

    outcomes: dict[str, NDArray[np.float64]]
    ratios: dict[str, NDArray[np.float64]]
    notes: dict[str, Any]


def cross_modal(
    learn: Mapping[str, tuple[Tensor, Tensor]],
    judge: Mapping[str, tuple[Tensor, Tensor]],
    classes: int,
    *,
    scale: Scale = "unit",
    penalties: Mapping[str, Sequence[float]] | None = None,
    seed: int = 0,
) -> Transfer:
    """Fits a probe on each modality and judges every one on every modality that has examples for it.

    Args:
        learn: modality → features N×d, raw, and N labels.
        judge: modality → features M×d, raw, and M labels; examples of a modality are the same for all probes.
        classes: C.
        scale: "unit" or "raw", of both modalities.
        penalties: modality → λ to choose from; one alone is taken without validation. None = `PENALTIES`.
        seed: of the validation parts.

    Returns:
        The `Transfer`.
    """
    probes: dict[str, Probe] = {}
    for name, (features, labels) in learn.items():
        among = (penalties or {}).get(name, PENALTIES)
        probes[name] = fit_probe(features, labels, classes, scale=scale, penalties=among, seed=seed)
    outcomes = {
        f"{source}_to_{target}": probe.outcomes(features, labels, ks=(1,))["acc1"]
        for target, (features, labels) in judge.items()
        for source, probe in probes.items()
    }
    ratios = {}
    for target in judge:
        for source in probes:
            within = outcomes.get(f"{target}_to_{target}")
            if source != target and within is not None and within.any():
                ratios[f"{source}_to_{target}_transfer"] = ratio_outcomes(outcomes[f"{source}_to_{target}"], within)
    return Transfer(outcomes, ratios, {name: probe.notes for name, probe in probes.items()})


def ratio_outcomes(above: NDArray[Any], below: NDArray[Any]) -> NDArray[np.float64]:
    """One number an example, whose mean is the ratio r of two means and whose spread is that of the ratio.

        r + (a_i − r·b_i) / mean(b)

    Args:
        above: n numbers a_i.
        below: n numbers b_i of the same examples; their mean is not 0.

    Source: Cochran, "Sampling Techniques", 1977, section 6.3 (the variance of a ratio).
    """
    ratio = above.mean() / below.mean()
    linear: NDArray[np.float64] = ratio + (above - ratio * below) / below.mean()
    return linear
