"""How many runs fit on this machine at once."""

from __future__ import annotations

import os
from pathlib import Path

SHARE = 0.8
"""Of the free memory, what runs may take: their sizes differ a little."""
FEWEST_THREADS = 2
"""A run with a single thread waits for its own decoding."""


def cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory() -> int:
    """Bytes that could be had now, within the limits of a container."""
    known = Path("/proc/meminfo")
    if known.is_file():
        lines = dict(line.split(":", 1) for line in known.read_text(encoding="ascii").splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    else:
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        return min(free, limit - int((group / "memory.current").read_text(encoding="ascii")))
    except (OSError, ValueError):  # no container, or "max"
        return free


def jobs_that_fit(points: int, needed: int, *, free: int, threads: int) -> int:
    """How many runs go at once where nobody says.

    Args:
        points: how many are left.
        needed: bytes that one took.
        free: bytes that are free.
        threads: cores.
    """
    return max(1, min(points, threads // FEWEST_THREADS, int(SHARE * free) // max(needed, 1)))
