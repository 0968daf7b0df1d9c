"""A transform on disk: transform.json says what it is, transform.safetensors holds the numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from modalign.errors import ModelError
from modalign.version import __version__

RECORD, NUMBERS = "transform.json", "transform.safetensors"
FORMAT = "modalign.transform/1"


def write(folder: Path, told: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Writes both files; the folder appears whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    from safetensors.torch import save_file

    from modalign.models.folder import whole_folder

    with whole_folder(folder) as draft:
        # Bound to its numbers: a crash between the two files of a replaced transform must not go unseen.
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, draft / NUMBERS)
        record = {"format": FORMAT, **told, "numbers": _digest(draft / NUMBERS), "modalign": __version__}
        (draft / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Reads both files.

    Raises:
        ModelError: a file is missing, damaged, or of another format.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not (folder / RECORD).is_file():
        raise ModelError(f"{folder} holds no {RECORD}: name a folder that `modalign transform fit` or save() wrote")
    try:
        told = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        if not isinstance(told, dict) or told.get("format") != FORMAT:
            found = told.get("format") if isinstance(told, dict) else told
            raise ModelError(f"{folder / RECORD}: format {found!r} is unknown (this is {FORMAT}): fit anew")
        if _digest(folder / NUMBERS) != told["numbers"]:
            raise ModelError(f"{folder / NUMBERS} does not belong to {RECORD}: copy both again, or fit anew")
        return told, load_file(folder / NUMBERS)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ModelError(f"{folder} cannot be read as a transform ({error}): copy it again, or fit anew") from None


def _digest(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()
