"""What a run cost: wall time by kind, forward passes done and saved, memory, parameters."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

NETWORKS = ("image", "text", "target")


@dataclass
class Cost:
    """Accumulates over a run and survives a resume (it is part of every checkpoint).

    Attributes:
        seconds: wall time by kind: data, towers, loss, evaluation, other.
        forward: images and captions sent through a tower during training, frozen passes included, and images through
            the target.
        published: what the published way would have sent: every tower a step reads, frozen ones too, at every visit.
        samples: training pairs seen, repeats counted.
        peak: the largest memory use of earlier parts of the run, bytes.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    forward: dict[str, int] = field(default_factory=lambda: dict.fromkeys(NETWORKS, 0))
    published: dict[str, int] = field(default_factory=lambda: dict.fromkeys(NETWORKS, 0))
    samples: int = 0
    peak: int = 0

    def spend(self, kind: str, seconds: float) -> None:
        """Adds wall time to one kind."""
        self.seconds[kind] = self.seconds.get(kind, 0.0) + seconds

    @contextmanager
    def timed(self, kind: str) -> Iterator[None]:
        """Counts the block's wall time."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.spend(kind, time.perf_counter() - begin)

    def add(self, other: Cost) -> None:
        """Adds what another part of the same run cost."""
        for kind, seconds in other.seconds.items():
            self.spend(kind, seconds)
        for own, more in ((self.forward, other.forward), (self.published, other.published)):
            for tower, count in more.items():
                own[tower] += count
        self.samples += other.samples
        self.peak = max(self.peak, other.peak)

    def to_state(self) -> dict[str, Any]:
        """JSON values for a checkpoint."""
        return {
            "seconds": self.seconds,
            "forward": self.forward,
            "published": self.published,
            "samples": self.samples,
            "peak": max(self.peak, peak_memory()),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Cost:
        """The reverse of `to_state`."""
        return cls(
            dict(state["seconds"]),
            dict(state["forward"]),
            dict(state["published"]),
            int(state["samples"]),
            int(state["peak"]),
        )

    def report(self, trainable: int, frozen: int) -> dict[str, Any]:
        """The contents of `cost.json`.

        Args:
            trainable: number of trained parameters (towers and method).
            frozen: number of the others.
        """
        seconds = {
            kind: round(self.seconds.get(kind, 0.0), 3) for kind in ("data", "towers", "loss", "evaluation", "other")
        }
        return {
            "wall_seconds": seconds | {"total": round(sum(self.seconds.values()), 3)},
            "peak_memory_bytes": max(self.peak, peak_memory()),
            "trainable_parameters": trainable,
            "frozen_parameters": frozen,
            "forward_passes": {
                **self.forward,
                **{f"saved_{name}": max(0, self.published[name] - self.forward[name]) for name in NETWORKS},
            },
            "samples_seen": self.samples,
        }


def peak_memory() -> int:
    """The largest memory use so far in bytes: of the GPU where one is used, else of this process."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated() > 0:
        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)
