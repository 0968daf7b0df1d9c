"""KUEA beside its baselines, several seeds: the tables of docs/results/.

    python benchmarks/kuea_table.py --data demo
    python benchmarks/kuea_table.py --data FOLDER        (with pretrain/, refine/ and test/, each a metadata.csv)

The model is the demo's small CLIP, the target EfficientNet-Lite2. Methods see the pictures of `refine` and the target,
without captions; contrastive fine-tuning, for reference, sees the captions and no target. Judged on `test`: zero-shot
and k-NN on the rows with a `label`, retrieval on all rows (FOLDER: on those with a `source` given by
--retrieval-source, if any). All runs share one store: each frozen network runs once per picture.
"""

from __future__ import annotations

import shutil
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

import small_clip
from modalign import environment
from modalign.console import Reporter
from modalign.demo.run import METHOD_SETTINGS, TARGET_DECAY
from modalign.demo.target import target as demo_target
from modalign.embedder import Embedder
from modalign.encoders import Tower
from modalign.evaluation import suite as suites
from modalign.evaluation.certifying import certificate
from modalign.evaluation.gate import Gate, GateRow, judge
from modalign.evaluation.kinds import Encoded, Neighbours, Retrieval, ZeroShot
from modalign.evaluation.knn import NEIGHBOURS
from modalign.evaluation.results import Results
from modalign.evaluation.suite import Suite
from modalign.evaluation.target_alignment import target_alignment
from modalign.features import TrunkMemo, project
from modalign.models import DualEncoder, VisionEncoder, load
from modalign.models.folder import STAND_IN
from modalign.running import run_recipe
from small_clip import Setting, joint, mean_and_spread, told

KUEA: dict[str, Any] = {"name": "kuea", **METHOD_SETTINGS["kuea"]}
CONTRASTIVE = "contrastive (with captions)"
VARIANTS: dict[str, dict[str, Any]] = {
    "KUEA": KUEA,
    "KUEA, kernel not learnt": {**KUEA, "learn_kernel": False},
    "KUEA, λ = 0.5": {**KUEA, "kernel_weight": 0.5},
    "KUEA without its anchor": {**KUEA, "anchor_weight": 0.0},
    "projection": {"name": "projection"},
    "projection, ridge = 10": {"name": "projection", "ridge": 10.0},
    "feature": {"name": "feature"},
    "am-radio": {"name": "am-radio"},
    CONTRASTIVE: {"name": "contrastive"},
}
TASKS = {
    "zero_shot.acc1": "zero-shot",
    "retrieval.text_to_image_r1": "T→I R@1",
    "retrieval.image_to_text_r1": "I→T R@1",
    "knn.acc1": "image k-NN",
}
BATCH = 32


@dataclass(frozen=True)
class Outcome:
    """One variant of one seed on the test pictures.

    Attributes:
        agreement: with the target, under the kernel fitted to the features before.
        gate: after against before; None for the model before.
        values: metric → value.
        drift: quantile level → tight bound on a cosine's change; None where the text tower moves.
        certified: share of zero-shot labels that cannot have changed.
        unchanged: share that did not.
    """

    agreement: dict[str, float]
    gate: Gate | None
    values: dict[str, float]
    drift: dict[float, float] | None = None
    certified: float | None = None
    unchanged: float | None = None


@dataclass
class Bench:
    """What all seeds and variants of one data set share."""

    setting: Setting
    suite: Suite
    target: VisionEncoder
    embedder: Embedder
    of_target: Tensor
    memo: TrunkMemo

    @classmethod
    def of(cls, setting: Setting) -> Bench:
        """Reads the test data and asks the target about its pictures."""
        suite = suites.prepare([*setting.tasks, f"knn:{setting.test}"])
        target = demo_target()
        embedder = Embedder(setting.out / "store", batch_size=BATCH)
        of_target = embedder.images(target, suite.paths, suite.wheres).rows[:]
        return cls(setting, suite, target, embedder, of_target, TrunkMemo())

    def one_seed(self, seed: int) -> dict[str, Outcome]:
        """Variant → outcome, "before" included."""
        base = small_clip.base(self.setting, seed, self.memo)
        before = self._encoded(base, base)
        first = self._scored(before, base, seed)
        found: dict[str, Outcome] = {}
        for name, method in VARIANTS.items():
            out = self._trained(base, name, method, seed)
            print(f"seed {seed}: {name}", flush=True)
            if method["name"] == "projection":
                weight = load_file(out / STAND_IN)["weight"]
                after = replace(before, image=(self.of_target.double() @ weight.double().T).float())
                results = self._scored(after, base, seed)
            else:
                model = load(str(out / "model"))
                after = self._encoded(base, model)
                results = self._scored(after, model, seed)
            nearer = target_alignment(before.image, after.image, self.of_target)
            assert nearer is not None
            outcome = Outcome(nearer["after"], judge(first, results, seed=seed), _values(results))
            if name != CONTRASTIVE:
                told = certificate(self.suite, before, after, base.spec, before.text)
                labels = told.labels[0]
                outcome = replace(
                    outcome,
                    drift=dict(zip(told.levels, told.tight, strict=True)),
                    certified=labels.certified,
                    unchanged=labels.unchanged,
                )
            found[name] = outcome
            found["before"] = Outcome(nearer["before"], None, _values(first), None)
        return found

    def _trained(self, base: DualEncoder, name: str, method: dict[str, Any], seed: int) -> Path:
        """The folder of a finished run; one of an earlier call is reused."""
        folder = self.setting.out / f"seed{seed}" / small_clip.folder_name(name)
        settings: dict[str, Any] = {"store": str(self.setting.out / "store")}
        if name != CONTRASTIVE:
            settings |= {
                "data__train": f"images:{self.setting.train}",
                "target": "demo",
                "optimizer__weight_decay": TARGET_DECAY,
            }
        if not (folder / "report.html").is_file():
            shutil.rmtree(folder, ignore_errors=True)
        recipe = small_clip.recipe(self.setting, base.spec, method, seed, **settings)
        target = None if name == CONTRASTIVE else self.target
        reporter = Reporter(silent=True)
        return run_recipe(recipe, folder, resume=folder.is_dir(), model=base, target=target, reporter=reporter).folder

    def _encoded(self, base: DualEncoder, model: DualEncoder) -> Encoded:
        """The trunk's stored outputs under this model's projection; texts through its text tower."""
        seen = self.embedder.images(Tower(base, "image", "trunk"), self.suite.paths, self.suite.wheres)
        text = self.embedder.texts(Tower(model, "text", "trunk"), self.suite.strings).rows
        return Encoded(project(model, "image", seen.rows), seen.kept, project(model, "text", text))

    def _scored(self, encoded: Encoded, model: DualEncoder, seed: int) -> Results:
        spec = {"spec": model.spec, "fingerprint": model.fingerprint}
        return self.suite.score(encoded, model=spec, seed=seed, gap=False)


def _values(results: Results) -> dict[str, float]:
    return {metric: results.metrics[metric].value for metric in TASKS}


def main() -> None:
    setting = small_clip.setting_of(arguments := small_clip.arguments_of(__doc__, "runs/kuea-table").parse_args())
    bench = Bench.of(setting)
    runs = [bench.one_seed(seed) for seed in range(arguments.seeds)]
    page = render(bench, runs, f"python benchmarks/kuea_table.py --data {setting.page_name}")
    target = arguments.doc or Path(f"docs/results/kuea-{setting.name}.md")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page, encoding="utf-8")
    print(page)


# ---- the page -----------------------------------------------------------------------------------------------


def render(bench: Bench, runs: list[dict[str, Outcome]], command: str) -> str:
    """The page: what it comes to, what was measured, three tables."""
    setting = bench.setting
    versions = ", ".join(f"{name} {version}" for name, version in environment.versions().items())
    lines = [
        f"# KUEA on {setting.title}",
        "",
        *_summary(runs),
        "",
        f"Made by `{command}`; {len(runs)} seeds (of pre-training and refinement), modalign commit "
        f"{environment.commit() or 'installed'}, {versions}.",
        "",
        f"{small_clip.ABOUT}: the image projection only, AdamW 3e-4,",
        f"{setting.epochs} epochs, batch {setting.batch_size}. The target is EfficientNet-Lite2 (ImageNet's labels, "
        "260 pixels, 1,280 features).",
        f"Methods see pictures and target, no captions. KUEA: λ = {KUEA['kernel_weight']:,.0f}, r fitted on `refine` "
        "before the first step; λ and the ridge were chosen on a",
        "part of the demo's `refine` held out by concept ([how](README.md#how-the-settings-were-chosen)), nothing on a "
        "`test` split.",
        "Judged on concepts never trained on.",
        _judged(bench.suite),
        "",
        "## Tasks: change in points, mean over seeds with a 95 % interval",
        "",
        *_table(TASKS.values(), {"before": _before(runs), **{name: _changes(runs, name) for name in VARIANTS}}),
        "",
        "The interval joins the paired bootstrap over test pictures (the same in every seed) with the seeds' spread.",
        "",
        "## The gate's verdicts, by seed",
        "",
        "Worse means by more than a point, with 95 % certainty.",
        "",
        *_table(TASKS.values(), {name: _verdicts(runs, name) for name in VARIANTS}),
        "",
        f"## Agreement with the target, and drift, on {len(bench.suite.paths):,} test pictures",
        "",
        *_table(DISTANCES, {name: _distances(runs, name) for name in ("before", *VARIANTS)}),
        "",
        "Mean ± standard deviation over seeds. Kernel loss: the mean of (k(x_i, x_j) − k_t(g_i, g_j))² over pairs of",
        "different pictures, both kernels held fixed: polynomial, degree 3, γ = 1/1280 and c = 1 for the target, r",
        "fitted to the model before. Drift: no text can see the cosine of half (of 95 %) of the pictures change by",
        "more. Certain: zero-shot labels that cannot have changed, by that bound alone; unchanged: those that did not.",
        "Contrastive fine-tuning moves the text tower, so nothing is certain of it.",
        "",
    ]
    return "\n".join(lines)


DISTANCES = (
    "kernel loss, 10⁻³",
    "CKA",
    "mutual 10-NN, %",
    "drift, median",
    "drift, 95 %",
    "certain, %",
    "unchanged, %",
)


def _summary(runs: list[dict[str, Outcome]]) -> list[str]:
    """In plain words: whether KUEA came nearer to its target, and whether any task gained by it."""
    losses = ([run[name].agreement["kernel_loss"] for run in runs] for name in ("before", "KUEA"))
    before, after = (statistics.mean(each) for each in losses)
    changes = {title: _change(runs, "KUEA", metric) for metric, title in TASKS.items()}
    gained = [f"{title} {told(change)}" for title, change in changes.items() if change[1] > 0]
    lost = [f"{title} {told(change)}" for title, change in changes.items() if change[2] < 0]
    unclear = [title for title, change in changes.items() if change[1] <= 0 <= change[2]]
    head = f"**KUEA raises {', '.join(gained)} points here.**" if gained else "**KUEA does not help here.**"
    parts = [f"{head} Its kernel loss on held-out pictures goes from {before:.3g} to {after:.3g}"]
    if not gained:
        parts.append("no task gains by it")
    if lost:
        parts.append(f"it lowers {', '.join(lost)} points")
    if unclear:
        parts.append(f"of {', '.join(unclear)} no change can be told from none")
    return ["; ".join(parts) + "."]


def _judged(suite: Suite) -> str:
    told_ = []
    for task in suite.tasks:
        if isinstance(task, ZeroShot):
            classes = len(task.data.class_names)
            told_.append(
                f"Zero-shot: {len(task.pictures)} pictures, {classes} classes (chance {100 / classes:.1f} %), prompt "
                f"{task.prompts.templates[0].replace('{}', '{class}')!r}."
            )
        elif isinstance(task, Retrieval):
            told_.append(f"Retrieval: {len(task.pictures.unique())} pictures, identical captions shared.")
        elif isinstance(task, Neighbours):
            told_.append(f"k-NN: the {NEIGHBOURS} nearest of the other {len(task.pictures) - 1} labelled pictures.")
    return " ".join(told_)


def _table(columns: Iterable[str], rows: Mapping[str, list[str]]) -> list[str]:
    heads = ["", *columns]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    return lines + [f"| {' | '.join([name, *cells])} |" for name, cells in rows.items()]


def _before(runs: list[dict[str, Outcome]]) -> list[str]:
    return [mean_and_spread([100 * run["before"].values[metric] for run in runs]) for metric in TASKS]


def _changes(runs: list[dict[str, Outcome]], name: str) -> list[str]:
    return [told(_change(runs, name, metric)) for metric in TASKS]


def _change(runs: list[dict[str, Outcome]], name: str, metric: str) -> tuple[float, float, float]:
    rows = [_row(run[name], metric) for run in runs]
    return joint([(row.difference, *row.interval) for row in rows])


def _verdicts(runs: list[dict[str, Outcome]], name: str) -> list[str]:
    counts = (Counter(_row(run[name], metric).verdict for run in runs) for metric in TASKS)
    return [", ".join(f"{verdict} {count}" for verdict, count in each.most_common()) for each in counts]


def _row(outcome: Outcome, metric: str) -> GateRow:
    assert outcome.gate is not None
    return next(row for row in outcome.gate.rows if row.metric == metric)


def _distances(runs: list[dict[str, Outcome]], name: str) -> list[str]:
    found = [run[name] for run in runs]
    cells = [
        mean_and_spread([1000 * one.agreement["kernel_loss"] for one in found], 2),
        mean_and_spread([one.agreement["cka"] for one in found], 3),
        mean_and_spread([100 * one.agreement["mutual_knn"] for one in found]),
    ]
    for level in (0.5, 0.95):
        known = [one.drift[level] for one in found if one.drift is not None]
        cells.append(mean_and_spread(known, 3) if known else "–")
    for shares in ([one.certified for one in found], [one.unchanged for one in found]):
        certain = [100 * share for share in shares if share is not None]
        cells.append(mean_and_spread(certain) if certain else "–")
    return cells


if __name__ == "__main__":
    main()
