"""SigLIP between open_clip and transformers, where the other library can express it exactly."""

from __future__ import annotations

import copy
import string
import tempfile
from typing import Any

import open_clip
import timm
import torch
from open_clip.timm_model import TimmModel
from open_clip.tokenizer import HFTokenizer
from open_clip.transformer import TextTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipProcessor,
)

from modalign.errors import ExportError
from modalign.exporting.hugging_face import RESAMPLE, activation, block_config, cannot, square
from modalign.exporting.open_clip import ACTIVATIONS, INTERPOLATION
from modalign.exporting.siglip_names import convert, rules
from modalign.models.hugging_face import HuggingFace
from modalign.models.open_clip import OpenClip
from modalign.models.siglip import HuggingFaceSiglip

TARGET = "SiglipModel"
UNMASKED = ["input_ids"]
"""What the released checkpoints' tokenizers return: with an attention mask the library would leave padding out."""


def to_transformers(model: OpenClip) -> HuggingFaceSiglip:
    """An open_clip SigLIP as a `SiglipModel` with tokenizer and image processor.

    Raises:
        ExportError: names the layer or configuration key that `SiglipModel` or its processor cannot express.
    """
    visual, text = model.module.visual, getattr(model.module, "text", model.module)
    if not isinstance(visual, TimmModel):
        raise cannot(f"visual ({type(visual).__name__})", "an image tower that is not timm's", TARGET)
    vision = _vision_config(visual.trunk)
    words = _text_config(text)
    pairs = rules(vision["num_hidden_layers"], words["num_hidden_layers"])
    state = model.module.state_dict()
    known = [name for ours, _ in pairs for name in ours]
    for name in state.keys() - set(known):
        raise cannot(name, "this layer", TARGET)
    for name in set(known) - state.keys():
        raise cannot(f"a model without {name}", "its absence", TARGET)
    tokenizer = _tokenizer(model)
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    images = _image_processor(model.preprocess_config)
    make_processor: Any = SiglipProcessor
    with torch.random.fork_rng(devices=[]):
        module: Any = SiglipModel(SiglipConfig(vision_config=vision, text_config=words | ids))
    module.to(model.dtype).load_state_dict(convert(state, module.state_dict(), pairs), strict=True)
    return HuggingFaceSiglip(
        module, make_processor(image_processor=images, tokenizer=tokenizer), model.spec, revision=model.revision
    )


def to_open_clip(model: HuggingFaceSiglip) -> OpenClip:
    """A `SiglipModel` as an open_clip `CustomTextCLIP` over the timm image tower that computes the same.

    Raises:
        ExportError: names the layer that no image tower of timm, or open_clip's text tower, can express.
    """
    text, vision = model.config.text_config, model.config.vision_config
    ratio = text.intermediate_size / text.hidden_size
    quick, act_kwargs = ACTIVATIONS.get(text.hidden_act, (True, None))
    if quick:
        raise _no_place(f"text_model (hidden_act={text.hidden_act!r})", "GELU")
    if int(text.hidden_size * ratio) != text.intermediate_size:
        raise _no_place(f"text_config.intermediate_size={text.intermediate_size}", "a multiple of hidden_size")
    config: dict[str, Any] = {
        "embed_dim": model.embed_dim,
        "init_logit_bias": model.logit_bias,
        "custom_text": True,
        "vision_cfg": {
            "image_size": vision.image_size,
            "timm_model_name": _timm_name(vision),
            "timm_model_pretrained": False,
            "timm_pool": "map",
            "timm_proj": "none",
        },
        "text_cfg": {
            "context_length": text.max_position_embeddings,
            "vocab_size": text.vocab_size,
            "hf_tokenizer_name": ".",
            "width": text.hidden_size,
            "heads": text.num_attention_heads,
            "layers": text.num_hidden_layers,
            "mlp_ratio": ratio,
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
            "norm_kwargs": {"eps": text.layer_norm_eps},
            **({"act_kwargs": act_kwargs} if act_kwargs else {}),
        },
    }
    built = {name: value for name, value in copy.deepcopy(config).items() if name != "custom_text"}
    with torch.random.fork_rng(devices=[]):
        module: Any = open_clip.CustomTextCLIP(**built)
    pairs = [(theirs, ours) for ours, theirs in rules(vision.num_hidden_layers, text.num_hidden_layers)]
    state = convert(model.module.state_dict(), module.state_dict(), pairs)
    module.to(model.dtype).load_state_dict(state, strict=True)
    with tempfile.TemporaryDirectory() as folder:
        model.processor.tokenizer.save_pretrained(folder)
        tokenizer = HFTokenizer(folder, context_length=model.context_length)
    images = _preprocess(model)
    return OpenClip(module, config, tokenizer, model.spec, preprocess_config=images, revision=model.revision)


def _vision_config(trunk: Any) -> dict[str, Any]:
    """The vision configuration of a timm ViT with attention pooling whose layers are all alike."""
    if type(trunk) is not VisionTransformer or trunk.attn_pool is None:
        raise cannot(
            f"visual.trunk ({type(trunk).__name__})", "a tower other than a ViT with attention pooling", TARGET
        )
    parts: list[tuple[str, Any]] = [(f"blocks.{index}", block) for index, block in enumerate(trunk.blocks)]
    norms, activations, heads, widths = [trunk.norm], set(), set(), set()
    for name, part in [*parts, ("attn_pool", trunk.attn_pool)]:
        pooling = name == "attn_pool"
        norms += [part.norm] if pooling else [part.norm1, part.norm2]
        activations.add(_activation(part.mlp.act, f"visual.trunk.{name}.mlp.act"))
        heads.add(part.num_heads if pooling else part.attn.num_heads)
        widths.add(part.mlp.fc1.out_features)
    for norm in norms:
        if not isinstance(norm, nn.LayerNorm):
            raise cannot(f"a {type(norm).__name__} in visual.trunk", "a norm that is no LayerNorm", TARGET)
    eps = {norm.eps for norm in norms}
    for values, what in ((eps, "norm eps"), (activations, "activation"), (heads, "heads"), (widths, "MLP width")):
        if len(values) > 1:
            raise cannot(f"visual.trunk ({what} {', '.join(map(str, sorted(values)))})", "blocks that differ", TARGET)
    return {
        "hidden_size": trunk.embed_dim,
        "intermediate_size": widths.pop(),
        "num_hidden_layers": len(trunk.blocks),
        "num_attention_heads": heads.pop(),
        "hidden_act": activations.pop(),
        "layer_norm_eps": eps.pop(),
        "image_size": square(trunk.patch_embed.img_size, "vision_cfg.image_size", TARGET),
        "patch_size": square(trunk.patch_embed.patch_size, "visual.trunk.patch_embed.patch_size", TARGET),
    }


def _text_config(text: Any) -> dict[str, Any]:
    if not isinstance(text, TextTransformer):
        raise cannot(f"text ({type(text).__name__})", "a text tower of another kind", TARGET)
    if text.attn_mask is not None:
        raise cannot("text.attn_mask", "a causal text tower", TARGET)
    if text.use_pad_mask:
        raise cannot("text_cfg.use_pad_mask", "masked padding", TARGET)
    if text.pool_type != "last":
        raise cannot(f"text_cfg.pool_type={text.pool_type!r}", "pooling other than the last token", TARGET)
    config = block_config(text.transformer, "text.transformer", [text.ln_final], TARGET)
    sizes = {"vocab_size": text.vocab_size, "max_position_embeddings": text.context_length}
    return config | sizes | {"projection_size": text.output_dim}


def _activation(layer: nn.Module, where: str) -> str:
    """transformers' name of one of timm's activation layers, which are classes of its own."""
    names = {"GELU": "gelu", "GELUTanh": "gelu_pytorch_tanh", "QuickGELU": "quick_gelu"}
    known = type(layer).__module__.startswith("timm.") and type(layer).__name__ in names
    return names[type(layer).__name__] if known else activation(layer, where, TARGET)


def _image_processor(settings: dict[str, Any]) -> Any:
    size, mode = settings["size"], settings["resize_mode"]
    if mode != "squash":
        raise cannot(f"preprocess_cfg.resize_mode={mode!r}", "cutting or padding to a square", "SiglipImageProcessor")
    height, width = size if isinstance(size, list) else (size, size)
    return SiglipImageProcessor(
        size={"height": height, "width": width},
        resample=RESAMPLE[settings["interpolation"]],
        image_mean=settings["mean"],
        image_std=settings["std"],
    )


def _tokenizer(model: OpenClip) -> Any:
    """transformers' tokenizer over the same vocabulary; open_clip's cleaning of captions becomes its normalizer."""
    from tokenizers import Regex, normalizers

    if not isinstance(model.tokenizer, HFTokenizer):
        raise cannot(f"the tokenizer ({type(model.tokenizer).__name__})", "a vocabulary of another kind", TARGET)
    length = model.tokenizer.context_length
    with tempfile.TemporaryDirectory() as folder:
        model.tokenizer.save_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(
            folder, model_max_length=length, model_input_names=UNMASKED, trust_remote_code=False
        )
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or model.tokenizer.clean_fn.__name__ != "_clean_canonicalize":
        return tokenizer
    marks = "[" + "".join(f"\\{mark}" for mark in string.punctuation if mark != "_") + "]"
    steps = [normalizers.Replace("_", " "), normalizers.Replace(Regex(marks), ""), normalizers.Lowercase()]
    steps += [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    backend.normalizer = normalizers.Sequence(steps + ([backend.normalizer] if backend.normalizer else []))
    special = {name: getattr(tokenizer, name) for name in ("pad_token", "eos_token", "unk_token")}
    # A class of its own (T5's) would rebuild the rules from the vocabulary when it is loaded, without these.
    make_tokenizer: Any = PreTrainedTokenizerFast
    return make_tokenizer(tokenizer_object=backend, model_max_length=length, model_input_names=UNMASKED, **special)


def _timm_name(vision: Any) -> str:
    """timm's name of the image tower with these sizes and this activation."""
    names = timm.list_models(f"vit_*_patch{vision.patch_size}_siglip_{vision.image_size}")
    for name in names:
        with torch.device("meta"):
            tower = timm.create_model(name, num_classes=0, global_pool="map")
        if all(getattr(vision, key) == value for key, value in _vision_config(tower).items()):
            return str(name)
    sizes = f"hidden_act={vision.hidden_act!r}, width {vision.hidden_size}, {vision.num_hidden_layers} layers"
    told = f"patch {vision.patch_size}, image {vision.image_size}: {', '.join(names) or 'none'}"
    raise _no_place(f"vision_model ({sizes})", f"one of timm's SigLIP towers ({told}), and none computes the same")


def _preprocess(model: HuggingFace) -> dict[str, Any]:
    processor: Any = model.processor.image_processor
    return {
        "mean": list(processor.image_mean) if processor.do_normalize else [0.0, 0.0, 0.0],
        "std": list(processor.image_std) if processor.do_normalize else [1.0, 1.0, 1.0],
        "interpolation": INTERPOLATION.get(int(processor.resample), "bicubic"),
        "resize_mode": "squash",
    }


def _no_place(layer: str, only: str) -> ExportError:
    return ExportError(
        f"open_clip's SigLIP cannot express {layer}: it takes {only}; export with --to transformers instead"
    )
