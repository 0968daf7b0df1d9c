"""transformers' `CLIPModel` as open_clip's `CLIP`; what that cannot express is refused, naming the key."""

from __future__ import annotations

import tempfile
from typing import Any

import open_clip
import torch
from open_clip.tokenizer import HFTokenizer

from modalign.errors import ExportError
from modalign.models.clip_names import open_clip_state
from modalign.models.hugging_face import HuggingFaceClip
from modalign.models.open_clip import OpenClip

ACTIVATIONS: dict[str, tuple[bool, dict[str, str] | None]] = {
    "quick_gelu": (True, None),
    "gelu": (False, None),
    "gelu_pytorch_tanh": (False, {"approximate": "tanh"}),
    "gelu_new": (False, {"approximate": "tanh"}),
}
"""transformers' `hidden_act` → open_clip's `quick_gelu` and `act_kwargs`."""

INTERPOLATION = {2: "bilinear", 3: "bicubic"}


def to_open_clip(model: HuggingFaceClip) -> OpenClip:
    """The same network as an `open_clip.CLIP` with tokenizer and preprocessing configuration.

    Raises:
        ExportError: names the configuration key that open_clip cannot express.
    """
    text, vision = model.config.text_config, model.config.vision_config
    if ACTIVATIONS.get(text.hidden_act, (None,))[0] != ACTIVATIONS.get(vision.hidden_act, (None,))[0]:
        raise _cannot(
            f"text_config.hidden_act={text.hidden_act!r} beside {vision.hidden_act!r}", "one activation for both"
        )
    if vision.num_channels != 3:
        raise _cannot(f"vision_config.num_channels={vision.num_channels}", "pictures of three channels")
    tokenizer, tokenizer_name = _tokenizer(model)
    highest = int(text.vocab_size) - 1
    config: dict[str, Any] = {
        "embed_dim": model.embed_dim,
        "quick_gelu": _activation(vision, "vision_config")[0],
        "vision_cfg": _tower(vision, "vision_config")
        | {
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "head_width": vision.hidden_size // vision.num_attention_heads,
        },
        "text_cfg": _tower(text, "text_config")
        | {
            "context_length": text.max_position_embeddings,
            "vocab_size": text.vocab_size,
            "heads": text.num_attention_heads,
        }
        | ({} if text.eos_token_id in (2, highest) else {"pool_type": "eos", "eos_id": text.eos_token_id})
        | tokenizer_name,
    }
    with torch.random.fork_rng(devices=[]):
        module = open_clip.CLIP(**config)
    module.to(model.module.dtype).load_state_dict(open_clip_state(model.module.state_dict()), strict=True)
    settings = _preprocess(model.processor.image_processor)
    return OpenClip(module, config, tokenizer, model.spec, preprocess_config=settings, revision=model.revision)


def _tower(config: Any, name: str) -> dict[str, Any]:
    ratio = config.intermediate_size / config.hidden_size
    _, act_kwargs = _activation(config, name)
    tower = {"width": config.hidden_size, "layers": config.num_hidden_layers, "mlp_ratio": ratio}
    if int(config.hidden_size * ratio) != config.intermediate_size:
        raise _cannot(f"{name}.intermediate_size={config.intermediate_size}", "a multiple of hidden_size")
    if config.layer_norm_eps != 1e-5:
        tower["norm_kwargs"] = {"eps": config.layer_norm_eps}
    if act_kwargs:
        tower["act_kwargs"] = act_kwargs
    return tower


def _activation(config: Any, name: str) -> tuple[bool, dict[str, str] | None]:
    if config.hidden_act not in ACTIVATIONS:
        raise _cannot(f"{name}.hidden_act={config.hidden_act!r}", f"one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[config.hidden_act]


def _tokenizer(model: HuggingFaceClip) -> tuple[Any, dict[str, Any]]:
    """open_clip's own tokenizer where the vocabulary is its own, else transformers' under open_clip's wrapper."""
    theirs = model.processor.tokenizer
    own = open_clip.SimpleTokenizer(context_length=model.context_length)
    renamed = {"<|startoftext|>": "<start_of_text>", "<|endoftext|>": "<end_of_text>"}
    if {renamed.get(word, word): index for word, index in theirs.get_vocab().items()} == own.encoder:
        return own, {}
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        return HFTokenizer(folder, context_length=model.context_length), {"hf_tokenizer_name": "."}


def _preprocess(processor: Any) -> dict[str, Any]:
    """The nearest settings open_clip has; what stays different is measured when the export is verified."""
    size = dict(processor.size)
    squash = "shortest_edge" not in size and not processor.do_center_crop
    return {
        "mean": list(processor.image_mean) if processor.do_normalize else [0.0, 0.0, 0.0],
        "std": list(processor.image_std) if processor.do_normalize else [1.0, 1.0, 1.0],
        "interpolation": INTERPOLATION.get(int(processor.resample), "bicubic"),
        "resize_mode": "squash" if squash else "shortest",
    }


def _cannot(key: str, only: str) -> ExportError:
    return ExportError(f"open_clip's CLIP cannot express {key}: it takes {only}; export with --to transformers instead")
