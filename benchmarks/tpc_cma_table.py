"""TPC-CMA's trade-off curve beside its baselines and the training-free transforms: the tables of docs/results/.

    python benchmarks/tpc_cma_table.py --data demo
    python benchmarks/tpc_cma_table.py --data FOLDER            (with pretrain/, refine/ and test/, each a metadata.csv)

The model is the demo's (frozen EfficientNet-Lite0 and MiniLM under MLP projections), pre-trained on `pretrain`, refined
on `refine`, judged on `test`: zero-shot and joint clustering on the rows with a `label`, retrieval on all rows of test/
(FOLDER: on those with a `source` given by --retrieval-source, if any). Transforms are fitted on the pairs of `refine`.
"""

from __future__ import annotations

import json
import shutil
import statistics
from pathlib import Path
from typing import Any

import numpy as np

import small_clip
from modalign import environment
from modalign.console import Reporter
from modalign.data import sources
from modalign.evaluation.gate import difference, judge
from modalign.evaluation.results import Results
from modalign.evaluation.tasks import evaluate
from modalign.features import TrunkMemo, image_features, text_features
from modalign.gap import transforms
from modalign.models import DualEncoder
from modalign.running import run_recipe
from small_clip import TRANSFORMS, Setting, joint, spread, told

ALPHAS = (0.0, 0.01, 0.05, 0.1, 0.3, 0.5)
CURVE = {f"TPC-CMA, α_target = {alpha:g}": {"name": "tpc-cma", "alpha_target": alpha} for alpha in ALPHAS}
ARTICLE = {
    "name": "tpc-cma",
    "alpha_target": 0.5,
    "form": "centroid+divergence",
    "phases": "article",
    "on_conflict": "learning_rate",
}
VARIANTS: dict[str, dict[str, Any]] = {
    **CURVE,
    "TPC-CMA, article form, α_target = 0.5": ARTICLE,
    "CLIP-Refine": {"name": "clip-refine"},
    "AlignCLIP's separation": {"name": "align-clip"},
    "m²-mix": {"name": "m2-mix"},
    "CS-Aligner": {"name": "cs-aligner"},
}
TASKS = {
    "zero_shot.acc1": "zero-shot",
    "retrieval.text_to_image_r1": "T→I R@1",
    "retrieval.image_to_text_r1": "I→T R@1",
    "retrieval.text_to_image_r10": "T→I R@10",
    "retrieval.image_to_text_r10": "I→T R@10",
}
GAPS = ("raw_gap", "centroid_gap", "distribution_gap", "centroid_gap_scale_free", "distribution_gap_scale_free")
SHOWN = (*GAPS, "alignment", "uniformity", "effective_rank_image", "effective_rank_text", "separability")
CLUSTERING = {"ari": "ARI", "nmi": "NMI"}


def main() -> None:
    arguments = small_clip.arguments_of(__doc__, "runs/tpc-cma-table").parse_args()
    setting = small_clip.setting_of(arguments)
    memo = TrunkMemo()
    runs = [_one_seed(setting, seed, memo) for seed in range(arguments.seeds)]
    page = render(setting, runs, f"python benchmarks/tpc_cma_table.py --data {setting.page_name}")
    target = arguments.doc or Path(f"docs/results/tpc-cma-{setting.name}.md")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page, encoding="utf-8")
    draw(runs, target.with_suffix(".png"), setting.title)
    print(page)


def _one_seed(setting: Setting, seed: int, memo: TrunkMemo) -> dict[str, dict[str, Any]]:
    """Variant → {"gate", "gap", "clusters", "strength"}; "before" → {"gap", "clusters", "gate"}."""
    base = small_clip.base(setting, seed, memo)
    clustering = f"clustering:{setting.test}"
    found: dict[str, dict[str, Any]] = {}
    before: Results | None = None
    for name, method in VARIANTS.items():
        folder = setting.out / f"seed{seed}" / small_clip.folder_name(name)
        if not (folder / "report.html").is_file():
            shutil.rmtree(folder, ignore_errors=True)
        run = run_recipe(
            small_clip.recipe(setting, base.spec, method, seed, evaluation__tasks=[*setting.tasks, clustering]),
            folder,
            resume=folder.is_dir(),
            model=base,
            reporter=Reporter(),
            memo=memo,
            cache=setting.out / "cache",
        )
        record = json.loads((run.folder / "evaluation.json").read_text(encoding="utf-8"))
        before, after = (Results.from_dict(record[side]) for side in ("before", "after"))
        found[name] = {
            "gate": record["gate"],
            "gap": record["gap"]["after"],
            "clusters": _clusters(after),
            "results": after,
            "curriculum": _curriculum(run.folder / "metrics.jsonl"),
        }
        found["before"] = {"gap": record["gap"]["before"], "clusters": _clusters(before), "results": before}
    assert before is not None
    return found | _transformed(setting, base, before, [*setting.tasks, clustering], memo)


def _transformed(
    setting: Setting, base: DualEncoder, before: Results, tasks: list[str], memo: TrunkMemo
) -> dict[str, dict[str, Any]]:
    pairs = sources.pairs(setting.train)
    image = image_features(base, pairs.paths, pairs.wheres, batch_size=32, memo=memo).features
    paired = text_features(base, pairs.captions)[pairs.first_caption]
    found = {}
    for name, transform in TRANSFORMS.items():
        transform.fit(image, paired)
        results = evaluate(transforms.applied(base, transform), tasks, batch_size=32, memo=memo)
        found[name] = {
            "gate": judge(before, results).to_dict(),
            "gap": results.gap,
            "clusters": _clusters(results),
            "results": results,
        }
    return found


def _clusters(results: Results) -> dict[str, float]:
    task = next(task for task in results.tasks if task.task == "clustering")
    return {name: task.metrics[name].value for name in CLUSTERING}


def _curriculum(metrics: Path) -> dict[str, float]:
    """The strength reached, and the least κ that held it back while the plan asked for any."""
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    told = [line["curriculum"] for line in lines if "curriculum" in line]
    if not told:
        return {}
    return {
        "alpha": max(line["alpha"] for line in told),
        "kappa": min((line["kappa"] for line in told if line["planned"] > 0), default=1.0),
    }


# ---- the page -----------------------------------------------------------------------------------------------


def render(setting: Setting, runs: list[dict[str, dict[str, Any]]], command: str) -> str:
    """The page: the curve, the table of everything, the gaps, and what they say."""
    trained, fixed = list(VARIANTS), list(TRANSFORMS)
    zero_shot, retrieval, clusters = (task.protocol for task in runs[0]["before"]["results"].tasks)
    versions = ", ".join(f"{k} {v}" for k, v in environment.versions().items())
    lines = [
        f"# TPC-CMA on {setting.title}",
        "",
        *_headline(runs),
        "",
        f"Made by `{command}`; {len(runs)} seeds (of pre-training and refinement), modalign commit "
        f"{environment.commit() or 'installed'}, {versions}.",
        "",
        f"{small_clip.ABOUT}: projections only, AdamW 3e-4,",
        f"{setting.epochs} epochs, batch {setting.batch_size}; judged on concepts never trained on. TPC-CMA is a",
        "reconstruction (docs/methods.md). Transforms are fitted on the pairs that the methods train on. Nothing was",
        "chosen on `test`.",
        f"Zero-shot: {zero_shot['samples']} pictures, {zero_shot['classes']} classes (chance "
        f"{100 / zero_shot['classes']:.1f} %), prompt {zero_shot['templates'][0]!r}. Retrieval: {retrieval['samples']} "
        f"pictures, {retrieval['captions']} captions, identical captions shared. Joint clustering: k-means of "
        f"{clusters['samples']} pictures and their texts.",
        "",
        "## The trade-off curve: what α_target buys and costs",
        "",
        f"![The curve]({'tpc-cma-' + setting.name}.png)",
        "",
        "Gaps are shares of what they were before; every interval is of 95 % and joins the bootstrap over test",
        "pictures (the same in every seed) with the seeds' spread. α reached: the largest α(t); κ: the run's least.",
        "",
        "| α_target | α reached | κ | "
        + " | ".join(name.replace("_", " ") for name in GAPS[:3])
        + " | "
        + " | ".join(TASKS.values())
        + " | ARI |",
        "|--:|--:|--:|" + "---|" * (3 + len(TASKS) + 1),
    ]
    for alpha, name in zip(ALPHAS, CURVE, strict=True):
        reached, least = (
            statistics.mean(run[name]["curriculum"].get(key, 0) for run in runs) for key in ("alpha", "kappa")
        )
        cells = [_share(runs, name, gap) for gap in GAPS[:3]] + [told(_change(runs, name, metric)) for metric in TASKS]
        lines.append(
            f"| {alpha:g} | {reached:.3f} | {least:.2f} | {' | '.join(cells)} | {_cluster(runs, name, 'ari')} |"
        )
    lines += ["", *_monotone(runs), "", "## Every method and every transform: change in points", ""]
    lines += ["| | " + " | ".join([*TASKS.values(), *CLUSTERING.values()]) + " |"]
    lines += ["|---|" + "---|" * (len(TASKS) + len(CLUSTERING))]
    lines.append(
        "| before | "
        + " | ".join(
            [_before(runs, metric) for metric in TASKS] + [_cluster(runs, "before", name) for name in CLUSTERING]
        )
        + " |"
    )
    for name in [*trained, *(f"{name} (no training)" for name in fixed)]:
        key = name.removesuffix(" (no training)")
        cells = [told(_change(runs, key, metric)) for metric in TASKS]
        lines.append(f"| {name} | {' | '.join(cells + [_cluster(runs, key, kind) for kind in CLUSTERING])} |")
    lines += [
        "",
        "## Gap: mean ± standard deviation over seeds",
        "",
        "Of features scaled to length 1, as the tasks use them: re-scaling after mean-centring changes its",
        "distribution gap, which the map itself leaves as it was.",
        "",
        "| | " + " | ".join(measure.replace("_", " ") for measure in SHOWN) + " |",
        "|---|" + "---|" * len(SHOWN),
    ]
    for name in ["before", *trained, *fixed]:
        values = [[run[name]["gap"]["measures"][measure]["value"] for run in runs] for measure in SHOWN]
        lines.append(f"| {name} | " + " | ".join(f"{statistics.mean(v):.3g} ± {spread(v):.1g}" for v in values) + " |")
    lines += ["", "## Training against no training", "", *_against_transforms(runs), ""]
    return "\n".join(lines)


def _rows(runs: list[dict[str, dict[str, Any]]], name: str, metric: str) -> list[dict[str, Any]]:
    return [next(r for r in run[name]["gate"]["rows"] if r["metric"] == metric) for run in runs]


def _change(runs: list[dict[str, dict[str, Any]]], name: str, metric: str) -> tuple[float, float, float]:
    """Mean over seeds of after − before with the joint interval, in points."""
    return joint([(row["difference"], *row["interval"]) for row in _rows(runs, name, metric)])


def _before(runs: list[dict[str, dict[str, Any]]], metric: str) -> str:
    return small_clip.mean_and_spread([100 * row["before"] for row in _rows(runs, "CLIP-Refine", metric)])


def _cluster(runs: list[dict[str, dict[str, Any]]], name: str, kind: str) -> str:
    return small_clip.mean_and_spread([run[name]["clusters"][kind] for run in runs], 3)


def _ratio(runs: list[dict[str, dict[str, Any]]], name: str, gap: str) -> tuple[float, float, float]:
    """gap after / gap before, in per cent: mean over seeds with the joint interval."""
    shares = []
    for run in runs:
        before = run["before"]["gap"]["measures"][gap]["value"]
        after = run[name]["gap"]["measures"][gap]
        shares.append((after["value"] / before, *(bound / before for bound in after["interval"])))
    return joint(shares)


def _share(runs: list[dict[str, dict[str, Any]]], name: str, gap: str) -> str:
    centre, low, high = _ratio(runs, name, gap)
    return f"{centre:.0f} % [{low:.0f}, {high:.0f}]"


def _monotone(runs: list[dict[str, dict[str, Any]]]) -> list[str]:
    """Spearman's ρ between α_target and each normalised gap, over all seeds' points."""
    from scipy.stats import spearmanr

    lines = []
    for gap in GAPS:
        alphas, shares = [], []
        for run in runs:
            for alpha, name in zip(ALPHAS, CURVE, strict=True):
                alphas.append(alpha)
                shares.append(
                    run[name]["gap"]["measures"][gap]["value"] / run["before"]["gap"]["measures"][gap]["value"]
                )
        found = spearmanr(alphas, shares)
        word = "falls" if found.statistic < 0 else "rises"
        said = (
            f"{word} as α_target rises" if found.pvalue < 0.05 else "neither rises nor falls for certain with α_target"
        )
        lines.append(
            f"- The {gap.replace('_', ' ')} {said}: Spearman's ρ {found.statistic:+.2f} over {len(alphas)} runs "
            f"(p = {found.pvalue:.2g})."
        )
    return lines


def _headline(runs: list[dict[str, dict[str, Any]]]) -> list[str]:
    strongest = list(CURVE)[-1]
    gap, task = _ratio(runs, strongest, "distribution_gap"), _change(runs, strongest, "zero_shot.acc1")
    plain = _ratio(runs, next(iter(CURVE)), "distribution_gap")
    free = _ratio(runs, strongest, "distribution_gap_scale_free")
    return [
        f"At α_target = 0.5 the distribution gap is {gap[0]:.0f} % of what it was (contrastive fine-tuning alone: "
        f"{plain[0]:.0f} %), its scale-free form {free[0]:.0f} %, the centroid gap "
        f"{_ratio(runs, strongest, 'centroid_gap')[0]:.0f} %; zero-shot accuracy changes by {told(task)} points."
    ]


def _against_transforms(runs: list[dict[str, dict[str, Any]]]) -> list[str]:
    """Each transform against TPC-CMA at its conservative and its strong setting, on the same pictures."""
    lines = []
    for name in (f"TPC-CMA, α_target = {alpha:g}" for alpha in (0.05, 0.5)):
        for metric, title in TASKS.items():
            better, worse, unknown = [], [], 0
            for fixed in TRANSFORMS:
                low, high = _against(runs, fixed, name, metric)[1:]
                better += [fixed] if low > 0 else []
                worse += [fixed] if high < 0 else []
                unknown += low <= 0 <= high
            lines.append(
                f"- {title}, {name}: better without training: **{', '.join(better) or 'none'}**; worse: "
                f"{', '.join(worse) or 'none'}; {unknown} cannot be told apart from it."
            )
        for gap in GAPS[:3]:
            own = _ratio(runs, name, gap)[0]
            shares = {fixed: _ratio(runs, fixed, gap)[0] for fixed in TRANSFORMS}
            closer = [f"{fixed} ({share:.0f} %)" for fixed, share in shares.items() if share < own]
            lines.append(
                f"- {gap.replace('_', ' ').capitalize()}, {name} ({own:.0f} % of before): closed further without "
                f"training by {', '.join(closer) or 'none'}."
            )
    return lines


def _against(runs: list[dict[str, dict[str, Any]]], name: str, other: str, metric: str) -> tuple[float, float, float]:
    """Mean over seeds of one variant − another on the same pictures with the joint interval, in points."""
    changes = [difference(run[other]["results"].metrics[metric], run[name]["results"].metrics[metric]) for run in runs]
    return joint([(change.estimate, change.low, change.high) for change in changes])


def draw(runs: list[dict[str, dict[str, Any]]], target: Path, title: str) -> None:
    """The trade-off: normalised distribution gap against zero-shot accuracy and R@10, methods and transforms."""
    from matplotlib.figure import Figure

    others = [*list(VARIANTS)[len(CURVE) :], *TRANSFORMS]
    figure = Figure(figsize=(11, 5.2), layout="constrained")
    for axes, metric in zip(figure.subplots(1, 2), ("zero_shot.acc1", "retrieval.text_to_image_r10"), strict=True):
        start = statistics.mean(100 * row["before"] for row in _rows(runs, "CLIP-Refine", metric))
        place = {
            name: (np.array(_ratio(runs, name, "distribution_gap")), start + np.array(_change(runs, name, metric)))
            for name in [*CURVE, *others]
        }
        axes.plot([100], [start], "k*", markersize=13, label="before")
        curve = [place[name] for name in CURVE]
        axes.errorbar(
            [gap[0] for gap, _ in curve],
            [value[0] for _, value in curve],
            yerr=[[value[0] - value[1] for _, value in curve], [value[2] - value[0] for _, value in curve]],
            fmt="o-",
            color="#1f5fa8",
            capsize=3,
            label=f"TPC-CMA, α_target = {ALPHAS[0]:g} … {ALPHAS[-1]:g} (from the right)",
        )
        for number, name in enumerate(others, start=1):
            gap, value = place[name]
            marker, colour = ("^", "#4b8b3b") if name in TRANSFORMS else ("s", "#b5541c")
            axes.plot(gap[0], value[0], marker, color=colour, markersize=12, label=f"{number}  {name}")
            axes.text(gap[0], value[0], str(number), color="white", fontsize=7, ha="center", va="center")
        axes.set_xlabel("distribution gap, % of before")
        axes.set_ylabel(f"{TASKS[metric]}, %")
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.suptitle(f"{title}: squares are other methods, triangles need no training", fontsize=10)
    figure.savefig(target, dpi=110)


if __name__ == "__main__":
    main()
