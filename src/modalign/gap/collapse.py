"""Whether a gap that fell was closed, or only shrank along with everything else."""

from __future__ import annotations

import math
from collections.abc import Mapping

from modalign.gap.report import GapChange

LEAST_FALL = 0.1
"""A fall of a raw gap that is worth a warning."""
FACTOR = 2.0
"""How many times the scale-free form's fall it has to be."""


def collapse(changes: Mapping[str, GapChange]) -> str | None:
    """A warning where a raw gap falls by more than 10 % and by more than twice the fall of its scale-free form.

    The scale-free forms are compared as lengths, as the gaps are: G_C/√v, G_D/√v and G_raw/√v = √(G_C² + G_D²)/√v with
    v = tr Sx + tr St. Features that merely contract towards one direction lose all three gaps and none of these.

    Args:
        changes: as `modalign.gap.change` gives them.

    Returns:
        One sentence; None where nothing points to a collapse.

    Source: this library's; a pure contraction took the raw gaps −79 % and the scale-free centroid gap −3 %.
    """
    found = []
    for name, (before, after) in _scale_free(changes).items():
        change = changes[name]
        raw, free = _fall(change.before, change.after), _fall(before, after)
        if raw > LEAST_FALL and raw > FACTOR * free:
            found.append(f"the {name.replace('_', ' ')} fell by {raw:.0%}, its scale-free form {_moved(free)}")
    if not found:
        return None
    return f"collapse: {'; '.join(found)}: features drew together as a whole, which is not alignment"


def _scale_free(changes: Mapping[str, GapChange]) -> dict[str, tuple[float, float]]:
    """Each gap over √v, before and after."""
    centroid, residual = changes["centroid_gap_scale_free"], changes["distribution_gap_scale_free"]

    def whole(centroid: float, residual: float) -> float:
        # (G_C / √(v/2))² / 2 + G_D² / v = G_raw² / v.
        return math.sqrt(centroid**2 / 2 + residual)

    return {
        "raw_gap": (whole(centroid.before, residual.before), whole(centroid.after, residual.after)),
        "centroid_gap": (centroid.before, centroid.after),
        "distribution_gap": (math.sqrt(residual.before), math.sqrt(residual.after)),
    }


def _fall(before: float, after: float) -> float:
    """The share that is lost, negative where it grew; NaN, which warns of nothing, where it cannot be told."""
    return 1 - after / before if before > 0 and math.isfinite(before) else math.nan


def _moved(fall: float) -> str:
    if fall == -math.inf:
        return "grew without bound"
    return f"by {fall:.0%}" if fall >= 0 else f"rose by {-fall:.0%}"
