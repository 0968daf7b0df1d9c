"""What the three papers claim, as comparisons of variants that `claims.py` trains and judges.

A quantity is a task's metric ("zero_shot.acc1"), a gap measure ("gap.centroid_gap") or an agreement with the vision
model that KUEA aligns to ("target.cka"). A claim names where the change must lie: metrics and agreements in points
(hundredths), CIDEr-D in hundredths of CIDEr-D; gap measures in per cent of what they were.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from modalign.demo.run import METHOD_SETTINGS

INFINITY = float("inf")
RISES, FALLS, SHRINKS = (0.0, INFINITY), (-INFINITY, 0.0), (0.0, 100.0)
ZERO, TO_IMAGE, TO_TEXT = "zero_shot.acc1", "retrieval.text_to_image_r1", "retrieval.image_to_text_r1"
ARI, PROBE = "clustering.ari", "linear_probe.acc1"
DIRECT, MEMORY = "captioning.direct_cider_d", "captioning.memory_cider_d"

# ---- what is trained ----------------------------------------------------------------------------------------

CONTRASTIVE = "contrastive"
KUEA: dict[str, Any] = {"name": "kuea", **METHOD_SETTINGS["kuea"]}
TPC = {alpha: f"TPC-CMA, α_target {alpha:g}" for alpha in (0.0, 0.01, 0.05, 0.1, 0.3, 0.5)}
STRONG: dict[str, Any] = {"name": "tpc-cma", "alpha_target": 0.5}


@dataclass(frozen=True)
class Variant:
    """A model that is trained.

    Attributes:
        method: as in a recipe.
        target: it sees the pictures of `refine` alone, and EfficientNet-Lite2's features of them; else the pictures
            and their captions.
        fraction: the share of the pictures it sees.
        longer: how often it sees them, against the others.
    """

    method: dict[str, Any]
    target: bool = False
    fraction: float | None = None
    longer: int = 1


def _kuea(**changed: Any) -> dict[str, Any]:
    return {**KUEA, **changed}


VARIANTS: dict[str, Variant] = {
    CONTRASTIVE: Variant({"name": "contrastive"}),
    "m²-mix": Variant({"name": "m2-mix"}),
    "self-distillation": Variant({"name": "self-kd"}),
    "HyCD alone": Variant({"name": "hycd"}),
    "HyCD + pair pull": Variant({"name": "hycd-pair-pull"}),
    "RaFA alone": Variant({"name": "rafa"}),
    "CLIP-Refine": Variant({"name": "clip-refine"}),
    "CLIP-Refine, β 0": Variant({"name": "clip-refine", "std": 0.0}),
    "CLIP-Refine, β 100": Variant({"name": "clip-refine", "std": 10.0}),
    "KUEA": Variant(KUEA, target=True),
    "KUEA without its anchor": Variant(_kuea(anchor_weight=0.0), target=True),
    "KUEA, λ / 10": Variant(_kuea(kernel_weight=KUEA["kernel_weight"] / 10), target=True),
    "KUEA, λ × 5": Variant(_kuea(kernel_weight=KUEA["kernel_weight"] * 5), target=True),
    "KUEA, Gaussian kernels": Variant(_kuea(student_kernel="gaussian", target_kernel="gaussian"), target=True),
    "KUEA, cosine kernels": Variant(
        _kuea(student_kernel="cosine", target_kernel="cosine", fit_kernel=False), target=True
    ),
    "KUEA, a quarter of the pictures": Variant(KUEA, target=True, fraction=0.25),
    "KUEA, twice the epochs": Variant(KUEA, target=True, longer=2),
    "projection": Variant({"name": "projection"}, target=True),
    "feature": Variant({"name": "feature"}, target=True),
    "AM-RADIO": Variant({"name": "am-radio"}, target=True),
    **{name: Variant({"name": "tpc-cma", "alpha_target": alpha}) for alpha, name in TPC.items()},
    "TPC-CMA without its distribution term": Variant({**STRONG, "distribution": 0.0}),
    "TPC-CMA without its centroid term": Variant({**STRONG, "centroid": 0.0}),
    "TPC-CMA without its curriculum": Variant({**STRONG, "phases": "constant"}),
    "TPC-CMA without its gradient factor": Variant({**STRONG, "on_conflict": "ignore"}),
    "AlignCLIP's separation": Variant({"name": "align-clip"}),
    "CS-Aligner": Variant({"name": "cs-aligner"}),
}
CENTRING = "mean-centring"


# ---- what is claimed ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """One sentence of a paper.

    Attributes:
        key: how the command line calls it: paper/what.
        says: the sentence.
        published: the paper's own numbers.
        quantity: what is measured.
        variant: of which model.
        within: (low, high) between which the change must lie.
        than: the model it is set against.
    """

    key: str
    says: str
    published: str
    quantity: str
    variant: str
    within: tuple[float, float] = RISES
    than: str = "before"

    @property
    def needs(self) -> tuple[str, ...]:
        """The variants it is told from."""
        return tuple(name for name in (self.variant, self.than) if name != "before")


@dataclass(frozen=True)
class Trend:
    """A claim that a quantity follows α_target: Spearman's ρ over the sweep, one a seed.

    Attributes: as of `Claim`.
    """

    key: str
    says: str
    published: str
    quantity: str
    within: tuple[float, float] = RISES
    alphas: tuple[float, ...] = tuple(TPC)

    @property
    def needs(self) -> tuple[str, ...]:
        """The variants of the sweep."""
        return tuple(TPC[alpha] for alpha in self.alphas)


@dataclass(frozen=True)
class Prediction:
    """The claim that one gap measure tells quality better than another: mean R² over metrics and all variants.

    Attributes: as of `Claim`; `first` and `second` are gap measures.
    """

    key: str
    says: str
    published: str
    first: str
    second: str
    within: tuple[float, float] = RISES
    quantity: str = ""

    @property
    def needs(self) -> tuple[str, ...]:
        """Everything that is trained."""
        return tuple(VARIANTS)


AnyClaim = Claim | Trend | Prediction

CLIP_REFINE: tuple[AnyClaim, ...] = (
    Claim(
        "clip-refine/gap",
        "The gap falls",
        "‖Δμ‖²/d 1.33e-3 → 0.79e-3 (77 % of the distance)",
        "gap.centroid_gap",
        "CLIP-Refine",
        SHRINKS,
    ),
    Claim("clip-refine/alignment", "Pairs come closer", "1.37 → 1.28", "gap.alignment", "CLIP-Refine", SHRINKS),
    Claim("clip-refine/uniformity", "Features spread", ".089 → .049", "gap.uniformity", "CLIP-Refine", SHRINKS),
    Claim("clip-refine/zero-shot", "Zero-shot accuracy rises", "52.74 → 54.69", ZERO, "CLIP-Refine"),
    Claim("clip-refine/text-to-image", "Text-to-image R@1 rises", "30.56 → 37.64", TO_IMAGE, "CLIP-Refine"),
    Claim("clip-refine/image-to-text", "Image-to-text R@1 rises", "33.26 → 38.78", TO_TEXT, "CLIP-Refine"),
    Claim(
        "clip-refine/contrastive",
        "Contrastive fine-tuning lowers zero-shot accuracy",
        "52.74 → 45.75",
        ZERO,
        CONTRASTIVE,
        FALLS,
    ),
    Claim(
        "clip-refine/beats-contrastive",
        "CLIP-Refine beats contrastive fine-tuning in zero-shot",
        "54.69 against 45.75",
        ZERO,
        "CLIP-Refine",
        than=CONTRASTIVE,
    ),
    Claim(
        "clip-refine/beats-contrastive-retrieval",
        "It beats it in text-to-image R@1 as well",
        "37.64 against 34.88",
        TO_IMAGE,
        "CLIP-Refine",
        than=CONTRASTIVE,
    ),
    Claim("clip-refine/m2-mix", "m²-mix lowers zero-shot accuracy", "52.74 → 46.48", ZERO, "m²-mix", FALLS),
    Claim(
        "clip-refine/self-kd",
        "Self-distillation keeps zero-shot accuracy (within a point)",
        "52.74 → 52.94",
        ZERO,
        "self-distillation",
        (-1.0, 1.0),
    ),
    Claim(
        "clip-refine/hycd",
        "HyCD alone keeps zero-shot accuracy (loses no point)",
        "52.74 → 53.13",
        ZERO,
        "HyCD alone",
        (-1.0, INFINITY),
    ),
    Claim(
        "clip-refine/rafa-adds",
        "RaFA adds zero-shot accuracy to HyCD",
        "53.13 → 54.69",
        ZERO,
        "CLIP-Refine",
        than="HyCD alone",
    ),
    Claim(
        "clip-refine/rafa-alone",
        "RaFA needs HyCD: alone it lowers zero-shot accuracy",
        "in words",
        ZERO,
        "RaFA alone",
        FALLS,
    ),
    Claim(
        "clip-refine/pair-pull",
        "Pulling pairs together instead of RaFA lowers zero-shot accuracy",
        "52.74 → 45.61",
        ZERO,
        "HyCD + pair pull",
        FALLS,
    ),
    Claim(
        "clip-refine/prior-zero",
        "A random reference beats a fixed one (β 1 against 0)",
        "54.69 against 53.79",
        ZERO,
        "CLIP-Refine",
        than="CLIP-Refine, β 0",
    ),
    Claim(
        "clip-refine/prior-wide",
        "A wider one is worse (β 100 against 1)",
        "53.59 against 54.69",
        ZERO,
        "CLIP-Refine, β 100",
        FALLS,
        "CLIP-Refine",
    ),
    Claim(
        "clip-refine/probe",
        "The linear probe falls (independent reproductions)",
        "−2.4 over five sets",
        PROBE,
        "CLIP-Refine",
        FALLS,
    ),
)

KUEA_CLAIMS: tuple[AnyClaim, ...] = (
    Claim(
        "kuea/kernel",
        "The student's kernel comes nearer to the target's",
        "in words",
        "target.kernel_loss",
        "KUEA",
        FALLS,
    ),
    Claim("kuea/zero-shot", "Zero-shot accuracy rises", "L/14, 11 sets: 65.26 → 66.54", ZERO, "KUEA"),
    Claim(
        "kuea/zero-shot-kept",
        "It is kept at the least (loses no point)",
        "ImageNet 74.90 → 75.52",
        ZERO,
        "KUEA",
        (-1.0, INFINITY),
    ),
    Claim("kuea/text-to-image", "Text-to-image R@1 rises, without captions", "COCO 34.51 → 35.98", TO_IMAGE, "KUEA"),
    Claim("kuea/image-to-text", "Image-to-text R@1 rises", "COCO 50.64 → 51.72", TO_TEXT, "KUEA"),
    Claim("kuea/probe", "The linear probe rises", "SVHN 65.20 → 69.39", PROBE, "KUEA"),
    Claim("kuea/projection", "Projection lowers zero-shot accuracy", "65.26 → 54.07", ZERO, "projection", FALLS),
    Claim("kuea/beats-feature", "KUEA beats feature matching", "66.54 against 65.73", ZERO, "KUEA", than="feature"),
    Claim("kuea/beats-am-radio", "KUEA beats AM-RADIO", "in its Table 1", ZERO, "KUEA", than="AM-RADIO"),
    Claim(
        "kuea/regulariser",
        "Without the regulariser it falls below the base model",
        "in words",
        ZERO,
        "KUEA without its anchor",
        FALLS,
    ),
    Claim(
        "kuea/gaussian",
        "The polynomial kernel beats the Gaussian",
        "in words",
        ZERO,
        "KUEA",
        than="KUEA, Gaussian kernels",
    ),
    Claim("kuea/cosine", "It beats the cosine", "in words", ZERO, "KUEA", than="KUEA, cosine kernels"),
    Claim(
        "kuea/lambda-small",
        "λ hardly matters: a tenth of it is within a point",
        "stable over λ 0.1 … 10",
        ZERO,
        "KUEA, λ / 10",
        (-1.0, 1.0),
        "KUEA",
    ),
    Claim(
        "kuea/lambda-large",
        "Five times it is within a point",
        "stable over λ 0.1 … 10",
        ZERO,
        "KUEA, λ × 5",
        (-1.0, 1.0),
        "KUEA",
    ),
    Claim(
        "kuea/epochs",
        "Longer training adds nothing (twice the epochs, within a point)",
        "flat after 2 epochs",
        ZERO,
        "KUEA, twice the epochs",
        (-1.0, 1.0),
        "KUEA",
    ),
    Claim(
        "kuea/data",
        "A quarter of the pictures is nearly enough (within a point)",
        "66.03 against 66.54",
        ZERO,
        "KUEA, a quarter of the pictures",
        (-1.0, INFINITY),
        "KUEA",
    ),
)

TPC_CMA: tuple[AnyClaim, ...] = (
    Claim("tpc-cma/gap-0.05", "At α_target 0.05 the raw gap falls", "−66.6 %", "gap.raw_gap", TPC[0.05], SHRINKS),
    Claim("tpc-cma/gap-0.05-size", "… to 40 % or less", "−66.6 %", "gap.raw_gap", TPC[0.05], (0.0, 40.0)),
    Claim("tpc-cma/gap-0.5", "At α_target 0.5 the raw gap falls", "−82.3 %", "gap.raw_gap", TPC[0.5], SHRINKS),
    Claim("tpc-cma/gap-0.5-size", "… to 25 % or less", "−82.3 %", "gap.raw_gap", TPC[0.5], (0.0, 25.0)),
    Claim(
        "tpc-cma/more-than-contrastive",
        "The alignment does it, not the fine-tuning (raw gap against α_target 0)",
        "in words",
        "gap.raw_gap",
        TPC[0.5],
        SHRINKS,
        TPC[0.0],
    ),
    Trend(
        "tpc-cma/distribution-trend",
        "The distribution gap falls as α_target rises",
        "the knob",
        "gap.distribution_gap",
        FALLS,
    ),
    Trend("tpc-cma/centroid-trend", "So does the centroid gap", "the knob", "gap.centroid_gap", FALLS),
    Claim(
        "tpc-cma/cost",
        "At α_target 0.05 accuracy falls, by 5 points at most",
        "−4.84 %",
        ZERO,
        TPC[0.05],
        (-5.0, 0.0),
    ),
    Trend("tpc-cma/ari-trend", "Joint clustering (ARI) rises with α_target", ".318 → .425 → .516", ARI),
    Claim("tpc-cma/ari", "At α_target 0.5 ARI is above the base model's", ".318 → .516", ARI, TPC[0.5]),
    Claim("tpc-cma/cider-0.05", "At α_target 0.05 captions improve (CIDEr-D, direct)", "+28.5 %", DIRECT, TPC[0.05]),
    Claim("tpc-cma/cider-0.5", "At α_target 0.5 captions improve (CIDEr-D, direct)", "+57.1 %", DIRECT, TPC[0.5]),
    Claim("tpc-cma/cider-memory", "… through the support memory as well", "+57.1 %", MEMORY, TPC[0.5]),
    Trend("tpc-cma/cider-trend", "CIDEr-D rises with α_target", "+28.5 → +57.1 %", DIRECT, RISES, (0.0, 0.05, 0.5)),
    Claim(
        "tpc-cma/distribution-term",
        "The distribution term matters: without it the distribution gap stays larger",
        "in words",
        "gap.distribution_gap",
        "TPC-CMA without its distribution term",
        (100.0, INFINITY),
        TPC[0.5],
    ),
    Claim(
        "tpc-cma/centroid-term",
        "The centroid term matters: without it the centroid gap stays larger",
        "in words",
        "gap.centroid_gap",
        "TPC-CMA without its centroid term",
        (100.0, INFINITY),
        TPC[0.5],
    ),
    Claim(
        "tpc-cma/curriculum",
        "The curriculum matters: without it zero-shot accuracy is lower",
        "in words",
        ZERO,
        "TPC-CMA without its curriculum",
        FALLS,
        TPC[0.5],
    ),
    Claim(
        "tpc-cma/gradient-factor",
        "Its gradient factor matters: without it zero-shot accuracy is lower",
        "in words",
        ZERO,
        "TPC-CMA without its gradient factor",
        FALLS,
        TPC[0.5],
    ),
    Claim(
        "tpc-cma/centring-centroid",
        "Mean-centring closes the centroid gap (to 10 % or less)",
        "−97 %",
        "gap.centroid_gap",
        CENTRING,
        (0.0, 10.0),
    ),
    Claim(
        "tpc-cma/centring-distribution",
        "… and leaves the distribution gap, scaled to length 1 again (95 to 105 %)",
        "unchanged",
        "gap.distribution_gap",
        CENTRING,
        (95.0, 105.0),
    ),
    Claim(
        "tpc-cma/centring-captions",
        "… and captions as they were (CIDEr-D, direct, within 0.02)",
        "in words",
        DIRECT,
        CENTRING,
        (-2.0, 2.0),
    ),
    Claim(
        "tpc-cma/beats-centring",
        "TPC-CMA at 0.5 beats mean-centring in captions",
        "+57.1 %",
        DIRECT,
        TPC[0.5],
        RISES,
        CENTRING,
    ),
    Claim(
        "tpc-cma/beats-align-clip",
        "It closes more of the raw gap than AlignCLIP's separation",
        "its table",
        "gap.raw_gap",
        TPC[0.5],
        SHRINKS,
        "AlignCLIP's separation",
    ),
    Claim(
        "tpc-cma/beats-cs-aligner",
        "… than CS-Aligner",
        "its table",
        "gap.raw_gap",
        TPC[0.5],
        SHRINKS,
        "CS-Aligner",
    ),
    Claim(
        "tpc-cma/beats-clip-refine",
        "… than CLIP-Refine",
        "its table",
        "gap.raw_gap",
        TPC[0.5],
        SHRINKS,
        "CLIP-Refine",
    ),
    Prediction(
        "tpc-cma/prediction",
        "The distribution gap tells quality better than the raw gap",
        "R² .986 against .691",
        "distribution_gap",
        "raw_gap",
    ),
)

PAPERS: dict[str, tuple[AnyClaim, ...]] = {
    "CLIP-Refine (arXiv 2504.12717)": CLIP_REFINE,
    "KUEA (arXiv 2506.02557)": KUEA_CLAIMS,
    "TPC-CMA (arXiv 2604.00279)": TPC_CMA,
}

UNTESTED = (
    ("CLIP-Refine", "the averages over twelve sets and COCO with OpenAI's ViT-B/32", "ImageNet, COCO, the weights"),
    ("KUEA", "SVHN, GTSRB, CLEVR; localisation probing 46.40 → 47.44; MMVP-VLM 17.78 → 20.74", "those sets"),
    ("KUEA", "LLaVA-1.5-7B 48.50 → 48.87, with LoRA 58.28 → 59.14; OpenFlamingo 42.15 → 42.84", "a 7B model and a GPU"),
    ("KUEA", "other students (SigLIP, DFN, MetaCLIP) and MLCD as target", "their weights"),
    ("KUEA", "30 hours on two RTX 4090", "that machine; docs/results/step.md has the step against ours"),
    ("TPC-CMA", "ViT-B/32 on CC3M-like pairs, and its numbers", "the data and the weights"),
)
"""Paper, claim, and what it would take: nothing here can say anything of these."""
