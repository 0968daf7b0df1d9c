"""The one rule on number formats that all adapters keep: features are float32 or wider."""

from __future__ import annotations

import torch
from torch import Tensor


def upcast(feature: Tensor) -> Tensor:
    """Half precision → float32; wider types as they are."""
    return feature.float() if feature.dtype in (torch.float16, torch.bfloat16) else feature
