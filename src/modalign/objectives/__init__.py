"""Pure maths on embeddings: tensors in, scalars out; no tower, no I/O, no randomness of its own.

Every objective takes raw or unit features (its docstring says which), computes in float32 or wider outside autocast,
and depends on nothing but torch.
"""

from __future__ import annotations

from modalign.objectives.anchor import feature_anchor, weight_anchor
from modalign.objectives.distillation import effective_logit_scale, hybrid_distillation, sharpness_warning
from modalign.objectives.geodesic_mix import geodesic_contrastive
from modalign.objectives.infonce import contrastive
from modalign.objectives.kernel_match import kernel_alignment
from modalign.objectives.pair_pull import squared_pair_distance
from modalign.objectives.random_feature import random_feature_alignment
from modalign.objectives.sigmoid import sigmoid_contrastive

__all__ = [
    "contrastive",
    "effective_logit_scale",
    "feature_anchor",
    "geodesic_contrastive",
    "hybrid_distillation",
    "kernel_alignment",
    "random_feature_alignment",
    "sharpness_warning",
    "sigmoid_contrastive",
    "squared_pair_distance",
    "weight_anchor",
]
