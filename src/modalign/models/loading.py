"""From a spec to a model: `<kind>:<rest>`, where the rest belongs to the kind, or a folder."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from modalign.errors import ModelError
from modalign.models.dual_encoder import DualEncoder
from modalign.models.folder import RECORD, read_json, read_record


def load(spec: str | Path, *, device: torch.device | str = "cpu") -> DualEncoder:
    """Loads an image-text model behind the `DualEncoder` contract.

    Args:
        spec: one of

            - `open_clip:<architecture>/<tag>`: a built-in name with pretrained weights,
              `open_clip:<architecture>@<file>`: with a checkpoint file,
              `open_clip:local-dir:<folder>`, `open_clip:hf-hub:<owner>/<name>`;
            - `hf:<owner>/<name>[@revision]` or `hf:<folder>`: a transformers `CLIPModel`;
            - a folder: a run, a saved model, an open_clip or a transformers folder;
            - `demo` or `demo:<seed>`: the embedded default.
        device: where the network goes.

    Returns:
        The model, its towers in `eval()`.

    Raises:
        ModelError: no such model, or one that cannot be used as asked; the message says what to write instead.
    """
    name = str(spec)
    kind, _, rest = name.partition(":")
    if kind in KINDS and not isinstance(spec, Path) and (":" in name or name == "demo"):
        return KINDS[kind](rest, name).to(device)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _from_folder(folder, name).to(device)
    if folder.is_file():
        raise ModelError(f"{name} is a file: name its architecture too, open_clip:<architecture>@{name}")
    near = difflib.get_close_matches(kind.lower(), KINDS, n=1)
    told = f"did you mean {near[0]}:{rest}?" if near and rest else f"write <kind>:… ({', '.join(KINDS)}) or a folder"
    raise ModelError(f"there is no model {name!r}: no such folder, and no kind of model before the first colon; {told}")


def _open_clip(rest: str, spec: str) -> DualEncoder:
    from modalign.models.open_clip_specs import load_open_clip

    return load_open_clip(rest, spec)


def _hugging_face(rest: str, spec: str) -> DualEncoder:
    from modalign.models.hugging_face import load_hugging_face

    return load_hugging_face(rest, spec)


def _demo(rest: str, spec: str) -> DualEncoder:
    from modalign.demo.model import base_model

    if rest and not rest.isdecimal():
        raise ModelError(f"{spec!r}: the demo takes a whole number as its seed, as in demo:1")
    model: DualEncoder = base_model(int(rest or 0))
    return model


def _open_clip_folder(folder: Path, spec: str) -> DualEncoder:
    from modalign.models.open_clip_specs import from_folder

    return from_folder(folder, spec)


def _hugging_face_folder(folder: Path, spec: str) -> DualEncoder:
    from modalign.models.hugging_face import from_folder

    return from_folder(folder, spec)


KINDS: dict[str, Callable[[str, str], DualEncoder]] = {
    "open_clip": _open_clip,
    "hf": _hugging_face,
    "demo": _demo,
}

FAMILIES: dict[str, Callable[[Path, str], DualEncoder]] = {
    "open_clip": _open_clip_folder,
    "transformers": _hugging_face_folder,
}


def _from_folder(folder: Path, spec: str) -> DualEncoder:
    if (folder / "model" / RECORD).is_file():
        folder = folder / "model"
    record: dict[str, Any] = read_record(folder)
    if record:
        family = record.get("family")
        if family not in FAMILIES:
            raise ModelError(f"{folder / RECORD}: family {family!r} is unknown: install a newer modalign")
        return FAMILIES[family](folder, spec)
    if (folder / "open_clip_config.json").is_file():
        return _open_clip_folder(folder, spec)
    if (folder / "config.json").is_file():
        if read_json(folder / "config.json").get("model_type") is None:
            raise ModelError(f"{folder / 'config.json'} names no model_type: it is no transformers model")
        return _hugging_face_folder(folder, spec)
    if (folder / "recipe.yaml").is_file():
        raise ModelError(f"{folder} is a run that has no model yet: finish it with --resume, or name another folder")
    raise ModelError(
        f"{folder} holds no model: a run has model/, a saved model {RECORD}, an open_clip folder "
        "open_clip_config.json, a transformers folder config.json"
    )
