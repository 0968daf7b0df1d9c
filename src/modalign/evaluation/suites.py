"""Named lists of tasks, each a paper's, and where their data is looked for below one folder.

A data set is found under its name in whichever of three forms it is there:

    <root>/wds_<name>/test, <root>/wds_vtab-<name>/test     CLIP_benchmark's WebDataset tars
    <root> or <root>/<name>                                 the folders that torchvision reads; COCO and Flickr30k
    <root>/<name>/test or /val                              class folders, or pictures with a table of captions

What is not there is listed with what was looked for, and the rest runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from modalign.data import torchvision_sets
from modalign.errors import DataError, RecipeError

__all__ = ["SUITES", "Missing", "Suited", "suite_tasks"]

SPLITS = {"test": ("test", "val"), "train": ("train", "trainval")}
PAIRED = {"coco": ("karpathy-", "mscoco_captions"), "flickr30k": ("", "flickr30k")}
"""Data set with captions, which is its kind of spec → what comes before a split's name, and CLIP_benchmark's name."""
ALONE = {
    "mmvp_vlm": ("MMVP_VLM", "{root}/MMVP_VLM"),
    "coco_panoptic": ("coco/annotations/panoptic_val2017.json", "coco-panoptic:{root}/coco@val2017"),
}
"""What comes in one form: where it lies, and its spec."""


@dataclass(frozen=True)
class Suited:
    """A suite.

    Attributes:
        tasks: as typed, with a data set's name in place of a spec; {train} stands for its training split.
        protocol: the one it is judged by unless another is named.
    """

    tasks: tuple[str, ...]
    protocol: str


@dataclass(frozen=True)
class Missing:
    """A task that is left out, and why: what was looked for, or what is wrong with its data."""

    task: str
    expected: str

    def __str__(self) -> str:
        return f"{self.task} left out: {self.expected}"


def _each(kind: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{kind}:{name}" for name in names)


CLIP_REFINE = (
    *("fgvc_aircraft", "birdsnap", "cars", "caltech101", "dtd", "eurosat", "flowers", "food101", "imagenet1k", "pets"),
    *("sun397", "ucf101"),
)
KUEA = (
    *("imagenet1k", "cifar10", "cifar100", "caltech101", "fer2013", "pets", "dtd", "resisc45", "eurosat", "pcam"),
    *("imagenet_sketch", "imagenet_o"),
)
KUEA_VISION = ("svhn", "gtsrb", "clevr_closest_object_distance", "clevr_count_all")
VTAB = (
    *("caltech101", "cifar100", "clevr_count_all", "clevr_closest_object_distance", "diabetic_retinopathy", "dmlab"),
    *("dsprites_label_orientation", "dsprites_label_x_position", "dtd", "eurosat", "kitti_closest_vehicle_distance"),
    *("flowers", "pets", "pcam", "resisc45", "smallnorb_label_azimuth", "smallnorb_label_elevation", "sun397", "svhn"),
)
CORE = ("imagenet1k", "cifar100", "dtd", "eurosat", "food101", "pets")

SUITES: dict[str, Suited] = {
    "clip-refine": Suited((*_each("zero-shot", *CLIP_REFINE), "retrieval:coco"), "clip-refine"),
    "kuea": Suited(
        (
            *_each("zero-shot", *KUEA, *KUEA_VISION),
            *_each("linear-probe[train={train}]", *KUEA_VISION),
            *_each("retrieval", "flickr30k", "coco"),
            *("localization:coco_panoptic", "mmvp-vlm:mmvp_vlm"),
        ),
        "kuea",
    ),
    "tpc-cma": Suited(
        (
            *("zero-shot:imagenet1k", "retrieval:coco", "retrieval:flickr30k", "clustering:cifar10"),
            "captioning[corpus={train}]:coco",
        ),
        "tpc-cma",
    ),
    "vtab": Suited(_each("zero-shot", *VTAB), "standard"),
    "core": Suited(
        (
            *_each("zero-shot", *CORE),
            *_each("retrieval", "flickr30k", "coco"),
            *_each("linear-probe[train={train}]", "cifar100", "dtd", "pets"),
        ),
        "standard",
    ),
    "demo": Suited(
        tuple(f"{kind}:demo:test" for kind in ("zero-shot", "retrieval", "knn", "linear-probe", "clustering")),
        "default",
    ),
}


def suite_tasks(name: str, root: Path | str | None = None) -> tuple[list[str], list[Missing]]:
    """The tasks of a suite whose data is there, with its specs, and those whose data is not.

    Args:
        name: of the suite.
        root: the folder of data sets; the demo has none.

    Returns:
        The tasks, for `evaluate(model, [], optional=tasks, protocol=SUITES[name].protocol)`; and what is missing.

    Raises:
        RecipeError: no such suite, no folder for one that needs it, or one for the demo.
        DataError: nothing of it is there.

    Example:
        >>> tasks, missing = suite_tasks("core", "data")  # doctest: +SKIP
        >>> results = evaluate(model, [], optional=tasks, protocol=SUITES["core"].protocol)  # doctest: +SKIP
    """
    if name not in SUITES:
        raise RecipeError(f"no suite {name!r}: use one of {', '.join(SUITES)}")
    root = None if root is None else Path(root)
    if root is not None and all(":demo:" in task for task in SUITES[name].tasks):
        raise RecipeError(f"suite {name} brings its own data: leave the folder {root} (--data-root) out")
    found: list[str] = []
    missing: list[Missing] = []
    for task in SUITES[name].tasks:
        kind, _, wanted = task.partition(":")
        if wanted.startswith("demo:"):
            found.append(task)
            continue
        if root is None:
            raise RecipeError(f"suite {name} needs its data sets: name the folder that holds them with --data-root")
        spec, train = locate(wanted, root), ""
        if "{train}" in kind and spec is not None:
            train = locate(wanted, root, "train") or ""
        if spec is None or ("{train}" in kind and not train):
            missing.append(Missing(f"{kind.partition('[')[0]}:{wanted}", expected(wanted, root, spec is not None)))
        else:
            found.append(f"{kind.replace('{train}', train)}:{spec}")
    if not found:
        raise DataError(f"{root} holds none of the data sets of suite {name} (such as {missing[0]}); put them there")
    return found, missing


def locate(name: str, root: Path, part: str = "test") -> str | None:
    """The spec of a data set below a folder, None where it is not there.

    Args:
        name: of the data set, as CLIP_benchmark calls it; or coco, flickr30k, coco_panoptic, mmvp_vlm.
        root: the folder of data sets.
        part: "test" or "train".
    """
    return next((spec for place, spec in _places(name, root, part) if place.exists()), None)


def expected(name: str, root: Path, has_test: bool = False) -> str:
    """What `locate` looks for, in one line."""
    places = dict.fromkeys(str(place) for place, _ in _places(name, root, "train" if has_test else "test"))
    return "looked for " + ", ".join(places)


def _places(name: str, root: Path, part: str) -> Iterator[tuple[Path, str]]:
    """Where a data set may lie, and the spec that reads it there."""
    if name in ALONE:
        place, spec = ALONE[name]
        yield root / place, spec.format(root=root)
        return
    prefix, benchmark = PAIRED.get(name, ("", name))
    for folder in (f"wds_{benchmark}", f"wds_vtab-{benchmark}"):
        yield root / folder / part, f"wds:{root / folder}@{part}"
    if name in PAIRED:
        spec = f"{name}:{root / name}@{prefix}{part}"
        yield root / name / f"dataset_{name}.json", spec
        if name == "flickr30k":
            yield root / name / f"{part}.txt", spec
    elif name in torchvision_sets.SETS:
        known = torchvision_sets.SETS[name]
        splits = [split for split in SPLITS[part] if split in known.splits]
        for base in (root / name, root) if known.holds != "{split}" else (root / name,):
            for split in splits:
                yield base / known.holds.format(split=split), f"torchvision:{name}:{base}@{split}"
            if not known.splits and part == "test":
                yield base / known.holds, f"torchvision:{name}:{base}"
    for split in SPLITS[part]:
        yield root / name / split, str(root / name / split)
