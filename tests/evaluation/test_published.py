from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from pydantic import ValidationError

from modalign.evaluation.linear_probe import RULES
from modalign.evaluation.published import AVERAGES, Protocol, Published, beside, data_set_of, published
from modalign.evaluation.suites import SUITES, _places
from modalign.gap.report import GapReport

ACC, T2I, I2T = "zero_shot.acc1", "retrieval.text_to_image_r1", "retrieval.image_to_text_r1"

# Typed from the papers' tables a second time, apart from the file: (paper, model, data set, metric) → row → number.
PRINTED: dict[tuple[str, str, str, str], dict[str, float]] = {
    ("clip-refine", "ViT-B/32", "clip-refine-12", ACC): {
        "pre-trained": 52.74,
        "contrastive": 45.75,
        "m²-mix": 46.48,
        "self-KD": 52.94,
        "HyCD only": 53.13,
        "HyCD + pair pull": 45.61,
        "CLIP-Refine": 54.69,
        "CLIP-Refine, β = 0": 53.79,
        "CLIP-Refine, β = 1": 54.69,
        "CLIP-Refine, β = 100": 53.59,
    },
    ("clip-refine", "ViT-B/32", "imagenet1k", ACC): {
        "pre-trained": 59.04,
        "contrastive": 52.96,
        "m²-mix": 53.58,
        "self-KD": 59.06,
        "CLIP-Refine": 60.93,
    },
    ("clip-refine", "ViT-B/32", "coco", T2I): {"pre-trained": 30.56, "contrastive": 34.88, "CLIP-Refine": 37.64},
    ("clip-refine", "ViT-B/32", "coco", I2T): {"pre-trained": 33.26, "contrastive": 31.86, "CLIP-Refine": 38.78},
    ("clip-refine", "ViT-B/32", "coco", "gap.published_gap"): {
        "pre-trained": 0.00133,
        "CLIP-Refine": 0.00079,
    },
    ("clip-refine", "ViT-B/32", "coco", "gap.alignment"): {"pre-trained": 1.37, "CLIP-Refine": 1.28},
    ("clip-refine", "ViT-B/32", "coco", "gap.uniformity"): {"pre-trained": 0.089, "CLIP-Refine": 0.049},
    ("clip-refine-reproduction", "ViT-B/16", "zero-shot average", f"{ACC}.change"): {"CLIP-Refine": 1.05},
    ("clip-refine-reproduction", "ViT-B/16", "coco", f"{I2T}.change"): {"CLIP-Refine": 6.0},
    ("clip-refine-reproduction", "ViT-B/16", "5-set linear probe", "linear_probe.acc1.change"): {"CLIP-Refine": -2.4},
    ("kuea", "ViT-B/16", "imagenet1k", ACC): {"base": 67.72, "KUEA": 67.84},
    ("kuea", "ViT-L/14", "imagenet1k", ACC): {"base": 74.90, "KUEA": 75.52},
    ("kuea", "ViT-L/14-336", "imagenet1k", ACC): {"base": 75.82, "KUEA": 76.30},
    ("kuea", "ViT-B/16", "kuea-11", ACC): {"base": 61.22, "projection": 54.17, "feature": 61.41, "KUEA": 62.04},
    ("kuea", "ViT-L/14", "kuea-11", ACC): {
        "base": 65.26,
        "projection": 54.07,
        "feature": 65.73,
        "DIVA": 65.45,
        "KUEA": 66.54,
        "KUEA, 25 % of the data": 66.03,
        "KUEA, 50 % of the data": 66.48,
        "KUEA, all data": 66.54,
    },
    ("kuea", "ViT-L/14-336", "kuea-11", ACC): {
        "base": 66.10,
        "projection": 54.53,
        "feature": 66.52,
        "DIVA": 65.30,
        "KUEA": 67.13,
    },
    ("kuea", "not said", "kuea-11", ACC): {"KUEA, target MLCD": 66.26},
    ("kuea", "ViT-L/14", "flickr30k", I2T): {"base": 81.40, "KUEA": 83.00},
    ("kuea", "ViT-L/14", "flickr30k", T2I): {"base": 63.62, "KUEA": 64.78},
    ("kuea", "ViT-L/14", "coco", I2T): {"base": 50.64, "KUEA": 51.72},
    ("kuea", "ViT-L/14", "coco", T2I): {"base": 34.51, "KUEA": 35.98},
    ("kuea", "ViT-L/14", "svhn", "linear_probe.acc1"): {"base": 65.20, "KUEA": 69.39},
    ("kuea", "ViT-L/14", "gtsrb", "linear_probe.acc1"): {"base": 72.94, "KUEA": 74.51},
    ("kuea", "ViT-L/14", "clevr_closest_object_distance", "linear_probe.acc1"): {"base": 22.97, "KUEA": 30.82},
    ("kuea", "ViT-L/14", "clevr_count_all", "linear_probe.acc1"): {"base": 41.25, "KUEA": 49.67},
    ("kuea", "not said", "coco", "localization.local_macro_recall"): {"base": 46.40, "KUEA": 47.44},
    ("kuea", "not said", "coco", "localization.global_macro_recall"): {"base": 54.51, "KUEA": 55.33},
    ("kuea", "not said", "mmvp_vlm", "mmvp_vlm.pair_accuracy"): {"base": 17.78, "KUEA": 20.74},
    ("kuea", "not said", "openflamingo average", "openflamingo.average"): {"base": 42.15, "KUEA": 42.84},
    ("kuea", "SigLIP", "average", ACC): {"base": 70.26, "KUEA": 70.71},
    ("kuea", "DFN", "average", ACC): {"base": 71.40, "KUEA": 71.88},
    ("kuea", "MetaCLIP", "average", ACC): {"base": 67.86, "KUEA": 68.73},
    ("kuea", "ViT-L/14", "imagenet1k", "cost.hours"): {"KUEA": 30},
    ("tpc-cma", "ViT-B/32", "not said", "gap.change"): {"TPC-CMA, α = 0.05": -66.6, "TPC-CMA, α = 0.5": -82.3},
    ("tpc-cma", "ViT-B/32", "not said", "accuracy.change"): {"TPC-CMA, α = 0.05": -4.84},
    ("tpc-cma", "ViT-B/32", "not said", "clustering.ari"): {
        "pre-trained": 0.318,
        "TPC-CMA, α = 0.05": 0.425,
        "TPC-CMA, α = 0.5": 0.516,
    },
    ("tpc-cma", "ViT-B/32", "not said", "captioning.cider.change"): {
        "TPC-CMA, α = 0.05": 28.5,
        "TPC-CMA, α = 0.5": 57.1,
    },
    ("tpc-cma", "ViT-B/32", "not said", "centroid_gap.change"): {"mean-centring": -97},
    ("tpc-cma", "ViT-B/32", "not said", "distribution_gap.change"): {"mean-centring": 0},
    ("tpc-cma", "ViT-B/32", "not said", "r_squared"): {"distribution gap": 0.986, "raw gap": 0.691},
}
# Two tables of one data set and metric: LLaVA with the tower swapped alone, and tuned with LoRA.
LLAVA = {
    "LLaVA, tower swapped only": {"base": 48.50, "KUEA": 48.87},
    "LLaVA, with LoRA (B.3)": {"base": 58.28, "KUEA": 59.14},
}


@pytest.mark.parametrize("key", PRINTED, ids=lambda key: " ".join(key))
def test_every_printed_number_is_there(key: tuple[str, str, str, str]) -> None:
    paper, model, data_set, metric = key
    found = published(paper=paper, data_set=data_set, metric=metric, model=model)
    assert {number.row: number.value for number in found} == PRINTED[key]


def test_there_is_no_other_number() -> None:
    llava = {(n.table, n.row): n.value for n in published(data_set="llava average")}
    assert llava == {(table, row): value for table, rows in LLAVA.items() for row, value in rows.items()}
    assert len(published()) == sum(map(len, PRINTED.values())) + len(llava)


def test_suspect_numbers_are_flagged_and_no_others() -> None:
    suspect = {(n.paper, n.data_set, n.metric, n.row) for n in published() if n.suspect}
    assert suspect == {
        *(("kuea", "flickr30k", metric, row) for metric in (I2T, T2I) for row in ("base", "KUEA")),
        ("tpc-cma", "not said", "gap.change", "TPC-CMA, α = 0.5"),
        ("tpc-cma", "not said", "clustering.ari", "pre-trained"),
        ("tpc-cma", "not said", "clustering.ari", "TPC-CMA, α = 0.05"),
        ("tpc-cma", "not said", "captioning.cider.change", "TPC-CMA, α = 0.05"),
    }
    for number in published():
        assert ("suspect" in number.line()) == bool(number.suspect)


def test_a_line_tells_where_from_and_what_differs() -> None:
    ours = {"prompts": "openai80", "samples": 50_000, "split": "val"}
    lines = beside("torchvision:imagenet1k:/data@val", ACC, model="open_clip:ViT-L-14-quickgelu/openai", protocol=ours)
    assert lines == [
        "published: 74.9 % (base, ViT-L/14; kuea, ImageNet; 5,000 images of ImageNet; prompts not said)"
        " — protocol differs: samples 5,000 there, 50,000 here",
        "published: 75.52 % (KUEA, ViT-L/14; kuea, ImageNet; 5,000 images of ImageNet; prompts not said)"
        " — protocol differs: samples 5,000 there, 50,000 here",
    ]


def test_equal_protocols_are_not_said_to_differ() -> None:
    (line, *_) = beside("/data/imagenet", ACC, model="hf:openai/clip-vit-base-patch32", protocol={"prompts": "single"})
    assert line.startswith("published: 59.04 % (pre-trained, ViT-B/32; clip-refine") and "differs" not in line
    (line, *_) = beside("coco:/d@val2017", T2I, model="ViT-B-32", protocol={"captions_per_image": "5 to 7"})
    assert line.endswith("protocol differs: captions per image 1 there, 5 to 7 here")


def test_of_another_architecture_all_are_shown_each_with_its_model() -> None:
    lines = beside("coco:/data@karpathy-test", I2T, model="open_clip:RN50/openai")
    assert (
        len(lines) == 5
        and sum("ViT-B/32" in line for line in lines) == 3
        and sum("ViT-L/14" in line for line in lines) == 2
    )


def test_nothing_is_said_beside_what_nobody_published() -> None:
    assert beside("demo:test", ACC) == beside("/data/imagenet", "knn.acc1") == beside("/my/pictures", ACC) == []


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("open_clip:ViT-L-14-336-quickgelu/openai", "ViT-L/14-336"),
        ("hf:openai/clip-vit-large-patch14-336", "ViT-L/14-336"),
        ("hf:openai/clip-vit-large-patch14", "ViT-L/14"),
        ("open_clip:ViT-B-16-quickgelu/openai", "ViT-B/16"),
        ("open_clip:ViT-B-16-SigLIP/webli", "SigLIP"),
        ("open_clip:ViT-H-14-quickgelu/dfn5b", "DFN"),
    ],
)
def test_architectures_are_known_by_any_spelling(model: str, expected: str) -> None:
    assert {number.model for number in published(model=model)} == {expected}


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("coco:/data@val2017", "coco"),
        ("wds:/data/wds_mscoco_captions@test", "coco"),
        ("flickr30k:/data@test", "flickr30k"),
        ("hf:uoft-cs/cifar10@test", "cifar10"),
        ("wds:/data/wds_vtab-flickr30k@test", "flickr30k"),
        ("coco-panoptic:/data/2017@val2017", "coco"),
        ("/data/MMVP_VLM", "mmvp_vlm"),
        ("/data/mine", None),
    ],
)
def test_the_data_set_of_a_spec(spec: str, name: str | None) -> None:
    assert data_set_of(spec) == name


def test_a_field_that_nobody_knows_is_refused() -> None:
    with pytest.raises(ValidationError):
        Protocol.model_validate({"told": "x", "caption": 1})
    assert Published.model_config["frozen"]


def test_every_number_of_a_task_here_is_reached_by_what_a_task_says() -> None:
    """By the specs that suites find and the metrics that kinds make; what is not reached is listed, with its reason."""
    root = Path("/data")
    names = {task.partition(":")[2] for suite in SUITES.values() for task in suite.tasks}
    specs = {spec for name in names if ":" not in name for _, spec in _places(name, root, "test")}
    known = {data_set_of(spec) for spec in specs} | set(AVERAGES)
    metrics = {
        *(f"{kind}.{name}" for kind in ("zero_shot", "linear_probe") for name in ("acc1", "acc5")),
        *(f"retrieval.{way}_r{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)),
        *(f"localization.{side}_macro_recall" for side in ("local", "global")),
        *("mmvp_vlm.pair_accuracy", "mmvp_vlm.pair_accuracy_of_pictures", "clustering.ari"),
        *(f"gap.{field.name}" for field in dataclasses.fields(GapReport)),
    }
    lost = {
        (number.data_set, number.metric)
        for number in published()
        if number.data_set not in known or number.metric.removesuffix(".change") not in metrics
    }
    unsaid = {"not said", "average", "zero-shot average", "5-set linear probe"}  # which data is not told
    assert {metric for name, metric in lost if name not in unsaid} == {
        "cost.hours",
        "llava.average",
        "openflamingo.average",
    }


def test_a_change_stands_beside_its_own_architecture_alone() -> None:
    own = beside("coco:/d@test", I2T, model="ViT-B-16")
    assert own[-1].startswith("published: +6 points (CLIP-Refine, ViT-B/16")
    assert not any("points" in line for line in beside("coco:/d@test", I2T, model="ViT-B-32"))


def test_another_probe_is_told() -> None:
    spec, metric = "/data/wds_svhn", "linear_probe.acc1"
    (line, _) = beside(spec, metric, model="ViT-L-14", protocol={"probe": RULES["logistic"]})
    assert line.endswith("protocol differs: probe adamw there, logistic here")
    assert not any("differs" in line for line in beside(spec, metric, protocol={"probe": RULES["adamw"]}))
