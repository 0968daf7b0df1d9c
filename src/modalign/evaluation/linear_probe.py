"""The linear probe: what a linear classifier reads from features that were computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from modalign.errors import DataError
from modalign.evaluation.logistic import TOLERANCE, fit_logistic
from modalign.evaluation.splits import stratified_split

Scale = Literal["unit", "raw"]
Rule = Literal["logistic", "adamw"]

PENALTIES = tuple(10 ** (half / 2) for half in range(-12, 13))
"""λ = 1e-6 … 1e6 by half decades: the range of arXiv 2103.00020, appendix A.3, whose search ends on eighths."""
VALIDATION = 0.2
ROUGHLY = 0.1
"""The tolerance of the fits that a penalty is chosen among: a tenth of the weights hardly moves an accuracy."""
UNCHOSEN = 1.0
"""λ where there is no example to choose it on."""
ADAMW_LR, ADAMW_EPOCHS, ADAMW_BATCH = 0.1, 10, 64
TIES = "a class that scores as high as the right one counts against it"
RULES: dict[Rule, str] = {
    "logistic": (
        "multinomial logistic regression, L2 on the weights and not on the intercept; the penalty of 25 from 1e-6 to "
        f"1e6 with the best accuracy on {VALIDATION:.0%} of each class's training pictures (of equals the lowest log "
        f"loss; fits converged to {ROUGHLY:g} of the weights), then fitted to all, converged to {TOLERANCE:g}"
    ),
    "adamw": (
        f"a linear layer by AdamW, learning rate {ADAMW_LR:g} to 0 by a cosine, no weight decay, {ADAMW_EPOCHS} epochs "
        f"in batches of {ADAMW_BATCH} (CLIP_benchmark's); nothing is chosen"
    ),
}
SCALES: dict[Scale, str] = {"unit": "unit, not standardised", "raw": "raw, not standardised"}


@dataclass(frozen=True)
class Probe:
    """A fitted linear classifier.

    Attributes:
        weights: C×d.
        bias: C.
        scale: what it expects of features; `scores` applies it.
        notes: the penalty chosen and how well it did in validation; whether the classifier converged, to what share of
            its weights, and the penalties whose fits in the choice did not.
    """

    weights: Tensor
    bias: Tensor
    scale: Scale
    notes: dict[str, Any]

    def scores(self, features: Tensor) -> Tensor:
        """N×d raw features → N×C logits."""
        return scaled(features, self.scale).to(self.weights) @ self.weights.T + self.bias

    def outcomes(self, features: Tensor, labels: Tensor, ks: Sequence[int] = (1, 5)) -> dict[str, NDArray[np.float64]]:
        """Whether each example's class is among the k highest.

        Correct at k = fewer than k other classes score at least as high as the right one, so ties count against.

        Args:
            features: N×d, raw.
            labels: N class numbers.
            ks: the k; those ≥ C are left out.

        Returns:
            "acc<k>" → N zeros and ones.

        Raises:
            DataError: no examples, or features that are not finite.
        """
        if not len(features) or not bool(features.isfinite().all()):
            raise DataError("features to be judged are empty, or hold NaN or infinity: check the model's precision")
        scores = self.scores(features)
        right = scores.gather(1, labels.to(scores.device)[:, None])
        ahead = (scores >= right).sum(1) - 1
        return {f"acc{k}": (ahead < k).double().cpu().numpy() for k in ks if k < len(self.bias)}


def scaled(features: Tensor, scale: Scale) -> Tensor:
    """Features as a probe sees them: divided by their norm, or as they are."""
    return torch.nn.functional.normalize(features, dim=-1) if scale == "unit" else features


def fit_probe(
    features: Tensor,
    labels: Tensor,
    classes: int,
    *,
    validation: Tensor | None = None,
    scale: Scale = "unit",
    penalties: Sequence[float] = PENALTIES,
    refit: bool = True,
    seed: int = 0,
    groups: Tensor | None = None,
) -> Probe:
    """Logistic regression whose penalty is chosen on a part of the training examples.

    All penalties are fitted together on the other part (see `logistic`); the one with the best accuracy here is taken,
    of equals the one with the lowest log loss, and fitted again to all.

    Args:
        features: N×d, raw.
        labels: N class numbers.
        classes: C.
        validation: N, true where the penalty is chosen; None = a fifth of each class, seeded. None true: λ = 1,
            or the only one of `penalties`.
        scale: "unit" as CLIP_benchmark does it, "raw" as the published example of CLIP; neither standardises.
        penalties: λ, on the sum over examples, as 1/C of scikit-learn.
        refit: fit again with the validation examples.
        seed: of the validation part.
        groups: N ids of what stays together in it (the picture).

    Returns:
        The `Probe`.

    Raises:
        DataError: shapes that do not fit, features that are not finite.

    Source: arXiv 2103.00020, appendix A.3.
    """
    x = scaled(features, scale)
    held = stratified_split(labels, VALIDATION, seed, groups) if validation is None else validation
    held = held.to(x.device)
    labels = labels.to(x.device)
    ordered = sorted(penalties, reverse=True)
    chosen, notes = ordered[0] if len(ordered) == 1 else UNCHOSEN, dict[str, Any]()
    if bool(held.any()) and len(ordered) > 1:
        fits = fit_logistic(x[~held], labels[~held], classes, ordered, tolerance=ROUGHLY)
        merits = [_merit(fits.scores(x[held], number), labels[held]) for number in range(len(ordered))]
        which = merits.index(max(merits))
        chosen, notes["validation_accuracy"] = ordered[which], merits[which][0]
        notes["not_converged"] = [f"{ordered[i]:.3g}" for i in (~fits.converged).nonzero().flatten().tolist()]
    part = ~held if not refit and not bool(held.all()) else torch.ones_like(held)
    last = fit_logistic(x[part], labels[part], classes, [chosen])
    notes |= {"penalty": chosen, "converged": bool(last.converged[0]), "residual": float(last.residual[0])}
    return Probe(last.weights[0], last.bias[0], scale, notes)


def fit_adamw(features: Tensor, labels: Tensor, classes: int, *, scale: Scale = "unit", seed: int = 0) -> Probe:
    """The probe of CLIP_benchmark and of KUEA's tables: a linear layer trained for ten epochs by AdamW.

    Args:
        features: N×d, raw; where they are decides CPU or GPU.
        labels: N class numbers.
        classes: C.
        scale: "unit" as CLIP_benchmark does it.
        seed: of the layer's start and of the batches, drawn on the CPU.

    Returns:
        The `Probe`.

    Source: arXiv 2506.02557 (AdamW, learning rate 0.1, ten epochs); the rest as in CLIP_benchmark.
    """
    x, labels = scaled(features.detach(), scale).float(), labels.to(features.device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = nn.Linear(x.shape[1], classes)
        orders = [torch.randperm(len(x)) for _ in range(ADAMW_EPOCHS)]
    layer.to(x.device)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=ADAMW_LR, weight_decay=0.0)
    batches = [batch.to(x.device) for order in orders for batch in order.split(ADAMW_BATCH)]
    for step, batch in enumerate(batches):
        optimizer.param_groups[0]["lr"] = 0.5 * (1 + np.cos(np.pi * step / len(batches))) * ADAMW_LR
        optimizer.zero_grad()
        nn.functional.cross_entropy(layer(x[batch]), labels[batch]).backward()
        optimizer.step()
    return Probe(layer.weight.detach(), layer.bias.detach(), scale, {})


def _merit(scores: Tensor, labels: Tensor) -> tuple[float, float]:
    """The share of rows in which no other class scores as high as the right one, and minus the mean log loss."""
    right = scores.gather(1, labels[:, None])
    accuracy = float(((scores >= right).sum(1) == 1).double().mean())
    return accuracy, -float(nn.functional.cross_entropy(scores.double(), labels))
