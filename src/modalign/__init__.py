"""modalign: diagnose, refine, verify and ship CLIP-like vision-language models.

    import modalign

    model = modalign.load("open_clip:ViT-B-32-quickgelu/openai")
    run = modalign.refine(model, "coco:/data/coco@train2017", modalign.methods.ClipRefine(), out="runs/coco")
    print(run.gate)

The names below are imported when they are first used: importing torch takes seconds, `modalign --help` does not.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from modalign.version import __version__

if TYPE_CHECKING:
    from modalign import gap, methods, objectives
    from modalign.data.mixing import mix
    from modalign.data.sources import images, labelled, pairs
    from modalign.embedding import embed
    from modalign.evaluation.tasks import evaluate
    from modalign.exporting import export
    from modalign.models import load
    from modalign.models.vision import load_vision
    from modalign.models.wrapping import wrap
    from modalign.running import Run, refine
    from modalign.sweeping import sweep

_HOMES = {
    "load": "modalign.models",
    "load_vision": "modalign.models.vision",
    "pairs": "modalign.data.sources",
    "images": "modalign.data.sources",
    "mix": "modalign.data.mixing",
    "labelled": "modalign.data.sources",
    "refine": "modalign.running",
    "Run": "modalign.running",
    "embed": "modalign.embedding",
    "evaluate": "modalign.evaluation.tasks",
    "export": "modalign.exporting",
    "sweep": "modalign.sweeping",
    "wrap": "modalign.models.wrapping",
}
_PACKAGES = ("gap", "methods", "objectives")

__all__ = [
    "Run",
    "__version__",
    "embed",
    "evaluate",
    "export",
    "gap",
    "images",
    "labelled",
    "load",
    "load_vision",
    "methods",
    "mix",
    "objectives",
    "pairs",
    "refine",
    "sweep",
    "wrap",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in _PACKAGES:
        return importlib.import_module(f"modalign.{name}")
    raise AttributeError(f"module 'modalign' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
