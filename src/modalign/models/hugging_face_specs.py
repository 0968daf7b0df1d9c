"""What may stand behind `hf:` — a folder or a hub name — and what is refused before a tower ever runs."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError, safe_open
from transformers import CLIPModel, CLIPProcessor, SiglipModel, SiglipProcessor

from modalign.errors import ModelError
from modalign.models.folder import read_json, read_record
from modalign.models.hub import asking_hub, commit_of, refuse_code
from modalign.models.hugging_face import WEIGHTS, HuggingFace, HuggingFaceClip, quiet
from modalign.models.siglip import HuggingFaceSiglip
from modalign.models.tokenization import need_vocabulary

IMAGES = ("preprocessor_config.json", "processor_config.json")

logger = logging.getLogger("modalign")


@dataclass(frozen=True)
class Kind:
    """The library's two classes for one `model_type`, and ours."""

    model: Any
    processor: Any
    adapter: type[HuggingFace]


KINDS: dict[str, Kind] = {
    "clip": Kind(CLIPModel, CLIPProcessor, HuggingFaceClip),
    "siglip": Kind(SiglipModel, SiglipProcessor, HuggingFaceSiglip),
}


def load_hugging_face(rest: str, spec: str) -> HuggingFace:
    """Loads what follows `hf:`; see `modalign.load`."""
    name, _, revision = rest.partition("@")
    if not name:
        raise ModelError("hf: names no model: write hf:<owner>/<name>[@revision] or hf:<folder>")
    folder = Path(rest).expanduser()
    if folder.is_dir():
        return from_folder(folder, spec)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"there is no folder {rest}: check the path after hf:")
    with asking_hub(f"{rest} from the hub", "use a local copy: hf:<folder>"):
        config = Path(hf_hub_download(name, "config.json", revision=revision or None))
        kind = _kind_of(config)
        model = _load(kind, name, spec, revision=commit_of(config))  # all files from one commit
    model.revision = commit_of(config)
    return model


def from_folder(folder: Path, spec: str) -> HuggingFace:
    """Loads a transformers folder: config.json of a known type, weights, tokenizer and image processor.

    Raises:
        ModelError: something is missing, damaged, of another type, or does not fit.
    """
    kind = _kind_of(folder / "config.json")
    if not any((folder / name).is_file() for name in WEIGHTS):
        raise ModelError(f"{folder} has a configuration but no weights: copy {WEIGHTS[0]} into it")
    if not any((folder / name).is_file() for name in IMAGES):
        raise ModelError(f"{folder} does not say how pictures are prepared: copy {' or '.join(IMAGES)} into it")
    need_vocabulary(folder)
    refuse_code(folder)
    _need_whole_weights(folder)
    try:
        model = _load(kind, str(folder), spec, local_files_only=True)
    except ModelError:
        raise
    except Exception as error:  # the library raises what it likes on damaged or missing files
        reason = " ".join(str(error).split())[:200].rstrip(".:") or type(error).__name__
        raise ModelError(f"{folder} cannot be loaded by transformers ({reason}): copy it again") from error
    record = read_record(folder)
    model.revision = record.get("revision")
    return model.to(model.device, getattr(torch, record["dtype"])) if "dtype" in record else model


def _need_whole_weights(folder: Path) -> None:
    """Names the file where one is cut short or missing; the library tells neither."""
    index = folder / f"{WEIGHTS[0]}.index.json"
    shards = read_json(index).get("weight_map", {}).values() if index.is_file() else ()
    for path in sorted({folder / str(shard) for shard in shards} | set(folder.glob("*.safetensors"))):
        if not path.is_file():
            raise ModelError(f"{path} is missing, and {index.name} names it: copy it into the folder")
        try:
            with safe_open(path, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path} is damaged or cut short ({error}): copy it again") from error


def _load(kind: Kind, name: str, spec: str, **where: Any) -> HuggingFace:
    with quiet():
        processor: Any = _processor(kind, name, **where)
        loaded: Any = kind.model.from_pretrained(
            name, torch_dtype="auto", output_loading_info=True, ignore_mismatched_sizes=True, **where
        )
    module, told = loaded
    if module.dtype in (torch.float16, torch.bfloat16):
        module.float()
    wrong = {
        "missing": sorted(told["missing_keys"]),
        "unexpected": sorted(key for key in told["unexpected_keys"] if not key.endswith("position_ids")),
        "of another shape": sorted(key if isinstance(key, str) else str(key[0]) for key in told["mismatched_keys"]),
    }
    parts = [f"{len(keys)} {what} ({', '.join(keys[:3])})" for what, keys in wrong.items() if keys]
    if parts:
        raise ModelError(f"the weights of {name} do not fit its config.json: {'; '.join(parts)}. Copy the model again")
    _check_tokenizer(processor.tokenizer, module.config.text_config, name)
    if kind.adapter is HuggingFaceSiglip:
        _check_siglip(processor.tokenizer, module.config, name)
    else:
        _check_end_token(processor.tokenizer, module.config.text_config, name)
    return kind.adapter(module, processor, spec)


def _processor(kind: Kind, name: str, **where: Any) -> Any:
    try:
        return kind.processor.from_pretrained(name, trust_remote_code=False, **where)
    except ImportError as error:
        raise ModelError(
            f"the tokenizer of {name} needs a package that is not installed: pip install sentencepiece protobuf"
        ) from error


def _check_tokenizer(tokenizer: Any, text: Any, name: str) -> None:
    """A tokenizer of another model would fail, or worse not fail, at the first caption."""
    if tokenizer.pad_token_id is None:
        raise ModelError(f"the tokenizer of {name} has no padding token: copy the model's own tokenizer into it")
    ends = max(int(index) for index in (tokenizer.pad_token_id, tokenizer.eos_token_id) if index is not None)
    if ends >= text.vocab_size:
        raise ModelError(
            f"the tokenizer of {name} ends or pads captions with id {ends}, and its text_config.vocab_size is "
            f"{text.vocab_size}: copy the model's own tokenizer into it"
        )


def _check_end_token(tokenizer: Any, text: Any, name: str) -> None:
    ends, read = tokenizer.eos_token_id, text.eos_token_id
    if read not in (2, ends):
        logger.warning("%s: captions end with id %s but are read at id %s (text_config.eos_token_id)", name, ends, read)


def _check_siglip(tokenizer: Any, config: Any, name: str) -> None:
    if not getattr(config.vision_config, "vision_use_head", True):  # a key of transformers 5
        raise ModelError(
            f"{name}: vision_config.vision_use_head is false, so there is no image feature: use a SigLIP with its head"
        )
    image, text = config.vision_config.hidden_size, config.text_config.projection_size
    if image != text:
        raise ModelError(
            f"{name}: image features have width {image} (vision_config.hidden_size) and text features {text} "
            "(text_config.projection_size): correct config.json, or use another model"
        )
    if "attention_mask" in tokenizer.model_input_names:
        raise ModelError(
            f"the tokenizer of {name} returns an attention mask, with which transformers computes other text features "
            'than SigLIP was trained for: set "model_input_names": ["input_ids"] in its tokenizer_config.json, as the '
            "released checkpoints have it"
        )
    if tokenizer("A")["input_ids"] != tokenizer("a")["input_ids"]:
        logger.warning(
            "%s: its tokenizer keeps capitals, and SigLIP was trained on lower-case captions: lower-case yours, or set "
            '"tokenizer_class": "Siglip2Tokenizer" in its tokenizer_config.json where it is a SigLIP 2',
            name,
        )


def _kind_of(config: Path) -> Kind:
    kind = read_json(config).get("model_type")
    if kind == "siglip2":
        raise ModelError(
            f"{config} has model_type 'siglip2' (NaFlex), which reads patches of pictures of any shape, not pixels: "
            "use a SigLIP 2 of fixed resolution (model_type 'siglip'), such as hf:google/siglip2-base-patch16-256"
        )
    if kind not in KINDS:
        raise ModelError(
            f"{config} has model_type {kind!r}, and only 'clip' (CLIPModel) and 'siglip' (SiglipModel) are read: "
            "use one of those, or open_clip:<…> for a model of open_clip"
        )
    return KINDS[kind]
