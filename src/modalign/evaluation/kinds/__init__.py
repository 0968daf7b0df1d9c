"""The kinds of task, one module each; `base` tells how another is written."""

from __future__ import annotations

from modalign.evaluation.kinds.base import Context, Encoded, Judged, Option
from modalign.evaluation.kinds.captioning import Captioning
from modalign.evaluation.kinds.clustering import ImageClustering, JointClustering
from modalign.evaluation.kinds.contrast import MmvpVlm, SugarCrepe, Winoground
from modalign.evaluation.kinds.cross_modal import CrossModal
from modalign.evaluation.kinds.drift import Drift
from modalign.evaluation.kinds.few_shot import FewShot
from modalign.evaluation.kinds.fine_tuning import FineTuning
from modalign.evaluation.kinds.language_model import Mmvp, Vqa
from modalign.evaluation.kinds.linear_probe import LinearProbe
from modalign.evaluation.kinds.localization import Localization
from modalign.evaluation.kinds.mixed_retrieval import MixedPool
from modalign.evaluation.kinds.neighbours import Neighbours
from modalign.evaluation.kinds.reading import Reading
from modalign.evaluation.kinds.retrieval import Retrieval
from modalign.evaluation.kinds.zero_shot import ZeroShot

__all__ = ["KINDS", "Context", "Drift", "Encoded", "Judged", "Neighbours", "Option", "Reading", "Retrieval", "ZeroShot"]

KINDS: dict[str, type[Judged]] = {
    "zero-shot": ZeroShot,
    "retrieval": Retrieval,
    "mixed-retrieval": MixedPool,
    "knn": Neighbours,
    "linear-probe": LinearProbe,
    "few-shot": FewShot,
    "cross-modal": CrossModal,
    "clustering": JointClustering,
    "image-clustering": ImageClustering,
    "finetune": FineTuning,
    "captioning": Captioning,
    "drift": Drift,
    "winoground": Winoground,
    "sugarcrepe": SugarCrepe,
    "mmvp-vlm": MmvpVlm,
    "mmvp": Mmvp,
    "vqa": Vqa,
    "localization": Localization,
}
