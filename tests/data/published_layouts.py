"""Tiny data sets in the layouts in which they are published, for torchvision to read."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


def pixels(count: int, size: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def picture(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(1, 8, seed)[0]).save(path)


def cifar10(root: Path, patch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR10

    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    for number, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        flat = pixels(3, 32, number).transpose(0, 3, 1, 2).reshape(3, -1)
        (folder / name).write_bytes(pickle.dumps({"data": flat, "labels": [number, 9, 0]}, protocol=2))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}, protocol=2))
    _unchecked(patch, CIFAR10)


def cifar100(root: Path, patch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR100

    from modalign.evaluation.class_names import class_names

    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    for number, name in enumerate(("train", "test")):
        flat = pixels(3, 32, number).transpose(0, 3, 1, 2).reshape(3, -1)
        (folder / name).write_bytes(pickle.dumps({"data": flat, "fine_labels": [99, 1, number]}, protocol=2))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": list(class_names("cifar100"))}, protocol=2))
    _unchecked(patch, CIFAR100)


def _unchecked(patch: pytest.MonkeyPatch, cifar: Any) -> None:
    """Drops the checksums of the published files, which these are not."""
    for listed in ("train_list", "test_list"):
        patch.setattr(cifar, listed, [[name, None] for name, _ in getattr(cifar, listed)])
    patch.setattr(cifar, "meta", {**cifar.meta, "md5": None})


def svhn(root: Path, patch: pytest.MonkeyPatch) -> None:
    from scipy.io import savemat
    from torchvision.datasets import SVHN

    root.mkdir(parents=True)
    for number, split in enumerate(("train", "test", "extra")):
        held = {"X": pixels(4, 32, number).transpose(1, 2, 3, 0), "y": np.array([[10], [1], [9], [2]], np.uint8)}
        savemat(root / f"{split}_32x32.mat", held, do_compression=True)
    patch.setattr(SVHN, "split_list", {split: [url, name, None] for split, (url, name, _) in SVHN.split_list.items()})


def mnist(root: Path, patch: pytest.MonkeyPatch) -> None:
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for number, split in enumerate(("train", "t10k")):
        held = pixels(3, 28, number)[..., 0]
        head = np.array([0x803, 3, 28, 28], ">u4").tobytes()
        (folder / f"{split}-images-idx3-ubyte").write_bytes(head + held.tobytes())
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(np.array([0x801, 3], ">u4").tobytes() + bytes([7, 0, 9]))


def stl10(root: Path, patch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import STL10

    folder = root / "stl10_binary"
    folder.mkdir(parents=True)
    for number, split in enumerate(("train", "test")):
        (folder / f"{split}_X.bin").write_bytes(pixels(2, 96, number).transpose(0, 3, 2, 1).tobytes())
        (folder / f"{split}_y.bin").write_bytes(bytes([10, 1]))
    names = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]
    (folder / "class_names.txt").write_text("\n".join(names) + "\n")
    (folder / "unlabeled_X.bin").write_bytes(b"")
    for listed in ("train_list", "test_list"):
        patch.setattr(STL10, listed, [[name, None] for name, _ in getattr(STL10, listed)])


def pcam(root: Path, patch: pytest.MonkeyPatch) -> None:
    h5py = pytest.importorskip("h5py")
    (root / "pcam").mkdir(parents=True)
    for number, split in enumerate(("train", "valid", "test")):
        with h5py.File(root / "pcam" / f"camelyonpatch_level_2_split_{split}_x.h5", "w") as file:
            file.create_dataset("x", data=pixels(2, 96, number), compression="gzip")
        with h5py.File(root / "pcam" / f"camelyonpatch_level_2_split_{split}_y.h5", "w") as file:
            file.create_dataset("y", data=np.array([1, 0], np.uint8).reshape(2, 1, 1, 1))


def fer2013(root: Path, patch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import FER2013

    (root / "fer2013").mkdir(parents=True)
    lines = ["emotion,pixels,Usage"]
    for number, usage in enumerate(["Training"] * 2 + ["PublicTest", "PrivateTest"] * 4):
        values = " ".join(map(str, pixels(1, 48, number)[0, ..., 0].ravel()))
        lines.append(f"{number % 7},{values},{usage}")
    (root / "fer2013" / "fer2013.csv").write_text("\n".join(lines) + "\n")
    patch.setattr(FER2013, "_RESOURCES", {key: (name, None) for key, (name, _) in FER2013._RESOURCES.items()})


def imagenet1k(root: Path, patch: pytest.MonkeyPatch) -> None:
    for number, wnid in enumerate(("n03773504", "n01440764", "n01443537")):
        picture(root / "val" / wnid / f"ILSVRC2012_val_{number:08d}.JPEG", number)


def caltech101(root: Path, patch: pytest.MonkeyPatch) -> None:
    for number, name in enumerate(("BACKGROUND_Google", "Faces", "Faces_easy", "airplanes", "yin_yang")):
        picture(root / "caltech101" / "101_ObjectCategories" / name / "image_0001.jpg", number)


def food101(root: Path, patch: pytest.MonkeyPatch) -> None:
    for split in ("train", "test"):
        listed = {"waffles": ["waffles/2"], "apple_pie": ["apple_pie/1", "apple_pie/3"]}
        path = root / "food-101" / "meta" / f"{split}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(listed))
    for number, name in enumerate(("waffles/2", "apple_pie/1", "apple_pie/3")):
        picture(root / "food-101" / "images" / f"{name}.jpg", number)


def flowers(root: Path, patch: pytest.MonkeyPatch) -> None:
    from scipy.io import savemat
    from torchvision.datasets import Flowers102

    for number in range(1, 7):
        picture(root / "flowers-102" / "jpg" / f"image_{number:05d}.jpg", number)
    savemat(root / "flowers-102" / "imagelabels.mat", {"labels": [102, 1, 5, 5, 7, 1]})
    savemat(root / "flowers-102" / "setid.mat", {"trnid": [1, 2], "valid": [3, 4], "tstid": [6, 5]})
    patch.setattr(Flowers102, "_file_dict", {key: (name, None) for key, (name, _) in Flowers102._file_dict.items()})


def pets(root: Path, patch: pytest.MonkeyPatch) -> None:
    rows = [("Abyssinian_1", 1, 1), ("american_bulldog_3", 2, 2), ("american_pit_bull_terrier_9", 3, 2)]
    folder = root / "oxford-iiit-pet"
    (folder / "annotations").mkdir(parents=True)
    for split in ("trainval", "test"):
        text = "".join(f"{name} {label} {kind} 1\n" for name, label, kind in rows)
        (folder / "annotations" / f"{split}.txt").write_text(text)
    for number, (name, *_) in enumerate(rows):
        picture(folder / "images" / f"{name}.jpg", number)


def cars(root: Path, patch: pytest.MonkeyPatch) -> None:
    from scipy.io import savemat

    folder = root / "stanford_cars"
    rows = np.array([("00001.jpg", 2), ("00002.jpg", 1)], dtype=[("fname", object), ("class", int)])
    (folder / "devkit").mkdir(parents=True)
    names = np.array(["AM General Hummer SUV 2000", "Ram C/V Cargo Van Minivan 2012"], dtype=object)
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": names})
    savemat(folder / "devkit" / "cars_train_annos.mat", {"annotations": rows})
    savemat(folder / "cars_test_annos_withlabels.mat", {"annotations": rows})
    for number in (1, 2):
        picture(folder / "cars_train" / f"{number:05d}.jpg", number)
        picture(folder / "cars_test" / f"{number:05d}.jpg", number + 2)


def dtd(root: Path, patch: pytest.MonkeyPatch) -> None:
    folder = root / "dtd" / "dtd"
    (folder / "labels").mkdir(parents=True)
    for split in ("train", "val", "test"):
        (folder / "labels" / f"{split}1.txt").write_text("polka-dotted/p_1.jpg\nbanded/b_1.jpg\n")
    for number, name in enumerate(("polka-dotted/p_1.jpg", "banded/b_1.jpg")):
        picture(folder / "images" / name, number)


def fgvc_aircraft(root: Path, patch: pytest.MonkeyPatch) -> None:
    folder = root / "fgvc-aircraft-2013b" / "data"
    folder.mkdir(parents=True)
    (folder / "variants.txt").write_text("707-320\nF-16A/B\nCessna 172\n")
    for split in ("train", "val", "trainval", "test"):
        (folder / f"images_variant_{split}.txt").write_text("0000002 Cessna 172\n0000001 F-16A/B\n")
    for number in (1, 2):
        picture(folder / "images" / f"{number:07d}.jpg", number)


def eurosat(root: Path, patch: pytest.MonkeyPatch) -> None:
    for number, name in enumerate(("SeaLake", "AnnualCrop", "HerbaceousVegetation")):
        picture(root / "eurosat" / "2750" / name / f"{name}_1.jpg", number)


def gtsrb(root: Path, patch: pytest.MonkeyPatch) -> None:
    folder = root / "gtsrb"
    for number in (0, 14, 42):
        picture(folder / "GTSRB" / "Training" / f"{number:05d}" / "00000_00000.ppm", number)
        picture(folder / "GTSRB" / "Final_Test" / "Images" / f"{number:05d}.ppm", number)
    lines = ["Filename;Width;ClassId", "00042.ppm;8;14", "00000.ppm;8;42", "00014.ppm;8;0"]
    (folder / "GT-final_test.csv").write_text("\n".join(lines) + "\n")


def country211(root: Path, patch: pytest.MonkeyPatch) -> None:
    for number in range(211):  # labels are the sorted codes of the folders
        code = f"{chr(65 + number // 26)}{chr(65 + number % 26)}"
        (root / "country211" / "test" / code).mkdir(parents=True)
        picture(root / "country211" / "test" / code / "1.jpg", number)


def sun397(root: Path, patch: pytest.MonkeyPatch) -> None:
    (root / "SUN397").mkdir(parents=True)
    (root / "SUN397" / "ClassName.txt").write_text("/a/abbey\n/a/apartment_building/outdoor\n/y/youth_hostel\n")
    for number, name in enumerate(("y/youth_hostel", "a/abbey", "a/apartment_building/outdoor")):
        picture(root / "SUN397" / name / f"sun_{number}.jpg", number)


_ARRAYS = (cifar10, cifar100, mnist, svhn, stl10, pcam, fer2013)
_FILES = (imagenet1k, caltech101, food101, flowers, pets, cars, dtd, fgvc_aircraft, eurosat, gtsrb, country211, sun397)
LAYOUTS: dict[str, Callable[[Path, pytest.MonkeyPatch], None]] = {made.__name__: made for made in (*_ARRAYS, *_FILES)}
