"""How far apart a dual encoder's images and captions lie, and why: `measure` and what it is made of.

`modalign.gap.transforms`, which can also read stores and wrap models, is imported when it is asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

from modalign.gap.collapse import collapse
from modalign.gap.features import FeatureError
from modalign.gap.measuring import GapComparison, change, compare, measure
from modalign.gap.modalities import GapMatrix
from modalign.gap.report import GapChange, GapReport, Measure
from modalign.gap.streaming import StreamingMoments, measure_streamed

if TYPE_CHECKING:
    from modalign.gap import transforms

__all__ = [
    "FeatureError",
    "GapChange",
    "GapComparison",
    "GapMatrix",
    "GapReport",
    "Measure",
    "StreamingMoments",
    "change",
    "collapse",
    "compare",
    "measure",
    "measure_streamed",
    "transforms",
]


def __getattr__(name: str) -> Any:
    if name == "transforms":
        return importlib.import_module("modalign.gap.transforms")
    raise AttributeError(f"module 'modalign.gap' has no attribute {name!r}")
