"""transformers' vision models behind the `VisionEncoder` contract."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import hf_hub_download
from torch import Tensor, nn

from modalign.errors import ModelError, first_line
from modalign.models.folder import read_json
from modalign.models.hub import asking_hub, commit_of, refuse_code
from modalign.models.hugging_face import WEIGHTS, ProcessorTransform, quiet
from modalign.models.tokenization import digest, stable
from modalign.models.vision import VisionEncoder

PROCESSOR = "preprocessor_config.json"


def _pooler(output: Any) -> Tensor:
    pooled: Tensor = output.pooler_output
    return pooled


def _first(output: Any) -> Tensor:
    tokens: Tensor = output.last_hidden_state
    return tokens[:, 0]


def _mean(output: Any) -> Tensor:
    tokens: Tensor = output.last_hidden_state
    return tokens.mean(dim=1)


def _projected(output: Any) -> Tensor:
    embedded: Tensor = output.image_embeds
    return embedded


@dataclass(frozen=True)
class Family:
    """A class of transformers, and which of its outputs is the feature of a picture.

    Attributes:
        network: the class's name.
        pooled: the forward pass's output → B×d_t.
        said: the same in words.
        without_pooler: whether the class is built without the pooler that it would add (a tanh layer).
    """

    network: str
    pooled: Callable[[Any], Tensor]
    said: str
    without_pooler: bool = False


_CLS = "the CLS token after the final LayerNorm"

FAMILIES: dict[str, Family] = {
    "dinov2": Family("Dinov2Model", _pooler, f"pooler_output: {_CLS}"),
    "dinov2_with_registers": Family("Dinov2WithRegistersModel", _pooler, f"pooler_output: {_CLS}"),
    "dinov3_vit": Family("DINOv3ViTModel", _pooler, f"pooler_output: {_CLS}"),
    "dinov3_convnext": Family("DINOv3ConvNextModel", _pooler, "pooler_output: the mean over places, then LayerNorm"),
    "mlcd": Family("MLCDVisionModel", _pooler, f"pooler_output: {_CLS}"),
    "mlcd_vision_model": Family("MLCDVisionModel", _pooler, f"pooler_output: {_CLS}"),
    "siglip": Family("SiglipVisionModel", _pooler, "pooler_output: the attention pooling head"),
    "siglip_vision_model": Family("SiglipVisionModel", _pooler, "pooler_output: the attention pooling head"),
    "clip": Family("CLIPVisionModelWithProjection", _projected, "image_embeds: the projected CLS token"),
    "clip_vision_model": Family("CLIPVisionModel", _pooler, f"pooler_output: {_CLS}"),
    "vit": Family("ViTModel", _first, _CLS, without_pooler=True),
    "deit": Family("DeiTModel", _first, _CLS, without_pooler=True),
    "ijepa": Family("IJepaModel", _mean, "the mean over patches after the final LayerNorm", without_pooler=True),
    "beit": Family("BeitModel", _pooler, "pooler_output: the mean over patches, then LayerNorm (or CLS, if so set)"),
    "convnext": Family("ConvNextModel", _pooler, "pooler_output: the mean over places, then LayerNorm"),
}
"""`model_type` of a config.json → what is loaded and read. docs/vision.md shows the same table."""


class HuggingFaceVision(VisionEncoder):
    """A vision model of the transformers library.

    Attributes:
        family: what is read of it.
    """

    def __init__(
        self, module: nn.Module, family: Family, processor: Any, spec: str, *, revision: str | None = None
    ) -> None:
        self.family = family
        settings = {"class": type(processor).__name__, "settings": digest(stable(processor.to_dict()))}
        super().__init__(
            module, spec, ProcessorTransform(processor), json.dumps(settings, sort_keys=True), revision=revision
        )

    def _pooled(self, pixels: Tensor) -> Tensor:
        module: Any = self.module
        return self.family.pooled(module(pixel_values=pixels))

    @property
    def architecture(self) -> str:
        """The class, what is read of it, and its configuration without names of places and versions."""
        module: Any = self.module
        told = [self.family.network, self.family.said, stable(module.config.to_dict())]
        return json.dumps(told, sort_keys=True, default=str)


def load_hugging_face_vision(rest: str, spec: str) -> HuggingFaceVision:
    """Loads what follows `hf:`; see `modalign.load_vision`."""
    name, _, revision = rest.partition("@")
    if not name:
        raise ModelError("hf: names no model: write hf:<owner>/<name>[@revision] or hf:<folder>")
    folder = Path(rest).expanduser()
    if folder.is_dir():
        return _from_folder(folder, spec)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"there is no folder {rest}: check the path after hf:")
    with asking_hub(f"{rest} from the hub", "use a local copy: hf:<folder>"):
        config = Path(hf_hub_download(name, "config.json", revision=revision or None))
        return _load(name, config, spec, revision=commit_of(config))  # all files from one commit


def _from_folder(folder: Path, spec: str) -> HuggingFaceVision:
    config = folder / "config.json"
    _family(config)
    if not any((folder / name).is_file() for name in WEIGHTS):
        raise ModelError(f"{folder} has a configuration but no weights: copy {WEIGHTS[0]} into it")
    if not (folder / PROCESSOR).is_file():
        raise ModelError(f"{folder} does not say how pictures are prepared: copy {PROCESSOR} into it")
    refuse_code(folder)
    try:
        return _load(str(folder), config, spec, local_files_only=True)
    except ModelError:
        raise
    except Exception as error:  # the library raises what it likes on damaged or missing files
        raise ModelError(f"{folder} cannot be loaded by transformers ({first_line(error)}): copy it again") from error


def _family(config: Path) -> Family:
    content = read_json(config)
    kind = content.get("model_type")
    if kind == "clip_vision_model" and "CLIPVisionModelWithProjection" in (content.get("architectures") or ()):
        kind = "clip"
    if kind not in FAMILIES:
        raise ModelError(
            f"{config} has model_type {kind!r}, of which no pooled output is defined: "
            f"use one of {', '.join(FAMILIES)}, or timm:<name>"
        )
    family = FAMILIES[kind]
    if not hasattr(transformers, family.network):
        raise ModelError(
            f"{config} needs {family.network}, which transformers {transformers.__version__} does not have: upgrade it"
        )
    return family


def _load(name: str, config: Path, spec: str, *, revision: str | None = None, **where: Any) -> HuggingFaceVision:
    family = _family(config)
    network: Any = getattr(transformers, family.network)
    where |= {"revision": revision} if revision else {}
    settings = network.config_class.from_pretrained(name, **where)
    content = read_json(config)
    if "vision_config" in content and "projection_dim" in content:  # a whole CLIP: its own width counts
        settings.projection_dim = content["projection_dim"]
    extra = {"add_pooling_layer": False} if family.without_pooler else {}
    with quiet():
        processors: Any = transformers.AutoImageProcessor
        processor = processors.from_pretrained(name, trust_remote_code=False, **where)
        module, told = network.from_pretrained(
            name,
            config=settings,
            torch_dtype="auto",
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **extra,
            **where,
        )
    _need_whole(module, told, name)
    return HuggingFaceVision(module, family, processor, spec, revision=revision)


def _need_whole(module: Any, told: dict[str, Any], name: str) -> None:
    """Refuses weights that do not fill the network, or hold more layers than it has; heads and text towers may be left.

    Raises:
        ModelError: names the first of each.
    """
    own = {child for child, _ in module.named_children()}
    prefix = f"{module.base_model_prefix}."
    wrong = {
        "missing": sorted(told["missing_keys"]),
        "beyond the configuration": sorted(
            key
            for key in told["unexpected_keys"]
            if key.removeprefix(prefix).partition(".")[0] in own and not key.endswith("position_ids")
        ),
        "of another shape": sorted(key if isinstance(key, str) else str(key[0]) for key in told["mismatched_keys"]),
    }
    parts = [f"{len(keys)} {what} ({', '.join(keys[:3])})" for what, keys in wrong.items() if keys]
    if parts:
        raise ModelError(f"the weights of {name} do not fit its config.json: {'; '.join(parts)}. Copy the model again")
