"""timm's image models behind the `VisionEncoder` contract."""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from timm.models import load_model_config_from_hf, load_state_dict_from_hf
from timm.models._hub import load_model_config_from_path
from torch import Tensor, nn

from modalign.errors import ModelError, first_line
from modalign.models.folder import read_json
from modalign.models.hub import asking_hub, commit_of
from modalign.models.vision import VisionEncoder
from modalign.models.weights import SUFFIXES, fill, read_weights


class TimmVision(VisionEncoder):
    """A timm model without its classifier: `forward_head(forward_features(pixels), pre_logits=True)`.

    That is each architecture's own pooling (CLS token, average, attention pool) and what it does after it; the
    transform is the one its `pretrained_cfg` describes.
    """

    def __init__(self, module: nn.Module, spec: str, *, revision: str | None = None) -> None:
        data: Any = timm.data
        settings = data.resolve_model_data_config(module)
        preprocess = data.create_transform(**settings, is_training=False)
        transform = json.dumps({"library": "timm", **settings}, sort_keys=True)
        super().__init__(module, spec, preprocess, transform, revision=revision)

    def _pooled(self, pixels: Tensor) -> Tensor:
        module: Any = self.module
        feature: Tensor = module.forward_head(module.forward_features(pixels), pre_logits=True)
        return feature

    @property
    def architecture(self) -> str:
        """timm's name, its layers, and the pooling that none of them shows."""
        module: Any = self.module
        return f"{module.pretrained_cfg['architecture']} {getattr(module, 'global_pool', None)!s} {module}"


def load_timm(rest: str, spec: str) -> TimmVision:
    """Loads what follows `timm:`; see `modalign.load_vision`."""
    if rest.startswith("local-dir:"):
        return _from_folder(Path(rest.removeprefix("local-dir:")).expanduser(), spec)
    if rest.startswith("hf-hub:"):
        return _from_hub(rest.removeprefix("hf-hub:"), spec)
    name, at, file = rest.partition("@")
    _need_model(name)
    if at:
        path = Path(file).expanduser()
        return TimmVision(_filled(name, {}, {}, read_weights(path), path), spec)
    config = _pretrained(name)
    with asking_hub(f"the weights of timm's {name}", f"use a local file: timm:{name}@<file>"):
        module = timm.create_model(name, pretrained=True, num_classes=0)
        found = try_to_load_from_cache(config.hf_hub_id, "model.safetensors") if config.hf_hub_id else None
    return TimmVision(module, spec, revision=commit_of(found) if isinstance(found, str) else None)


def _pretrained(name: str) -> Any:
    try:
        config = timm.models.get_pretrained_cfg(name)
    except RuntimeError:  # a tag that this model does not have
        config = None
    if config is None or not config.has_weights:
        base = name.partition(".")[0]
        tags = ", ".join(f"timm:{each}" for each in timm.list_pretrained(f"{base}.*")[:4])
        choice = f"name {tags} or a file" if tags else "name a file"
        raise ModelError(f"timm has no pretrained weights for {name!r}: {choice}, timm:{base}@<file>")
    return config


def _from_hub(name: str, spec: str) -> TimmVision:
    repository, _, revision = name.partition("@")
    if repository.count("/") != 1:
        raise ModelError(f"{spec}: write timm:hf-hub:<owner>/<name>[@revision]")
    with asking_hub(f"{name} from the hub", "use a local copy: timm:local-dir:<folder>"):
        commit = commit_of(hf_hub_download(repository, "config.json", revision=revision or None))
        pinned = f"{repository}@{commit}" if commit else name
        config, architecture, arguments = load_model_config_from_hf(pinned)
        weights = load_state_dict_from_hf(pinned)
    _need_model(architecture)
    return TimmVision(_filled(architecture, config, arguments, weights, Path(name)), spec, revision=commit)


def _from_folder(folder: Path, spec: str) -> TimmVision:
    if not folder.is_dir():
        raise ModelError(f"there is no folder {folder}: check the path after local-dir:")
    content = read_json(folder / "config.json")
    architecture = content.get("architecture")
    if not isinstance(architecture, str):
        raise ModelError(f"{folder / 'config.json'} names no architecture: it is no timm configuration")
    _need_model(architecture)
    found = [folder / "model.safetensors", *sorted(p for p in folder.iterdir() if p.suffix in SUFFIXES)]
    path = next((path for path in found if path.is_file()), None)
    if path is None:
        raise ModelError(f"{folder} has a configuration but no weights: copy model.safetensors into it")
    config, architecture, arguments = load_model_config_from_path(folder)
    return TimmVision(_filled(architecture, config, arguments, read_weights(path), path), spec)


def _filled(
    architecture: str,
    config: Mapping[str, Any],
    arguments: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    path: Path,
) -> nn.Module:
    """A model with all its weights; the checkpoint's classifier is left behind, names are converted as by timm."""
    try:
        with torch.random.fork_rng(devices=[]):  # its random weights are all replaced: leave the caller's stream alone
            given = {"pretrained_cfg": dict(config)} if config else {}
            module: nn.Module = timm.create_model(architecture, **{**given, **arguments, "num_classes": 0})
        convert = getattr(sys.modules[type(module).__module__], "checkpoint_filter_fn", None)
        converted = dict(weights) if convert is None else convert(dict(weights), module)
    except Exception as error:  # a configuration and a checkpoint's names are free text to the library
        raise ModelError(
            f"{path} cannot be read as timm's {architecture} ({first_line(error)}): name what it was made with"
        ) from error
    heads = module.pretrained_cfg.get("classifier") or ()  # type: ignore[union-attr, operator]
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    wanted = module.state_dict()
    kept = {
        name: tensor
        for name, tensor in converted.items()
        if name in wanted or not name.startswith(tuple(f"{head}." for head in heads))
    }
    fill(module, kept, path, f"timm's {architecture}")
    return module


def _need_model(name: str) -> None:
    base, _, _ = name.partition(".")
    if timm.is_model(base):
        return
    by_lower = {model.lower(): model for model in timm.list_models()}
    near = difflib.get_close_matches(base.lower().replace("-", "_"), by_lower, n=4, cutoff=0.6)
    told = (
        f"did you mean {', '.join(by_lower[model] for model in near)}?" if near else "`timm.list_models()` lists them"
    )
    raise ModelError(f"timm has no model {name!r}: {told}")
