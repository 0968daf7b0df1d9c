"""Tiny real models and data: made by the libraries themselves, random weights, a fraction of a second each."""

from __future__ import annotations

import csv
import io
import json
import tempfile
import warnings
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


def tiny_hf_siglip(folder: Path, *, gemma: bool = False, seed: int = 0) -> str:
    """Writes a transformers folder holding a real `SiglipModel`, tokenizer and image processor; returns its spec.

    Args:
        folder: where.
        gemma: SigLIP 2's tokenizer (Gemma's) instead of SigLIP's (SentencePiece, lower-casing, no punctuation).
        seed: of the weights.
    """
    from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel

    tokenizer = _gemma_tokenizer(folder) if gemma else _siglip_tokenizer(folder)
    shared = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    text = {**shared, **ids, "vocab_size": len(tokenizer), "max_position_embeddings": 16}
    config = SiglipConfig(text_config=text, vision_config={**shared, "image_size": 32, "patch_size": 8})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = SiglipModel(config).eval()
        _perturb(module)
        with torch.no_grad():
            module.logit_scale.fill_(np.log(30.0))
            module.logit_bias.fill_(-5.0)
    module.save_pretrained(folder)
    SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return f"hf:{folder}"


def tiny_open_clip_siglip(folder: Path, *, trunk: str = "test_vit3", image_size: int = 160, seed: int = 0) -> str:
    """Writes an open_clip folder holding a SigLIP: timm ViT with attention pooling, unmasked text tower; its spec.

    The settings are those of open_clip's ViT-B-16-SigLIP at another size; `test_vit3` is timm's own test model with
    that pooling (a register token and layer scale besides), `tiny_siglip_trunk` makes one without extras.
    """
    import open_clip
    import timm

    folder.mkdir(parents=True, exist_ok=True)
    width = timm.create_model(trunk, num_classes=0, global_pool="map").num_features
    config: dict[str, Any] = {
        "embed_dim": width,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {
            "image_size": image_size,
            "timm_model_name": trunk,
            "timm_model_pretrained": False,
            "timm_pool": "map",
            "timm_proj": "none",
        },
        "text_cfg": {
            "context_length": 16,
            "vocab_size": _t5_tokenizer(folder),
            "hf_tokenizer_name": ".",
            "tokenizer_kwargs": {"clean": "canonicalize"},
            "width": width,
            "heads": 2,
            "layers": 2,
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
            "norm_kwargs": {"eps": 1e-6},
        },
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        built = {name: value for name, value in config.items() if name != "custom_text"}
        module = open_clip.CustomTextCLIP(**built)
        _perturb(module)
    write_open_clip(folder, module, config)
    content = json.loads((folder / "open_clip_config.json").read_text())
    half = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
    (folder / "open_clip_config.json").write_text(json.dumps(content | {"preprocess_cfg": half}))
    return f"open_clip:local-dir:{folder}"


def tiny_siglip_trunk(act_layer: str = "gelu_tanh") -> str:
    """Registers with timm a ViT like its `vit_*_siglip_*`, 32 px, patch 8, width 64, 2 layers; returns its name."""
    import timm
    from timm.models.vision_transformer import VisionTransformer

    def vit_tiny_patch8_siglip_32(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
        shape = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2, "mlp_ratio": 2}
        for name in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
            kwargs.pop(name, None)
        return VisionTransformer(**{**shape, "class_token": False, "act_layer": act_layer, **kwargs})

    with warnings.catch_warnings():  # that it was registered before
        warnings.simplefilter("ignore")
        timm.models.register_model(vit_tiny_patch8_siglip_32)
    return "vit_tiny_patch8_siglip_32"


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


def tiny_rn50(folder: Path, seed: int = 0) -> str:
    """Writes an open_clip folder holding a `CLIP` with a ModifiedResNet (RN50's kind, QuickGELU text); its spec."""
    import open_clip

    config = open_clip_config(quick_gelu=True)
    config["vision_cfg"] = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}
    return _tiny(folder, open_clip.CLIP, config, seed)


def tiny_coca(folder: Path, seed: int = 0) -> str:
    """Writes an open_clip folder holding a `CoCa`: attentional pooling, a class token after the caption; its spec."""
    import open_clip

    config = open_clip_config()
    config["vision_cfg"] |= {"attentional_pool": True, "attn_pooler_heads": 4, "output_tokens": True}
    config["text_cfg"] |= {"context_length": 15, "embed_cls": True, "output_tokens": True}
    config["multimodal_cfg"] = {"context_length": 15, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1}
    return _tiny(folder, open_clip.CoCa, config | {"custom_text": True}, seed)


def tiny_eva(folder: Path, architecture: str = "tiny_eva02", image_size: int = 32, seed: int = 0) -> str:
    """Writes an open_clip folder holding a `CustomTextCLIP` built as EVA02-B-16 is, around a smaller EVA; its spec.

    `tiny_eva02` is known to this process alone, as is `tiny_eva01`, whose query, key and value are one weight that no
    layer is called with; `eva02_tiny_patch14_224` is timm's own smallest.
    """
    import open_clip

    register_tiny_eva()
    config = open_clip_config()
    config["vision_cfg"] = {"image_size": image_size, "timm_model_name": architecture}
    config["vision_cfg"] |= {"timm_pool": "token", "timm_proj": None}
    return _tiny(folder, open_clip.CustomTextCLIP, config | {"custom_text": True}, seed)


def register_tiny_eva() -> None:
    """Makes `tiny_eva02` an architecture of timm in this process: EVA-02 (rotary positions, SwiGLU) of two blocks."""
    from timm.models import is_model, register_model
    from timm.models.eva import Eva

    if is_model("tiny_eva02"):
        return

    def tiny_eva01(pretrained: bool = False, **settings: Any) -> Eva:
        known = {name: settings[name] for name in ("num_classes", "global_pool") if name in settings}
        return Eva(img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=2, **known)

    def tiny_eva02(pretrained: bool = False, **settings: Any) -> Eva:
        known = {name: settings[name] for name in ("num_classes", "global_pool") if name in settings}
        return Eva(
            img_size=32,
            patch_size=8,
            embed_dim=48,
            depth=2,
            num_heads=2,
            qkv_fused=False,
            mlp_ratio=4 * 2 / 3,
            swiglu_mlp=True,
            scale_mlp=True,
            use_rot_pos_emb=True,
            ref_feat_shape=(4, 4),
            **known,
        )

    for architecture in (tiny_eva01, tiny_eva02):
        architecture.__module__ = "timm.models.eva"
        register_model(architecture)


def tiny_meta_clip(folder: Path, seed: int = 0) -> str:
    """Writes an open_clip folder in the shape of MetaCLIP and DFN: a standard CLIP with QuickGELU; its spec."""
    return tiny_open_clip(folder, quick_gelu=True, seed=seed)


def _tiny(folder: Path, kind: Any, config: dict[str, Any], seed: int) -> str:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = kind(**{key: value for key, value in config.items() if key != "custom_text"})
        if hasattr(module, "text_decoder"):  # open_clip leaves this one as `torch.empty` made it
            torch.nn.init.normal_(module.text_decoder.text_projection, std=0.1)
        _perturb(module)
    return f"open_clip:local-dir:{write_open_clip(folder, module, config)}"


def _siglip_tokenizer(folder: Path) -> Any:
    """SigLIP's tokenizer, as its checkpoints store it: no attention mask, </s> ends and pads."""
    from transformers import SiglipTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        Path(place, "spiece.model").write_bytes(_sentence_pieces())
        made = SiglipTokenizer(f"{place}/spiece.model", model_max_length=16, model_input_names=["input_ids"])
        made.save_pretrained(folder)
    return SiglipTokenizer.from_pretrained(folder)


def _gemma_tokenizer(folder: Path) -> Any:
    """Gemma's tokenizer, as the fixed-resolution SigLIP 2 checkpoints store it: no start token, no attention mask."""
    from transformers import GemmaTokenizerFast

    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    pieces = [*specials, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *map(chr, range(33, 127))]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    made = GemmaTokenizerFast(
        vocab=vocabulary,
        merges=[],
        add_bos_token=False,
        add_eos_token=True,
        padding_side="right",
        do_lower_case=True,
        model_input_names=["input_ids"],
    )
    made.save_pretrained(folder)
    return made


def _t5_tokenizer(folder: Path) -> int:
    """The same pieces in T5's tokenizer, which open_clip's SigLIPs use; returns how many."""
    import sentencepiece
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import T5TokenizerFast

    pieces = sentencepiece.SentencePieceProcessor(model_proto=_sentence_pieces())
    vocabulary = [(pieces.id_to_piece(i), pieces.get_score(i)) for i in range(pieces.get_piece_size())]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    made = T5TokenizerFast(tokenizer_object=tokenizer, extra_ids=0, pad_token="</s>", model_max_length=16)
    made.save_pretrained(folder)
    return len(vocabulary)


def _sentence_pieces() -> bytes:
    """A SentencePiece model of the words above, its first ids laid out as in SigLIP's: <pad>, </s>, <unk>."""
    import sentencepiece

    words = [*WORDS, "a", "photo", "of", "the", "and", "with", *map(str, range(20))]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([f"{one} {other}" for one in words for other in words]),
        model_writer=model,
        vocab_size=90,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
    )
    return model.getvalue()


def tiny_llava(folder: Path, *, seed: int = 0, layer: int = -2, hidden_act: str = "quick_gelu", width: int = 64) -> str:
    """Writes a transformers LLaVA whose tower has the shape of `tiny_hf_clip`'s, with its processor; its folder.

    The language model is a Llama of two layers over bytes. Its weights are drawn wide, so that what it says depends on
    the picture, and its tower is another draw than `tiny_hf_clip`'s of the same seed.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    specials = ["<s>", "</s>", "<pad>", "<image>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: index for index, piece in enumerate([*specials, *letters])}
    inner = Tokenizer(models.BPE(vocabulary, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    tokenizer: Any = PreTrainedTokenizerFast(
        tokenizer_object=inner, model_max_length=512, additional_special_tokens=["<image>"], **names
    )
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    vision = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        hidden_act=hidden_act,
        projection_dim=32,
    )
    text = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        initializer_range=0.3,
    )
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=3, vision_feature_layer=layer, image_seq_length=16
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed + 1)
        module = LlavaForConditionalGeneration(config).eval()
        _perturb(module)
        with torch.no_grad():
            for name, weight in module.named_parameters():
                if "multi_modal_projector" in name and weight.ndim == 2:
                    weight.normal_(std=0.3)
    module.save_pretrained(folder)
    LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    ).save_pretrained(folder)
    return str(folder)
