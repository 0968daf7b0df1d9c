"""What a checkpoint must hold for the next step to be the same bits: weights, method state, optimizer state.

Random numbers need no state: all of them are functions of (seed, step).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from modalign.errors import OutputError


def pack(
    trained: Mapping[str, nn.Parameter],
    module: nn.Module | None,
    optimizer: torch.optim.Optimizer,
    beside: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Names every tensor of the training state.

    Args:
        trained: the towers' trained parameters.
        module: the method's own parameters and buffers, or None.
        optimizer: holds both.
        beside: what else changes: moving statistics and averages, by names with a prefix of their own.

    Returns:
        "model.<name>", "method.<name>", "optimizer.<key>.<name>" and the names of `beside` → tensor.
    """
    tensors: dict[str, Tensor] = {f"model.{name}": parameter for name, parameter in trained.items()} | dict(beside)
    if module is not None:
        tensors |= {f"method.{name}": value for name, value in module.state_dict().items()}
    names = {id(parameter): name for name, parameter in _named(trained, module).items()}
    for parameter, state in optimizer.state.items():
        tensors |= {f"optimizer.{key}.{names[id(parameter)]}": value for key, value in state.items()}
    return tensors


@torch.no_grad()
def unpack(
    tensors: Mapping[str, Tensor],
    trained: Mapping[str, nn.Parameter],
    module: nn.Module | None,
    optimizer: torch.optim.Optimizer,
    beside: Mapping[str, Tensor],
    where: Path,
) -> None:
    """Puts a packed state back.

    Args:
        tensors: what `pack` named.
        trained: must have the same names and shapes.
        module: likewise.
        optimizer: built over the same parameters.
        beside: likewise; filled in place.
        where: the checkpoint, for the message.

    Raises:
        OutputError: the checkpoint belongs to another set of trained parameters.
    """
    expected = {f"model.{name}": tuple(p.shape) for name, p in trained.items()}
    expected |= {name: tuple(tensor.shape) for name, tensor in beside.items()}
    found = {n: tuple(t.shape) for n, t in tensors.items() if not n.startswith(("method.", "optimizer."))}
    if expected != found:
        raise OutputError(f"{where} holds other parameters than this recipe trains; choose another --out")
    for name, parameter in trained.items():
        parameter.copy_(tensors[f"model.{name}"])
    for name, tensor in beside.items():
        tensor.copy_(tensors[name])
    if module is not None:
        prefix = "method."
        module.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    for name, parameter in _named(trained, module).items():
        state = {}
        for key in ("step", "exp_avg", "exp_avg_sq"):
            value = tensors.get(f"optimizer.{key}.{name}")
            if value is not None:  # AdamW counts steps on the CPU
                state[key] = value.clone() if key == "step" else value.to(parameter.device, parameter.dtype)
        if state:
            optimizer.state[parameter] = state


def _named(trained: Mapping[str, nn.Parameter], module: nn.Module | None) -> dict[str, nn.Parameter]:
    own = {f"method.{name}": p for name, p in module.named_parameters()} if module is not None else {}
    return {**trained, **own}
