"""Reading weight files without running anything in them, and putting them into a network that fits exactly."""

from __future__ import annotations

import hashlib
import pickle
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modalign.errors import ModelError, few
from modalign.tensor_files import write_tensors

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")


def read_weights(path: Path) -> dict[str, Any]:
    """Reads a checkpoint file into a flat dict of tensors.

    `.safetensors` holds tensors only; the others go through `torch.load(weights_only=True)`. A training checkpoint's
    `state_dict`, `model_state_dict` or `model` entry is taken, numbers and texts beside tensors are left, and the
    `module.` prefix of a data-parallel model is taken off.

    Args:
        path: the file.

    Returns:
        Name → tensor.

    Raises:
        ModelError: no such file, another kind of file, a damaged file, or one that holds more than tensors.
    """
    if not path.exists():
        raise ModelError(f"there is no file {path}: check the path after @")
    if path.is_dir():
        raise ModelError(f"{path} is a folder, not a weight file: load the folder itself, or name a file in it")
    if path.suffix not in SUFFIXES:
        raise ModelError(f"{path} is no weight file: pass one that ends in {', '.join(SUFFIXES)}")
    content = _safetensors(path) if path.suffix == ".safetensors" else _torch(path)
    for entry in ("state_dict", "model_state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(entry), Mapping):
            content = content[entry]
    if not isinstance(content, Mapping):
        raise ModelError(f"{path} holds a {type(content).__name__}, not a state_dict: save `model.state_dict()`")
    weights = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    plain = (bool, int, float, str, type(None)) if weights else ()
    odd = [str(name) for name, value in content.items() if not isinstance(value, (Tensor, *plain))]
    if odd or not content:
        told = f"{', '.join(odd[:5])} {'are' if len(odd) > 1 else 'is'} no tensor" if odd else "it is empty"
        raise ModelError(f"{path} holds no plain state_dict ({told}): save `model.state_dict()` alone")
    if all(name.startswith("module.") for name in weights):
        weights = {name.removeprefix("module."): value for name, value in weights.items()}
    return weights


def fill(module: nn.Module, weights: Mapping[str, Tensor], path: Path, architecture: str) -> None:
    """Copies weights into a network, all of them, each of the right shape.

    Raises:
        ModelError: names the first missing, unexpected and differently shaped entries.
    """
    told = misfit(weights, module.state_dict())
    if told:
        raise ModelError(f"{path} does not fit {architecture}: {told}. Name the architecture it was made with")
    module.load_state_dict(dict(weights), strict=True)


def misfit(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """What keeps `weights` from being `wanted`: missing, unexpected and differently shaped entries; "" if nothing."""
    missing = [name for name in wanted if name not in weights]
    unexpected = [name for name in weights if name not in wanted]
    reshaped = [
        f"{name}: {_shape(weights[name])} in the file, {_shape(wanted[name])} in the architecture"
        for name in wanted
        if name in weights and weights[name].shape != wanted[name].shape
    ]
    told = [
        f"{len(names)} {what} ({few(names)})"
        for names, what in ((missing, "missing"), (unexpected, "unexpected"), (reshaped, "of another shape"))
        if names
    ]
    return "; ".join(told)


def fingerprint(identity: str, tensors: Iterable[tuple[str, Tensor]]) -> str:
    """64 hexadecimal digits: a hash of what a network is and of its weights.

    Args:
        identity: everything beside the weights that decides what it computes.
        tensors: (name, weight), in a fixed order.
    """
    digest = hashlib.sha256(identity.encode())
    for name, tensor in tensors:
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def write_weights(module: nn.Module, path: Path) -> None:
    """Writes a network as safetensors; tensors that share memory or lie scattered are written out separately."""
    state = {name: tensor.detach().cpu().clone() for name, tensor in module.state_dict().items()}
    write_tensors(path, state, {"format": "pt"})


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{path} is damaged or cut short ({error}): copy it again") from error
    return tensors


def _torch(path: Path) -> Any:
    try:
        with warnings.catch_warnings():  # a TorchScript archive is told of twice
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path} holds more than tensors ({_reason(error)}), and such a file can run code when it is read: "
            "where you trust it, save its `state_dict()` alone, or as safetensors"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        if "TorchScript" in str(error):
            raise ModelError(
                f"{path} is a TorchScript archive, and such a file can run code when it is read: where you trust it, "
                "save `torch.jit.load(file).state_dict()` once and load that"
            ) from error
        raise ModelError(f"{path} is damaged or no PyTorch file ({_reason(error)}): copy it again") from error


def _reason(error: Exception) -> str:
    text = str(error)
    marker = "WeightsUnpickler error: "
    if marker in text:
        text = text.split(marker, 1)[1]
    return (text.strip().splitlines() or [type(error).__name__])[0].split(". ")[0]


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "scalar"
