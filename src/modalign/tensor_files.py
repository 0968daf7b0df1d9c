"""Safetensors files: readable by whoever may read other files here, and one line where the disk is full."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from modalign.errors import OutputError, first_line


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes tensors, each with memory of its own, under their names.

    Args:
        path: the file; its folder exists.
        tensors: of any device and layout.
        metadata: texts kept in the file's head.

    Raises:
        OutputError: the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    own = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        path.touch()
        mode = path.stat().st_mode
        save_file(own, path, metadata=dict(metadata) if metadata is not None else None)
        path.chmod(mode)  # the library writes for the owner alone
    except (OSError, SafetensorError) as error:
        raise OutputError(
            f"{path} cannot be written ({first_line(error)}); check the free space and permissions"
        ) from None
