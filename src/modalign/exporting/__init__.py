"""Writing a model so that its own library, or another one, loads it, and proving that it does."""

from __future__ import annotations

from modalign.exporting.shipping import TARGETS, export

__all__ = ["TARGETS", "export"]
