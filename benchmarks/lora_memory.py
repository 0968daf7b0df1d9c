"""Peak memory of one tower-training step: full, the last blocks, LoRA, and LoRA with recomputed blocks.

    python benchmarks/lora_memory.py                 (writes docs/results/lora-memory.md)

The model is open_clip's ViT-B-32 with random weights. Each variant runs in a fresh process: two steps of AdamW on
random pictures and captions through the embedding boundary, in chunks. What is told is the process's largest resident
size (`ru_maxrss`) less what it was when the libraries were loaded and nothing else.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

VARIANTS: dict[str, dict[str, Any]] = {
    "full": {},
    "full, blocks recomputed": {"gradient_checkpointing": True},
    "last:2": {"train": "last:2"},
    "lora, rank 16": {"train": "lora"},
    "lora, rank 16, blocks recomputed": {"train": "lora", "gradient_checkpointing": True},
}
COMMAND = "python benchmarks/lora_memory.py"
MB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--chunk", type=int, default=16)
    parser.add_argument("--architecture", default="ViT-B-32")
    parser.add_argument("--doc", type=Path, default=Path("docs/results/lora-memory.md"))
    parser.add_argument("--variant", choices=VARIANTS, help="measure this one here and print it as JSON")
    arguments = parser.parse_args()
    if arguments.variant is not None:
        print(json.dumps(measure(arguments.variant, arguments.architecture, arguments.batch, arguments.chunk)))
        return
    rows = {}
    for name in VARIANTS:
        done = subprocess.run(
            [sys.executable, *sys.argv, "--variant", name], capture_output=True, text=True, check=True
        )
        rows[name] = json.loads(done.stdout.splitlines()[-1])
        print(name, rows[name], flush=True)
    arguments.doc.write_text(page(rows, arguments), encoding="utf-8")


def measure(name: str, architecture: str, batch: int, chunk: int) -> dict[str, float]:
    import open_clip
    import peft  # noqa: F401 - part of what is loaded before measuring
    import torch

    from modalign import methods, recipe
    from modalign.embeddings import Embeddings
    from modalign.models.open_clip import OpenClip
    from modalign.training import boundary, optimizer, scope
    from modalign.training.cost import peak_memory

    settings = recipe.load(None, **VARIANTS[name])
    method = methods.from_config({"name": "contrastive"})
    before = peak_memory()
    torch.manual_seed(0)
    config = open_clip.get_model_config(architecture)
    model = OpenClip(open_clip.CLIP(**config), config, open_clip.get_tokenizer(architecture), architecture)
    chosen = scope.choose(model, method, settings)
    chosen.begin(settings)
    adamw = optimizer.build(chosen.trained, {}, settings.optimizer)
    ids = torch.arange(batch)
    rest = Embeddings(image_ids=ids, caption_ids=ids, logit_scale=100.0)
    words = ["a photograph of something that stands in front of something else"] * batch
    inputs = {"image": torch.randn(batch, 3, 224, 224), "text": model.tokenize(words)}
    encode = {"image": model.encode_image, "text": model.encode_text}
    for _ in range(2):  # from the second step on, AdamW's moments lie beside activations and gradients
        adamw.zero_grad(set_to_none=True)
        sides = {t: boundary.Side(encode[t], group, inputs[t]) for t, group in chosen.parameters.items()}
        with chosen.training():
            boundary.backward(sides, rest, slice(0, batch), method, 0.5, chunk=chunk)
        adamw.step()
    peak = peak_memory()
    return {
        "peak": (peak - before) / MB,
        "weights": sum(p.numel() * p.element_size() for p in model.module.parameters()) / MB,
        "trained": sum(p.numel() for p in chosen.trained.values()),
        "moments": sum(t.numel() * t.element_size() for state in adamw.state.values() for t in state.values()) / MB,
    }


def page(rows: dict[str, dict[str, float]], arguments: argparse.Namespace) -> str:
    from modalign import environment

    versions = environment.versions() | {"peft": metadata.version("peft")}
    told = ", ".join(f"{name} {version}" for name, version in versions.items())
    full = rows["full"]["peak"]
    lines = [
        "# Memory: full training, the last blocks, LoRA",
        "",
        f"Made by `{COMMAND}`: open_clip's {arguments.architecture} with random weights, fp32 on a CPU, global batch "
        f"{arguments.batch} in chunks of {arguments.chunk}, two steps of AdamW; {told}.",
        "",
        "Peak is the process's largest resident size less what the loaded libraries take. It holds the weights, their "
        "gradients, AdamW's two moments and the activations of one chunk. Weights include the adapters.",
        "",
        "| train | peak, MB | of full | weights, MB | trained parameters | AdamW's moments, MB |",
        "| --- | --: | --: | --: | --: | --: |",
    ]
    lines += [
        f"| {name} | {row['peak']:,.0f} | {100 * row['peak'] / full:.0f} % | {row['weights']:,.0f} | "
        f"{row['trained']:,.0f} | {row['moments']:,.1f} |"
        for name, row in rows.items()
    ]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
