from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from modalign.errors import DataError
from modalign.evaluation.class_names import class_names, data_set, data_sets, recognised, templates

# What CLIP_benchmark has no list for: it takes the data set's own names, spelled as they are (cifar100: with "_").
OWN_NAMES = {"cifar10", "cifar100", "dtd", "cars", "fgvc_aircraft", "food101", "sun397", "stl10", "resisc45"}
NOT_ITS = {"birdsnap", "ucf101"}
LIKE_IMAGENET = {"imagenet_sketch", "imagenet_o"}

CLIP_REFINE = ("fgvc_aircraft", "birdsnap", "cars", "caltech101", "dtd", "eurosat", "flowers", "food101", "imagenet1k")
CLIP_REFINE += ("pets", "sun397", "ucf101")
KUEA = ("cifar10", "cifar100", "caltech101", "fer2013", "pets", "dtd", "resisc45", "eurosat", "pcam")
KUEA += ("imagenet_sketch", "imagenet_o", "imagenet1k", "svhn", "gtsrb")
KUEA += ("clevr_closest_object_distance", "clevr_count_all")


def installed(name: str) -> Any:
    """A JSON file of the installed clip-benchmark; the package itself need not be importable."""
    found = importlib.util.find_spec("clip_benchmark")
    if found is None or found.origin is None:
        pytest.skip("clip-benchmark is not installed")
    return json.loads((Path(found.origin).parent / "datasets" / f"en_{name}.json").read_text(encoding="utf-8"))


def test_the_papers_data_sets_are_there() -> None:
    assert {*CLIP_REFINE, *KUEA} <= set(data_sets())
    assert len(CLIP_REFINE) == 12


@pytest.mark.parametrize("name", data_sets())
def test_every_list_is_whole(name: str) -> None:
    known = data_set(name)
    sizes = {"imagenet1k": 1000, "imagenet_sketch": 1000, "imagenet_o": 200, "caltech101": 102, "country211": 211}
    sizes |= {"cifar10": 10, "cifar100": 100, "sun397": 397, "cars": 196, "fgvc_aircraft": 100, "birdsnap": 500}
    sizes |= {"food101": 101, "ucf101": 101, "flowers": 102, "pets": 37, "dtd": 47, "resisc45": 45, "gtsrb": 43}
    sizes |= {"eurosat": 10, "svhn": 10, "mnist": 10, "stl10": 10, "fer2013": 7, "pcam": 2}
    sizes |= {"clevr_closest_object_distance": 6, "clevr_count_all": 8}
    sizes |= {"diabetic_retinopathy": 5, "dmlab": 6, "kitti_closest_vehicle_distance": 4}
    assert known.name == name and len(known.class_names) == sizes[name]
    assert all(template.count("{}") == 1 for template in known.templates)
    assert set(known.source) == {"class_names", "templates"} and all(known.source.values())
    assert all(name == name.strip() for name in known.class_names)
    # A set's own names come back as the field's, each where it stands.
    for listed in (known.class_names, *known.published_names.values()):
        assert known.renamed(listed) == known.class_names


def test_two_pairs_of_imagenet_classes_share_a_name() -> None:
    names = class_names("imagenet1k")
    twice = sorted({(name, i) for i, name in enumerate(names) if names.count(name) > 1})
    assert twice == [("missile", 657), ("missile", 744), ("sunglasses", 836), ("sunglasses", 837)]


@pytest.mark.parametrize("name", sorted(set(data_sets()) - OWN_NAMES - NOT_ITS - LIKE_IMAGENET))
def test_class_names_equal_clip_benchmarks(name: str) -> None:
    assert list(class_names(name)) == installed("classnames")[name]


@pytest.mark.parametrize("name", sorted(set(data_sets()) - NOT_ITS))
def test_templates_equal_clip_benchmarks(name: str) -> None:
    known = installed("zeroshot_classification_templates")
    asked = [template.replace("{}", "{c}") for template in templates(name)]
    assert asked == known.get(name, known["imagenet1k"])
    assert (name in known) == (name not in LIKE_IMAGENET)


def test_what_clip_benchmark_lists_is_told_from_what_it_does_not() -> None:
    assert not (OWN_NAMES | NOT_ITS | LIKE_IMAGENET) & set(installed("classnames"))


def test_imagenet_is_open_clips() -> None:
    from open_clip import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES

    assert list(class_names("imagenet1k")) == list(IMAGENET_CLASSNAMES)
    assert list(templates("imagenet1k")) == [template("{}") for template in OPENAI_IMAGENET_TEMPLATES]


def test_imagenet_folders_come_in_the_order_of_the_labels() -> None:
    """torchvision's ImageFolder numbers sorted folders, which must be the order of the names."""
    for name in ("imagenet1k", "imagenet_o"):
        folders = data_set(name).published_names["wordnet"]
        assert list(folders) == sorted(folders)
    sketch, known = data_set("imagenet_sketch"), data_set("imagenet1k")
    assert sketch.published_names == known.published_names
    part = data_set("imagenet_o")
    assert known.renamed(part.published_names["wordnet"]) == part.class_names


def test_part_of_the_classes_in_another_order_keeps_its_order() -> None:
    assert data_set("eurosat").renamed(["SeaLake", "forest"]) == ("lake or sea", "forest")
    assert data_set("gtsrb").renamed(["00001", "0"]) == (class_names("gtsrb")[1], class_names("gtsrb")[0])


def test_a_name_that_is_none_or_twice_is_given_back() -> None:
    assert data_set("eurosat").renamed(["SeaLake", "Sky"]) == "Sky"
    assert data_set("eurosat").renamed(["SeaLake", "lake or sea"]) == "lake or sea"
    assert data_set("imagenet1k").renamed(["tench", "missile"]) == "missile"  # which of the two?


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("CIFAR-10", "cifar10"),
        ("wds_vtab-cifar10", "cifar10"),
        ("vtab/caltech101", "caltech101"),
        ("OxfordIIITPet", "pets"),
        ("imagenet-sketch", "imagenet_sketch"),
        ("imagenet", "imagenet1k"),
    ],
)
def test_other_spellings_are_understood(asked: str, name: str) -> None:
    assert data_set(asked).name == name


def test_a_typo_is_told_with_the_nearest_name() -> None:
    with pytest.raises(DataError, match=r"'cifra10': did you mean cifar10\?") as caught:
        class_names("cifra10")
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="'qqq': there are those of birdsnap"):
        templates("qqq")


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("torchvision:cifar10:/data/pets@test", "cifar10"),
        ("/data/imagenet/pets/test", "pets"),  # the last part counts
        ("hf:uoft-cs/cifar100@test", "cifar100"),
        ("wds:/x/wds_vtab-clevr_count_all@test", "clevr_count_all"),
        ("C:\\data\\food101\\test", "food101"),
    ],
)
def test_a_spec_names_its_data_set(spec: str, name: str) -> None:
    known = recognised(spec)
    assert known is not None and known.name == name


def test_a_spec_that_names_none() -> None:
    assert recognised("coco:/data@val2017") is None
