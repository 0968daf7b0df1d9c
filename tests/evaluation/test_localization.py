"""Localisation probing on pictures whose maps are known, and each of its steps by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import modalign
from modalign.errors import DataError
from modalign.evaluation.localization import Heads, Recalls, Window, patch_labels, recalls, train_heads
from modalign.evaluation.pairing import check_comparable
from modalign.evaluation.panoptic import NOTHING, class_maps
from modalign.evaluation.results import Metric
from modalign.evaluation.statistics import bootstrap_interval
from tests import tiny

CATEGORIES = [
    {"id": 7, "name": "red", "isthing": 1, "supercategory": "x"},
    {"id": 92, "name": "green", "isthing": 0, "supercategory": "y"},  # stuff
    {"id": 200, "name": "blue", "isthing": 0, "supercategory": "y"},
]
COLOURS = np.array([[230, 30, 30], [30, 230, 30], [30, 30, 230]], np.uint8)


def _panoptic(root: Path, count: int, split: str = "val2017", seed: int = 0) -> np.ndarray:
    """Pictures of 4×4 coloured fields of 8 px, panoptic PNGs (ids above 255) and JSON; the class of each field."""
    random = np.random.default_rng(seed)
    fields = random.integers(0, 3, (count, 4, 4))
    pngs = root / "annotations" / f"panoptic_{split}"
    for folder in (pngs, root / split):
        folder.mkdir(parents=True, exist_ok=True)
    annotations = []
    for i, classes in enumerate(fields):
        big = classes.repeat(8, 0).repeat(8, 1)
        noise = random.integers(-20, 20, (32, 32, 3))
        Image.fromarray((COLOURS[big] + noise).clip(0, 255).astype(np.uint8)).save(root / split / f"{i:012d}.png")
        ids = 70_000 + 1_000 * big + i
        rgb = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)
        rgb[0, 0] = 0  # void
        Image.fromarray(rgb).save(pngs / f"{i:012d}.png")
        segments = [
            {"id": 70_000 + 1_000 * c + i, "category_id": CATEGORIES[c]["id"], "area": 1, "iscrowd": 0}
            for c in range(3)
        ]
        annotations.append({"image_id": i, "file_name": f"{i:012d}.png", "segments_info": segments})
    images = [{"id": i, "file_name": f"{i:012d}.png"} for i in range(count)]
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    (root / "annotations" / f"panoptic_{split}.json").write_text(json.dumps(content))
    return fields


def test_panoptic_ids_become_classes(tmp_path: Path) -> None:
    fields = _panoptic(tmp_path, 2)
    maps = class_maps(f"coco-panoptic:{tmp_path}@val2017")
    assert maps.names == ("red", "green", "blue")
    for number, found in enumerate(maps.maps):
        expected = fields[number].repeat(8, 0).repeat(8, 1)
        expected[0, 0] = NOTHING
        np.testing.assert_array_equal(found.read(), expected)


def test_stuff_maps(tmp_path: Path) -> None:
    (tmp_path / "stuffthingmaps" / "val2017").mkdir(parents=True)
    (tmp_path / "val2017").mkdir()
    Image.fromarray(np.array([[0, 181], [255, 3]], np.uint8)).save(tmp_path / "stuffthingmaps" / "val2017" / "a.png")
    Image.new("RGB", (2, 2)).save(tmp_path / "val2017" / "a.jpg")
    (found,) = class_maps(f"coco-stuff:{tmp_path}@val2017").maps
    np.testing.assert_array_equal(found.read(), [[0, 181], [NOTHING, 3]])


def test_broken_annotations_are_named(tmp_path: Path) -> None:
    _panoptic(tmp_path, 3)
    (tmp_path / "val2017" / f"{1:012d}.png").unlink()
    with pytest.raises(DataError, match=r"panoptic_val2017.json: image 1: no such file .*000000000001.png"):
        class_maps(f"coco-panoptic:{tmp_path}@val2017")
    maps = class_maps(f"coco-panoptic:{tmp_path}@val2017", max_bad=1)
    assert len(maps.data) == 2
    Image.new("RGB", (32, 32), (1, 1, 0)).save(maps.maps[0].path)
    with pytest.raises(DataError, match=r"image 0: .* holds segment 257, which the JSON does not name"):
        maps.maps[0].read()
    with pytest.raises(DataError, match="write coco-panoptic:<root>@val2017 or coco-stuff"):
        class_maps(f"coco:{tmp_path}")


@pytest.mark.parametrize("size", [(640, 427), (100, 333), (224, 224), (37, 50)])
def test_the_window_is_where_the_pixels_come_from(tmp_path: Path, size: tuple[int, int]) -> None:
    """Shortest edge to 32, centre 32×32: against the same by arithmetic, to a source pixel's rounding."""
    model = modalign.load(tiny.tiny_hf_clip(tmp_path / "clip"))
    columns, rows = Window(model.preprocess).places(*size)
    width, height = size
    scale = min(size) / 32
    for found, length in ((columns, width), (rows, height)):
        offset = (round(length / scale) - 32) / 2
        expected = (np.arange(32) + 0.5 + offset) * scale - 0.5
        assert np.abs(found - expected).max() <= 1 + scale  # one output pixel: where the odd pixel of a crop goes


def test_padding_has_no_class() -> None:
    def padded(picture: Image.Image) -> torch.Tensor:
        """8×4 in the middle of 8×8, black around, scaled by 2 and shifted by 1."""
        square = Image.new("RGB", (8, 8))
        square.paste(picture.resize((8, 4)), (0, 2))
        return torch.from_numpy(np.asarray(square).copy()).permute(2, 0, 1) / 255 * 2 - 1

    columns, rows = Window(padded).places(16, 8)
    assert (rows == NOTHING).tolist() == [True, True, *[False] * 4, True, True]
    np.testing.assert_allclose(columns, np.arange(8) * 2 + 0.5, atol=0.51)
    labels = patch_labels(np.zeros((8, 16), np.int64), Window(padded), (4, 4), 1)
    assert labels[:, 0].view(4, 4)[:, 0].tolist() == [False, True, True, False]


def test_patch_labels_by_area() -> None:
    """A 4×4 picture, 2×2 patches of 4 pixels: what covers more than a share of a patch, void left out."""

    def as_it_is(picture: Image.Image) -> torch.Tensor:
        return torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1) / 255

    classes = np.array([[0, 0, 1, 1], [0, 1, 1, 1], [2, NOTHING, 0, 1], [2, NOTHING, 2, 2]])
    window = Window(as_it_is)
    union = [[1, 1, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]]
    assert patch_labels(classes, window, (2, 2), 3).long().tolist() == union
    assert patch_labels(classes, window, (2, 2), 3, 0.25).long().tolist() == [
        [1, 0, 0],
        [0, 1, 0],
        [0, 0, 1],
        [0, 0, 1],
    ]
    with pytest.raises(DataError, match="class 2 of 2"):
        patch_labels(classes, window, (2, 2), 2)


def test_macro_recall_against_loops() -> None:
    """Pooled over pictures within a class, then the mean over classes; the outcomes' class means are the same."""
    generator = torch.Generator().manual_seed(0)
    tokens, labels = torch.randn(7, 9, 4, generator=generator), torch.rand(7, 9, 3, generator=generator) < 0.3
    labels[..., 2] = False  # a class that nowhere occurs counts in no mean
    heads = Heads(4, 3, torch.zeros(4), torch.ones(4))
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        local, whole = heads(tokens)
    found = recalls(heads, tokens, labels)
    weights = (tokens @ heads.query).softmax(1)
    pooled = (weights[..., None] * tokens).sum(1)
    torch.testing.assert_close(whole, pooled @ heads.whole.weight.T + heads.whole.bias)
    expected_local = np.mean([((local[..., c] > 0) & labels[..., c]).sum() / labels[..., c].sum() for c in (0, 1)])
    there = labels.any(1)
    expected_whole = np.mean([((whole[:, c] > 0) & there[:, c]).sum() / there[:, c].sum() for c in (0, 1)])
    for side, expected in zip(found, (expected_local, expected_whole), strict=True):
        assert side.macro == pytest.approx(expected)
        means = [side.outcomes[side.classes == c].mean() for c in np.unique(side.classes)]
        assert np.mean(means) == pytest.approx(expected)
    assert isinstance(found[0], Recalls) and set(found[0].classes) == {0, 1}


def test_heads_learn_what_is_linear_and_are_a_function_of_their_arguments() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(64, 9, 6, generator=generator) * torch.tensor([1, 5, 0.2, 1, 1, 1]) + 3
    labels = torch.stack([tokens[..., 0] > 3, tokens[..., 1] > 3], dim=-1)
    heads, again = (train_heads(tokens.half(), labels, steps=1000, seed=1) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(heads.state_dict().values(), again.state_dict().values(), strict=True))
    assert recalls(heads, tokens, labels)[0].macro > 0.9


def test_a_changed_map_is_another_task(tmp_path: Path) -> None:
    """What is kept of an evaluation goes by `facts`: maps and segments are part of it."""
    from modalign.evaluation.suite import prepare

    _panoptic(tmp_path, 10)
    spec = f"localization:coco-panoptic:{tmp_path}@val2017"
    identity = prepare([spec]).identity
    assert prepare([spec]).identity == identity
    file = tmp_path / "annotations" / "panoptic_val2017.json"
    file.write_text(file.read_text().replace('"category_id": 92', '"category_id": 200'))
    other = prepare([spec]).identity
    Image.new("RGB", (32, 32)).save(tmp_path / "annotations" / "panoptic_val2017" / f"{0:012d}.png")
    assert len({identity, other, prepare([spec]).identity}) == 3


def test_through_evaluate(tmp_path: Path) -> None:
    """A random tiny ViT tells coloured fields apart, the same way twice; another split to learn from."""
    _panoptic(tmp_path / "coco", 60)
    _panoptic(tmp_path / "coco", 40, "train2017", seed=1)
    model = modalign.load(tiny.tiny_hf_clip(tmp_path / "clip"))
    spec = f"coco-panoptic:{tmp_path / 'coco'}@val2017"
    first, second = (modalign.evaluate(model, [f"localization[layer=0,steps=300]:{spec}"]).tasks[0] for _ in range(2))
    assert first.metrics["local_macro_recall"].value > 0.8
    assert 0 <= first.metrics["global_macro_recall"].value <= 1
    np.testing.assert_array_equal(
        first.metrics["local_macro_recall"].outcomes, second.metrics["local_macro_recall"].outcomes
    )
    assert first.protocol["samples"] == 12 and first.protocol["training_pictures"] == 48
    other = modalign.evaluate(model, [f"localization[train=train2017,pictures=16,steps=20]:{spec}"]).tasks[0]
    assert other.protocol["samples"] == 60 and other.protocol["training_pictures"] == 16
    assert other.protocol["classes"] == 3


def test_the_interval_is_that_of_a_ratio() -> None:
    """Pictures differ in how many patches a class has: that is no doubt about a recall that is perfect."""
    random = np.random.default_rng(0)
    pictures, classes = np.divmod(np.flatnonzero(random.random(400 * 3) < 0.6), 3)
    wanted = random.integers(1, 60, len(pictures))
    perfect = Recalls(pictures, classes, wanted, wanted)
    found = bootstrap_interval(perfect.outcomes, clusters=pictures, strata=classes, average="strata")
    assert found == pytest.approx((1, 1), abs=1e-12)

    hits = random.binomial(wanted, random.beta(2, 2, len(wanted)))
    some = Recalls(pictures, classes, hits, wanted)
    metric = Metric.of("r", some.outcomes, clusters=pictures, strata=classes, average="strata")
    drawn = []
    for _ in range(3_000):
        times = np.bincount(random.integers(0, 400, 400), minlength=400)[pictures]
        sums = [np.bincount(classes, times * counts) for counts in (hits, wanted)]
        drawn.append((sums[0] / sums[1]).mean())
    assert metric.value == pytest.approx(some.macro)
    np.testing.assert_allclose(np.diff(metric.interval), np.diff(np.quantile(drawn, [0.025, 0.975])), rtol=0.1)
    np.testing.assert_allclose(metric.interval, np.quantile(drawn, [0.025, 0.975]), atol=0.006)


def test_other_training_maps_or_pictures_are_not_compared(tmp_path: Path) -> None:
    for split in ("val2017", "train2017"):
        _panoptic(tmp_path, 6, split)
    model = modalign.load(tiny.tiny_hf_clip(tmp_path / "clip"))
    task = f"localization[train=train2017,layer=0,steps=2]:coco-panoptic:{tmp_path}@val2017"
    before = modalign.evaluate(model, [task], resamples=20)
    check_comparable(before, modalign.evaluate(model, [task], resamples=20))
    _panoptic(tmp_path, 6, "train2017", seed=3)
    with pytest.raises(DataError, match=r"training examples differs, .* evaluate both on the same examples"):
        check_comparable(before, modalign.evaluate(model, [task], resamples=20))
    _panoptic(tmp_path, 6, "train2017")
    _panoptic(tmp_path, 6, seed=3)
    with pytest.raises(DataError, match=r"localization: examples differs"):
        check_comparable(before, modalign.evaluate(model, [task], resamples=20))
