"""From a spec to a model: `<kind>:<rest>`, where the rest belongs to the kind, or a folder."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from modalign.errors import ModelError
from modalign.models.dual_encoder import DualEncoder
from modalign.models.folder import RECORD, STAND_IN, model_folder, read_json, read_record
from modalign.models.tower_file import put_tower, split_tower


def load(spec: str | Path, *, device: torch.device | str = "cpu") -> DualEncoder:
    """Loads an image-text model behind the `DualEncoder` contract.

    Args:
        spec: one of

            - `open_clip:<architecture>/<tag>`: a built-in name with pretrained weights,
              `open_clip:<architecture>@<file>`: with a checkpoint file,
              `open_clip:local-dir:<folder>`, `open_clip:hf-hub:<owner>/<name>[@revision]`;
            - `hf:<owner>/<name>[@revision]` or `hf:<folder>`: a transformers `CLIPModel` or `SiglipModel`;
            - a folder: a run, a saved model, an open_clip or a transformers folder;
            - `vectors:<file>.npy` or `vectors:<folder of a store>`: stored vectors under a linear map, no network;
            - `demo` or `demo:<seed>`: the embedded default;
            - any of these followed by `+visual@<file>`: a checkpoint of the image tower alone, over that base.
        device: where the network goes.

    Returns:
        The model, its towers in `eval()`.

    Raises:
        ModelError: no such model, or one that cannot be used as asked; the message says what to write instead.
    """
    base, tower = split_tower(str(spec))
    model = _load(Path(base) if isinstance(spec, Path) else base)
    if tower is not None:
        put_tower(model, tower)
        model.spec = str(spec)
    return model.to(device)


def _load(spec: str | Path) -> DualEncoder:
    name = str(spec)
    kind, _, rest = name.partition(":")
    if kind in KINDS and not isinstance(spec, Path) and (":" in name or name == "demo"):
        return KINDS[kind](rest, name)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _from_folder(folder, name)
    if folder.is_file():
        raise ModelError(f"{name} is a file: name its architecture too, open_clip:<architecture>@{name}")
    near = difflib.get_close_matches(kind.lower(), KINDS, n=1)
    told = f"did you mean {near[0]}:{rest}?" if near and rest else "write <kind>:… (open_clip, hf, demo) or a folder"
    raise ModelError(f"there is no model {name!r}: no such folder, and no kind of model before the first colon; {told}")


def _open_clip(rest: str, spec: str) -> DualEncoder:
    from modalign.models.open_clip_specs import load_open_clip

    return load_open_clip(rest, spec)


def _hugging_face(rest: str, spec: str) -> DualEncoder:
    from modalign.models.hugging_face_specs import load_hugging_face

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
    from modalign.models.hugging_face_specs import from_folder

    return from_folder(folder, spec)


def _vectors(rest: str, spec: str) -> DualEncoder:
    from modalign.models.vectors import load_vectors

    return load_vectors(spec)


def _vectors_folder(folder: Path, spec: str) -> DualEncoder:
    from modalign.models.vectors import from_folder

    return from_folder(folder, spec)


def _wrapped(place: object, spec: str) -> DualEncoder:
    raise ModelError(
        f"{spec} is a wrapped model, whose code is not stored: in Python, wrap its functions again and read its "
        "weights, modalign.wrap(…).load_weights(<run folder>)"
    )


KINDS: dict[str, Callable[[str, str], DualEncoder]] = {
    "open_clip": _open_clip,
    "hf": _hugging_face,
    "demo": _demo,
    "vectors": _vectors,
    "wrapped": _wrapped,
}

FAMILIES: dict[str, Callable[[Path, str], DualEncoder]] = {
    "open_clip": _open_clip_folder,
    "transformers": _hugging_face_folder,
    "vectors": _vectors_folder,
    "wrapped": _wrapped,
}


def _from_folder(folder: Path, spec: str) -> DualEncoder:
    folder = model_folder(folder)
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
            raise ModelError(f"{folder / 'config.json'} names no model_type: use a transformers folder")
        return _hugging_face_folder(folder, spec)
    if (folder / STAND_IN).is_file():
        raise ModelError(
            f"{folder} is a run whose method fits a map in place of the image tower and trains no model ({STAND_IN}): "
            "name the model it began with"
        )
    if (folder / "recipe.yaml").is_file():
        raise ModelError(f"{folder} is a run that has no model yet: finish it with --resume, or name another folder")
    raise ModelError(
        f"{folder} holds no model: a run has model/, a saved model {RECORD}, an open_clip folder "
        "open_clip_config.json, a transformers folder config.json"
    )
