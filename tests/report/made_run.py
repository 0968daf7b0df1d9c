"""A run folder as `modalign refine` leaves it, made in a second from features that were never a network's."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from safetensors.numpy import save_file

from modalign.evaluation.gate import judge
from modalign.evaluation.results import Metric, Results, TaskResult
from modalign.evaluation.retrieval import IDENTICAL_CAPTIONS, TIES, retrieval_outcomes
from modalign.gap import measure

COLOURS = ("red", "orange", "gold", "green", "teal", "blue", "purple", "brown", "black", "pink")
SHAPES = ("circle", "square", "triangle", "cross", "ring", "bar")
HOSTILE = '<script>alert("caption")</script> & "quotes"'
RECIPE = """model: open_clip:ViT-B-32-quickgelu/openai
data:
  train: ./pairs & <more>
  batch_size: 128
method:
  name: clip-refine
  rafa: 1.0
train: projection
epochs: 5
seed: 0
"""


@dataclass
class Side:
    """Raw features of one model: N×d pictures, M×d captions."""

    image: NDArray[np.float32]
    text: NDArray[np.float32]


def write_pictures(folder: Path, count: int) -> tuple[list[Path], list[str]]:
    """`count` small drawings with a caption each; some names and captions are awkward on purpose."""
    folder.mkdir(parents=True, exist_ok=True)
    paths, captions = [], []
    for i in range(count):
        colour, shape = COLOURS[i % 10], SHAPES[(i // 10) % 6]
        image = Image.new("RGB", (72, 56), "white")
        draw = ImageDraw.Draw(image)
        box = (14 + i % 7, 8, 56, 48)
        outline = {"circle": draw.ellipse, "ring": draw.ellipse}.get(shape, draw.rectangle)
        outline(box, fill=None if shape == "ring" else colour, outline=colour, width=5)
        name = {0: 'quo"te & <b>.png', 1: "ünïcode 图片.png"}.get(i, f"{i:04d}.png")
        image.save(folder / name)
        paths.append(folder / name)
        captions.append(f"a {colour} {shape} number {i // 60}")
    captions[0] = HOSTILE
    return paths, captions


def features(count: int, offset: float, noise: float, seed: int, dim: int = 32) -> Side:
    """Pictures and captions that agree up to noise, apart by an offset, as dual encoders have it."""
    concept = np.random.default_rng(7).normal(size=(count, dim))
    direction = np.random.default_rng(8).normal(size=dim)
    direction *= offset * np.sqrt(dim) / np.linalg.norm(direction)
    generator = np.random.default_rng(seed)
    image = concept + noise * generator.normal(size=(count, dim)) + direction
    text = concept + noise * generator.normal(size=(count, dim)) - direction
    return Side(image.astype(np.float32), text.astype(np.float32))


def results(side: Side, captions: list[str], name: str, spec: str = "./pairs/test") -> Results:
    """What `modalign evaluate` would say of these features on a retrieval task."""
    image, text = torch.from_numpy(side.image), torch.from_numpy(side.text)
    ids = torch.from_numpy(np.unique(captions, return_inverse=True)[1])
    rows = torch.arange(len(captions))
    outcomes = retrieval_outcomes(image, text, rows, ids)
    metrics = {key: Metric.of(key, values, clusters=rows.numpy(), resamples=300) for key, values in outcomes.items()}
    protocol = {
        "split": "test",
        "samples": len(captions),
        "captions": len(captions),
        "identical_captions": IDENTICAL_CAPTIONS,
        "ties": TIES,
        "examples": "0123456789abcdef",
    }
    gap = measure(image, text, resamples=100).to_dict()
    # Models that differ have fingerprints that differ: the gate takes equal ones for one and the same model.
    model = {"spec": name, "fingerprint": hashlib.sha256(name.encode()).hexdigest()}
    return Results(model, [TaskResult("retrieval", spec, protocol, metrics)], gap)


def metrics_lines(steps: int, seed: int = 0) -> list[str]:
    """A training log with two terms, probes every tenth step and a validation at either end."""
    generator = np.random.default_rng(seed)
    lines = []
    for step in range(1, steps + 1):
        rafa = 2.0 * np.exp(-step / steps) + 0.1 * generator.normal()
        hycd = 1.2 * np.exp(-2 * step / steps) + 0.08 * generator.normal()
        entry = {
            "step": step,
            "epoch": 0,
            "progress": step / steps,
            "loss": rafa + hycd,
            "terms": {"rafa": rafa, "hycd": hycd},
            "lr": 3e-4,
            "gradient_norm": 1 + 0.2 * generator.random(),
        }
        if step == 1:
            entry["effective_logit_scale"] = 50.3
        if step % 10 == 1:
            norms = {"rafa": 0.1 + 0.02 * generator.random(), "hycd": 0.9 * np.exp(-2 * step / steps)}
            entry["boundary"] = {"norms": norms, "cosines": {"rafa|hycd": -0.3 + 0.05 * generator.normal()}}
        lines.append(json.dumps(entry))
    for step, value in ((0, 3.3), (steps, 1.1)):
        held = {"terms": {"rafa": value * 0.7, "hycd": value * 0.3}, "loss": value, "rows": 64}
        lines.insert(min(step, len(lines)), json.dumps({"step": step, "validation": held}))
    return lines


def write_features(folder: Path, before: Side, after: Side, paths: list[Path], captions: list[str]) -> None:
    """The features and rows of the evaluation pairs, one caption a picture."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, side in (("before", before), ("after", after)):
        save_file({"image": side.image, "text": side.text}, folder / f"{name}.safetensors")
    rows = {"paths": list(map(str, paths)), "captions": captions, "image_of_text": list(range(len(captions)))}
    (folder / "rows.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")


def make_run(folder: Path, *, count: int = 90, noise_after: float = 0.75, tolerance: float = 0.01) -> Path:
    """A finished run: `noise_after` below 1 makes it better than before, far above 1 worse."""
    folder.mkdir(parents=True)
    paths, captions = write_pictures(folder.parent / "pictures", count)
    before, after = features(count, 1.0, 1.0, seed=1), features(count, 0.5, noise_after, seed=1)
    write_features(folder / "features", before, after, paths, captions)
    sides = [results(before, captions, "start"), results(after, captions, "run")]
    gate = judge(*sides, tolerance, resamples=500)
    control = results(features(count, 0.5, 1.02, seed=1), captions, "contrastive")
    evaluation = {
        "before": sides[0].to_dict(),
        "after": sides[1].to_dict(),
        "gate": gate.to_dict(),
        "interpolation": None,
        "controls": [
            {
                "name": "contrastive fine-tuning",
                "results": control.to_dict(),
                "gate": judge(sides[0], control, tolerance, resamples=500).to_dict(),
            }
        ],
    }
    (folder / "evaluation.json").write_text(json.dumps(evaluation), encoding="utf-8")
    (folder / "metrics.jsonl").write_text("".join(line + "\n" for line in metrics_lines(120)), encoding="utf-8")
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    environment = {
        "versions": {"modalign": "0.1.0", "torch": "2.6.0"},
        "commit": "0123abc",
        "seed": 0,
        "device": "cpu",
        "threads": 2,
    }
    (folder / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
    cost = {
        "wall_seconds": {
            "data": 2.5,
            "towers": 40.0,
            "loss": 3.5,
            "evaluation": 12.0,
            "other": 2.0,
            "total": 60.0,
        },
        "peak_memory_bytes": 1_610_612_736,
        "trainable_parameters": 1_100_000,
        "frozen_parameters": 25_000_000,
        "forward_passes": {"image": 2_125, "text": 2_031, "saved_image": 19_125, "saved_text": 19_219},
        "samples_seen": 10_625,
    }
    (folder / "cost.json").write_text(json.dumps(cost), encoding="utf-8")
    return folder
