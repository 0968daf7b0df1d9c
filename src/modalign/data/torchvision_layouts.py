"""Where torchvision's data sets lie on disk, and how each is numbered and named: as CLIP_benchmark does it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from modalign.data.files import class_folders
from modalign.errors import DataError
from modalign.evaluation.class_names import data_set

TRAIN_TEST = ("train", "test")
Listed = Iterable[tuple[str | Path, int]]


@dataclass(frozen=True)
class Layout:
    """How one data set is read.

    Attributes:
        torchvision: the class that documents the layout.
        holds: what must be below the root, with {split}.
        splits: those there are; () where there is one alone.
        reader: what `read` calls: (this layout, root, split) → what `files` or `labels` take.
        files: that → (file, label) pairs, of a data set of files.
        labels: that → labels, of a data set of arrays.
        array: the file that holds a split's pictures, with {split}.
        names: that → class names; None = CLIP_benchmark's list, by the label.
    """

    torchvision: str
    holds: str
    splits: tuple[str, ...]
    reader: Callable[[Layout, Path, str], Any]
    files: Callable[[Any], Listed] | None = None
    labels: Callable[[Any], Any] | None = None
    array: Callable[[Path, str], Path] | None = None
    names: Callable[[Any], Sequence[str]] | None = None

    def read(self, root: Path, split: str) -> Any:
        """One split below a root, as `files` or `labels` take it."""
        return self.reader(self, root, split)


def _by_split(kind: Layout, root: Path, split: str) -> Any:
    return _published(kind)(os.fspath(root), split=split)


def _by_train(kind: Layout, root: Path, split: str) -> Any:
    return _published(kind)(os.fspath(root), train=split == "train")


def _whole(kind: Layout, root: Path, split: str) -> Any:
    return _published(kind)(os.fspath(root))


def _published(kind: Layout) -> Any:
    import torchvision

    return getattr(torchvision.datasets, kind.torchvision)


def _folders(kind: Layout, root: Path, split: str) -> dict[str, list[tuple[Path, str]]]:
    return class_folders(root / kind.holds.format(split=split))


def _of_folders(found: dict[str, list[tuple[Path, str]]]) -> Listed:
    return [(path, label) for label, files in enumerate(found.values()) for path, _ in files]


def _listed(found: Any) -> Listed:
    return zip(found._image_files, found._labels, strict=True)


def _pets(found: Any) -> Listed:
    return zip(found._images, found._labels, strict=True)


def _samples(found: Any) -> Listed:
    return getattr(found, "_samples", None) or found.samples  # type: ignore[no-any-return]


def _sorted(found: Any) -> Listed:
    return sorted(_listed(found))  # torchvision lists it as the file system does


def _spaced(found: Any) -> list[str]:
    return [name.replace("_", " ").replace("/", " ") for name in found.classes]


def _own(found: Any) -> list[str]:
    return list(found.classes)


def _known(name: str, found: Any) -> Sequence[str]:
    """CLIP_benchmark's names of the class folders that there are."""
    folders = list(found) if isinstance(found, dict) else found.classes
    names = data_set(name).renamed(folders)
    if isinstance(names, str):
        raise DataError(f"{name}: folder {names} is none of its classes; remove it, or fetch the published folders")
    return names


def _targets(found: Any) -> Any:
    return found.targets


def _labels(found: Any) -> Any:
    return found.labels


def _pcam_labels(found: Any) -> Any:
    file = found._base_folder / found._FILES[found._split]["targets"][0]
    with found.h5py.File(file) as held:
        return held["y"][:, 0, 0, 0].tolist()


# torchvision numbers FER2013 as its csv does, CLIP_benchmark by the sorted folder names.
FER2013_ORDER = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")


def _fer2013_labels(found: Any) -> list[int]:
    ours = data_set("fer2013").published_names["label"]
    return [-1 if label is None else ours.index(FER2013_ORDER[label]) for _, label in found._samples]


def _fer2013_file(root: Path, split: str) -> Path:
    files = [root / "fer2013" / name for name in ("fer2013.csv", "icml_face_data.csv", f"{split}.csv")]
    return next((file for file in files if file.is_file()), files[-1])


def _below(pattern: str, root: Path, split: str) -> Path:
    return root / pattern.format(split=split)


def _cifar10_file(root: Path, split: str) -> Path:
    return root / "cifar-10-batches-py" / ("data_batch_1" if split == "train" else "test_batch")


def _mnist_file(root: Path, split: str) -> Path:
    return root / "MNIST" / "raw" / f"{'train' if split == 'train' else 't10k'}-images-idx3-ubyte"


def _pcam_file(root: Path, split: str) -> Path:
    return root / "pcam" / f"camelyonpatch_level_2_split_{'valid' if split == 'val' else split}_x.h5"


SETS: dict[str, Layout] = {
    "cifar10": Layout(
        "CIFAR10", "cifar-10-batches-py", TRAIN_TEST, _by_train, labels=_targets, array=_cifar10_file, names=_own
    ),
    "cifar100": Layout(
        "CIFAR100",
        "cifar-100-python",
        TRAIN_TEST,
        _by_train,
        labels=_targets,
        array=partial(_below, "cifar-100-python/{split}"),
        names=_own,
    ),
    "mnist": Layout("MNIST", "MNIST/raw", TRAIN_TEST, _by_train, labels=_targets, array=_mnist_file),
    "svhn": Layout(
        "SVHN",
        "{split}_32x32.mat",
        ("train", "test", "extra"),
        _by_split,
        labels=_labels,
        array=partial(_below, "{split}_32x32.mat"),
    ),
    "stl10": Layout(
        "STL10",
        "stl10_binary",
        TRAIN_TEST,
        _by_split,
        labels=_labels,
        array=partial(_below, "stl10_binary/{split}_X.bin"),
        names=_own,
    ),
    "pcam": Layout("PCAM", "pcam", ("train", "val", "test"), _by_split, labels=_pcam_labels, array=_pcam_file),
    "fer2013": Layout("FER2013", "fer2013", TRAIN_TEST, _by_split, labels=_fer2013_labels, array=_fer2013_file),
    "imagenet1k": Layout(
        "ImageNet", "{split}", ("train", "val"), _folders, files=_of_folders, names=partial(_known, "imagenet1k")
    ),
    "caltech101": Layout(  # torchvision's leaves the background out, which CLIP_benchmark keeps
        "Caltech101",
        "caltech101/101_ObjectCategories",
        (),
        _folders,
        files=_of_folders,
        names=partial(_known, "caltech101"),
    ),
    "food101": Layout("Food101", "food-101", TRAIN_TEST, _by_split, files=_listed, names=_spaced),
    "flowers": Layout("Flowers102", "flowers-102", ("train", "val", "test"), _by_split, files=_listed),
    "pets": Layout("OxfordIIITPet", "oxford-iiit-pet", ("trainval", "test"), _by_split, files=_pets),
    "cars": Layout("StanfordCars", "stanford_cars", TRAIN_TEST, _by_split, files=_samples, names=_own),
    "dtd": Layout("DTD", "dtd/dtd", ("train", "val", "test"), _by_split, files=_listed, names=_own),
    "fgvc_aircraft": Layout(
        "FGVCAircraft",
        "fgvc-aircraft-2013b",
        ("train", "val", "trainval", "test"),
        _by_split,
        files=_listed,
        names=_own,
    ),
    "eurosat": Layout("EuroSAT", "eurosat/2750", (), _whole, files=_samples, names=partial(_known, "eurosat")),
    "gtsrb": Layout("GTSRB", "gtsrb/GTSRB", TRAIN_TEST, _by_split, files=_samples),
    "country211": Layout("Country211", "country211/{split}", ("train", "valid", "test"), _by_split, files=_samples),
    "sun397": Layout("SUN397", "SUN397", (), _whole, files=_sorted, names=_spaced),
}
