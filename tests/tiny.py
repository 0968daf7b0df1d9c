"""Tiny real models and data: made by the libraries themselves, random weights, a fraction of a second each."""

from __future__ import annotations

import csv
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

WORDS = ["red", "green", "blue", "grey", "small", "large", "round", "square", "cat", "dog", "boat", "tree"]
OPENAI_MEAN = [0.48145466, 0.4578275, 0.40821073]
OPENAI_STD = [0.26862954, 0.26130258, 0.27577711]


def open_clip_config(*, quick_gelu: bool = False, embed_dim: int = 32) -> dict[str, Any]:
    """The `model_cfg` of a standard CLIP: ViT (32 px, patch 8, width 64, 2 layers) and a causal text tower."""
    config: dict[str, Any] = {
        "embed_dim": embed_dim,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
    }
    if quick_gelu:
        config["quick_gelu"] = True
    return config


def tiny_open_clip(folder: Path, *, quick_gelu: bool = False, seed: int = 0, embed_dim: int = 32) -> str:
    """Writes an open_clip folder holding a real `CLIP`; returns its spec."""
    import open_clip

    config = open_clip_config(quick_gelu=quick_gelu, embed_dim=embed_dim)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = open_clip.CLIP(**config)
        _perturb(module)
    return f"open_clip:local-dir:{write_open_clip(folder, module, config)}"


def tiny_custom_text(folder: Path, seed: int = 0) -> str:
    """Writes an open_clip folder holding a `CustomTextCLIP`: timm CNN (BatchNorm) + BERT, MLP projections; its spec."""
    import open_clip
    from transformers import BertConfig

    folder.mkdir(parents=True, exist_ok=True)
    vocab = _word_piece_tokenizer(folder)
    BertConfig(
        vocab_size=vocab,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
    ).save_pretrained(folder)
    config: dict[str, Any] = {
        "embed_dim": 32,
        "vision_cfg": {
            "image_size": 32,
            "timm_model_name": "test_efficientnet",
            "timm_model_pretrained": False,
            "timm_pool": "avg",
            "timm_proj": "mlp",
        },
        "text_cfg": {
            "context_length": 16,
            "hf_model_name": ".",
            "hf_model_pretrained": False,
            "hf_tokenizer_name": ".",
            "hf_proj_type": "mlp",
            "hf_pooler_type": "mean_pooler",
        },
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = open_clip.CustomTextCLIP(
            **{**config, "text_cfg": {**config["text_cfg"], "hf_model_name": str(folder)}}
        )
        _perturb(module)
    return f"open_clip:local-dir:{write_open_clip(folder, module, config)}"


def tiny_hf_clip(folder: Path, *, hidden_act: str = "quick_gelu", seed: int = 0) -> str:
    """Writes a transformers folder holding a real `CLIPModel`, its tokenizer and image processor; returns its spec."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    shared = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    shared |= {"hidden_act": hidden_act, "projection_dim": 32}
    tokenizer = clip_tokenizer(16, merges=1500)
    ids = {"vocab_size": len(tokenizer), "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = CLIPConfig(
        text_config={**shared, **ids, "max_position_embeddings": 16},
        vision_config={**shared, "image_size": 32, "patch_size": 8},
        projection_dim=32,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = CLIPModel(config).eval()
        _perturb(module)
    module.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return f"hf:{folder}"


def write_pairs(folder: Path, n: int = 24, seed: int = 0, captions_per_image: int = 1, size: int = 32) -> str:
    """Writes n distinct PNGs and a metadata.csv (`file_name`, `text`; a line per caption); returns the folder."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "text"])
        for i in range(n):
            pixels = (
                random.integers(0, 256, (4, 4, 3), dtype=np.uint8).repeat(-(-size // 4), 0).repeat(-(-size // 4), 1)
            )
            Image.fromarray(pixels[:size, :size]).save(folder / f"{i:04d}.png")
            for j in range(captions_per_image):
                words = random.choice(WORDS, size=int(random.integers(1, 5)), replace=False)
                writer.writerow([f"{i:04d}.png", f"{' '.join(words)} {i} {j}"])
    return str(folder)


def write_open_clip(folder: Path, module: torch.nn.Module, config: dict[str, Any]) -> Path:
    """Writes an open_clip folder: weights as safetensors and open_clip_config.json."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {k: v.clone().contiguous() for k, v in module.state_dict().items()}, folder / "open_clip_model.safetensors"
    )
    preprocess = {"mean": OPENAI_MEAN, "std": OPENAI_STD, "interpolation": "bicubic", "resize_mode": "shortest"}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    return folder


def clip_tokenizer(context_length: int, merges: int | None = None) -> Any:
    """transformers' CLIPTokenizer from open_clip's own byte-pair vocabulary, or from its first merges alone."""
    import open_clip
    from transformers import CLIPTokenizerFast

    bpe = open_clip.SimpleTokenizer()
    pairs = [pair for pair in bpe.bpe_ranks if len(pair) == 2][:merges]
    words = [*list(bpe.encoder)[: 512 + len(pairs)], "<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
        Path(folder, "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, pairs), ""]))
        return CLIPTokenizerFast.from_pretrained(folder, model_max_length=context_length)


def _perturb(module: torch.nn.Module) -> None:
    """Moves biases, norms and BatchNorm statistics off their constants, so that a lost one shows."""
    for name, tensor in module.state_dict().items():
        if not tensor.is_floating_point() or tensor.ndim != 1:
            continue
        tensor.add_(torch.rand_like(tensor) * 0.1 if "running_var" in name else torch.randn_like(tensor) * 0.1)


def _word_piece_tokenizer(folder: Path) -> int:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertTokenizerFast

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "a", "photo", "of", "the", "and", "with", "."]
    pieces += [str(digit) for digit in range(10)] + [f"##{digit}" for digit in range(10)]
    pieces += [chr(c) for c in range(ord("a"), ord("z") + 1) if chr(c) not in pieces]
    pieces += [f"##{chr(c)}" for c in range(ord("a"), ord("z") + 1)]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", vocab["[SEP]"]), ("[CLS]", vocab["[CLS]"]))
    BertTokenizerFast(tokenizer_object=tokenizer, model_max_length=32).save_pretrained(folder)
    return len(vocab)
