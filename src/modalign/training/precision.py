"""Where a run computes and in which number format, checked before anything is loaded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from modalign.errors import RecipeError
from modalign.recipe import Precision


def device(name: str) -> torch.device:
    """The device a recipe means; "auto" takes CUDA, then MPS, then the CPU.

    Args:
        name: "auto", "cpu", "cuda", "cuda:N" or "mps".

    Raises:
        RecipeError: the name is unknown or this machine lacks the hardware.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        chosen = torch.device(name)
    except RuntimeError:
        raise RecipeError(f"device = {name!r} is not a device; use auto, cpu, cuda, cuda:N or mps") from None
    if chosen.type == "cuda":
        if not torch.cuda.is_available():
            raise RecipeError(f"device = {name!r}: this machine offers PyTorch no CUDA device; use --device cpu")
        if chosen.index is None:
            chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        if chosen.index >= torch.cuda.device_count():
            raise RecipeError(f"device = {name!r}: there are {torch.cuda.device_count()} CUDA devices, counted from 0")
        torch.cuda.set_device(chosen)
    elif chosen.type == "mps" and not torch.backends.mps.is_available():
        raise RecipeError("device = 'mps': this machine offers PyTorch no Metal device; use --device cpu")
    elif chosen.type not in ("cpu", "cuda", "mps"):
        raise RecipeError(f"device = {name!r} is not supported; use auto, cpu, cuda, cuda:N or mps")
    return chosen


def autocast(precision: Precision, where: torch.device) -> AbstractContextManager[object]:
    """The context the towers run in; everything right of the embedding boundary stays float32.

    Args:
        precision: "fp32", "bf16" (autocast) or "tf32" (float32 with TF32 matrix products, CUDA only).
        where: the device.

    Raises:
        RecipeError: the hardware lacks the format.
    """
    if precision == "tf32" and (where.type != "cuda" or torch.cuda.get_device_capability(where)[0] < 8):
        raise RecipeError(f"precision = 'tf32' needs an NVIDIA GPU from Ampere on, not {where}; use fp32 or bf16")
    if precision != "bf16":
        return nullcontext()
    if where.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise RecipeError("precision = 'bf16': this GPU has no bfloat16; use fp32")
    return torch.autocast(where.type, dtype=torch.bfloat16)


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Lets CUDA's float32 products round to TF32 inside the block, or forbids it; as it was afterwards.

    The flags are the process's own and also rule backward passes, so a run sets them around all of its towers' work
    and the loss forbids them around its own.
    """
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
