"""CLIP-Refine beside its baselines, several seeds: the tables of docs/results/.

    python benchmarks/clip_refine_table.py --data demo
    python benchmarks/clip_refine_table.py --data FOLDER        (with pretrain/, refine/ and test/, each a metadata.csv)

The model is the demo's (frozen EfficientNet-Lite0 and MiniLM under MLP projections), pre-trained on `pretrain`, refined
on `refine`, judged on `test`: zero-shot on the rows with a `label`, retrieval on all rows of test/ (FOLDER: on those
with a `source` given by --retrieval-source, if any). Frozen towers run once per picture over all seeds and methods.
"""

from __future__ import annotations

import json
import shutil
import statistics
from pathlib import Path
from typing import Any

import small_clip
from modalign import environment
from modalign.console import Reporter
from modalign.data import sources
from modalign.evaluation.gate import difference, judge
from modalign.evaluation.results import Results
from modalign.evaluation.tasks import evaluate
from modalign.features import TrunkMemo, image_features, text_features
from modalign.gap.transforms import Center, applied
from modalign.models import DualEncoder
from modalign.running import run_recipe
from small_clip import Setting, joint, spread, told

VARIANTS: dict[str, dict[str, Any]] = {
    "contrastive": {"name": "contrastive"},
    "HyCD only": {"name": "hycd"},
    "RaFA only": {"name": "rafa"},
    "RaFA only, σ = 0": {"name": "rafa", "std": 0.0},
    "HyCD + RaFA, σ = 0": {"name": "clip-refine", "std": 0.0},
    "CLIP-Refine": {"name": "clip-refine"},
}
CENTRING = "mean-centring (no training)"
TASK_COLUMNS = {
    "zero_shot.acc1": "zero-shot",
    "retrieval.text_to_image_r1": "T→I R@1",
    "retrieval.image_to_text_r1": "I→T R@1",
    "retrieval.text_to_image_r10": "T→I R@10",
    "retrieval.image_to_text_r10": "I→T R@10",
}


def main() -> None:
    arguments = small_clip.arguments_of(__doc__, "runs/clip-refine-table").parse_args()
    setting = small_clip.setting_of(arguments)
    memo = TrunkMemo()
    runs = [_one_seed(setting, seed, memo) for seed in range(arguments.seeds)]
    page = render(setting, runs, f"python benchmarks/clip_refine_table.py --data {setting.page_name}")
    target = arguments.doc or Path(f"docs/results/clip-refine-{setting.name}.md")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page, encoding="utf-8")
    print(page)


def _one_seed(setting: Setting, seed: int, memo: TrunkMemo) -> dict[str, dict[str, Any]]:
    """Variant → {"gate", "gap", "results"}; "before" → {"gap"}."""
    base = small_clip.base(setting, seed, memo)
    found: dict[str, dict[str, Any]] = {}
    before: Results | None = None
    for name, method in VARIANTS.items():
        folder = setting.out / f"seed{seed}" / small_clip.folder_name(name)
        if not (folder / "report.html").is_file():
            shutil.rmtree(folder, ignore_errors=True)
        run = run_recipe(
            small_clip.recipe(setting, base.spec, method, seed, evaluation__tasks=setting.tasks),
            folder,
            resume=folder.is_dir(),
            model=base,
            reporter=Reporter(),
            memo=memo,
            cache=setting.out / "cache",
        )
        record = json.loads((run.folder / "evaluation.json").read_text(encoding="utf-8"))
        after = Results.from_dict(record["after"])
        found[name] = {"gate": record["gate"], "gap": record["gap"]["after"], "results": after}
        found["before"] = {"gap": record["gap"]["before"], "gate": None}
        before = Results.from_dict(record["before"])
    assert before is not None
    found[CENTRING] = _centring(setting, base, before, memo)
    return found


def _centring(setting: Setting, base: DualEncoder, before: Results, memo: TrunkMemo) -> dict[str, Any]:
    pairs = sources.pairs(setting.train)
    image = image_features(base, pairs.paths, pairs.wheres, batch_size=32, memo=memo).features
    centre = Center().fit(image, text_features(base, pairs.captions))
    results = evaluate(applied(base, centre), setting.tasks, batch_size=32, memo=memo)
    return {"gate": judge(before, results).to_dict(), "gap": results.gap}


# ---- the page -----------------------------------------------------------------------------------------------


def render(setting: Setting, runs: list[dict[str, dict[str, Any]]], command: str) -> str:
    """The page: what was measured, two tables, and what they say of the paper's claims."""
    names = ["CLIP-Refine", *(name for name in VARIANTS if name != "CLIP-Refine"), CENTRING]
    seeds = len(runs)
    zero_shot, retrieval = (task.protocol for task in runs[0]["CLIP-Refine"]["results"].tasks)
    versions = ", ".join(f"{k} {v}" for k, v in environment.versions().items())
    lines = [
        f"# CLIP-Refine on {setting.title}",
        "",
        f"Made by `{command}`; {seeds} seeds (of pre-training and refinement), modalign commit "
        f"{environment.commit() or 'installed'}, {versions}.",
        "",
        f"{small_clip.ABOUT}: projections only, AdamW 3e-4, "
        f"{setting.epochs} epochs, batch {setting.batch_size}; judged on concepts never trained on.",
        f"Zero-shot: {zero_shot['samples']} pictures, {zero_shot['classes']} classes (chance "
        f"{100 / zero_shot['classes']:.1f} %), prompt {zero_shot['templates'][0]!r}. Retrieval: {retrieval['samples']} "
        f"pictures, {retrieval['captions']} captions, identical captions shared. Nothing was chosen on `test`.",
        "",
        "## Tasks: change in points, mean over seeds with a 95 % interval",
        "",
        "| | " + " | ".join(TASK_COLUMNS.values()) + " |",
        "|---|" + "---|" * len(TASK_COLUMNS),
        "| before | " + " | ".join(_before(runs, metric) for metric in TASK_COLUMNS) + " |",
    ]
    lines += [f"| {name} | " + " | ".join(told(_change(runs, name, m)) for m in TASK_COLUMNS) + " |" for name in names]
    measures = list(runs[0]["before"]["gap"]["measures"])
    lines += [
        "",
        "The interval joins the paired bootstrap over test pictures (the same in every seed) with the seeds' spread.",
        "",
        "## Gap: mean ± standard deviation over seeds",
        "",
        "| | " + " | ".join(measure.replace("_", " ") for measure in measures) + " |",
        "|---|" + "---|" * len(measures),
    ]
    for name in ["before", *names]:
        values = [[run[name]["gap"]["measures"][measure]["value"] for run in runs] for measure in measures]
        lines.append(f"| {name} | " + " | ".join(f"{statistics.mean(v):.3g} ± {spread(v):.1g}" for v in values) + " |")
    lines += ["", "## The paper's claims (arXiv 2504.12717)", "", *_claims(runs), ""]
    return "\n".join(lines)


def _change(runs: list[dict[str, dict[str, Any]]], name: str, metric: str) -> tuple[float, float, float]:
    """Mean over seeds of after − before with the joint interval, in points."""
    rows = [next(r for r in run[name]["gate"]["rows"] if r["metric"] == metric) for run in runs]
    return joint([(row["difference"], *row["interval"]) for row in rows])


def _against(runs: list[dict[str, dict[str, Any]]], name: str, other: str, metric: str) -> tuple[float, float, float]:
    """Mean over seeds of one variant − another on the same pictures with the joint interval, in points."""
    pairs = [(run[other]["results"].metrics[metric], run[name]["results"].metrics[metric]) for run in runs]
    changes = [difference(first, second) for first, second in pairs]
    return joint([(change.estimate, change.low, change.high) for change in changes])


def _before(runs: list[dict[str, dict[str, Any]]], metric: str) -> str:
    values = [
        100 * next(r for r in run["CLIP-Refine"]["gate"]["rows"] if r["metric"] == metric)["before"] for run in runs
    ]
    return f"{statistics.mean(values):.1f} ± {spread(values):.1f}"


def _gap_change(runs: list[dict[str, dict[str, Any]]], name: str, measure: str) -> list[float]:
    return [
        run[name]["gap"]["measures"][measure]["value"] - run["before"]["gap"]["measures"][measure]["value"]
        for run in runs
    ]


def _claims(runs: list[dict[str, dict[str, Any]]]) -> list[str]:
    """One sentence a claim; a claim holds when every seed (gap) or the joint interval (tasks) says so."""

    def gap_claim(text: str, name: str, measure: str) -> str:
        changes = _gap_change(runs, name, measure)
        word = "holds here" if max(changes) < 0 else "does not hold here" if min(changes) > 0 else "cannot be told"
        return f"- {text}: **{word}** ({', '.join(f'{c:+.3g}' for c in changes)} by seed)."

    def task_claim(text: str, name: str, metric: str, sign: int, slack: float = 0.0) -> str:
        return judged(text, _change(runs, name, metric), sign, slack)

    def judged(text: str, change: tuple[float, float, float], sign: int, slack: float = 0.0) -> str:
        low, high = sorted((sign * change[1], sign * change[2]))
        word = "holds here" if low > -slack else "does not hold here" if high < -slack else "cannot be told"
        return f"- {text}: **{word}** ({told(change)} points)."

    zero, to_image, to_text = "zero_shot.acc1", "retrieval.text_to_image_r1", "retrieval.image_to_text_r1"
    prior = _against(runs, "CLIP-Refine", "HyCD + RaFA, σ = 0", zero)
    rival = _against(runs, "CLIP-Refine", "contrastive", zero)
    return [
        gap_claim("CLIP-Refine narrows the centroid gap", "CLIP-Refine", "centroid_gap"),
        gap_claim("CLIP-Refine brings pairs closer (alignment falls)", "CLIP-Refine", "alignment"),
        gap_claim("CLIP-Refine spreads features (uniformity falls)", "CLIP-Refine", "uniformity"),
        task_claim("CLIP-Refine raises zero-shot accuracy", "CLIP-Refine", zero, +1),
        task_claim("CLIP-Refine raises text-to-image R@1", "CLIP-Refine", to_image, +1),
        task_claim("CLIP-Refine raises image-to-text R@1", "CLIP-Refine", to_text, +1),
        task_claim("Contrastive fine-tuning lowers zero-shot accuracy", "contrastive", zero, -1),
        task_claim("HyCD alone keeps zero-shot accuracy (within a point)", "HyCD only", zero, +1, slack=1.0),
        task_claim("RaFA without HyCD lowers zero-shot accuracy", "RaFA only", zero, -1),
        judged("A random reference (σ = 1) beats the origin (σ = 0) in zero-shot", prior, +1),
        judged("CLIP-Refine beats contrastive fine-tuning in zero-shot", rival, +1),
        gap_claim("Mean-centring, without training, narrows the centroid gap", CENTRING, "centroid_gap"),
    ]


if __name__ == "__main__":
    main()
