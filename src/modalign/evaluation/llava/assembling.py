"""A LLaVA put together: the base, another image tower, a second encoder mixed in, LoRA adapters."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from modalign.errors import ModelError
from modalign.evaluation.llava.prompting import Prompting
from modalign.models.dual_encoder import DualEncoder

PROJECTOR = "projector.safetensors"
"""Beside an adapter's own files: the projector, where it was trained along."""


@dataclass(frozen=True)
class Parts:
    """What a LLaVA is made of.

    Attributes:
        llava: the base's folder.
        adapter: a folder with LoRA adapters of the language model (and a projector), as `tuning` writes it; "" = none.
        mix: the spec of a second encoder; "" = none.
        share: of the second encoder in the mixture.
    """

    llava: str
    adapter: str = ""
    mix: str = ""
    share: float = 0.5


@dataclass(frozen=True)
class Assembled:
    """A LLaVA that answers.

    Attributes:
        module: `LlavaForConditionalGeneration`, in `eval()`.
        prompting: its tokenizer and image processor.
        identity: a hash of everything that decides its answers but the prompts.
    """

    module: Any
    prompting: Prompting
    identity: str


def assemble(
    parts: Parts, model: DualEncoder, device: torch.device | str = "cpu", *, dtype: torch.dtype | None = None
) -> Assembled:
    """Puts a LLaVA together.

    Args:
        parts: the base and what is added.
        model: whose image tower is put in.
        device: where it runs.
        dtype: None = as stored.

    Raises:
        ModelError: a part that is missing or damaged.
        ExportError: the tower does not fit; the message names the layer.
    """
    from modalign.exporting.llava import load_llava, load_processor, swap_tower

    module = load_llava(parts.llava, dtype=dtype)
    digest = hashlib.sha256(json.dumps([files_of(parts.llava), str(module.dtype), parts.share]).encode())
    swap_tower(module, model)
    digest.update(model.fingerprint.encode())
    processor = load_processor(parts.llava)
    if parts.adapter:
        module = _adapted(module, parts.adapter)
        digest.update(json.dumps(files_of(parts.adapter)).encode())
    if parts.mix:
        from modalign.evaluation.llava.mixing import MixedTower
        from modalign.models.vision import load_vision

        second = load_vision(parts.mix)
        images, layers = processor.image_processor, module.config.vision_feature_layer
        read = [layers] if isinstance(layers, int) else list(layers)
        tower = module.model if hasattr(module.model, "vision_tower") else module
        tower.vision_tower = MixedTower(
            tower.vision_tower, second, parts.share, read, list(images.image_mean), list(images.image_std)
        )
        digest.update(second.fingerprint.encode())
    module.generation_config.pad_token_id = None  # said by the tokenizer, at each call
    return Assembled(module.eval().to(device), Prompting.of(processor, module.config), digest.hexdigest()[:16])


def _adapted(module: Any, adapter: str) -> Any:
    """LoRA adapters merged into the language model, and the projector beside them."""
    from peft import PeftModel
    from safetensors.torch import load_file

    folder = Path(adapter).expanduser()
    if not (folder / "adapter_config.json").is_file():
        raise ModelError(f"{adapter} holds no adapter_config.json: name a folder that LoRA tuning wrote")
    try:
        module = PeftModel.from_pretrained(module, str(folder)).merge_and_unload()
    except (RuntimeError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0][:200]
        raise ModelError(
            f"the adapter {adapter} does not fit the LLaVA ({reason}): use the one it was made on"
        ) from error
    if (folder / PROJECTOR).is_file():
        projector_of(module).load_state_dict(load_file(folder / PROJECTOR))
    return module


def projector_of(llava: Any) -> Any:
    """What stands between tower and language model, where this version of transformers has it."""
    inner = llava.model
    return inner.multi_modal_projector if hasattr(inner, "multi_modal_projector") else llava.multi_modal_projector


def language_model_of(llava: Any) -> Any:
    """The decoder, likewise."""
    return llava.model.language_model if hasattr(llava.model, "language_model") else llava.language_model


def files_of(folder: str) -> Sequence[tuple[str, int, int]]:
    """Name, size and time of each file: what changes when the folder does, without reading gigabytes."""
    stats = [(path.name, path.stat()) for path in sorted(Path(folder).expanduser().glob("*")) if path.is_file()]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
