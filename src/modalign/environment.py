"""What a run's numbers depend on beside its recipe: versions, source commit, machine, threads."""

from __future__ import annotations

import functools
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

LIBRARIES = (
    *("torch", "torchvision", "open_clip_torch", "transformers", "timm", "peft"),
    *("pillow", "safetensors", "numpy", "scikit-learn"),
)


def versions() -> dict[str, str]:
    """The versions of modalign, Python and the libraries that touch the numbers."""
    from modalign.version import __version__

    found = {"modalign": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def commit() -> str | None:
    """The commit of the modalign checkout in use, "+changes" where files differ from it; None when installed."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "HEAD")
        return head + ("+changes" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def describe(seed: int, device: str = "cpu", world: int = 1) -> dict[str, Any]:
    """Everything that goes into `environment.json` and every results file.

    Args:
        seed: the run's seed.
        device: where it computed.
        world: how many processes.
    """
    import torch

    return {
        "versions": versions(),
        "commit": commit(),
        "seed": seed,
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "processes": world,
        "threads": torch.get_num_threads(),
        "platform": f"{platform.system()} {platform.machine()}",
    }


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()
