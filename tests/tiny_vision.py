"""Tiny vision-only models of every family, saved by their own libraries with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.tiny import _perturb

IMAGENET_MEAN = [0.485, 0.456, 0.406]
IMAGENET_STD = [0.229, 0.224, 0.225]
TINY_VIT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def save_vision(folder: Path, network: Any, processor: Any, seed: int = 0) -> str:
    """Writes a transformers folder of one vision model and its image processor; returns its spec.

    Args:
        folder: where.
        network: called without arguments under the seed, as the library initialises it.
        processor: the image processor to save beside it.
        seed: of the weights.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = network().eval()
        _perturb(module)
    module.save_pretrained(folder)
    processor.save_pretrained(folder)
    return f"hf:{folder}"


def tiny_dinov2(folder: Path, *, registers: bool = False, seed: int = 0) -> str:
    """A `Dinov2Model`, or `Dinov2WithRegistersModel` with 4 registers: made for 56 pixels, its processor crops 28."""
    import transformers as hf

    settings = {k: v for k, v in TINY_VIT.items() if k != "intermediate_size"} | {"image_size": 56, "patch_size": 14}
    processor = hf.BitImageProcessor(
        size={"shortest_edge": 32},
        crop_size={"height": 28, "width": 28},
        image_mean=IMAGENET_MEAN,
        image_std=IMAGENET_STD,
    )
    if registers:
        config = hf.Dinov2WithRegistersConfig(**settings, num_register_tokens=4)
        return save_vision(folder, lambda: hf.Dinov2WithRegistersModel(config), processor, seed)
    return save_vision(folder, lambda: hf.Dinov2Model(hf.Dinov2Config(**settings)), processor, seed)


def tiny_dinov3(folder: Path, *, convnext: bool = False, seed: int = 0) -> str:
    """A `DINOv3ViTModel` with 4 registers, or a `DINOv3ConvNextModel`."""
    import transformers as hf

    processor = hf.DINOv3ViTImageProcessor(size={"height": 32, "width": 32})
    if convnext:
        wide = hf.DINOv3ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], image_size=32)
        return save_vision(folder, lambda: hf.DINOv3ConvNextModel(wide), processor, seed)
    config = hf.DINOv3ViTConfig(**TINY_VIT, image_size=32, patch_size=8, num_register_tokens=4)
    return save_vision(folder, lambda: hf.DINOv3ViTModel(config), processor, seed)


def tiny_mlcd(folder: Path, seed: int = 0) -> str:
    """An `MLCDVisionModel` (rotary positions), with CLIP's image processor."""
    import transformers as hf

    config = hf.MLCDVisionConfig(**TINY_VIT, image_size=32, patch_size=8)
    return save_vision(folder, lambda: hf.MLCDVisionModel(config), _clip_processor(), seed)


def tiny_siglip_vision(folder: Path, *, whole: bool = False, seed: int = 0) -> str:
    """A `SiglipVisionModel`, or a whole `SiglipModel` without its tokenizer."""
    import transformers as hf

    vision = {**TINY_VIT, "image_size": 32, "patch_size": 8}
    processor = hf.SiglipImageProcessor(size={"height": 32, "width": 32})
    if whole:
        text = {**TINY_VIT, "vocab_size": 64, "max_position_embeddings": 16}
        config = hf.SiglipConfig(text_config=text, vision_config=vision)
        return save_vision(folder, lambda: hf.SiglipModel(config), processor, seed)
    return save_vision(folder, lambda: hf.SiglipVisionModel(hf.SiglipVisionConfig(**vision)), processor, seed)


def tiny_clip_vision(folder: Path, *, projected: bool = False, seed: int = 0) -> str:
    """A `CLIPVisionModel`, or a `CLIPVisionModelWithProjection` to 24 dimensions."""
    import transformers as hf

    config = hf.CLIPVisionConfig(**TINY_VIT, image_size=32, patch_size=8, projection_dim=24)
    network = hf.CLIPVisionModelWithProjection if projected else hf.CLIPVisionModel
    return save_vision(folder, lambda: network(config), _clip_processor(), seed)


def tiny_vit(folder: Path, *, kind: str = "vit", seed: int = 0) -> str:
    """A "vit" (with its tanh pooler), "deit", "ijepa" or "beit" (mean pooling) of transformers."""
    import transformers as hf

    config, network = {
        "vit": (hf.ViTConfig, hf.ViTModel),
        "deit": (hf.DeiTConfig, hf.DeiTModel),
        "ijepa": (hf.IJepaConfig, hf.IJepaModel),
        "beit": (hf.BeitConfig, hf.BeitModel),
    }[kind]
    settings = config(**TINY_VIT, image_size=32, patch_size=8)
    return save_vision(folder, lambda: network(settings), hf.ViTImageProcessor(size={"height": 32, "width": 32}), seed)


def tiny_convnext(folder: Path, seed: int = 0) -> str:
    """A `ConvNextModel` of transformers."""
    import transformers as hf

    config = hf.ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], image_size=32)
    processor = hf.ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=0.875)
    return save_vision(folder, lambda: hf.ConvNextModel(config), processor, seed)


def tiny_timm(folder: Path, architecture: str = "test_vit", *, classes: int = 10, seed: int = 0) -> str:
    """Writes a timm folder (config.json + safetensors) of a model with a classifier; returns its spec."""
    import timm
    from timm.models import save_for_hf

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = timm.create_model(architecture, pretrained=False, num_classes=classes).eval()
        _perturb(module)
    save_for_hf(module, folder, safe_serialization=True)
    return f"timm:local-dir:{folder}"


def _clip_processor() -> Any:
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
