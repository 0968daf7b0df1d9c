"""One training step with stored features of the frozen networks, against asking them at every step.

    python benchmarks/step.py [--rounds 3]                (writes docs/results/step.md)

CLIP-Refine reads the initial model's features of pictures and captions, KUEA those of the initial image tower and of a
target. The student is open_clip's ViT-B-32, the target timm's ViT-B/16, both at 224 pixels with random weights (speed
does not depend on the weights); pictures are JPEGs of 500 × 375, captions have 8 to 20 words. A step is all of it:
decoding, reading the store or asking the frozen networks, the trained towers, the loss, AdamW.

Every round times each variant of a method once, one right after the other, so that a machine whose speed drifts slows
all of them alike; told are medians, and the medians of the ratios within a round.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import open_clip
import timm
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from modalign import methods
from modalign.console import Reporter
from modalign.data.feature_store import Rows
from modalign.data.images import image_batches
from modalign.embedder import Embedder
from modalign.embeddings import Embeddings
from modalign.encoders import Encoder, Tower
from modalign.environment import versions
from modalign.methods import Method
from modalign.models import DualEncoder
from modalign.models.open_clip import OpenClip
from modalign.models.vision_timm import TimmVision
from modalign.recipe import OptimizerRecipe
from modalign.training import boundary, optimizer

WORDS = ["a", "the", "red", "small", "old", "dog", "cat", "boat", "tree", "man", "woman", "street", "near", "on", "two"]
COMMAND = "python benchmarks/step.py"
PARTS = ("decoding", "frozen networks or store", "trained towers", "loss", "AdamW")
LIVE, STORED = "asked at every step", "stored"
SHORT = "stored, captions at their true length"
WANTED = {"kuea": 1.8, "clip-refine": 1.2}


class Clock:
    """Seconds of the parts of one step."""

    def __init__(self) -> None:
        self.parts = dict.fromkeys(PARTS, 0.0)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Counts what runs inside."""
        begin = time.perf_counter()
        yield
        self.parts[name] += time.perf_counter() - begin

    @property
    def total(self) -> float:
        """All parts."""
        return sum(self.parts.values())


@dataclass
class Bench:
    """One method's step on one batch of pictures, with what its frozen networks say stored or asked.

    Args:
        model: the student; its weights move a little with every step.
        method: CLIP-Refine or KUEA.
        towers: which of the student's train.
        pictures: JPEG files.
        captions: one a picture.
        store: where the frozen features are kept.
        target: KUEA's.
    """

    model: DualEncoder
    method: Method
    towers: tuple[boundary.SideName, ...]
    pictures: list[Path]
    captions: list[str]
    store: Path
    target: TimmVision | None = None
    stored: dict[str, Rows] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.teacher = self.model.frozen_copy()
        self.model.module.requires_grad_(False)
        self.parameters = {tower: dict(self.model.named_parameters(tower)) for tower in self.towers}
        every = {name: p for group in self.parameters.values() for name, p in group.items()}
        for parameter in every.values():
            parameter.requires_grad_(True)
        module = self.method.module()
        own = dict(module.named_parameters()) if module is not None else {}
        self.optimizer = optimizer.build(every, own, OptimizerRecipe(lr=1e-7))
        embedder = Embedder(self.store, batch_size=len(self.pictures), reporter=Reporter(silent=True))
        wheres = [str(path) for path in self.pictures]
        encoders: dict[str, Encoder] = {"frozen_image": Tower(self.teacher)}
        if self.target is not None:
            encoders["target"] = self.target
        for name, encoder in encoders.items():
            self.stored[name] = embedder.images(encoder, self.pictures, wheres).rows
        if "text" in self.towers:
            self.stored["frozen_text"] = embedder.texts(Tower(self.teacher, "text"), self.captions).rows

    def step(self, *, live: bool, padded: bool = True, count: int | None = None) -> Clock:
        """One whole step.

        Args:
            live: ask the frozen networks instead of the store.
            padded: send captions of 77 tokens through the text tower, as published, instead of their true length.
            count: of the batch's rows; None = all.
        """
        clock = Clock()
        wheres = [str(path) for path in self.pictures]
        other = self.target.preprocess if live and self.target is not None else None
        rows = torch.arange(len(self.pictures))[:count]
        with clock.part("decoding"):
            batch = next(iter(image_batches(self.pictures, wheres, self.model.preprocess, [rows], other=other)))
            tokens = self.model.tokenize(self.captions[:count]) if "text" in self.towers else None
        with clock.part("frozen networks or store"), torch.no_grad():
            frozen = {name: found[rows] for name, found in self.stored.items()}
            if live:
                frozen = {"frozen_image": self.teacher.encode_image(batch.pixels)}
                if tokens is not None:
                    frozen["frozen_text"] = _text(self.teacher, padded)(tokens)
                if self.target is not None:
                    assert batch.other is not None
                    frozen["target"] = self.target.encode(batch.other)
        sides: dict[boundary.SideName, boundary.Side] = {}
        sides["image"] = boundary.Side(self.model.encode_image, self.parameters["image"], batch.pixels)
        if tokens is not None:
            sides["text"] = boundary.Side(_text(self.model, padded), self.parameters["text"], tokens)
        draws = self.method.draw(0, 0, len(rows), self.model.embed_dim)
        record = Embeddings(**frozen, draws=draws, logit_scale=self.model.logit_scale)
        outcome = boundary.backward(sides, record, slice(0, len(rows)), self.method, 0.5)
        clock.parts["trained towers"] += outcome.tower_seconds
        clock.parts["loss"] += outcome.loss_seconds
        with clock.part("AdamW"):
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        return clock

    def counted(self) -> float:
        """The FLOPs of a step that asks, over those of one that reads; of four rows, since the batch cancels."""
        counts = []
        torch.backends.mha.set_fastpath_enabled(False)  # one opaque operation, which is not counted
        for live in (True, False):
            with FlopCounterMode(display=False) as counter:
                self.step(live=live, count=4)
            counts.append(int(counter.get_total_flops()))
        torch.backends.mha.set_fastpath_enabled(True)
        return counts[0] / counts[1]


def _text(model: DualEncoder, padded: bool) -> Callable[[Tensor], Tensor]:
    """The text tower on 77 tokens, or on as many as the longest caption of the batch has."""
    if not padded:
        return model.encode_text
    module: nn.Module = model.module
    encode: Callable[[Tensor], Tensor] = module.encode_text  # type: ignore[assignment]
    return encode


@dataclass
class Measured:
    """The rounds of one method."""

    title: str
    name: str
    batch: int
    counted: float
    rounds: list[dict[str, Clock]]

    def seconds(self, variant: str) -> float:
        """Median of a step."""
        return statistics.median(each[variant].total for each in self.rounds)

    def part(self, variant: str, part: str) -> float:
        """Median of a part of it."""
        return statistics.median(each[variant].parts[part] for each in self.rounds)

    def ratio(self, variant: str) -> float:
        """Median over rounds of asked / this variant."""
        return statistics.median(each[LIVE].total / each[variant].total for each in self.rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16, help="KUEA's; CLIP-Refine's is half of it")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--doc", type=Path, default=Path("docs/results/step.md"))
    arguments = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as place:
        measured = [
            measure("KUEA", kuea(Path(place), arguments.batch), arguments.rounds),
            measure("CLIP-Refine", clip_refine(Path(place), max(1, arguments.batch // 2)), arguments.rounds),
        ]
    page = render(measured, arguments.rounds)
    arguments.doc.write_text(page, encoding="utf-8")
    print(page)


def kuea(place: Path, batch: int) -> Bench:
    """The image tower trains; target and initial tower are frozen."""
    target = TimmVision(timm.create_model("vit_base_patch16_224", pretrained=False, num_classes=0), "bench")
    method = methods.from_config({"name": "kuea"})
    return Bench(_student(), method, ("image",), _pictures(place, batch), [], place / "store", target)


def clip_refine(place: Path, batch: int) -> Bench:
    """Both towers train; both initial towers are frozen."""
    words = random.Random(0)
    captions = [" ".join(words.choices(WORDS, k=words.randint(8, 20))) for _ in range(batch)]
    method = methods.from_config({"name": "clip-refine"})
    return Bench(_student(), method, ("image", "text"), _pictures(place, batch), captions, place / "store")


def measure(title: str, bench: Bench, rounds: int) -> Measured:
    """Counts FLOPs (which warms up) and times the variants in turn."""
    variants: dict[str, Callable[[], Clock]] = {
        LIVE: lambda: bench.step(live=True),
        STORED: lambda: bench.step(live=False),
    }
    if "text" in bench.towers:
        variants[SHORT] = lambda: bench.step(live=False, padded=False)
    counted = bench.counted()
    timed = []
    for number in range(rounds):
        timed.append({name: run() for name, run in variants.items()})
        print(f"{title}: round {number + 1} of {rounds}", flush=True)
    return Measured(title, bench.method.name, len(bench.pictures), counted, timed)


def _student() -> DualEncoder:
    config = open_clip.get_model_config("ViT-B-32")
    return OpenClip(open_clip.create_model("ViT-B-32"), config, open_clip.get_tokenizer("ViT-B-32"), "bench")


def _pictures(place: Path, count: int) -> list[Path]:
    """Smooth noise, which a JPEG decoder takes about as long for as for a photograph."""
    draw, paths = np.random.default_rng(0), []
    for number in range(count):
        small = Image.fromarray(draw.integers(0, 256, (47, 63, 3), dtype=np.uint8))
        paths.append(place / f"{count}-{number}.jpg")
        small.resize((500, 375), Image.Resampling.BICUBIC).save(paths[-1], quality=90)
    return paths


# ---- the page -----------------------------------------------------------------------------------------------


def render(measured: list[Measured], rounds: int) -> str:
    """The page: ratios, and where the time goes."""
    told = ", ".join(f"{name} {version}" for name, version in versions().items())
    load = os.getloadavg()[1]
    lines = [
        "# One training step: stored features against frozen networks at every step",
        "",
        f"Made by `{COMMAND}` (`make bench`) on {os.cpu_count()} cores of a shared machine (load {load:.1f} over five "
        f"minutes), {torch.get_num_threads()} threads, fp32:",
        f"{rounds} rounds, each timing every variant of a method one right after the other; medians, and the medians "
        "of",
        "the ratios within a round. Absolute seconds are this machine's and its load's. Student: open_clip's ViT-B-32;",
        "target: timm's ViT-B/16; 224 pixels, random weights. A step is decoding (JPEGs of 500 × 375), store or frozen",
        "networks, trained towers, loss and AdamW.",
        f"{told}.",
        "",
        "| method, batch | frozen networks | s/step | times faster | counted in FLOPs | wanted |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for method in measured:
        for variant in method.rounds[0]:
            first = variant == LIVE
            counted = f"{method.counted:.2f}" if variant == STORED else ""
            wanted = f"{WANTED[method.name]:g}" if variant == STORED else ""
            title = f"{method.title}, {method.batch}" if first else ""
            cells = (title, variant, f"{method.seconds(variant):.2f}", f"{method.ratio(variant):.2f}", counted, wanted)
            lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "*Captions are padded to 77 tokens, as in the published runs, except where the row says otherwise.*"]
    lines += [
        "",
        "## Where the time goes, seconds",
        "",
        f"| | {' | '.join(PARTS)} |",
        "|---" + "|--:" * len(PARTS) + "|",
    ]
    for method in measured:
        for variant in method.rounds[0]:
            parts = " | ".join(f"{method.part(variant, part):.3f}" for part in PARTS)
            lines.append(f"| {method.title}, {variant} | {parts} |")
    lines += ["", *(line for method in measured for line in _missing(method))]
    return "\n".join(lines).rstrip() + "\n"


def _missing(method: Measured) -> list[str]:
    """Why the ratio measured is not the one counted."""
    towers, frozen = "trained towers", "frozen networks or store"
    only = statistics.median(
        (each[LIVE].parts[towers] + each[LIVE].parts[frozen]) / each[STORED].parts[towers] for each in method.rounds
    )
    whole = method.seconds(STORED)
    parts = ", ".join(
        f"{part} {100 * method.part(STORED, part) / whole:.0f} %" for part in ("decoding", "loss", "AdamW")
    )
    return [
        f"{method.title}: {method.ratio(STORED):.2f}× measured, {method.counted:.2f}× counted. The networks alone give "
        f"{only:.2f}×. Of the stored step,",
        f"what no store saves is: {parts}. AdamW costs the same whatever the batch, and {method.batch} rows are few.",
        "",
    ]


if __name__ == "__main__":
    main()
