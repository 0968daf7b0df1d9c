"""The text-free certificate: how much a moved image tower can have changed any comparison with any text.

For a text feature t of any length and content, the cosine with a picture changes by no more than the two image
features differ, so that distances between features alone tell which zero-shot labels cannot have changed.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from modalign.errors import DataError

LEVELS = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


def tight_bounds(image: Tensor, frozen: Tensor) -> Tensor:
    """The largest change of a cosine that any text could see, per picture.

        |cos(x, t) − cos(f, t)| ≤ ‖x/‖x‖ − f/‖f‖‖,   attained by t along the difference

    A zero row has cosine 0 with everything.

    Args:
        image: N×d, raw, now.
        frozen: N×d, raw, before.

    Returns:
        N, float64, in [0, 2].

    Raises:
        DataError: shapes that differ, or features that are not finite.

    Source: KUEA, arXiv 2506.02557, Proposition 3.2.
    """
    x, f = _checked(image, frozen)
    bounds: Tensor = torch.linalg.vector_norm(_direction(x) - _direction(f), dim=1)
    return bounds


def loose_bounds(image: Tensor, frozen: Tensor) -> Tensor:
    """The paper's bound on the change of a cosine, which the feature anchor controls directly, per picture.

        |cos(x, t) − cos(f, t)| ≤ 2‖x − f‖ / max(‖x‖, ‖f‖)

    Args:
        image: N×d, raw, now.
        frozen: N×d, raw, before.

    Returns:
        N, float64, in [0, 4]; never below the tight bound.

    Raises:
        DataError: shapes that differ, or features that are not finite.

    Source: KUEA, arXiv 2506.02557, Proposition 3.2.
    """
    x, f = _checked(image, frozen)
    # The bound does not change with a common scale; at 1 no square vanishes or overflows.
    largest = torch.maximum(x.abs().amax(dim=1), f.abs().amax(dim=1))[:, None]
    x, f = _over(x, largest), _over(f, largest)
    norms = torch.maximum(torch.linalg.vector_norm(x, dim=1), torch.linalg.vector_norm(f, dim=1))
    return _over(2 * torch.linalg.vector_norm(x - f, dim=1), norms)


def margins(frozen: Tensor, weights: Tensor, *, chunk: int = 4096) -> tuple[Tensor, Tensor]:
    """The zero-shot label of every picture, and by how much its cosine leads the runner-up's.

    Args:
        frozen: N×d, raw.
        weights: C×d, raw or unit: one classifier row a class, as `class_weights` makes them; C ≥ 2.
        chunk: pictures at once.

    Returns:
        N labels, and N margins ≥ 0 in cosine (float64).

    Raises:
        DataError: widths that differ, fewer than two classes, or features that are not finite.
    """
    if frozen.dim() != 2 or weights.dim() != 2 or frozen.shape[1] != weights.shape[1] or len(weights) < 2:
        raise DataError(
            f"features {tuple(frozen.shape)} and class weights {tuple(weights.shape)} do not fit: pass N×d and C×d "
            "with two classes or more"
        )
    _require_finite(frozen, weights)
    classes = _direction(weights.double())
    labels, leads = [], []
    for part in frozen.split(chunk):
        top = (_direction(part.double()) @ classes.T).topk(2, dim=1)
        labels.append(top.indices[:, 0])
        leads.append(top.values[:, 0] - top.values[:, 1])
    return torch.cat(labels), torch.cat(leads)


@dataclass(frozen=True)
class Certificate:
    """What is certain about a tower that moved, over one set of pictures.

    Attributes:
        pictures: N.
        levels: of the quantiles below.
        tight: quantiles over pictures of the tight bound on a cosine's change.
        loose: the same of the paper's bound.
        classes: C of the classifier, or None without one.
        certified: share of pictures whose top-1 margin before exceeds twice the tight bound: their label is the same.
        certified_loosely: the same by the paper's bound.
        unchanged: share of pictures whose label really is the same; never below `certified`.
    """

    pictures: int
    levels: tuple[float, ...]
    tight: tuple[float, ...]
    loose: tuple[float, ...]
    classes: int | None = None
    certified: float | None = None
    certified_loosely: float | None = None
    unchanged: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """For a file."""
        return asdict(self)


def certify(image: Tensor, frozen: Tensor, weights: Tensor | None = None) -> Certificate:
    """The bounds over a set of pictures and, with a classifier, how many labels cannot have changed.

    Args:
        image: N×d, raw, now.
        frozen: N×d, raw, of the same pictures before.
        weights: C×d, a zero-shot classifier (the text tower has not moved), or None.

    Returns:
        A `Certificate`. It speaks of exact cosines of these features: labels of a margin within an evaluation's own
        rounding are never certified by bounds above 0, and ties never at all.

    Raises:
        DataError: shapes that do not fit, no pictures, or features that are not finite.
    """
    tight, loose = tight_bounds(image, frozen), loose_bounds(image, frozen)
    found = Certificate(len(tight), LEVELS, _quantiles(tight), _quantiles(loose))
    if weights is None:
        return found
    before, margin = margins(frozen, weights)
    after, _ = margins(image, weights)
    return replace(
        found,
        classes=len(weights),
        certified=_share(margin > 2 * tight),
        certified_loosely=_share(margin > 2 * loose),
        unchanged=_share(before == after),
    )


def _share(holds: Tensor) -> float:
    return float(holds.double().mean())


def _quantiles(values: Tensor) -> tuple[float, ...]:
    """At `LEVELS`, with linear interpolation between order statistics (torch.quantile stops at 16 million)."""
    ordered = values.sort().values
    place = torch.tensor(LEVELS, dtype=torch.float64, device=values.device) * (len(ordered) - 1)
    low, high = ordered[place.floor().long()], ordered[place.ceil().long()]
    return tuple(torch.lerp(low, high, place.frac()).tolist())


def _checked(image: Tensor, frozen: Tensor) -> tuple[Tensor, Tensor]:
    if image.dim() != 2 or image.shape != frozen.shape or 0 in image.shape:
        raise DataError(
            f"features now {tuple(image.shape)} and before {tuple(frozen.shape)} do not fit: pass N×d "
            "of the same pictures"
        )
    _require_finite(image, frozen)
    return image.detach().double(), frozen.detach().to(image.device).double()


def _require_finite(*features: Tensor) -> None:
    if not all(bool(part.isfinite().all()) for part in features):
        raise DataError("features hold NaN or infinity: check the model's weights and precision")


def _direction(rows: Tensor) -> Tensor:
    """Unit rows, whatever their length; zero rows stay zero."""
    rows = _over(rows, rows.abs().amax(dim=1, keepdim=True))
    return _over(rows, torch.linalg.vector_norm(rows, dim=1, keepdim=True))


def _over(values: Tensor, divisor: Tensor) -> Tensor:
    """values / divisor, 0 where the divisor is 0."""
    zero = divisor == 0
    return (values / divisor.masked_fill(zero, 1)).masked_fill(zero, 0)
