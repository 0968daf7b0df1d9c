"""Several processes, one global batch: start-up under torchrun, gathering rows, summing gradients.

Only these few calls know that other processes exist. A single process takes the same path with nothing to exchange.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Processes:
    """This process's place among all of them.

    Attributes:
        rank: 0 … world − 1.
        world: how many processes there are.
        local_rank: the number on this machine, which picks the GPU.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks to the user."""
        return self.rank == 0

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all processes in rank order, without their graph; shares may differ in length.

        Args:
            rows: b_r×… of this process.

        Returns:
            (Σ b_r)×…, the same on every process.
        """
        rows = rows.detach()
        if self.world == 1:
            return rows
        sizes = [torch.zeros(1, dtype=torch.long, device=rows.device) for _ in range(self.world)]
        dist.all_gather(sizes, torch.tensor([rows.shape[0]], device=rows.device))
        longest = int(max(int(size) for size in sizes))
        padded = rows.new_zeros((longest, *rows.shape[1:]))
        padded[: rows.shape[0]] = rows
        parts = [torch.empty_like(padded) for _ in range(self.world)]
        dist.all_gather(parts, padded.contiguous())
        return torch.cat([part[: int(size)] for part, size in zip(parts, sizes, strict=True)])

    def gather_objects(self, value: Any) -> list[Any]:
        """One picklable value from every process, in rank order."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sums `.grad` over processes in one all-reduce per data type; one that is missing everywhere stays missing.

        Each process holds the derivative of the *global* loss through its own rows, so the sum, not the mean,
        is the gradient of the global loss.
        """
        if self.world == 1:
            return
        listed = list(parameters)
        if not listed:
            return
        present = torch.tensor([int(p.grad is not None) for p in listed], device=listed[0].device)
        dist.all_reduce(present)
        by_type: dict[torch.dtype, list[Tensor]] = {}
        for parameter, somewhere in zip(listed, present.tolist(), strict=True):
            if not somewhere:
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            by_type.setdefault(parameter.dtype, []).append(parameter.grad)
        for gradients in by_type.values():
            bucket = torch.cat([gradient.reshape(-1) for gradient in gradients])
            dist.all_reduce(bucket, op=dist.ReduceOp.SUM)
            for gradient, summed in zip(gradients, bucket.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(summed.view_as(gradient))

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on at least one process."""
        return any(self.gather_objects(flag))

    def barrier(self) -> None:
        """Waits until every process is here."""
        if self.world > 1:
            dist.barrier()


def start(device: torch.device) -> Processes:
    """Joins the process group that torchrun describes in the environment; alone where there is none.

    Args:
        device: chooses NCCL for CUDA and Gloo elsewhere.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return Processes()
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(hours=6))  # rank 0 may be evaluating meanwhile
    return Processes(dist.get_rank(), world, int(os.environ.get("LOCAL_RANK", "0")))
