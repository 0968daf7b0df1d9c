"""Proof that an export is the model: loaded back by the target library alone, in a fresh process.

The export is checked from a copy in another place, while the files it was made from are renamed away, without
network and with an empty cache, so that nothing but the export itself can be read. Where a source cannot be renamed
(a read-only disk, a package's own folder) opening it is an error in that process instead, and export.json says so.
Renaming is the stronger proof, for it also stops what a library opens past Python; the price is that the source has
another name for some seconds, so two exports of one model should not run at the same time.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from modalign.errors import ExportError
from modalign.exporting import loaded_alone
from modalign.exporting.away import SUFFIX, moved_away
from modalign.models import DualEncoder

LIMIT = 1e-5


@dataclass(frozen=True)
class Verification:
    """What was compared; differences are the largest absolute ones, in float32.

    Attributes:
        image_features: on identical pixels, raw features.
        text_features: on identical token ids, raw features.
        logit_scale: of the factor.
        logit_bias: where the model has one.
        limits: what each may be: 1e-5, for features times the largest of them where that exceeds 1.
        pixels: of the target library's own preprocessing, on the same pictures; told, not limited. A large one often
            is a centre crop that two libraries round to neighbouring pixels.
        pixels_mean: the mean of these differences.
        other_captions: captions that the target library's own tokenizer turns into other ids, padding aside.
        sources: path → how it was put out of reach.
    """

    image_features: float
    text_features: float
    logit_scale: float
    limits: dict[str, float]
    pictures: int
    captions: int
    pixels: float
    pixels_mean: float
    other_captions: tuple[str, ...]
    sources: dict[str, str]
    logit_bias: float | None = None

    @property
    def passed(self) -> bool:
        """Whether features, logit scale and logit bias are the same."""
        return all(getattr(self, name) <= limit for name, limit in self.limits.items())

    def to_dict(self) -> dict[str, Any]:
        """The JSON in export.json."""
        values = asdict(self)
        compared = (*self.limits, "limits", "pictures", "captions", "sources")
        return {
            "verification": {name: values[name] for name in compared},
            "preprocessing": {
                "pixels_max_abs": self.pixels,
                "pixels_mean_abs": self.pixels_mean,
                "pictures": self.pictures,
                "captions": self.captions,
                "captions_with_other_ids": len(self.other_captions),
                "share_of_captions_with_other_ids": len(self.other_captions) / max(self.captions, 1),
                "examples": list(self.other_captions[:5]),
            },
        }

    def to_table(self) -> str:
        """The same, to read: what must be equal, then what the target library prepares otherwise."""
        other = len(self.other_captions)
        labels = {
            "image_features": "same pixels → image features",
            "text_features": "same tokens → text features",
            "logit_scale": "logit scale",
            "logit_bias": "logit bias",
        }
        rows = [("largest difference after loading back", "measured", "limit")]
        rows += [
            (label, f"{getattr(self, key):.1e}", f"{self.limits[key]:.1e}")
            for key, label in labels.items()
            if key in self.limits
        ]
        rows += [
            (
                f"its own pixels of {self.pictures} pictures",
                f"{self.pixels:.1e}",
                f"told only; mean {self.pixels_mean:.1e}",
            ),
            (f"its own tokens of {self.captions} captions", f"{other} differ", "told only"),
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
        return "\n".join(line.rstrip() for line in lines)


def verify(
    model: DualEncoder, export: Path, sources: Sequence[Path], pictures: Sequence[Any], captions: Sequence[str]
) -> Verification:
    """Loads an export back as its README says, in a fresh process, and compares it with the model.

    Args:
        model: what was exported, in float32 on the CPU.
        export: the folder with the target library's files and README.md.
        sources: what the model was loaded from, to be put out of reach.
        pictures: PIL pictures.
        captions: captions.

    Raises:
        ExportError: the target library cannot load it, or computes something else.
    """
    pixels = torch.stack([model.preprocess(picture) for picture in pictures])
    tokens = model.tokenize(list(captions))
    with torch.no_grad():
        expected = {"image_features": model.encode_image(pixels), "text_features": model.encode_text(tokens)}
    expected["logit_scale"] = torch.tensor([model.logit_scale])
    if model.logit_bias is not None:
        expected["logit_bias"] = torch.tensor([model.logit_bias])
    with tempfile.TemporaryDirectory(prefix="modalign-verify-") as place:
        folder = Path(place)
        shutil.copytree(export, folder / "moved")
        save_file({"pixels": pixels.contiguous(), "tokens": tokens.contiguous()}, folder / "inputs.safetensors")
        files = [folder / f"{index}.png" for index in range(len(pictures))]
        for picture, file in zip(pictures, files, strict=True):
            picture.save(file)
        forbidden = [str(name) for path in sources for name in (path, f"{path}{SUFFIX}")]
        task = {
            "export": str(folder / "moved"),
            "forbidden": forbidden,
            "pictures": list(map(str, files)),
            "captions": list(captions),
        }
        (folder / "task.json").write_text(json.dumps(task), encoding="utf-8")
        with moved_away(sources) as told:
            _run(folder)
        outputs = load_file(folder / "outputs.safetensors")
        ids = json.loads((folder / "outputs.json").read_text(encoding="utf-8"))["tokens"]
    limits = {name: LIMIT * max(1.0, float(expected[name].abs().max())) for name in expected}
    limits |= dict.fromkeys(expected.keys() - {"image_features", "text_features"}, LIMIT)
    lengths = model.token_lengths(tokens).tolist()
    found = Verification(
        **{name: _difference(outputs[name], expected[name]) for name in expected},
        limits=limits,
        pictures=len(pictures),
        captions=len(captions),
        pixels=_difference(outputs["pixels"], pixels),
        pixels_mean=_difference(outputs["pixels"], pixels, torch.mean),
        other_captions=tuple(
            caption
            for caption, row, theirs, length in zip(captions, tokens.tolist(), ids, lengths, strict=True)
            if row[:length] != theirs[:length]
        ),
        sources={str(path): how for path, how in told.items()},
    )
    if not found.passed:
        worst = max(limits, key=lambda name: getattr(found, name) / limits[name])
        raise ExportError(
            f"what was exported computes something else: {worst} differs by {getattr(found, worst):.1e} "
            f"(limit {limits[worst]:.1e}); nothing was kept. Please report this with the model's name"
        )
    return found


def _run(folder: Path) -> None:
    """Runs a copy of `loaded_alone` in `folder`: offline, with an empty cache, nothing of ours on its path."""
    script = folder / "loaded_alone.py"
    script.write_text(Path(loaded_alone.__file__).read_text(encoding="utf-8"), encoding="utf-8")
    caches = {name: str(folder / "empty") for name in ("HF_HOME", "HF_HUB_CACHE", "TORCH_HOME", "XDG_CACHE_HOME")}
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-P", str(script), str(folder)],
        cwd=folder,
        env=os.environ | caches | offline,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = [line for line in done.stderr.strip().splitlines() if line.strip()] or ["no message"]
        raise ExportError(
            f"the export cannot be loaded back by its own library ({lines[-1].strip()}); nothing was kept: "
            "check that the library is installed and that the model loads in it"
        )


def _difference(theirs: Tensor, ours: Tensor, over: Callable[[Tensor], Tensor] = torch.max) -> float:
    """The largest (or mean) absolute difference; another shape or a value that is no number counts as infinite."""
    if theirs.shape != ours.shape:
        return math.inf
    value = float(over((theirs.float() - ours.float()).abs()))
    return math.inf if math.isnan(value) else value
