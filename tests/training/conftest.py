from __future__ import annotations

from tests.training.families import loaded

__all__ = ["loaded"]
