"""Pure maths on embeddings: tensors in, scalars out; no tower, no I/O, no randomness of its own.

Every objective takes raw or unit features (its docstring says which), computes in float32 or wider outside autocast,
and depends on nothing but torch.
"""

from __future__ import annotations

from modalign.objectives.anchor import feature_anchor, weight_anchor
from modalign.objectives.cyclip import cross_modal_consistency, in_modal_consistency
from modalign.objectives.distillation import effective_logit_scale, hybrid_distillation, sharpness_warning
from modalign.objectives.divergences import bures, cauchy_schwarz, coral, mmd, sliced_wasserstein
from modalign.objectives.geodesic_mix import geodesic_contrastive
from modalign.objectives.infonce import contrastive
from modalign.objectives.intra_modal_separation import intra_modal_separation
from modalign.objectives.kernel_match import kernel_alignment
from modalign.objectives.modality_gap import centroid_gap, distribution_gap, geometry_gap, reweighted_contrastive
from modalign.objectives.pair_pull import squared_pair_distance
from modalign.objectives.random_feature import random_feature_alignment
from modalign.objectives.sigmoid import sigmoid_contrastive
from modalign.objectives.uniformity import centroid_uniformity, cross_modal_uniformity, in_modal_uniformity

__all__ = [
    "bures",
    "cauchy_schwarz",
    "centroid_gap",
    "centroid_uniformity",
    "contrastive",
    "coral",
    "cross_modal_consistency",
    "cross_modal_uniformity",
    "distribution_gap",
    "effective_logit_scale",
    "feature_anchor",
    "geodesic_contrastive",
    "geometry_gap",
    "hybrid_distillation",
    "in_modal_consistency",
    "in_modal_uniformity",
    "intra_modal_separation",
    "kernel_alignment",
    "mmd",
    "random_feature_alignment",
    "reweighted_contrastive",
    "sharpness_warning",
    "sigmoid_contrastive",
    "sliced_wasserstein",
    "squared_pair_distance",
    "weight_anchor",
]
