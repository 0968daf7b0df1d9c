"""open_clip's `CLIP`, `CustomTextCLIP` and `CoCa` behind the `DualEncoder` contract."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import torch
from open_clip.hf_model import HFTextEncoder
from open_clip.model import set_model_preprocess_cfg
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from modalign.errors import ModelError
from modalign.models import open_clip_text, vit
from modalign.models.dual_encoder import DualEncoder, TowerName
from modalign.models.open_clip_text import pooled, without
from modalign.models.resnet_pooling import attention_pooled
from modalign.models.tokenization import simple_tokenizer_identity, stable, transformers_tokenizer_identity
from modalign.models.tokens import PatchTokens
from modalign.models.upcast import upcast
from modalign.models.weights import write_weights

CONFIG = "open_clip_config.json"
WEIGHTS = "open_clip_model.safetensors"


class OpenClip(DualEncoder):
    """A dual encoder of the open_clip library.

    Attributes:
        config: open_clip's `model_cfg`, the dict that rebuilds `module`.
        preprocess_config: open_clip's `preprocess_cfg`: size, mean, std, interpolation, resize mode.
        tokenizer: open_clip's tokenizer.
    """

    family: ClassVar[str] = "open_clip"

    def __init__(
        self,
        module: nn.Module,
        config: dict[str, Any],
        tokenizer: Any,
        spec: str,
        *,
        preprocess_config: dict[str, Any] | None = None,
        revision: str | None = None,
    ) -> None:
        super().__init__(module, spec, revision)
        self.config = config
        self.tokenizer = tokenizer
        given = preprocess_config or getattr(module.visual, "preprocess_cfg", {})
        settings = merge_preprocess_dict(PreprocessCfg(), given)
        settings["size"] = getattr(module.visual, "image_size", settings["size"])
        self.preprocess_config: dict[str, Any] = json.loads(json.dumps(settings))
        set_model_preprocess_cfg(module, self.preprocess_config)
        self.preprocess = image_transform_v2(PreprocessCfg(**self.preprocess_config), is_train=False)

    # ---- image tower ----------------------------------------------------------------------------------------

    def image_trunk(self, pixels: Tensor) -> Tensor:
        """B×3×H×W → B×w: the image tower up to, and without, its projection."""
        visual = self.network.visual
        pixels = self._cast(pixels)
        if isinstance(visual, VisionTransformer):
            with without(visual, "proj"):
                return pooled(visual(pixels))
        if isinstance(visual, ModifiedResNet):
            pool = visual.attnpool
            with without(visual, "attnpool", nn.Identity()):
                features = visual(pixels)
            return attention_pooled(features, pool)
        layers = self._image_projection()
        if layers == ["trunk.head"]:
            inner: Tensor = visual.trunk.forward_head(visual.trunk.forward_features(pixels), pre_logits=True)
            return inner
        if layers:
            hidden: Tensor = visual.trunk(pixels)
            return visual.head.pool(hidden) if hasattr(visual.head, "pool") else hidden
        return pooled(visual(pixels))

    def project_image(self, hidden: Tensor) -> Tensor:
        """B×w → B×d, raw: the image projection alone (the identity for a tower that has none of its own)."""
        visual = self.network.visual
        if isinstance(visual, VisionTransformer):
            return upcast(hidden if visual.proj is None else hidden @ visual.proj)
        for name in self._image_projection():
            hidden = visual.get_submodule(name)(hidden)
        return upcast(hidden)

    def _image_projection(self) -> list[str]:
        """The layers of the image tower after its pooling, by name; none where they cannot be told from the trunk.

        ModifiedResNet ends in the output layer of its attention pooling. A timm tower has them in open_clip's head;
        EVA's and other timm ViTs' in place of the classifier.
        """
        visual = self.module.visual
        if isinstance(visual, ModifiedResNet):
            return ["attnpool.c_proj"]
        if not isinstance(visual, TimmModel):
            return []
        names = [name for name, _ in visual.head.named_children() if name != "pool"]
        if any(True for name in names for _ in getattr(visual.head, name).parameters()):
            return [f"head.{name}" for name in names]
        in_trunk = not len(visual.head) and vit.is_vit(visual.trunk)
        return ["trunk.head"] if in_trunk and any(True for _ in visual.trunk.head.parameters()) else []

    def encode_tokens(self, pixels: Tensor, layer: int = -1) -> PatchTokens:
        """The class and patch tokens of one layer; see `DualEncoder.encode_tokens`."""
        found = vit.tokens(self._vit, self._cast(pixels), layer, self.spec)
        return PatchTokens(upcast(found.hidden), found.prefix, found.grid)

    def attention(self, pixels: Tensor, layer: int = -1) -> Tensor:
        """The attention weights of one layer; see `DualEncoder.attention`."""
        return upcast(vit.attention(self._vit, self._cast(pixels), layer, self.spec))

    @property
    def _vit(self) -> nn.Module:
        """The image tower, where it has patch tokens."""
        visual = self.network.visual
        tower: nn.Module = visual.trunk if isinstance(visual, TimmModel) else visual
        if not vit.is_vit(tower):
            raise self._no_tokens(("timm " if isinstance(visual, TimmModel) else "") + type(tower).__name__)
        return tower

    def _cast(self, pixels: Tensor) -> Tensor:
        dtype: torch.dtype = next(self.network.visual.parameters()).dtype
        return pixels.to(dtype)

    # ---- text tower -----------------------------------------------------------------------------------------

    @property
    def _text(self) -> Any:
        """The text tower: a module of its own in `CustomTextCLIP`, spread over `CLIP` itself."""
        return getattr(self.network, "text", self.network)

    def token_lengths(self, tokens: Tensor) -> Tensor:
        """B×L → B integers: how many leading columns of each row can change its feature (L where padding counts)."""
        return open_clip_text.token_lengths(self._text, tokens)

    def text_trunk(self, tokens: Tensor) -> Tensor:
        """B×L → B×w: the text tower up to, and without, its projection."""
        return open_clip_text.trunk(self._text, tokens)

    def project_text(self, hidden: Tensor) -> Tensor:
        """B×w → B×d, raw: the text projection alone (the identity for a tower that has none of its own)."""
        text = self._text
        projection = text.proj if isinstance(text, HFTextEncoder) else text.text_projection
        if projection is None:
            return upcast(hidden)
        return upcast(projection(hidden) if isinstance(projection, nn.Module) else hidden @ projection)

    # ---- inputs, parameters ---------------------------------------------------------------------------------

    def tokenize(self, captions: list[str]) -> Tensor:
        """Captions → B×L token ids, padded to the context length, longer captions cut there."""
        tokens: Tensor = self.tokenizer(captions)
        return tokens

    @property
    def embed_dim(self) -> int:
        """The width d of the shared space."""
        return int(self.config["embed_dim"])

    @property
    def logit_scale(self) -> float:
        """The factor in front of cosine similarities (100.0 for OpenAI's CLIP), not its logarithm."""
        return float(self.network.logit_scale.detach().exp())

    @property
    def logit_bias(self) -> float | None:
        """What is added to the logits (SigLIP), or None."""
        bias = self.network.logit_bias
        return None if bias is None else float(bias.detach())

    def tower_of(self, name: str) -> TowerName | None:
        """Which tower a parameter of `module` belongs to; None for the logit scale and bias and CoCa's decoder."""
        if name in ("logit_scale", "logit_bias") or name.startswith("text_decoder."):
            return None
        return "image" if name.startswith("visual.") else "text"

    def projection_names(self, tower: TowerName) -> list[str]:
        """The names of a tower's projection parameters; `ModelError` where it has no separate projection."""
        if tower == "image":
            prefixes = ["visual.proj", *(f"visual.{name}" for name in self._image_projection())]
        else:
            prefixes = ["text.proj", "text.text_projection", "text_projection"]
        names = [
            name
            for name, _ in self.module.named_parameters()
            if any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)
        ]
        if not names:
            layer = self.module.visual if tower == "image" else self._text
            raise ModelError(
                f"the {tower} tower of {self.spec} ({type(layer).__name__}) has no projection of its own to train: "
                f"use train: {tower} or train: full"
            )
        return names

    # ---- identity and disk ----------------------------------------------------------------------------------

    @property
    def architecture(self) -> str:
        """The `model_cfg`, and the configuration of a transformers text tower, without names of places."""
        config = json.loads(json.dumps(self.config))
        config["vision_cfg"].pop("timm_model_pretrained", None)
        for key in ("hf_model_name", "hf_model_pretrained", "hf_tokenizer_name"):
            config["text_cfg"].pop(key, None)
        text = stable(self._text.config.to_dict()) if isinstance(self._text, HFTextEncoder) else None
        return json.dumps({"model_cfg": config, "text_config": text}, sort_keys=True, default=str)

    @property
    def input_identity(self) -> str:
        """A text that changes whenever `preprocess` or `tokenize` would change (their settings, vocabulary hash)."""
        inner = getattr(self.tokenizer, "tokenizer", None)
        identity = (
            simple_tokenizer_identity(self.tokenizer) if inner is None else transformers_tokenizer_identity(inner)
        )
        identity["context_length"] = self.tokenizer.context_length
        identity["settings"] = {
            key: self.config["text_cfg"].get(key) or None for key in ("tokenizer_kwargs", "tokenizer_mode")
        }
        return json.dumps({"preprocess": self.preprocess_config, "tokenizer": identity}, sort_keys=True)

    def write(self, folder: Path) -> None:
        """Writes open_clip's own files: configuration, weights and, for a transformers text tower, its own beside them.

        A text tower or tokenizer that was read from a folder is named "." in the configuration; hub names are kept.
        """
        config = json.loads(json.dumps(self.config))
        text = config["text_cfg"]
        if isinstance(self._text, HFTextEncoder):
            self._text.config.save_pretrained(folder)
            text["hf_model_pretrained"] = False
        if "timm_model_name" in config["vision_cfg"]:
            config["vision_cfg"]["timm_model_pretrained"] = False
        if hasattr(self.tokenizer, "tokenizer"):
            self.tokenizer.save_pretrained(folder)
        for key in ("hf_model_name", "hf_tokenizer_name"):
            if text.get(key) and _is_place(text[key]):
                text[key] = "."
        content = {"model_cfg": config, "preprocess_cfg": self.preprocess_config}
        (folder / CONFIG).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        write_weights(self.module, folder / WEIGHTS)


def _is_place(name: str) -> bool:
    """Whether a model name is a folder on this disk rather than a name on the hub."""
    return name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1 or Path(name).is_dir()
