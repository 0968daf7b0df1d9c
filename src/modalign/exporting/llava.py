"""A CLIP's image tower in the place of a LLaVA's own, and that LLaVA as a verified folder.

LLaVA reads the tower's hidden states (`vision_feature_layer`, -2: the penultimate block's), never its projection, so
what is put in is the trunk alone. Its projector was trained on the tower it had: only a tower that was refined from
that one fits without further training.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modalign.errors import ExportError, ModelError, OutputError
from modalign.exporting import llava_alone
from modalign.exporting.away import SUFFIX, moved_away, restore, source_paths
from modalign.models import DualEncoder, load
from modalign.models.folder import read_json, versions, whole_folder
from modalign.models.hub import refuse_code
from modalign.models.hugging_face import HuggingFace, quiet
from modalign.models.open_clip import OpenClip

LIMIT = 1e-5
SAME = ("hidden_act", "num_attention_heads", "layer_norm_eps")
"""What equal shapes do not tell."""
PROMPT = "USER: <image>\nWhat is in the picture? ASSISTANT:"
NEW_TOKENS = 4


def load_llava(folder: str | Path, *, dtype: torch.dtype | None = None) -> Any:
    """Reads a `LlavaForConditionalGeneration` from a folder, on the CPU, in the type it is stored in.

    Args:
        folder: config.json (model_type "llava"), weights, tokenizer and image processor.
        dtype: another type.

    Raises:
        ModelError: the folder is missing or damaged, or holds another kind of model.
    """
    from transformers import LlavaForConditionalGeneration

    place = Path(folder).expanduser()
    if not place.is_dir():
        raise ModelError(f"there is no folder {folder}: download a LLaVA such as llava-hf/llava-1.5-7b-hf and name it")
    kind = read_json(place / "config.json").get("model_type")
    if kind != "llava":
        raise ModelError(f"{place / 'config.json'} has model_type {kind!r}: name a transformers LLaVA ('llava')")
    refuse_code(place)
    try:
        with quiet():
            made: Any = LlavaForConditionalGeneration.from_pretrained(
                place, torch_dtype=dtype or "auto", output_loading_info=True, local_files_only=True
            )
    except Exception as error:  # the library raises what it likes on damaged or missing files
        reason = " ".join(str(error).split())[:200].rstrip(".:") or type(error).__name__
        raise ModelError(f"{place} cannot be loaded by transformers ({reason}): copy it again") from error
    model, told = made
    if missing := sorted(told["missing_keys"]):
        raise ModelError(f"{place} lacks {len(missing)} weights ({', '.join(missing[:3])}): copy it again")
    return model.eval()


def load_processor(folder: str | Path) -> Any:
    """Reads a LLaVA's tokenizer and image processor.

    Raises:
        ModelError: they are missing or damaged.
    """
    from transformers import AutoProcessor

    read: Any = AutoProcessor
    try:
        return read.from_pretrained(Path(folder).expanduser(), trust_remote_code=False, local_files_only=True)
    except Exception as error:  # as above
        reason = " ".join(str(error).split())[:200].rstrip(".:") or type(error).__name__
        raise ModelError(f"{folder} has no processor that transformers reads ({reason}): copy it again") from error


def tower_of(llava: Any) -> Any:
    """The image tower of a LLaVA, where this version of transformers has it."""
    return llava.model.vision_tower if hasattr(llava.model, "vision_tower") else llava.vision_tower


def swap_tower(llava: Any, model: DualEncoder) -> None:
    """Puts a model's image tower into a LLaVA, in place, cast to the type of the LLaVA's own.

    Args:
        llava: a `LlavaForConditionalGeneration`.
        model: a transformers CLIP or SigLIP, or an open_clip model that can be written as one.

    Raises:
        ExportError: the tower does not fit; the message names the layer or setting. Nothing has changed then.
    """
    tower = tower_of(llava)
    source, config = _vision(model)
    kind = str(tower.config.model_type).removesuffix("_vision_model")
    theirs = str(config.model_type).removesuffix("_vision_model")
    if kind != theirs:
        raise ExportError(f"this LLaVA has a {kind} tower and {model.spec} a {theirs} one: use a model of its family")
    own = {_plain(name): tensor for name, tensor in tower.state_dict().items()}
    for name, tensor in own.items():
        if name not in source:
            raise _refused(name, model, "is not in the model", "a model with as many blocks as the LLaVA's tower")
        if source[name].shape != tensor.shape:
            sizes = " and ".join("×".join(map(str, side.shape)) for side in (source[name], tensor))
            what = "of the same width and picture size"
            raise _refused(name, model, f"has sizes {sizes} in the model and the LLaVA", f"a model {what}")
    if more := [name for name in source if name not in own and not name.startswith("head.")]:
        raise _refused(more[0], model, "has no place in the LLaVA", "a model with as many blocks as its tower")
    for key in SAME:
        have, need = getattr(config, key), getattr(tower.config, key)
        if have != need:
            raise _refused(
                f"config.{key}", model, f"is {have!r} in the model and {need!r} in the LLaVA", "its own kind"
            )
    with torch.no_grad():
        for name, tensor in tower.state_dict().items():
            tensor.copy_(source[_plain(name)])


@dataclass(frozen=True)
class PixelDifference:
    """How the LLaVA prepares pictures otherwise than the model was evaluated with.

    Attributes:
        pictures: how many were compared.
        shapes: (model, LLaVA), 3×H×W.
        largest: absolute difference of pixel values; None where the shapes differ.
        mean: likewise.
    """

    pictures: int
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    largest: float | None
    mean: float | None

    def __str__(self) -> str:
        if self.largest is None:
            ours, theirs = ("×".join(map(str, shape)) for shape in self.shapes)
            return f"the LLaVA's pictures are {theirs}, the model's {ours}"
        if not self.largest:
            return f"the LLaVA prepares pictures as the model does ({self.pictures} compared)"
        return (
            f"the LLaVA prepares pictures otherwise than the model: pixels differ by up to {self.largest:.2g}, "
            f"{self.mean:.2g} on average ({self.pictures} compared); the LLaVA's own preparation is used"
        )


def pixel_difference(processor: Any, model: DualEncoder, pictures: Sequence[Any]) -> PixelDifference:
    """Compares the LLaVA's image processor with the model's preprocessing.

    Args:
        processor: the LLaVA's image processor.
        model: whose tower is put in.
        pictures: PIL pictures.
    """
    theirs: Tensor = processor(images=list(pictures), return_tensors="pt")["pixel_values"]
    ours = torch.stack([model.preprocess(picture) for picture in pictures])
    shapes = (tuple(ours.shape[1:]), tuple(theirs.shape[1:]))
    if shapes[0] != shapes[1]:
        return PixelDifference(len(pictures), shapes, None, None)
    apart = (theirs.float() - ours.float()).abs()
    return PixelDifference(len(pictures), shapes, float(apart.max()), float(apart.mean()))


def export_llava(model: DualEncoder | str | Path, path: str | Path, llava: str | Path) -> Path:
    """Writes a LLaVA with a model's image tower, and verifies it in a fresh process before the folder gets its name.

    Everything but the tower stays as it was, types included. Verified by transformers alone, with the sources moved
    away: the hidden states that the LLaVA reads equal `encode_tokens` of the model (cast to the LLaVA's type) on
    identical pixels to 1e-5 in float32, and a greedy answer equals that of the model in memory, token for token.

    Args:
        model: a model, a run folder or any model spec.
        path: the folder to write; new or empty.
        llava: the folder of a transformers LLaVA.

    Returns:
        The folder.

    Raises:
        OutputError: the folder is not empty, or cannot be written.
        ModelError: there is no such model or LLaVA.
        ExportError: the tower does not fit (the message names the layer), or what was written does not load back the
            same; nothing is kept then.
    """
    from modalign.exporting.probes import probe_pictures

    path = Path(path).expanduser().absolute()
    if path.is_dir() and any(path.iterdir()):
        raise OutputError(f"{path} is not empty: choose a new folder, or empty it")
    if not isinstance(model, DualEncoder):
        restore(source_paths(str(model)))
        model = load(model)
    base = Path(llava).expanduser().absolute()
    restore([base])
    source = model.frozen_copy().to("cpu", torch.float32)
    made = load_llava(base)
    swap_tower(made, source)
    processor = load_processor(base)
    pictures = probe_pictures(Path(model.spec).expanduser())
    told = pixel_difference(processor.image_processor, source, pictures)
    pixels = processor.image_processor(images=pictures, return_tensors="pt")["pixel_values"].float()
    layers = made.config.vision_feature_layer
    layers = [layers] if isinstance(layers, int) else list(layers)
    stored = source.to("cpu", tower_of(made).dtype).to("cpu", torch.float32)  # what the LLaVA's type leaves of it
    with torch.no_grad():
        expected = torch.cat([stored.encode_tokens(pixels, layer).hidden for layer in layers], dim=-1)
    tokens = _greedy(made, processor, pictures[0])
    sources = [*source_paths(model.spec, getattr(model, "config", None) if model.family == "open_clip" else None), base]
    with whole_folder(path) as draft:
        with quiet():
            made.save_pretrained(draft)
            processor.save_pretrained(draft)
        (draft / "README.md").write_text(_card(model, base, told), encoding="utf-8")
        del made
        gc.collect()
        outputs = _loaded_back(draft, pixels, pictures[0], layers, sources)
        apart = float((outputs["hidden"] - expected).abs().max())
        limit = LIMIT * max(1.0, float(expected.abs().max()))
        if not apart <= limit or outputs["tokens"].tolist() != tokens.tolist():
            raise ExportError(
                f"what was exported computes something else (hidden states differ by {apart:.1e}, limit {limit:.1e}); "
                "nothing was kept. Please report this with the model's name"
            )
        record = {
            "format": "llava",
            "spec": model.spec,
            "llava": base.name,
            "fingerprint": model.fingerprint,
            "verification": {"hidden_states": apart, "limit": limit, "layers": layers, "greedy_tokens": NEW_TOKENS},
            "preprocessing": {"largest": told.largest, "mean": told.mean, "pictures": told.pictures, "told": str(told)},
            "versions": versions(),
        }
        (draft / "export.json").write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"hidden states of layer {', '.join(map(str, layers))}: largest difference {apart:.1e} (limit {limit:.1e})")
    print(told)
    return path


def _vision(model: DualEncoder) -> tuple[dict[str, Tensor], Any]:
    """The state of a model's image trunk under transformers' names, and its configuration."""
    if isinstance(model, OpenClip):
        from modalign.exporting.shipping import TARGETS

        model = TARGETS["transformers"](model)
    if not isinstance(model, HuggingFace):
        raise ExportError(f"the image tower of {model.spec} ({model.family}) cannot be put into a LLaVA: use a CLIP")
    vision: nn.Module = model.module.vision_model  # type: ignore[assignment]
    return {_plain(name): tensor for name, tensor in vision.state_dict().items()}, model.config.vision_config


def _plain(name: str) -> str:
    """A tower's own name of a weight: transformers 4 keeps the tower one level deeper than 5 does."""
    return name.removeprefix("vision_model.")


def _refused(layer: str, model: DualEncoder, why: str, use: str) -> ExportError:
    return ExportError(f"{model.spec} does not fit the LLaVA: vision_tower.{layer} {why}; use {use}")


def _greedy(llava: Any, processor: Any, picture: Any) -> Tensor:
    inputs = llava_alone.inputs(llava, processor, PROMPT, picture)
    with torch.no_grad():
        tokens: Tensor = llava.generate(**inputs, do_sample=False, num_beams=1, max_new_tokens=NEW_TOKENS)
    return tokens


def _loaded_back(
    draft: Path, pixels: Tensor, picture: Any, layers: Sequence[int], sources: Sequence[Path]
) -> dict[str, Tensor]:
    """What transformers alone makes of the folder, moved, offline, in a process where modalign cannot be imported."""
    from safetensors.torch import load_file, save_file

    with tempfile.TemporaryDirectory(prefix="modalign-verify-", dir=draft.parent) as place:
        folder = Path(place)
        moved = folder / "moved"
        draft.rename(moved)  # a copy of a LLaVA would take its size again
        try:
            save_file({"pixels": pixels.contiguous()}, folder / "inputs.safetensors")
            picture.save(folder / "picture.png")
            forbidden = [str(name) for path in sources for name in (path, f"{path}{SUFFIX}")]
            task = {"export": str(moved), "forbidden": forbidden, "layers": list(layers), "prompt": PROMPT}
            (folder / "task.json").write_text(json.dumps(task | {"new_tokens": NEW_TOKENS}), encoding="utf-8")
            script = folder / "llava_alone.py"
            script.write_text(Path(llava_alone.__file__).read_text(encoding="utf-8"), encoding="utf-8")
            with moved_away(sources):
                done = subprocess.run(
                    [sys.executable, "-P", str(script), str(folder)],
                    cwd=folder,
                    env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "empty")},
                    capture_output=True,
                    text=True,
                    check=False,
                )
            if done.returncode:
                lines = [line for line in done.stderr.strip().splitlines() if line.strip()] or ["no message"]
                raise ExportError(
                    f"the export cannot be loaded back by transformers ({lines[-1].strip()}); nothing was kept: check "
                    "that the LLaVA itself loads there"
                )
            return load_file(folder / "outputs.safetensors")
        finally:
            shutil.move(moved, draft)


def _card(model: DualEncoder, llava: Path, told: PixelDifference) -> str:
    return (
        f"# {llava.name} with the image tower of {Path(model.spec).name}\n\n"
        f"The weights of {llava.name}, its image tower replaced. {str(told)[0].upper()}{str(told)[1:]}.\n\n"
        "## Load it\n\n```python\nfrom transformers import AutoProcessor, LlavaForConditionalGeneration\n\n"
        'folder = "path/to/this/folder"\n'
        "model = LlavaForConditionalGeneration.from_pretrained(folder).eval()\n"
        "processor = AutoProcessor.from_pretrained(folder)\n```\n"
    )
