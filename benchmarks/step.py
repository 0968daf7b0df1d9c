"""One CLIP-Refine step on a ViT-B/32: what stored teacher features and true-length captions save.

    python benchmarks/step.py [--batch 8] [--rounds 5]

Every round times each variant once, so that a machine whose speed drifts slows all of them alike; printed are the
medians and the medians of the round-by-round ratios. The model is open_clip's ViT-B-32 with random weights (speed does
not depend on the weights), pictures are noise, captions have 8 to 20 words.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable

import open_clip
import torch
from torch import Tensor

from modalign import methods
from modalign.embeddings import Embeddings
from modalign.environment import versions
from modalign.models.open_clip import OpenClip
from modalign.training import boundary

WORDS = ["a", "the", "red", "small", "old", "dog", "cat", "boat", "tree", "man", "woman", "street", "near", "on", "two"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    config = open_clip.get_model_config("ViT-B-32")
    model = OpenClip(open_clip.create_model("ViT-B-32"), config, open_clip.get_tokenizer("ViT-B-32"), "bench")
    teacher = model.frozen_copy()
    method = methods.from_config({"name": "clip-refine"})
    pixels = torch.randn(arguments.batch, 3, 224, 224)
    words = random.Random(0)
    captions = [" ".join(words.choices(WORDS, k=words.randint(8, 20))) for _ in range(arguments.batch)]
    tokens = model.tokenize(captions)
    with torch.no_grad():
        stored = {"frozen_image": teacher.encode_image(pixels), "frozen_text": teacher.encode_text(tokens)}
    parameters = {tower: dict(model.named_parameters(tower)) for tower in ("image", "text")}

    def padded(ids: Tensor) -> Tensor:
        return model.module.encode_text(ids)

    def step(encode_text: Callable[[Tensor], Tensor], teacher_text: Callable[[Tensor], Tensor] | None) -> float:
        begin = time.perf_counter()
        frozen = stored
        if teacher_text is not None:
            with torch.no_grad():
                frozen = {"frozen_image": teacher.encode_image(pixels), "frozen_text": teacher_text(tokens)}
        sides = {
            "image": boundary.Side(model.encode_image, parameters["image"], pixels),
            "text": boundary.Side(encode_text, parameters["text"], tokens),
        }
        draws = method.draw(0, 0, arguments.batch, model.embed_dim)
        batch = Embeddings(**frozen, draws=draws, logit_scale=model.logit_scale)
        boundary.backward(sides, batch, slice(0, arguments.batch), method, 0.5)
        model.module.zero_grad(set_to_none=True)
        return time.perf_counter() - begin

    variants = {
        "published way: teacher at every step, captions padded to 77": lambda: step(padded, teacher.module.encode_text),
        "stored teacher, captions padded": lambda: step(padded, None),
        "stored teacher, captions at their true length": lambda: step(model.encode_text, None),
    }
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for run in variants.values():
        run()
    for _ in range(arguments.rounds):
        for name, run in variants.items():
            seconds[name].append(run())
    first = next(iter(seconds.values()))
    told = ", ".join(f"{name} {version}" for name, version in versions().items())
    print(f"ViT-B/32, batch {arguments.batch}, {torch.get_num_threads()} threads, {arguments.rounds} rounds; {told}")
    for name, times in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(first, times, strict=True))
        print(f"{statistics.median(times):7.2f} s  {ratio:5.2f}x  {name}")


if __name__ == "__main__":
    main()
