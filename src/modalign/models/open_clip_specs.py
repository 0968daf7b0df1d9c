"""What may stand behind `open_clip:` — a built-in name with a tag or a file, a local folder, a hub name."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.convert import convert_state_dict
from open_clip.model import convert_to_custom_text_state_dict
from open_clip.pretrained import (
    download_pretrained,
    download_pretrained_from_hf,
    get_pretrained_cfg,
    list_pretrained_tags_by_model,
)
from open_clip.tokenizer import HFTokenizer
from torch import Tensor, nn

from modalign.errors import ModelError
from modalign.models.folder import read_json, read_record
from modalign.models.hub import asking_hub, commit_of, refuse_code
from modalign.models.open_clip import CONFIG, WEIGHTS, OpenClip
from modalign.models.tokenization import need_vocabulary
from modalign.models.weights import fill, read_weights

OPENAI_KEYS = ("input_resolution", "context_length", "vocab_size")
"""What only the state_dict of OpenAI's own TorchScript files holds beside the weights."""

CHECKPOINTS = (
    WEIGHTS,
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
)
"""The order in which open_clip looks for weights in a folder."""


def load_open_clip(rest: str, spec: str) -> OpenClip:
    """Loads what follows `open_clip:`; see `modalign.load`."""
    if rest.startswith("local-dir:"):
        return from_folder(Path(rest.removeprefix("local-dir:")).expanduser(), spec)
    if rest.startswith("hf-hub:"):
        return _from_hub(rest, spec)
    if "@" in rest:
        architecture, file = rest.split("@", 1)
        return _from_file(architecture, Path(file).expanduser(), spec)
    architecture, _, tag = rest.rpartition("/") if "/" in rest else (rest, "", "")
    config = _built_in(architecture)
    if not tag:
        tags = ", ".join(list_pretrained_tags_by_model(architecture))
        choice = f"pretrained weights, open_clip:{architecture}/<tag> ({tags}), or " if tags else ""
        raise ModelError(
            f"open_clip:{architecture} alone has random weights: name {choice}a file, open_clip:{architecture}@<file>"
        )
    return _from_tag(architecture, tag, config, spec)


def from_folder(folder: Path, spec: str) -> OpenClip:
    """Loads an open_clip folder: open_clip_config.json, the weights, and a transformers text tower's files beside them.

    Raises:
        ModelError: something is missing, damaged, or does not fit.
    """
    if not folder.is_dir() or folder == Path():
        raise ModelError(f"there is no folder {folder}: check the path after local-dir:")
    content = read_json(folder / CONFIG)
    config = _model_config(content, folder / CONFIG)
    checkpoint = _checkpoint(folder)
    refuse_code(folder)
    record = read_record(folder)
    module = _build(config, str(folder / CONFIG), folder)
    module.to(getattr(torch, record.get("dtype", "float32")))
    _fill(module, read_weights(checkpoint), checkpoint, config, str(folder / CONFIG))
    if config["text_cfg"].get("hf_tokenizer_name"):
        need_vocabulary(folder)
    try:
        tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    except Exception as error:  # the libraries raise what they like on a missing or odd tokenizer file
        raise ModelError(
            f"{folder} has no tokenizer that can be read ({_line(error)}): copy it beside the weights"
        ) from error
    return OpenClip(
        module,
        config,
        tokenizer,
        spec,
        preprocess_config=content.get("preprocess_cfg"),
        revision=record.get("revision"),
    )


def _from_tag(architecture: str, tag: str, config: dict[str, Any], spec: str) -> OpenClip:
    tags = list_pretrained_tags_by_model(architecture)
    settings = get_pretrained_cfg(architecture, tag)
    sibling = _other_activation(architecture)
    if not settings:
        if sibling and get_pretrained_cfg(sibling, tag):
            raise _wrong_activation(f"the tag {tag}", architecture, config, f"open_clip:{sibling}/{tag}")
        told = f"its tags are {', '.join(tags)}" if tags else "it has none"
        raise ModelError(
            f"{architecture} has no pretrained tag {tag!r}: {told}; a file goes as open_clip:{architecture}@<file>"
        )
    if sibling and bool(settings.get("quick_gelu")) != bool(config.get("quick_gelu")):
        raise _wrong_activation(f"the tag {tag}", architecture, config, f"open_clip:{sibling}/{tag}")
    with asking_hub(f"the weights of {architecture}/{tag}", f"use a local file: open_clip:{architecture}@<file>"):
        path = download_pretrained(settings)
        module = open_clip.create_model(architecture, pretrained=tag, pretrained_text=False, require_pretrained=True)
        tokenizer = open_clip.get_tokenizer(architecture)
    return OpenClip(module, config, tokenizer, spec, revision=commit_of(path))


def _from_hub(name: str, spec: str) -> OpenClip:
    """Configuration, weights and tokenizer of one commit: the one that the first file asked for comes from."""
    name = name.removeprefix("hf-hub:")
    repository, _, revision = name.partition("@")
    if not repository:
        raise ModelError("open_clip:hf-hub: names no repository: write open_clip:hf-hub:<owner>/<name>[@revision]")
    with asking_hub(f"{name} from the hub", "use a local copy: open_clip:local-dir:<folder>"):
        file = Path(download_pretrained_from_hf(repository, filename=CONFIG, revision=revision or None))
        commit = commit_of(file) or revision or None
        content = read_json(file)
        config = _model_config(content, file)
        weights = Path(download_pretrained_from_hf(repository, revision=commit))
        module = _build(config, f"{repository}/{CONFIG}")
        _fill(module, read_weights(weights), weights, config, f"{repository}/{CONFIG}")
        tokenizer = _hub_tokenizer(config["text_cfg"], repository, commit)
    return OpenClip(module, config, tokenizer, spec, preprocess_config=content.get("preprocess_cfg"), revision=commit)


def _hub_tokenizer(text: dict[str, Any], repository: str, commit: str | None) -> Any:
    """As `open_clip.get_tokenizer` makes it from `text_cfg`, which reads the newest commit only."""
    settings = {"context_length": text.get("context_length", 77), **text.get("tokenizer_kwargs", {})}
    name = text.get("hf_tokenizer_name")
    if not name:
        return open_clip.SimpleTokenizer(**settings)
    pinned = {"revision": commit} if name == repository else {}
    return HFTokenizer(name, tokenizer_mode=text.get("tokenizer_mode"), **settings, **pinned)


def _model_config(content: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """The `model_cfg` of an open_clip_config.json, its outline checked."""
    config = content.get("model_cfg")
    if not isinstance(config, dict):
        raise ModelError(f"{file} has no model_cfg: it is no open_clip configuration")
    missing = [key for key in ("vision_cfg", "text_cfg") if not isinstance(config.get(key), dict)]
    if missing or not isinstance(config.get("embed_dim"), int):
        key = missing[0] if missing else "embed_dim"
        raise ModelError(f"{file} has no model_cfg.{key}: copy the whole configuration of the model")
    if "trust_remote_code" in config["text_cfg"].get("tokenizer_kwargs", {}):
        raise ModelError(f"{file} asks for remote code (text_cfg.tokenizer_kwargs), which is never run: remove the key")
    return config


def _from_file(architecture: str, file: Path, spec: str) -> OpenClip:
    config = _built_in(architecture)
    weights = read_weights(file)
    instead = f"use a local folder that holds {architecture}'s text tower and tokenizer: open_clip:local-dir:<folder>"
    if config["text_cfg"].get("hf_model_name") or config["text_cfg"].get("hf_tokenizer_name"):
        with asking_hub(f"the text tower or tokenizer of {architecture}", instead):
            module, tokenizer = _build(config, architecture), open_clip.get_tokenizer(architecture)
    else:
        module, tokenizer = _build(config, architecture), open_clip.get_tokenizer(architecture)
    _fill(module, weights, file, config, architecture)
    return OpenClip(module, config, tokenizer, spec)


def _built_in(architecture: str) -> dict[str, Any]:
    config: dict[str, Any] | None = open_clip.get_model_config(architecture) if architecture else None
    if config is None:
        by_lower = {name.lower(): name for name in open_clip.list_models()}
        wanted = architecture.lower().replace("/", "-")
        near = [by_lower[name] for name in difflib.get_close_matches(wanted, by_lower, n=4, cutoff=0.6)]
        told = f"did you mean {', '.join(near)}?" if near else "`open_clip.list_models()` lists them"
        raise ModelError(f"open_clip has no architecture {architecture!r}: {told}")
    return config


def _build(config: dict[str, Any], where: str, folder: Path | None = None) -> nn.Module:
    """The network of a `model_cfg`, weights yet to come; a text tower's configuration in `folder` comes first."""
    config = copy.deepcopy(config)
    try:
        text, vision = config["text_cfg"], config["vision_cfg"]
        custom = config.pop("custom_text", False) or "hf_model_name" in text
        if vision.get("timm_model_name"):
            vision["timm_model_pretrained"] = False
        if text.get("hf_model_name"):
            text["hf_model_pretrained"] = False
            if folder is not None and (folder / "config.json").is_file():
                text["hf_model_name"] = str(folder)
        with torch.random.fork_rng(devices=[]):  # its random weights are all replaced: leave the caller's stream alone
            kind = (
                open_clip.CoCa if "multimodal_cfg" in config else open_clip.CustomTextCLIP if custom else open_clip.CLIP
            )
            module: nn.Module = kind(**config)
        return module
    except Exception as error:  # a configuration is free text to the libraries it is handed to
        raise ModelError(f"{where} cannot be built by open_clip {open_clip.__version__}: {_line(error)}") from error


def _fill(module: nn.Module, weights: dict[str, Tensor], path: Path, config: dict[str, Any], where: str) -> None:
    """Puts a checkpoint into the network, through the same conversions as `open_clip.load_checkpoint`."""
    if any(key in weights for key in OPENAI_KEYS):
        if not config.get("quick_gelu"):
            raise _openai_on_gelu(path, where)
        weights = {name: tensor for name, tensor in weights.items() if name not in OPENAI_KEYS}
    weights = convert_state_dict(module, weights)
    if "positional_embedding" in weights and not hasattr(module, "positional_embedding"):
        weights = convert_to_custom_text_state_dict(weights)
    for name in ("logit_scale", "logit_bias"):
        ours = getattr(module, name)
        if name in weights and ours is not None and weights[name].numel() == 1:
            weights[name] = weights[name].reshape(ours.shape)
    weights.pop("text.transformer.embeddings.position_ids", None)  # a buffer that transformers no longer saves
    fill(module, weights, path, where)


def _checkpoint(folder: Path) -> Path:
    found = [folder / name for name in CHECKPOINTS if (folder / name).is_file()]
    found += sorted(path for suffix in ("*.safetensors", "*.bin", "*.pth") for path in folder.glob(suffix))
    if not found:
        raise ModelError(f"{folder} has a configuration but no weights: copy {WEIGHTS} into it")
    return found[0]


def _other_activation(architecture: str) -> str | None:
    """The architecture that differs in QuickGELU alone, where open_clip has one."""
    suffix = "-quickgelu"
    other = architecture.removesuffix(suffix) if architecture.endswith(suffix) else architecture + suffix
    return other if other in open_clip.list_models() else None


def _wrong_activation(what: str, architecture: str, config: Mapping[str, Any], use: str) -> ModelError:
    trained, has = ("GELU", "QuickGELU") if config.get("quick_gelu") else ("QuickGELU", "GELU")
    return ModelError(f"{what} was trained with {trained}, but {architecture} computes {has}: use {use}")


def _openai_on_gelu(path: Path, where: str) -> ModelError:
    sibling = _other_activation(where)
    use = f"use open_clip:{sibling}@{path}" if sibling else 'set "quick_gelu": true in its model_cfg'
    return ModelError(
        f"{path} holds OpenAI's own weights ({', '.join(OPENAI_KEYS)} beside them), trained with QuickGELU, "
        f"but {where} computes GELU: {use}"
    )


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
