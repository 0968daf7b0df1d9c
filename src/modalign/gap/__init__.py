"""How far apart a dual encoder's images and captions lie, and why: `measure` and what it is made of."""

from modalign.gap.collapse import collapse
from modalign.gap.features import FeatureError
from modalign.gap.measuring import GapComparison, change, compare, measure
from modalign.gap.modalities import GapMatrix
from modalign.gap.report import GapChange, GapReport, Measure
from modalign.gap.streaming import StreamingMoments, measure_streamed

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
]
