"""`<base>+visual@<file>`: a checkpoint of the image tower alone, put over a named base model."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from modalign.errors import ModelError, few
from modalign.models.clip_names import open_clip_state, transformers_state
from modalign.models.weights import misfit, read_weights

if TYPE_CHECKING:
    from modalign.models.dual_encoder import DualEncoder

MARK = "+visual@"

WRAPPERS = ("module.", "model.", "_orig_mod.", "clip.", "clip_model.")
"""What data-parallel training, Lightning, `torch.compile` and networks that hold a CLIP put before every name."""

TEXT = re.compile(r"(text|text_model|token_embedding|ln_final|text_projection|text_decoder)(\.|$)")
"""Names of a text tower; a bare `transformer.…` or `positional_embedding` may be of either."""

logger = logging.getLogger("modalign")


def split_tower(spec: str) -> tuple[str, Path | None]:
    """A spec → the base's spec and the tower file, None where it names none.

    A path that exists as it stands is never split, whatever characters are in it.

    Raises:
        ModelError: there is a mark, and nothing before or after it.
    """
    base, mark, file = spec.rpartition(MARK)
    if not mark:
        return spec, None
    places = (spec, spec.partition(":")[2], spec.split(":", 2)[-1], spec.partition("@")[2])
    if any(MARK in place and Path(place).expanduser().exists() for place in places):
        return spec, None
    if not base or not file:
        what = "no file after it" if base else "no base model before it"
        raise ModelError(f"{spec!r}: {MARK} has {what}; write <base>{MARK}<file>, such as demo{MARK}tower.pt")
    return base, Path(file).expanduser()


def put_tower(model: DualEncoder, file: Path) -> None:
    """Replaces the weights of a model's image tower, all of them, by those in a file.

    Args:
        model: the base; its text tower and logit scale stay.
        file: names as in open_clip and OpenAI's CLIP, with or without `visual.` and the prefixes that wrappers add;
            over a model of transformers its own names too. Half precision becomes the model's precision. Whatever
            else the file holds is told and left.

    Raises:
        ModelError: the file cannot be read, or its entries are not those of this tower or not finite; names them.
    """
    theirs, rest = _image_entries(read_weights(file), file)
    state = model.module.state_dict()
    own = {name: state[name] for name in state if name.startswith(("visual.", "vision_model.", "visual_projection."))}
    renamed = model.family == "transformers" and any(name.startswith("visual.") for name in theirs)
    wanted = _openai_names(model, own, file) if renamed else own
    told = misfit(theirs, wanted)
    if told:
        raise ModelError(f"{file} does not fit the image tower of {model.spec}: {told}. {_right_base(theirs)}")
    for name, tensor in theirs.items():
        if tensor.is_floating_point() != wanted[name].is_floating_point():
            kinds = f"{_kind(tensor)} in the file and {_kind(wanted[name])} in {model.spec}"
            raise ModelError(f"{file}: {name} is {kinds}; save the tower's weights as the model has them")
        if not tensor.isfinite().all():
            raise ModelError(f"{file}: {name} holds NaN or infinity; pass a checkpoint from before training diverged")
    for name, tensor in (transformers_state(theirs) if renamed else theirs).items():
        own[name].copy_(tensor)
    if rest:
        logger.warning("%s: only its image tower is used; left are %s", file, few(rest))


def _image_entries(weights: Mapping[str, Tensor], file: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The tower's tensors, named as in a whole model (`visual.…` or `vision_model.…`), and the names of the others."""
    weights = {_unwrapped(name): tensor for name, tensor in weights.items()}
    for marks in (("visual.",), ("vision_model.", "visual_projection.")):
        found = {name: tensor for name, tensor in weights.items() if name.startswith(marks)}
        if found:
            found = {_visual(name): tensor for name, tensor in found.items()}
            return found, [name for name in weights if not name.startswith(marks)]
    if any(TEXT.match(name) for name in weights):
        raise ModelError(
            f"{file} holds no image tower, only {few(weights)}: pass the file that has the visual.* weights"
        )
    return {f"visual.{name}": tensor for name, tensor in weights.items()}, []


def _unwrapped(name: str) -> str:
    while name.startswith(WRAPPERS):
        name = name.partition(".")[2]
    return name


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _visual(name: str) -> str:
    return f"visual.{_unwrapped(name.removeprefix('visual.'))}" if name.startswith("visual.") else name


def _openai_names(model: DualEncoder, own: Mapping[str, Tensor], file: Path) -> dict[str, Tensor]:
    """The image tower of a `CLIPModel` under the names of OpenAI's CLIP."""
    config: Any = getattr(model, "config", None)
    if config.model_type != "clip":
        raise ModelError(
            f"{file} has the names of open_clip, and {model.spec} is no CLIPModel but of type {config.model_type}: "
            "save the tower with transformers' names (vision_model.…)"
        )
    return open_clip_state(own)


def _right_base(theirs: Mapping[str, Tensor]) -> str:
    """What to name as the base instead, told from the tower's shapes."""
    if any(name.startswith("vision_model.") for name in theirs):
        return "Its names are those of transformers: name the hf: model that it was made from as the base"
    import open_clip

    outline = _outline({name.removeprefix("visual."): tuple(tensor.shape) for name, tensor in theirs.items()})
    names = [name for name in open_clip.list_models() if outline and _config_outline(name) == outline]
    if not names:
        return "Name the model that it was made from as the base"
    return f"Its shapes are those of {', '.join(names[:4])}: name one of these as the base"


def _outline(shapes: Mapping[str, tuple[int, ...]]) -> tuple[Any, ...] | None:
    """Width, depth, patch, image size and embedding width of a ViT or ModifiedResNet; None for another tower."""
    try:
        if "class_embedding" in shapes:
            (width, _, patch, _), (tokens, _) = shapes["conv1.weight"], shapes["positional_embedding"]
            depth = sum(re.fullmatch(r"transformer\.resblocks\.\d+\.ln_1\.weight", name) is not None for name in shapes)
            return width, depth, round((tokens - 1) ** 0.5) * patch, patch, shapes["proj"][1]
        blocks = [len({name.split(".")[1] for name in shapes if name.startswith(f"layer{i}.")}) for i in range(1, 5)]
        size = round((shapes["attnpool.positional_embedding"][0] - 1) ** 0.5) * 32
        return shapes["conv3.weight"][0], blocks, size, None, shapes["attnpool.c_proj.weight"][0]
    except (KeyError, ValueError, IndexError):
        return None


def _config_outline(architecture: str) -> tuple[Any, ...]:
    import open_clip

    config: dict[str, Any] = open_clip.get_model_config(architecture)
    vision, width = config["vision_cfg"], config["embed_dim"]
    patch = vision.get("patch_size") if not isinstance(vision.get("layers"), list) else None
    return vision.get("width"), vision.get("layers"), vision.get("image_size"), patch, width
