"""Loads an exported LLaVA with transformers and runs it: as a script, without modalign.

The one argument is a folder with `task.json` ({"export", "forbidden", "layers", "prompt", "new_tokens"}),
`inputs.safetensors` (pixels) and `picture.png`; `outputs.safetensors` is written beside them.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any


def inputs(model: Any, processor: Any, prompt: str, picture: Any) -> dict[str, Any]:
    """One prompt with one <image> and its picture, as `generate` takes them."""
    config = model.config
    pixels = processor.image_processor(images=[picture], return_tensors="pt")["pixel_values"]
    patch = config.vision_config.patch_size
    # SigLIP's tower has no class token: "full" is then the patches, and "default" would cut one of them off.
    count = (pixels.shape[-2] // patch) * (pixels.shape[-1] // patch)
    count += config.vision_config.model_type.startswith("clip")
    count -= config.vision_feature_select_strategy == "default"
    token = processor.tokenizer.convert_ids_to_tokens(config.image_token_index)
    batch = processor.tokenizer([prompt.replace("<image>", token * count)], return_tensors="pt")
    ids = {name: batch[name] for name in ("input_ids", "attention_mask")}
    return {**ids, "pixel_values": pixels.to(model.dtype)}


def main(folder: Path) -> None:
    """Runs the model of `task.json` on the inputs in `folder`."""
    task = json.loads((folder / "task.json").read_text(encoding="utf-8"))
    sys.modules["modalign"] = None  # type: ignore[assignment]  # an import of it fails from here on
    forbidden = [os.path.realpath(path) for path in task["forbidden"]]

    def refuse(event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(args[0], str | bytes):
            path = os.path.realpath(os.fsdecode(args[0]))
            if any(path == place or path.startswith(place + os.sep) for place in forbidden):
                raise PermissionError(f"the export still reads {path}")

    sys.addaudithook(refuse)

    import torch
    from PIL import Image
    from safetensors.torch import load_file, save_file
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    kinds: Any = (LlavaForConditionalGeneration, AutoProcessor)
    model = kinds[0].from_pretrained(task["export"], torch_dtype="auto").eval()
    processor = kinds[1].from_pretrained(task["export"])
    pixels = load_file(folder / "inputs.safetensors")["pixels"]
    with torch.no_grad():
        told = inputs(model, processor, task["prompt"], Image.open(folder / "picture.png"))
        tokens = model.generate(**told, do_sample=False, num_beams=1, max_new_tokens=task["new_tokens"])
        tower = model.model.vision_tower if hasattr(model.model, "vision_tower") else model.vision_tower
        states = tower.float()(pixels, output_hidden_states=True).hidden_states
        hidden = torch.cat([states[layer] for layer in task["layers"]], dim=-1)
    save_file({"hidden": hidden.contiguous(), "tokens": tokens.contiguous()}, folder / "outputs.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
