"""The papers' claims put to the test, several seeds: docs/claims.md.

    python benchmarks/claims.py --data FOLDER [--seeds 5] [--jobs 2]       (with pretrain/, refine/ and test/)
    python benchmarks/claims.py --data FOLDER --claim tpc-cma/ari …        (these alone; prints them, writes no page)

The model is the demo's small CLIP, pre-trained on `pretrain`, refined on `refine`, judged on `test`. Every variant that
a claim names is trained once a seed and judged on the same test pictures; transforms that need no training are fitted
on the pairs of `refine` and judged beside them. What is trained and judged is kept below --out, and read again.
"""

from __future__ import annotations

import multiprocessing
import shutil
import statistics
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from scipy.stats import spearmanr
from scipy.stats import t as student_t

import small_clip
from modalign import environment
from modalign.console import Reporter
from modalign.data import sources
from modalign.demo.run import TARGET_DECAY
from modalign.demo.target import target as demo_target
from modalign.embedder import Embedder
from modalign.encoders import Tower
from modalign.evaluation import suite as suites
from modalign.evaluation.gate import difference
from modalign.evaluation.kept import KeptResults
from modalign.evaluation.kinds import Context, Encoded, Retrieval
from modalign.evaluation.results import Results
from modalign.evaluation.suite import Suite
from modalign.evaluation.target_alignment import target_alignment
from modalign.features import TrunkMemo, project
from modalign.gap import transforms
from modalign.models import DualEncoder, load
from modalign.models.folder import STAND_IN
from modalign.running import run_recipe
from modalign.sweeping.checkpoints import RATIOS, Checkpoint, Pairs, normalised
from modalign.sweeping.interpolating import first_pairs
from modalign.sweeping.quality import regress
from paper_claims import CENTRING, PAPERS, UNTESTED, VARIANTS, AnyClaim, Claim, Prediction, Trend, Variant
from small_clip import TRANSFORMS, Setting, joint

BATCH = 32
CAPTIONING = "captioning"
CAPTIONED = (CENTRING,)
"""Transforms that are captioned from: a decoder is trained for each, which takes longer than all the rest."""
DECODER_EPOCHS = 50
LESS_IS_MORE = "gap."
Interval = tuple[float, float, float]
"""Estimate, low, high."""


@dataclass(frozen=True)
class Judged:
    """One model on the test pictures.

    Attributes:
        results: of the tasks; captioning where a claim asks for it.
        pairs: the retrieval pictures with their captions, on which gaps are measured.
        gap: measure → (value, low, high).
        agreement: with KUEA's target.
    """

    results: Results
    pairs: Pairs
    gap: dict[str, Interval]
    agreement: dict[str, float]


Outcomes = dict[str, Judged]
"""Model → how it fares; "before" among them."""


# ---- training and judging -----------------------------------------------------------------------------------


@dataclass
class Bench:
    """What all models of a seed share.

    Attributes:
        setting: where the data lies.
        tasks: every claim's but captioning.
        captioning: that alone.
        memo: trunk outputs of this process.
    """

    setting: Setting
    tasks: Suite
    captioning: Suite
    memo: TrunkMemo = field(default_factory=TrunkMemo)

    @classmethod
    def of(cls, setting: Setting) -> Bench:
        """Reads the test data; writes the corpus that caption decoders learn from."""
        corpus = setting.out / "corpus.txt"
        said = [c for spec in (setting.pretrain, setting.train) for c in sources.pairs(spec).captions]
        _write_once(corpus, "".join(f"{' '.join(caption.split())}\n" for caption in dict.fromkeys(said)))
        kinds = ("knn", "clustering", "linear-probe")
        retrieval = setting.tasks[1].partition(":")[2]
        return cls(
            setting,
            suites.prepare([*setting.tasks, *(f"{kind}:{setting.test}" for kind in kinds)]),
            suites.prepare([f"captioning[corpus={corpus},epochs={DECODER_EPOCHS}]:{retrieval}"]),
        )

    @property
    def embedder(self) -> Embedder:
        """The store that everything shares: each frozen network runs once a picture."""
        return Embedder(self.setting.out / "store", batch_size=BATCH)

    def seed(self, seed: int, trained: Sequence[str], captioned: Sequence[str]) -> Outcomes:
        """Everything of one seed.

        Args:
            seed: of pre-training and refinement.
            trained: variants.
            captioned: models that write captions.
        """
        torch.set_num_threads(1)
        base = small_clip.base(self.setting, seed, self.memo)
        of_target = self.embedder.images(demo_target(), self.tasks.paths, self.tasks.wheres).rows[:]
        start = self._encoded(self.tasks, base, base)
        found: Outcomes = {}

        def judge(name: str, model: dict[str, Any], encoded: Encoded, encoder: DualEncoder, captions: Encoded) -> None:
            results = self._scored(self.tasks, model, encoded, None)
            if name in captioned:
                results.tasks.extend(self._scored(self.captioning, model, captions, encoder).tasks)
            task = next(task for task in self.tasks.tasks if isinstance(task, Retrieval))
            row = encoded.rows(len(self.tasks.paths))
            context = Context(self.tasks.paths, self.tasks.strings)
            assert results.gap is not None
            nearer = target_alignment(start.image, encoded.image, of_target)
            assert nearer is not None
            found[name] = Judged(
                results,
                first_pairs(task.features(encoded, row, context)),
                {
                    measure: (told["value"], *(told["interval"] or (told["value"],) * 2))
                    for measure, told in results.gap["measures"].items()
                    if told["value"] is not None
                },
                nearer["after"],
            )
            print(f"seed {seed}: {name}", flush=True)

        spoken = self._encoded(self.captioning, base, base) if captioned else start
        judge("before", _identity(base), start, base, spoken)
        for name in trained:
            out = self._trained(base, name, VARIANTS[name], seed)
            if (out / STAND_IN).is_file():
                weight = load_file(out / STAND_IN)["weight"].double()
                after = replace(start, image=(of_target.double() @ weight.T).float())
                judge(name, {"spec": str(out), "fingerprint": f"{base.fingerprint} {name}"}, after, base, spoken)
            else:
                model = load(str(out / "model"))
                said = self._encoded(self.captioning, base, model) if name in captioned else spoken
                judge(name, _identity(model), self._encoded(self.tasks, base, model), model, said)
        image, text = self._training_pairs(base)
        for name, transform in TRANSFORMS.items():
            transform.fit(image, text)
            identity = {"spec": name, "fingerprint": f"{base.fingerprint} {transform.fingerprint}"}
            judge(name, identity, _mapped(transform, start), base, _mapped(transform, spoken))
        return found

    def _trained(self, base: DualEncoder, name: str, variant: Variant, seed: int) -> Path:
        """The folder of a finished run; one of an earlier call is read again."""
        folder = self.setting.out / f"seed{seed}" / small_clip.folder_name(name)
        more: dict[str, Any] = {
            "store": str(self.setting.out / "store"),
            "epochs": self.setting.epochs * variant.longer,
        }
        if variant.target:
            more |= {
                "data__train": f"images:{self.setting.train}",
                "target": "demo",
                "optimizer__weight_decay": TARGET_DECAY,
            }
        if variant.fraction is not None:
            more["data__fraction"] = variant.fraction
        if not (folder / "report.html").is_file():
            shutil.rmtree(folder, ignore_errors=True)
        recipe = small_clip.recipe(self.setting, base.spec, variant.method, seed, **more)
        target = demo_target() if variant.target else None
        reporter = Reporter(silent=True)
        return run_recipe(recipe, folder, resume=folder.is_dir(), model=base, target=target, reporter=reporter).folder

    def _encoded(self, suite: Suite, base: DualEncoder, model: DualEncoder) -> Encoded:
        """The trunks' stored outputs under this model's projections."""
        seen = self.embedder.images(Tower(base, "image", "trunk"), suite.paths, suite.wheres)
        said = self.embedder.texts(Tower(base, "text", "trunk"), suite.strings).rows
        return Encoded(project(model, "image", seen.rows), seen.kept, project(model, "text", said))

    def _training_pairs(self, base: DualEncoder) -> Pairs:
        pairs = sources.pairs(self.setting.train)
        seen = self.embedder.images(Tower(base, "image", "trunk"), pairs.paths, pairs.wheres).rows
        said = self.embedder.texts(Tower(base, "text", "trunk"), pairs.captions).rows
        return project(base, "image", seen), project(base, "text", said)[pairs.first_caption]

    def _scored(self, suite: Suite, model: dict[str, Any], encoded: Encoded, encoder: DualEncoder | None) -> Results:
        kept = KeptResults(self.setting.out / "judged", {**model, "versions": environment.versions()})
        return suite.score(encoded, model=model, encoder=encoder, kept=kept)


def _identity(model: DualEncoder) -> dict[str, Any]:
    return {"spec": model.spec, "fingerprint": model.fingerprint}


def _mapped(transform: transforms.Transform, encoded: Encoded) -> Encoded:
    image, text = transform.transform(encoded.image, "image"), transform.transform(encoded.text, "text")
    return replace(encoded, image=image.float(), text=text.float())


def one_seed(seed: int, setting: Setting, trained: Sequence[str], captioned: Sequence[str]) -> Outcomes:
    """All models of one seed, in a process of its own."""
    return Bench.of(setting).seed(seed, trained, captioned)


# ---- from outcomes to verdicts ------------------------------------------------------------------------------


def change(runs: Sequence[Outcomes], quantity: str, name: str, than: str = "before") -> Interval:
    """From one model to another, over seeds, with a 95 % interval.

    Returns:
        Gap measures in per cent of what they were; all else as a difference in hundredths.
    """
    part, _, measure = quantity.partition(".")
    if part == "gap":
        return joint([_share(run, measure, name, than) for run in runs])
    if part == "target":
        return over([100 * (run[name].agreement[measure] - run[than].agreement[measure]) for run in runs])
    moved = [difference(run[than].results.metrics[quantity], run[name].results.metrics[quantity]) for run in runs]
    return joint([(found.estimate, found.low, found.high) for found in moved])


def _share(run: Outcomes, measure: str, name: str, than: str) -> Interval:
    if measure in RATIOS:
        found = normalised(run[than].pairs, run[name].pairs)[measure]
        assert found.interval is not None
        return (found.value, *found.interval)
    start = run[than].gap[measure][0]
    value, low, high = (number / start for number in run[name].gap[measure])
    return value, low, high


def over(values: Sequence[float]) -> Interval:
    """The mean over seeds with Student's interval."""
    centre = statistics.mean(values)
    if len(values) < 2:
        return centre, -float("inf"), float("inf")
    reach = float(student_t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5
    return centre, centre - reach, centre + reach


def value_of(judged: Judged, quantity: str) -> float:
    """A quantity of one model."""
    part, _, measure = quantity.partition(".")
    if part == "gap":
        return judged.gap[measure][0]
    return judged.agreement[measure] if part == "target" else judged.results.metrics[quantity].value


def found_of(claim: AnyClaim, runs: Sequence[Outcomes]) -> Interval:
    """What a claim comes to here."""
    if isinstance(claim, Claim):
        return change(runs, claim.quantity, claim.variant, claim.than)
    if isinstance(claim, Trend):
        curves = [[value_of(run[name], claim.quantity) for name in claim.needs] for run in runs]
        return over([float(spearmanr(claim.alphas, curve).statistic) for curve in curves])
    return over([_lead(run, claim) for run in runs])


def _lead(run: Outcomes, claim: Prediction) -> float:
    """Mean R² of one gap measure − that of the other, over the metrics of every trained model of a seed."""
    before = run["before"].results
    points = []
    for name in ("before", *VARIANTS):
        judged = run[name]
        shown = replace(judged.results, tasks=[task for task in judged.results.tasks if task.task != CAPTIONING])
        at = Checkpoint(Path(name), {}, 0, float(name != "before"), before, shown, {}, {}, {})
        points.append(at)
    told = regress(points).mean_r2
    return told[claim.first][0] - told[claim.second][0]


def verdict(found: Interval, within: tuple[float, float]) -> str:
    """Whether a claim holds: where its interval lies inside, outside, or across."""
    _, low, high = found
    if within[0] <= low and high <= within[1]:
        return "holds"
    return "does not hold" if high < within[0] or low > within[1] else "cannot be told"


# ---- the page -----------------------------------------------------------------------------------------------


def told_of(claim: AnyClaim, found: Interval) -> str:
    """An interval with its unit."""
    centre, low, high = found
    if isinstance(claim, Trend):
        return f"ρ {centre:+.2f} [{low:+.2f}, {min(1.0, high):+.2f}]"
    if isinstance(claim, Prediction):
        return f"R² {centre:+.3f} [{low:+.3f}, {high:+.3f}]"
    return _told(claim.quantity, found)


def _told(quantity: str, found: Interval) -> str:
    centre, low, high = found
    if quantity.startswith("gap."):
        return f"{centre:.0f} % [{low:.0f}, {high:.0f}]"
    places = 2 if quantity.startswith("target.") else 1
    return f"{centre:+.{places}f} [{low:+.{places}f}, {high:+.{places}f}]"


def best_without_training(claim: AnyClaim, runs: Sequence[Outcomes]) -> str:
    """The transform that moves the quantity furthest towards the better, against the model before."""
    if not claim.quantity or claim.quantity.startswith("target."):  # whose kernels are of features as long as before
        return "–"
    names = CAPTIONED if claim.quantity.startswith(CAPTIONING) else tuple(TRANSFORMS)
    less = claim.quantity.startswith(LESS_IS_MORE)
    found = {name: change(runs, claim.quantity, name) for name in names}
    best = min(found, key=lambda name: found[name][0] if less else -found[name][0])
    return f"{best} {_told(claim.quantity, found[best])}"


def rows(claims: Sequence[AnyClaim], runs: Sequence[Outcomes]) -> Iterator[tuple[AnyClaim, str, str, str]]:
    """Claim, what was found, verdict, and the best transform."""
    free: dict[str, str] = {}
    for claim in claims:
        found = found_of(claim, runs)
        if claim.quantity not in free:
            free[claim.quantity] = best_without_training(claim, runs)
        yield claim, told_of(claim, found), verdict(found, claim.within), free[claim.quantity]


def render(setting: Setting, runs: Sequence[Outcomes], captioned: Sequence[str]) -> str:
    """The ledger."""
    tables: dict[str, list[tuple[AnyClaim, str, str, str]]] = {
        paper: list(rows(claims, runs)) for paper, claims in PAPERS.items()
    }
    verdicts = [row[2] for table in tables.values() for row in table]
    counts = ", ".join(f"{verdicts.count(word)} {word}" for word in ("holds", "does not hold", "cannot be told"))
    versions = ", ".join(f"{name} {version}" for name, version in environment.versions().items())
    protocols = {task.task: task.protocol for task in runs[0]["before"].results.tasks}
    zero_shot, retrieval, caption = (protocols[kind] for kind in ("zero_shot", "retrieval", CAPTIONING))
    lines = [
        "# The claims ledger",
        "",
        f"Of {len(verdicts)} claims of the three papers, on a small model and {setting.title}: {counts}.".replace(
            " holds", " hold", 1
        ).replace("does not hold", "do not hold"),
        "",
        f"Made by `python benchmarks/claims.py --data FOLDER`; {len(runs)} seeds (of pre-training and refinement), "
        f"modalign commit {environment.commit() or 'installed'}, {versions}. One claim alone: "
        "`python benchmarks/claims.py --data FOLDER --claim KEY`, the key being the first column.",
        "",
        f"{small_clip.ABOUT}: projections only, AdamW 3e-4,",
        f"{setting.epochs} epochs, batch {setting.batch_size}; judged on concepts never trained on, nothing chosen on "
        "`test`.",
        f"Zero-shot: {zero_shot['samples']} pictures, {zero_shot['classes']} classes. Retrieval: "
        f"{retrieval['samples']} pictures, gaps on the same. Clustering and the linear probe: the labelled pictures.",
        f"Captions: a decoder per model, {caption['epochs']} epochs on the text features of "
        f"{caption['corpus_captions']:,} captions.",
        "Training-free transforms are fitted on the pairs that the methods train on.",
        "",
        "**How to read it.** Tasks: change in points (CIDEr-D: in hundredths), gaps: per cent of what they were, ρ:",
        "Spearman's over α_target; against the model before unless the claim names another. Every interval is of 95 %:",
        "of tasks and gaps it joins the paired bootstrap over test pictures (the same in every seed) with the seeds'",
        "spread, of ρ, R² and agreement with the target it is Student's over seeds. A claim *holds* where the whole",
        "interval lies where the claim says, *does not hold* where none of it does, else it *cannot be told*. Of so",
        "many intervals one in twenty misses. The last column is the best of the transforms that need no training for",
        "the same quantity, against the model before: the best of nine looks better than it is.",
        "",
        "A small model on drawings cannot refute what was published of ViT-B/32 on photographs. It shows which claims",
        "a user should check on their own data before they lean on them.",
    ]
    for paper, table in tables.items():
        lines += ["", f"## {paper}", ""]
        lines += [
            "| claim | it says | published | here | verdict | best without training |",
            "|---|---|---|--:|---|--:|",
        ]
        lines += [
            f"| `{claim.key}` | {claim.says} | {claim.published} | {here} | **{word}** | {free} |"
            for claim, here, word, free in table
        ]
    lines += ["", "## Every model", "", *_models(runs, captioned)]
    lines += ["", "## What cannot be tested here", "", "| paper | claim | it takes |", "|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in UNTESTED]
    return "\n".join([*lines, ""])


SHOWN = {
    "zero_shot.acc1": "zero-shot",
    "retrieval.text_to_image_r1": "T→I R@1",
    "retrieval.image_to_text_r1": "I→T R@1",
    "linear_probe.acc1": "linear probe",
    "clustering.ari": "ARI",
    "captioning.direct_cider_d": "CIDEr-D",
    "gap.raw_gap": "raw gap",
    "gap.centroid_gap": "centroid gap",
    "gap.distribution_gap": "distribution gap",
}


def _models(runs: Sequence[Outcomes], captioned: Sequence[str]) -> list[str]:
    """Every model's values, so that a claim nobody listed can be looked up."""
    lines = [f"| | {' | '.join(SHOWN.values())} |", f"|---|{'--:|' * len(SHOWN)}"]
    for name in runs[0]:
        cells = []
        for quantity in SHOWN:
            if quantity.startswith(CAPTIONING) and name not in captioned:
                cells.append("–")
                continue
            values = [value_of(run[name], quantity) for run in runs]
            gap = quantity.startswith("gap.")
            cells.append(small_clip.mean_and_spread(values if gap else [100 * v for v in values], 3 if gap else 1))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, "", "Mean ± standard deviation over seeds; shares in per cent, ARI and CIDEr-D in hundredths."]


# ---- the command --------------------------------------------------------------------------------------------


def _write_once(path: Path, text: str) -> None:
    """Writes a file unless it says so already: another process may be reading it."""
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def captioned_for(claims: Sequence[AnyClaim]) -> tuple[str, ...]:
    """The models whose captions these claims compare."""
    asked = [claim for claim in claims if claim.quantity.startswith(CAPTIONING)]
    names = [name for claim in asked for name in claim.needs]
    return tuple(dict.fromkeys(["before", *names, *CAPTIONED])) if asked else ()


def main() -> None:
    parser = small_clip.arguments_of(__doc__, "runs/claims")
    parser.set_defaults(seeds=5)
    parser.add_argument("--jobs", type=int, default=1, help="seeds at a time, each in a process with one thread")
    parser.add_argument("--claim", nargs="*", metavar="KEY", help="only these, printed; default: all, and the page")
    arguments = parser.parse_args()
    every = {claim.key: claim for claims in PAPERS.values() for claim in claims}
    if unknown := set(arguments.claim or ()) - set(every):
        parser.error(f"no claim {sorted(unknown)[0]!r}; there are {', '.join(every)}")
    claims = [every[key] for key in arguments.claim] if arguments.claim else list(every.values())
    setting = small_clip.setting_of(arguments)
    needed = {name for claim in claims for name in claim.needs}
    trained, captioned = [name for name in VARIANTS if name in needed], captioned_for(claims)
    memo = TrunkMemo()  # of the pictures to pre-train on, which no store holds
    for seed in range(arguments.seeds):
        small_clip.base(setting, seed, memo)
    work = partial(one_seed, setting=setting, trained=trained, captioned=captioned)
    with ProcessPoolExecutor(arguments.jobs, multiprocessing.get_context("spawn")) as pool:
        runs = list(pool.map(work, range(arguments.seeds)))
    if arguments.claim:
        for claim, here, word, free in rows(claims, runs):
            print(f"{claim.key}: {claim.says} (published: {claim.published})")
            print(f"    {word}: {here}; best without training: {free}")
        return
    page = render(setting, runs, captioned)
    target = arguments.doc or Path("docs/claims.md")
    target.write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
