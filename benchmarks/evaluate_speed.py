"""Zero-shot and retrieval of one model on one set, against clip-benchmark (PyPI) on the same files.

    python benchmarks/evaluate_speed.py [--pictures 1000] [--rounds 3]       (writes docs/results/evaluate_speed.md)

The model is open_clip's ViT-B-32 with random weights (speed does not depend on the weights); pictures are JPEGs of
500 × 375 in class folders, with five captions of 8 to 20 words each, classes with 80 prompts. Both work in float32,
with equal batch size, workers and threads. clip-benchmark is called as its command line does, one task after the other
in one process, without what that command does besides; modalign also makes its intervals.

Every round starts each anew in a process of its own: clip-benchmark, modalign without a store of features ("cold"), and
modalign a second time ("again"). Told are medians over rounds: start-up (imports), loading the model, and the tasks.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

WORDS = ["a", "the", "red", "small", "old", "dog", "cat", "boat", "tree", "man", "woman", "street", "near", "on", "two"]
ARCHITECTURE = "ViT-B-32"
CLASSES, CAPTIONS, RECALLS = 20, 5, (1, 5, 10)
BATCH = 64
COMMAND = "python benchmarks/evaluate_speed.py"
SIDES = ("clip-benchmark", "cold", "again")
FASTER, ENCODING = 2.0, 30.0


def make_set(root: Path, pictures: int) -> None:
    """Pictures in class folders, a table of captions, and a checkpoint."""
    import numpy as np
    import open_clip
    import torch
    from PIL import Image

    rng, words = np.random.default_rng(0), random.Random(0)
    lines = []
    for number in range(pictures):
        path = root / "test" / f"kind {number % CLASSES}" / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC).save(path, quality=90)
        said = [" ".join([*words.choices(WORDS, k=words.randint(7, 19)), str(number)]) for _ in range(CAPTIONS)]
        lines.append({"file_name": str(path), "text": said})
    (root / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    torch.manual_seed(0)
    torch.save(open_clip.create_model(ARCHITECTURE).state_dict(), root / "model.pt")


# ---- each side, in a process of its own ---------------------------------------------------------------------


def clip_benchmark(root: Path, workers: int) -> dict[str, Any]:
    """Both tasks as `clip_benchmark eval` runs them: a data loader and a pass over the pictures each."""
    begin = time.perf_counter()
    import numpy as np
    import open_clip
    import torch
    from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval
    from PIL import Image
    from torchvision.datasets import ImageFolder

    # clip-benchmark 1.6.2 writes float(array of one element), which NumPy 2.5 refuses.
    zeroshot_classification.float = lambda value: float(np.asarray(value).reshape(-1)[0])
    imported = time.perf_counter()
    model, _, transform = open_clip.create_model_and_transforms(ARCHITECTURE, pretrained=str(root / "model.pt"))
    model.eval()
    tokenizer = open_clip.get_tokenizer(ARCHITECTURE)
    loaded = time.perf_counter()

    class Captioned(torch.utils.data.Dataset[Any]):
        def __init__(self) -> None:
            self.rows = [json.loads(line) for line in (root / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]

        def __len__(self) -> int:
            return len(self.rows)

        def __getitem__(self, index: int) -> tuple[Any, list[str]]:
            row = self.rows[index]
            with Image.open(row["file_name"]) as picture:
                return transform(picture.convert("RGB")), row["text"]

    def batch(rows: list[tuple[Any, list[str]]]) -> tuple[Any, list[list[str]]]:
        return torch.stack([pixels for pixels, _ in rows]), [said for _, said in rows]

    labelled = ImageFolder(str(root / "test"), transform=transform)
    loader = torch.utils.data.DataLoader(labelled, batch_size=BATCH, num_workers=workers)
    templates = [template("{c}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES]
    found = zeroshot_classification.evaluate(model, loader, tokenizer, labelled.classes, templates, "cpu", amp=False)
    loader = torch.utils.data.DataLoader(Captioned(), batch_size=BATCH, num_workers=workers, collate_fn=batch)
    found |= zeroshot_retrieval.evaluate(model, loader, tokenizer, "cpu", amp=False, recall_k_list=list(RECALLS))
    done = time.perf_counter()
    metrics = {"zero_shot.acc1": found["acc1"], "zero_shot.acc5": found["acc5"]}
    for k in RECALLS:
        metrics[f"retrieval.text_to_image_r{k}"] = found[f"image_retrieval_recall@{k}"]
        metrics[f"retrieval.image_to_text_r{k}"] = found[f"text_retrieval_recall@{k}"]
    seconds = {"start-up": imported - begin, "loading": loaded - imported, "tasks": done - loaded}
    return {"seconds": seconds, "metrics": metrics}


def modalign(root: Path, workers: int) -> dict[str, Any]:
    """Both tasks through a store; then the encoding alone, from that store."""
    begin = time.perf_counter()
    import open_clip  # noqa: F401  (which loading would import, and clip-benchmark's start-up does)

    from modalign.evaluation import tasks
    from modalign.evaluation.suite import prepare
    from modalign.models import load

    imported = time.perf_counter()
    model = load(f"open_clip:{ARCHITECTURE}@{root / 'model.pt'}")
    loaded = time.perf_counter()
    wanted = [f"zero-shot:{root / 'test'}", f"retrieval:{root / 'pairs.jsonl'}"]
    encoding = 0.0
    encode = tasks.encode

    def timed(*arguments: Any, **named: Any) -> Any:
        nonlocal encoding
        start = time.perf_counter()
        encoded = encode(*arguments, **named)
        encoding += time.perf_counter() - start
        return encoded

    tasks.encode = timed
    passes: dict[str, Any] = {"batch_size": BATCH, "workers": workers, "store": root / "store"}
    found = tasks.evaluate(model, wanted, templates="openai80", gap=False, **passes)
    done = time.perf_counter()
    seconds = {"start-up": imported - begin, "loading": loaded - imported, "tasks": done - loaded, "encoding": encoding}
    # The second evaluation reads results and encodes nothing; what reading the features costs is told apart.
    start = time.perf_counter()
    encode(model, prepare(wanted, templates="openai80"), **passes)
    seconds["features read"] = time.perf_counter() - start
    return {"seconds": seconds, "metrics": {name: metric.value for name, metric in found.metrics.items()}}


# ---- rounds and page ----------------------------------------------------------------------------------------


def run(side: str, root: Path, workers: int) -> dict[str, Any]:
    """One side in a fresh process."""
    command = [sys.executable, __file__, "--side", side, "--root", str(root), "--workers", str(workers)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def page(rounds: list[dict[str, Any]], pictures: int, workers: int) -> str:
    """The table, in Markdown."""
    import os

    from modalign.environment import commit, versions

    told = ", ".join(f"{name} {version}" for name, version in versions().items())

    def median(side: str, part: str) -> float:
        return statistics.median(found[side]["seconds"][part] for found in rounds)

    def ratio(part: str, side: str, other: str = "clip-benchmark", theirs: str = "tasks") -> float:
        each = [found[other]["seconds"][theirs] / max(found[side]["seconds"][part], 1e-9) for found in rounds]
        return statistics.median(each)

    both = ratio("tasks", "cold")
    read = ratio("features read", "again", "cold", "encoding")
    first, ours = rounds[0]["clip-benchmark"]["metrics"], rounds[0]["cold"]["metrics"]
    apart = max(abs(value - ours[name]) for name, value in first.items())
    lines = [
        "# Zero-shot and retrieval against clip-benchmark",
        "",
        f"`{COMMAND} --pictures {pictures} --rounds {len(rounds)} --workers {workers}`",
        "",
        f"{pictures:,} JPEGs of 500 × 375, {CLASSES} classes with 80 prompts, {CAPTIONS * pictures:,} captions; "
        f"{ARCHITECTURE}, float32, batches of {BATCH}; processes that decode, each: {workers}; {os.cpu_count()} cores. "
        f"Seconds, medians; rounds: {len(rounds)}.",
        "",
        "| | start-up | loading the model | both tasks | of it encoding |",
        "|---|---|---|---|---|",
    ]
    for side in SIDES:
        parts = [f"{median(side, part):.1f}" for part in ("start-up", "loading", "tasks")]
        encoding = f"{median(side, 'encoding'):.2f}" if side != "clip-benchmark" else "–"
        name = side if side == "clip-benchmark" else f"modalign, {side}"
        lines.append(f"| {' | '.join([name, *parts, encoding])} |")
    lines += [
        "",
        f"- Cold, both tasks: **{both:.2f}×** as fast as clip-benchmark (wanted: {FASTER:g}×).",
        f"- The second run reads its results and encodes nothing. Where features are read for another task, they take "
        f"{median('again', 'features read'):.2f} s, checking that no picture has changed: **{read:.0f}×** less than "
        f"encoding (wanted: {ENCODING:g}×).",
        f"- The largest difference between the two in any of {len(first)} metrics: {100 * apart:.2f} points "
        f"(one item is {100 / pictures:.2f}).",
        "",
        f"modalign commit {commit() or 'installed'}, {told}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs the rounds and writes the page; with --side, one side, whose JSON it prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--doc", type=Path, default=Path("docs/results/evaluate_speed.md"))
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side is not None:
        side = clip_benchmark if arguments.side == "clip-benchmark" else modalign
        print(json.dumps(side(arguments.root, arguments.workers)))
        return
    import shutil

    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_set(root, arguments.pictures)
        for number in range(arguments.rounds):
            shutil.rmtree(root / "store", ignore_errors=True)
            rounds.append({side: run(side, root, arguments.workers) for side in SIDES})
            told = {side: round(found["seconds"]["tasks"], 1) for side, found in rounds[-1].items()}
            print(f"round {number + 1}: seconds of both tasks {told}", file=sys.stderr)
    arguments.doc.parent.mkdir(parents=True, exist_ok=True)
    arguments.doc.write_text(page(rounds, arguments.pictures, arguments.workers), encoding="utf-8")
    print(arguments.doc)


if __name__ == "__main__":
    main()
