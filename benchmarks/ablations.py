"""Every recipe of recipes/ablations by the command in its first line, and what it says: docs/ablations.md.

    python benchmarks/ablations.py [--only NAME …] [--seeds 3]

A table can be had alone by that command; this script runs them one after the other and goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shlex
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modalign import environment
from modalign import recipe as recipes
from modalign.evaluation.gate import difference
from modalign.evaluation.statistics import over_seeds
from modalign.sweeping import Checkpoint, Setting, Sweep, sweep
from modalign.sweeping.plan import parse_axes

METRICS = {
    "zero_shot.acc1": "zero-shot",
    "retrieval.text_to_image_r1": "T→I R@1",
    "retrieval.image_to_text_r1": "I→T R@1",
    "retrieval.text_to_image_r10": "T→I R@10",
    "retrieval.image_to_text_r10": "I→T R@10",
}
GAPS = {"centroid_gap": "centroid gap", "distribution_gap": "distribution gap"}
ZERO, TO_IMAGE = "zero_shot.acc1", "retrieval.text_to_image_r10"


PROSE = """\
The demo's small model (seed 0) and its 1,637 pictures: projections only, AdamW 3e-4, 10 epochs of batches of 32 where
no other number is swept; judged on concepts never trained on (302 labelled pictures, 28 classes; 431 for retrieval).
Changes are in points against the model before, means over the seeds of the runs, with 95 % intervals that join the
paired bootstrap over test pictures with the seeds' spread; gaps are shares of the gap before. A claim *holds* where the
interval of the difference of its two settings on the same pictures lies on its side, *does not hold* where it lies
wholly on the other, else it *cannot be told*: with 302 pictures a point or two usually cannot."""


@dataclass(frozen=True)
class Claim:
    """What an ablation is there to show.

    Attributes:
        sentence: the claim.
        metric: judged by this one.
        first: position of a value in the sweep.
        second: that of another, or "before".
        at_least: first − second is claimed to be above this, in points; its sign turned where `below`.
        below: first is claimed to be below second.
    """

    sentence: str
    metric: str
    first: int
    second: int | str
    at_least: float = 0.0
    below: bool = False


CLAIMS: dict[str, list[Claim]] = {
    "clip-refine-temperature": [
        Claim("The published temperature of 1 beats one of 4 in zero-shot", ZERO, 2, 4),
        Claim("The published temperature of 1 beats one of 0.25 in zero-shot", ZERO, 2, 0),
    ],
    "clip-refine-alpha": [
        Claim("Half true pairs, half the initial model beats the initial model alone in retrieval", TO_IMAGE, 2, 0),
        Claim("Half and half beats true pairs alone in zero-shot", ZERO, 2, 4),
    ],
    "clip-refine-prior": [
        Claim("The normal prior is as good as the uniform one in zero-shot, within a point", ZERO, 0, 1, -1.0),
        Claim(
            "The normal prior is as good as one fitted to the features in zero-shot, within a point", ZERO, 0, 2, -1.0
        ),
        Claim("Random vectors beat one fixed point in zero-shot", ZERO, 0, 3),
    ],
    "clip-refine-weights": [
        Claim(
            "Random feature alignment costs no zero-shot accuracy beside distillation, within a point", ZERO, 2, 0, -1.0
        ),
        Claim("Four times its weight lowers zero-shot accuracy", ZERO, 4, 2, below=True),
    ],
    "kuea-epochs": [
        Claim("Twenty epochs beat ten in zero-shot (the paper finds none after two)", ZERO, 3, 2),
    ],
    "kuea-anchor": [
        Claim(
            "Without the pull to the initial features zero-shot falls below the base model's",
            ZERO,
            0,
            "before",
            below=True,
        ),
        Claim("With it zero-shot stays within a point of the base model's", ZERO, 1, "before", -1.0),
    ],
    "kuea-lambda": [
        Claim("λ hardly matters: 100 and 1,000 are within a point of each other in zero-shot", ZERO, 2, 1, -1.0),
        Claim("Too large a λ (5,000) lowers zero-shot accuracy below the base model's", ZERO, 3, "before", below=True),
    ],
    "kuea-kernel": [
        Claim("The polynomial kernel beats the Gaussian in zero-shot", ZERO, 0, 1),
        Claim("The polynomial kernel beats the Laplacian in zero-shot", ZERO, 0, 2),
        Claim("The polynomial kernel beats the cosine in zero-shot", ZERO, 0, 3),
    ],
    "kuea-data": [
        Claim(
            "A quarter of the pictures is nearly enough: within a point of all of them in zero-shot", ZERO, 0, 2, -1.0
        ),
    ],
    "tpc-cma-parts": [
        Claim("The distribution term matters: without it the zero-shot accuracy is lower", ZERO, 1, 0, below=True),
        Claim("The centroid term matters: without it the zero-shot accuracy is lower", ZERO, 2, 0, below=True),
        Claim(
            "The curriculum matters: at full strength from the start zero-shot accuracy is lower",
            ZERO,
            4,
            0,
            below=True,
        ),
        Claim(
            "Holding back conflicting gradients matters: ignored, zero-shot accuracy is lower", ZERO, 5, 0, below=True
        ),
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="names of ablations; default all")
    parser.add_argument("--seeds", type=int, help="default: as the command says")
    parser.add_argument("--jobs", type=int)
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--doc", type=Path, default=Path("docs/ablations.md"))
    arguments = parser.parse_args()
    files = {
        name.removeprefix("ablations/"): path
        for name, path in recipes.shipped().items()
        if name.startswith("ablations/") and (not arguments.only or name.removeprefix("ablations/") in arguments.only)
    }
    parts = []
    for name, file in files.items():
        command, about = described(file)
        over, seeds = options(command)
        done = sweep(
            parse_axes(over),
            recipe=f"ablations/{name}",
            out=arguments.out / name,
            seeds=range(arguments.seeds or seeds),
            resume=(arguments.out / name).is_dir(),
            transforms=False,
            jobs=arguments.jobs,
        )
        parts.append(section(name, command, about, done))
    arguments.doc.write_text("\n".join([*head(), *(line for part in parts for line in part)]), encoding="utf-8")


def described(file: Path) -> tuple[str, str]:
    """The command in a recipe's first comment, and the text below it."""
    comment = [
        line.removeprefix("#").strip() for line in file.read_text(encoding="utf-8").splitlines() if line[:1] == "#"
    ]
    return comment[0], " ".join(comment[1:]).strip()


def options(command: str) -> tuple[list[str], int]:
    """The swept keys and the number of seeds of a command."""
    words = shlex.split(command)
    over = [after for word, after in itertools.pairwise(words) if word == "--over"]
    return over, int(words[words.index("--seeds") + 1])


def head() -> list[str]:
    """What the page is."""
    versions = ", ".join(f"{k} {v}" for k, v in environment.versions().items())
    return [
        "# Ablations",
        "",
        "One command a table, each the first line of a recipe in `recipes/ablations/`; all of them, and this page:",
        f"`python benchmarks/ablations.py` (modalign commit {environment.commit() or 'installed'}, {versions}).",
        "",
        *PROSE.splitlines(),
        "",
    ]


def section(name: str, command: str, about: str, done: Sweep) -> list[str]:
    """One ablation: its table, and a sentence a claim."""
    key = done.axes[0].key
    labels = [label(value, done.axes[0].values) for value in done.axes[0].values]
    found = [setting_of(done.settings, key, value) for value in done.axes[0].values]
    pace = [paced(done.checkpoints, key, value) for value in done.axes[0].values]
    columns = [*METRICS.values(), *GAPS.values()]
    if any(pace):
        columns += ["α reached", "least κ", "loss spikes"]
    lines = [f"## {about.split(':')[0]}: {name.split('-')[-1]}", "", about, "", f"    {command}", ""]
    lines += [f"| {key} | " + " | ".join(columns) + " |", "|---|" + "--:|" * len(columns)]
    for text, setting, told in zip(labels, found, pace, strict=True):
        if setting is None:
            lines.append(f"| {text} | " + " | ".join(["failed"] * len(columns)) + " |")
            continue
        cells = [points(setting.changes[metric]) for metric in METRICS] + [share(setting.ratios[gap]) for gap in GAPS]
        lines.append(f"| {text} | " + " | ".join(cells + told) + " |")
    said = [f"- Gap against quality: {done.quality.sentence}"] if done.quality is not None else []
    return [*lines, "", *(judged(claim, done, key) for claim in CLAIMS[name]), *said, ""]


def setting_of(settings: Sequence[Setting], key: str, value: Any) -> Setting | None:
    """The setting of one swept value, at the end of its runs."""
    return next((s for s in settings if s.weight == 1 and s.values.get(key) == value), None)


def checkpoints_of(done: Sweep, key: str, value: Any) -> list[Checkpoint]:
    """The ends of the runs of one swept value, by seed."""
    ends = [c for c in done.checkpoints if c.weight == 1 and c.values.get(key) == value]
    return sorted(ends, key=lambda checkpoint: checkpoint.seed)


def judged(claim: Claim, done: Sweep, key: str) -> str:
    """Whether a claim holds, from the same pictures under both settings."""
    values = done.axes[0].values
    firsts = checkpoints_of(done, key, values[claim.first])
    if claim.second == "before":
        pairs = [(checkpoint.before, checkpoint.results) for checkpoint in firsts]
    else:
        seconds = checkpoints_of(done, key, values[int(claim.second)])
        pairs = [(b.results, a.results) for a, b in zip(firsts, seconds, strict=True)]
    found = over_seeds([difference(b.metrics[claim.metric], a.metrics[claim.metric]) for b, a in pairs])
    low, high = 100 * found.low, 100 * found.high
    if claim.below:
        low, high = -high, -low
    word = "holds here" if low > claim.at_least else "does not hold here" if high < claim.at_least else "cannot be told"
    told = f"{100 * found.estimate:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}] points"
    return f"- {claim.sentence}: **{word}** ({told})."


def label(value: Any, values: Sequence[Any]) -> str:
    """A swept value, or what sets it apart from the first where values are whole sections."""
    if not isinstance(value, dict):
        return str(value)
    changed = {key: inner for key, inner in value.items() if values[0].get(key) != inner}
    return ", ".join(f"{key}: {inner}" for key, inner in changed.items()) or "as it is"


def paced(checkpoints: Sequence[Checkpoint], key: str, value: Any) -> list[str]:
    """Largest α, least κ and loss spikes of runs on a curriculum: means over seeds; nothing for others."""
    alphas, kappas, spikes = [], [], []
    for checkpoint in checkpoints:
        if checkpoint.weight != 1 or checkpoint.values.get(key) != value:
            continue
        text = (checkpoint.run / "metrics.jsonl").read_text(encoding="utf-8")
        steps = [line for line in map(json.loads, text.splitlines()) if "curriculum" in line]
        if not steps:
            return []
        alphas.append(max(step["curriculum"]["alpha"] for step in steps))
        kappas.append(min(step["curriculum"]["kappa"] for step in steps))
        losses = [step["loss"] for step in steps]
        windows = [statistics.median(losses[max(0, i - 10) : i]) for i in range(10, len(losses))]
        spikes.append(sum(loss > 1.5 * usual for loss, usual in zip(losses[10:], windows, strict=True)))
    return [f"{statistics.mean(alphas):.3f}", f"{statistics.mean(kappas):.2f}", f"{statistics.mean(spikes):.1f}"]


def points(change: Any) -> str:
    """A change in points with its interval."""
    low, high = change.interval
    return f"{100 * float(change):+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def share(ratio: Any) -> str:
    """A gap as a share of the gap before."""
    low, high = ratio.interval
    return f"{100 * float(ratio):.0f} % [{100 * low:.0f}, {100 * high:.0f}]"


if __name__ == "__main__":
    main()
