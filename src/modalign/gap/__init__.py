"""How far apart a dual encoder's images and captions lie, and why: `measure` and what it is made of."""

from modalign.gap.report import GapChange, GapReport, Measure, change, measure

__all__ = ["GapChange", "GapReport", "Measure", "change", "measure"]
