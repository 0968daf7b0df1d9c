"""Which pictures a target encoder sees: through its own transform, or through the student's at the target's size."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor

from modalign.errors import ModelError
from modalign.models.dual_encoder import DualEncoder
from modalign.models.vision import VisionEncoder, made_size

TargetPreprocess = Literal["own", "student"]


def seen_by(target: VisionEncoder, student: DualEncoder, preprocess: TargetPreprocess = "own") -> VisionEncoder:
    """The target under the transform that a run asks for.

    "own" leaves it as it is. "student" gives it the student's resizing, cropping, mean and standard deviation at the
    target's own size: so both look at the same part of a picture, and where their sizes agree at the same pixels.

    Args:
        target: the vision encoder.
        student: the model that is aligned to it.
        preprocess: "own" or "student".

    Raises:
        ModelError: the student's transform cannot be given another size.

    Source: the published runs of arXiv 2506.02557 fed their target CLIP's mean and standard deviation at 224×224.
    """
    if preprocess == "own":
        return target
    transform = at_size(student, target.input_size)
    identity = json.dumps({"student": student.input_identity, "size": target.input_size}, sort_keys=True)
    return target.with_transform(transform, identity)


def at_size(student: DualEncoder, size: tuple[int, int]) -> Callable[[Any], Tensor]:
    """A model's evaluation transform for pictures of another size; its own where the size is the same.

    Args:
        student: the model.
        size: (H, W).

    Raises:
        ModelError: the transform is neither open_clip's nor a transformers image processor.
    """
    if made_size(student.preprocess) == size:
        return student.preprocess
    settings = getattr(student, "preprocess_config", None)  # open_clip's adapter keeps its preprocess_cfg here
    processor = getattr(student.preprocess, "processor", None)  # and transformers' transform its image processor
    if settings is not None:
        from open_clip.transform import PreprocessCfg, image_transform_v2

        transform: Callable[[Any], Tensor] = image_transform_v2(
            PreprocessCfg(**{**settings, "size": size}), is_train=False
        )
    elif processor is not None:
        rebuilt: Any = type(student.preprocess)
        transform = rebuilt(_resized(processor, size))
    else:
        raise ModelError(
            f"the transform of {student.spec} cannot be set to the target's {size[0]}×{size[1]} pixels: "
            "use target_preprocess: own"
        )
    return transform


def _resized(processor: Any, size: tuple[int, int]) -> Any:
    height, width = size
    settings = processor.to_dict()
    # A processor names its size in one of two ways, and keeps that way.
    by_edge = settings["size"].get("shortest_edge")
    settings["size"] = {"shortest_edge": min(size)} if by_edge else {"height": height, "width": width}
    if settings.get("crop_size"):
        settings["crop_size"] = {"height": height, "width": width}
    return type(processor).from_dict(settings)
