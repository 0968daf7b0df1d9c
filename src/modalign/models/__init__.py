"""Image-text models of any library behind one contract."""

from __future__ import annotations

from modalign.models.dual_encoder import DualEncoder
from modalign.models.loading import load

__all__ = ["DualEncoder", "load"]
