"""Image-text models of any library behind one contract."""

from __future__ import annotations

from modalign.models.dual_encoder import DualEncoder
from modalign.models.loading import load
from modalign.models.vision import VisionEncoder, load_vision

__all__ = ["DualEncoder", "VisionEncoder", "load", "load_vision"]
