"""Loads an export the way its README says and computes features: run as a script, without modalign.

`verify` copies this file away and runs it in a fresh process. The one argument is a folder with `task.json`
({"export", "forbidden", "pictures", "captions"}) and `inputs.safetensors` (pixels, tokens); `outputs.safetensors`
and `outputs.json` are written beside them.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any


def main(folder: Path) -> None:
    """Runs the README's code, then the model it made, on the inputs in `folder`."""
    task = json.loads((folder / "task.json").read_text(encoding="utf-8"))
    sys.modules["modalign"] = None  # type: ignore[assignment]  # an import of it fails from here on
    sys.addaudithook(_refuse([os.path.realpath(path) for path in task["forbidden"]]))

    import torch
    from PIL import Image
    from safetensors.torch import load_file, save_file

    readme = Path(task["export"], "README.md").read_text(encoding="utf-8")
    found = re.search(r"```python\n(.*?)```", readme, re.DOTALL)
    assert found, "README.md holds no Python"
    made: dict[str, Any] = {}
    exec(found[1].replace('"path/to/this/folder"', repr(task["export"])), made)

    inputs = load_file(folder / "inputs.safetensors")
    pictures = [Image.open(path) for path in task["pictures"]]
    with torch.no_grad():
        if "processor" in made:
            outputs, tokens = _transformers(made, inputs, pictures, task["captions"])
        else:
            outputs, tokens = _open_clip(made, inputs, pictures, task["captions"])
    save_file({name: tensor.contiguous() for name, tensor in outputs.items()}, folder / "outputs.safetensors")
    (folder / "outputs.json").write_text(json.dumps({"tokens": tokens}), encoding="utf-8")


def _open_clip(
    made: dict[str, Any], inputs: Any, pictures: list[Any], captions: list[str]
) -> tuple[dict[str, Any], Any]:
    import torch

    model = made["model"]
    outputs = {
        "image_features": _feature(model.encode_image(inputs["pixels"], normalize=False)),  # CoCa's own default is True
        "text_features": _feature(model.encode_text(inputs["tokens"], normalize=False)),
        "logit_scale": model.logit_scale.exp().reshape(1),
        "pixels": torch.stack([made["preprocess"](picture) for picture in pictures]),
    }
    if getattr(model, "logit_bias", None) is not None:
        outputs["logit_bias"] = model.logit_bias.reshape(1)
    return outputs, made["tokenizer"](captions).tolist()


def _transformers(
    made: dict[str, Any], inputs: Any, pictures: list[Any], captions: list[str]
) -> tuple[dict[str, Any], Any]:
    model, processor = made["model"], made["processor"]
    outputs = {
        "image_features": _feature(model.get_image_features(pixel_values=inputs["pixels"])),
        "text_features": _feature(model.get_text_features(input_ids=inputs["tokens"])),
        "logit_scale": model.logit_scale.exp().reshape(1),
        "pixels": processor(images=pictures, return_tensors="pt")["pixel_values"],
    }
    if hasattr(model, "logit_bias"):
        outputs["logit_bias"] = model.logit_bias.reshape(1)
    length = inputs["tokens"].shape[1]
    return outputs, processor(text=captions, padding="max_length", truncation=True, max_length=length)["input_ids"]


def _feature(output: Any) -> Any:
    """open_clip may return (feature, tokens); transformers 4 the feature, 5 an object that holds it."""
    if isinstance(output, tuple):
        return output[0]
    return getattr(output, "pooler_output", output)


def _refuse(forbidden: list[str]) -> Any:
    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(args[0], str | bytes):
            path = os.path.realpath(os.fsdecode(args[0]))
            if any(path == place or path.startswith(place + os.sep) for place in forbidden):
                raise PermissionError(f"the export still reads {path}")

    return hook


if __name__ == "__main__":
    main(Path(sys.argv[1]))
