"""open_clip's standard CLIP as transformers' `CLIPModel`; what that cannot express is refused, naming the layer."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from open_clip.hf_model import HFTextEncoder
from open_clip.tokenizer import HFTokenizer
from open_clip.transformer import LayerNorm, LayerNormFp32, LayerScale, QuickGELU, VisionTransformer
from torch import nn
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

from modalign.errors import ExportError
from modalign.models.clip_names import transformers_state
from modalign.models.hugging_face import HuggingFaceClip
from modalign.models.open_clip import OpenClip

RESAMPLE = {"bilinear": 2, "bicubic": 3, "random": 3}
"""PIL's numbers; open_clip evaluates "random" as bicubic."""


def to_transformers(model: OpenClip) -> HuggingFaceClip:
    """The same network as a `CLIPModel` with tokenizer and image processor.

    Raises:
        ExportError: names the layer or configuration key that `CLIPModel` or its processor cannot express.
    """
    vision, text = _towers(model)
    images, tokenizer = _image_processor(model.preprocess_config), _tokenizer(model)
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": _end_of_text(getattr(model.module, "text", model.module), tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = CLIPConfig(vision_config=vision, text_config=text | ids, projection_dim=model.embed_dim)
    make_processor: Any = CLIPProcessor
    processor = make_processor(image_processor=images, tokenizer=tokenizer)
    with torch.random.fork_rng(devices=[]):
        module: Any = CLIPModel(config)
    dtype = next(model.module.parameters()).dtype
    module.to(dtype).load_state_dict(transformers_state(model.module.state_dict()), strict=True)
    return HuggingFaceClip(module, processor, model.spec, revision=model.revision)


def _towers(model: OpenClip) -> tuple[dict[str, Any], dict[str, Any]]:
    """The vision and text configuration, after everything in the network has been found expressible."""
    module: Any = model.module
    visual, text = module.visual, getattr(module, "text", module)
    if "multimodal_cfg" in model.config:
        raise cannot("text_decoder (multimodal_cfg)", "a decoder that writes captions")
    _check_image_tower(visual, model.config["vision_cfg"])
    _check_text_tower(text)
    if module.logit_bias is not None:
        raise cannot("logit_bias", "an additive bias on the logits")
    image_size = square(visual.image_size, "vision_cfg.image_size")
    patch_size = square(visual.patch_size, "vision_cfg.patch_size")
    vision = block_config(visual.transformer, "visual.transformer", [visual.ln_pre, visual.ln_post])
    words = block_config(text.transformer, "transformer", [text.ln_final])
    vision |= {"image_size": image_size, "patch_size": patch_size, "projection_dim": model.embed_dim}
    words |= {"vocab_size": text.vocab_size, "max_position_embeddings": text.context_length}
    return vision, words | {"projection_dim": model.embed_dim}


def _check_image_tower(visual: Any, config: dict[str, Any]) -> None:
    if config.get("timm_model_name"):
        raise cannot(f"visual.trunk (timm {config['timm_model_name']})", "an image tower of timm")
    if not isinstance(visual, VisionTransformer):
        raise cannot(f"visual ({type(visual).__name__})", "an image tower that is no ViT")
    if visual.attn_pool is not None:
        raise cannot("visual.attn_pool", "attentional pooling")
    if visual.pool_type != "tok":
        raise cannot(f"vision_cfg.pool_type={visual.pool_type!r}", "pooling other than the class token")
    if isinstance(visual.ln_pre, nn.Identity):
        raise cannot("visual.ln_pre (vision_cfg.no_ln_pre)", "a ViT without the LayerNorm before its blocks")


def _check_text_tower(text: Any) -> None:
    if isinstance(text, HFTextEncoder):
        raise cannot(f"text.transformer (transformers {text.config.model_type})", "a text tower of another kind")
    if getattr(text, "cls_emb", None) is not None:
        raise cannot("text.cls_emb (text_cfg.embed_cls)", "a class token after the caption")
    if text.attn_mask is None:
        raise cannot("text_cfg.no_causal_mask", "a text tower that sees later tokens")
    if text.text_projection is None:
        raise cannot("text_projection (text_cfg.proj_type='none')", "a text tower without a projection")
    if isinstance(text.text_projection, nn.Linear) and text.text_projection.bias is not None:
        raise cannot("text_projection.bias (text_cfg.proj_bias)", "a projection with a bias")


def block_config(transformer: Any, name: str, outer: list[nn.Module], target: str = "CLIPModel") -> dict[str, Any]:
    """The configuration of a stack of transformer blocks that are all alike, and of the norms around them."""
    norms, activations, heads, widths = [*outer], set(), set(), set()
    for index, block in enumerate(transformer.resblocks):
        where = f"{name}.resblocks.{index}"
        for layer in ("ls_1", "ls_2"):
            if isinstance(getattr(block, layer), LayerScale):
                raise cannot(f"{where}.{layer}", "a layer scale", target)
        for layer in ("ln_attn", "attn.ln_q", "attn.ln_k", "attn.ln_inner", "mlp.ln"):
            if not isinstance(_layer(block, layer), nn.Identity | None):
                raise cannot(f"{where}.{layer}", "a norm inside attention or MLP", target)
        for parameter in ("logit_scale", "head_scale"):
            if getattr(block.attn, parameter, None) is not None:
                raise cannot(f"{where}.attn.{parameter}", "scaled attention heads", target)
        norms += [block.ln_1, block.ln_2]
        activations.add(activation(block.mlp.gelu, f"{where}.mlp.gelu", target))
        heads.add(block.attn.num_heads)
        widths.add(block.mlp.c_fc.out_features)
    for norm in norms:
        if not isinstance(norm, LayerNorm | LayerNormFp32) or norm.weight is None or norm.bias is None:
            what = "a norm that is no LayerNorm with weight and bias"
            raise cannot(f"a {type(norm).__name__} in {name}", what, target)
    eps = {norm.eps for norm in norms}
    for values, what in ((eps, "norm eps"), (activations, "activation"), (heads, "heads"), (widths, "MLP width")):
        if len(values) > 1:
            raise cannot(f"{name} ({what} {', '.join(map(str, sorted(values)))})", "blocks that differ", target)
    return {
        "hidden_size": transformer.width,
        "intermediate_size": widths.pop(),
        "num_hidden_layers": len(transformer.resblocks),
        "num_attention_heads": heads.pop(),
        "hidden_act": activations.pop(),
        "layer_norm_eps": eps.pop(),
    }


def activation(layer: nn.Module, where: str, target: str = "CLIPModel") -> str:
    """transformers' name of an activation layer."""
    if isinstance(layer, QuickGELU):
        return "quick_gelu"
    if isinstance(layer, nn.GELU):
        return "gelu" if layer.approximate == "none" else "gelu_pytorch_tanh"
    raise cannot(f"{where} ({type(layer).__name__})", "this activation", target)


def _end_of_text(text: Any, tokenizer: Any) -> int:
    """The id at whose first occurrence transformers reads the feature.

    2 stands for "the highest id of the caption" there (see `CLIPTextModel`), which is open_clip's argmax pooling.
    """
    pool = getattr(text, "text_pool_type", None) or text.pool_type
    eos = getattr(text, "text_eos_id", getattr(text, "eos_id", None))
    end = int(tokenizer.eos_token_id)
    if pool == "argmax":
        return end if end == text.vocab_size - 1 else 2
    if pool == "eos" and eos is not None and (eos != 2 or text.vocab_size == 3):
        return int(eos)
    raise cannot(f"text_cfg.pool_type={pool!r}" + (f" with eos_id={eos}" if pool == "eos" else ""), "this text pooling")


def _image_processor(settings: dict[str, Any]) -> Any:
    """transformers' image processor with open_clip's settings."""
    size, mode = settings["size"], settings["resize_mode"]
    height, width = size if isinstance(size, list) else (size, size)
    if mode == "longest":
        raise cannot("preprocess_cfg.resize_mode='longest'", "padding to a square", "CLIPImageProcessor")
    if mode == "shortest" and height != width:
        raise cannot(f"preprocess_cfg.size={size}", "cutting to a rectangle", "CLIPImageProcessor")
    box = {"height": height, "width": width}
    return CLIPImageProcessor(
        size=box if mode == "squash" else {"shortest_edge": height},
        crop_size=box,
        do_center_crop=mode == "shortest",
        resample=RESAMPLE[settings["interpolation"]],
        image_mean=settings["mean"],
        image_std=settings["std"],
    )


def _tokenizer(model: OpenClip) -> Any:
    """transformers' tokenizer over the same vocabulary, cut at the same context length."""
    length = model.tokenizer.context_length
    with tempfile.TemporaryDirectory() as folder:
        if isinstance(model.tokenizer, HFTokenizer):
            from transformers import AutoTokenizer

            model.tokenizer.save_pretrained(folder)
            return AutoTokenizer.from_pretrained(folder, model_max_length=length, trust_remote_code=False)
        vocabulary = dict(model.tokenizer.encoder)
        for theirs, ours in (("<|startoftext|>", "<start_of_text>"), ("<|endoftext|>", "<end_of_text>")):
            vocabulary[theirs] = vocabulary.pop(ours)
        merges = [" ".join(pair) for pair in model.tokenizer.bpe_ranks if len(pair) == 2]
        Path(folder, "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
        Path(folder, "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
        fast: Any = transformers  # version 5 has the name, its type stubs do not
        return fast.CLIPTokenizerFast.from_pretrained(folder, model_max_length=length)


def square(size: Any, key: str, target: str = "CLIPModel") -> int:
    """The edge of a size that must be a square."""
    height, width = size
    if height != width:
        raise cannot(f"{key}={height}×{width}", "anything but squares", target)
    return int(height)


def _layer(block: nn.Module, path: str) -> Any:
    layer: Any = block
    for name in path.split("."):
        layer = getattr(layer, name, None)
    return layer


def cannot(layer: str, what: str, target: str = "CLIPModel") -> ExportError:
    """The refusal of what transformers has no place for."""
    return ExportError(
        f"transformers' {target} cannot express {layer}: it has no place for {what}; export with --to open_clip instead"
    )
