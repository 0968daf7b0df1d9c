"""Pair files: the outcomes against hand-worked cases and an oracle, the files in their published layouts."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import modalign
from modalign.errors import DataError
from modalign.evaluation import contrast_files
from modalign.evaluation.contrast_pairs import caption_outcomes, pair_outcomes
from modalign.evaluation.mmvp import letter_of, mmvp_vlm
from tests import tiny


def _features(scores: list[list[float]]) -> tuple[torch.Tensor, torch.Tensor]:
    """One example: pictures that are unit axes, captions (unit) whose cosines with them are the scores."""
    image = torch.eye(3)[:2]
    s = torch.tensor(scores)
    text = torch.stack([torch.stack([s[0, b], s[1, b], (1 - s[:, b].square().sum()).sqrt()]) for b in (0, 1)])
    return image[None], text[None]


@pytest.mark.parametrize(
    ("scores", "text", "image"),
    [
        ([[0.5, 0.1], [0.1, 0.5]], 1, 1),
        ([[0.5, 0.1], [0.6, 0.7]], 1, 0),  # picture 1 likes both: caption 0 goes to the wrong one
        ([[0.5, 0.6], [0.1, 0.7]], 0, 1),
        ([[0.1, 0.5], [0.5, 0.1]], 0, 0),
        ([[0.5, 0.5], [0.3, 0.3]], 0, 0),  # two captions of one feature: ties count against
    ],
)
def test_two_by_two_by_hand(scores: list[list[float]], text: int, image: int) -> None:
    found = pair_outcomes(*_features(scores))
    assert {name: int(values[0]) for name, values in found.items()} == {
        "text": text,
        "image": image,
        "group": text * image,
    }


def test_two_by_two_equals_an_oracle_and_swaps_with_the_modalities() -> None:
    image, text = torch.randn(2, 400, 2, 8, generator=torch.Generator().manual_seed(0)).unbind()
    x, t = (
        side.double().numpy() / np.linalg.norm(side.double().numpy(), axis=-1, keepdims=True) for side in (image, text)
    )
    s = np.einsum("nad,nbd->nab", x, t)
    right_text = (s[:, 0, 0] > s[:, 0, 1]) * (s[:, 1, 1] > s[:, 1, 0])
    right_image = (s[:, 0, 0] > s[:, 1, 0]) * (s[:, 1, 1] > s[:, 0, 1])
    found, mirrored = pair_outcomes(image, text, chunk=7), pair_outcomes(text, image)
    np.testing.assert_array_equal(found["text"], right_text)
    np.testing.assert_array_equal(found["image"], right_image)
    np.testing.assert_array_equal(found["group"], right_text * right_image)
    np.testing.assert_array_equal(mirrored["text"], found["image"])
    assert 0.15 < found["text"].mean() < 0.35 and 0.08 < found["group"].mean() < 0.26  # chance is 1/4 and 1/6


def test_equal_features_never_score() -> None:
    one = torch.randn(1, 1, 16, generator=torch.Generator().manual_seed(1)).expand(5, 2, 16)
    assert not any(values.any() for values in pair_outcomes(one, one).values())
    assert not caption_outcomes(one[:, 0], one).any()


def test_caption_outcomes() -> None:
    image, text = _features([[0.5, 0.4], [0.2, 0.3]])
    np.testing.assert_array_equal(caption_outcomes(image[0], text.expand(2, 2, 3)), [1, 0])


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(DataError, match="N×2×d"):
        pair_outcomes(torch.randn(3, 2, 4), torch.randn(3, 2, 5))
    with pytest.raises(DataError, match="NaN"):
        caption_outcomes(torch.full((2, 4), torch.nan), torch.randn(2, 2, 4))


# ---- files ----------------------------------------------------------------------------------------------------


def _picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((32, 32), 0).save(path)


def _winoground(folder: Path, count: int = 4) -> Path:
    """As the hub has it: names without an ending, pictures in images/."""
    rows = []
    for i in range(count):
        for side in (0, 1):
            _picture(folder / "images" / f"ex_{i}_img_{side}.png", 2 * i + side)
        rows.append(
            {"id": i, "image_0": f"ex_{i}_img_0", "image_1": f"ex_{i}_img_1"}
            | {"caption_0": f"a cat on {i} dogs", "caption_1": f"{i} dogs on a cat", "collapsed_tag": "AB"[i % 2]}
        )
    (folder / "examples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def _mmvp_vlm(folder: Path, patterns: int = 3, pairs: int = 2) -> Path:
    """As the hub has it: Questions.csv and a folder of numbered pictures a pattern."""
    rows, number = [], 0
    for pattern in range(patterns):
        for _ in range(pairs):
            for word in ("left", "right"):
                number += 1
                _picture(folder / "MLLM_VLM Images" / f"Pattern {pattern}" / f"{number}.jpg", number)
                rows.append([number, f"Pattern {pattern}", f"the dog looks {word} {number}"])
    with (folder / "Questions.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["Question ID", "Type", "Statement"], *rows])
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> modalign.DualEncoder:
    return modalign.load(tiny.tiny_hf_clip(tmp_path_factory.mktemp("clip")))


def _cosines(model: modalign.DualEncoder, pictures: list[Path], texts: list[str]) -> np.ndarray:
    """P×T, straight from the towers."""
    with torch.no_grad():
        x = model.encode_image(torch.stack([model.preprocess(Image.open(path)) for path in pictures])).double()
        t = model.encode_text(model.tokenize(texts)).double()
    normal = torch.nn.functional.normalize
    return (normal(x, dim=1) @ normal(t, dim=1).T).numpy()


def test_winoground_through_evaluate(model: modalign.DualEncoder, tmp_path: Path) -> None:
    folder = _winoground(tmp_path / "winoground", 6)
    results = modalign.evaluate(model, [f"winoground[group=collapsed_tag]:{folder}"])
    metrics = results.metrics
    for i in range(6):
        pictures = [folder / "images" / f"ex_{i}_img_{side}.png" for side in (0, 1)]
        s = _cosines(model, pictures, [f"a cat on {i} dogs", f"{i} dogs on a cat"])
        text = s[0, 0] > s[0, 1] and s[1, 1] > s[1, 0]
        image = s[0, 0] > s[1, 0] and s[1, 1] > s[0, 1]
        outcomes = [metrics[f"winoground.{name}_score"].outcomes[i] for name in ("text", "image", "group")]
        assert outcomes == [text, image, text and image]
    tags = [metrics[f"winoground.image_score.{tag}"].outcomes for tag in "ab"]
    np.testing.assert_array_equal(metrics["winoground.image_score"].outcomes.reshape(3, 2).T, tags)
    assert results.tasks[0].protocol["samples"] == 6


def test_columns_and_pictures_may_be_elsewhere(tmp_path: Path) -> None:
    folder = _winoground(tmp_path / "winoground", 2)
    rows = [json.loads(line) for line in (folder / "examples.jsonl").read_text().splitlines()]
    with (tmp_path / "own.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["one", "two", "says one", "says two"])
        writer.writerows([[row[k] for k in ("image_0", "image_1", "caption_0", "caption_1")] for row in rows])
    published = contrast_files.two_by_two(str(folder), ["image_0", "image_1", "caption_0", "caption_1"])
    columns = ["one", "two", "says one", "says two"]
    own = contrast_files.two_by_two(str(tmp_path / "own.csv"), columns, images=str(folder / "images"))
    assert [(row.path, row.captions) for row in own.data.rows] == [
        (row.path, row.captions) for row in published.data.rows
    ]
    first, second = published.data.rows[:2]
    assert first.captions == second.captions[::-1] == ("a cat on 0 dogs", "0 dogs on a cat")


def test_sugarcrepe_through_evaluate(model: modalign.DualEncoder, tmp_path: Path) -> None:
    """Two files of the published layout, read as one task with a metric each."""
    data = tmp_path / "data"
    data.mkdir()
    expected = []
    for name in ("add_att", "swap_obj"):
        entries = {}
        for i in range(3):
            _picture(tmp_path / "val2017" / f"{name}{i}.jpg", i)
            right, wrong = f"a red boat {name} {i}", f"a blue boat {name} {i}"
            entries[str(i)] = {"filename": f"{name}{i}.jpg", "caption": right, "negative_caption": wrong}
            s = _cosines(model, [tmp_path / "val2017" / f"{name}{i}.jpg"], [right, wrong])[0]
            expected.append(float(s[0] > s[1]))
        (data / f"{name}.json").write_text(json.dumps(entries))
    spec = f"sugarcrepe[images={tmp_path / 'val2017'}]:{data}"
    metrics = modalign.evaluate(model, [spec]).metrics
    assert metrics["sugarcrepe.acc"].outcomes.tolist() == expected
    assert metrics["sugarcrepe.acc.swap_obj"].outcomes.tolist() == expected[3:]
    table = tmp_path / "own.jsonl"
    entry = {"image": f"{tmp_path}/val2017/add_att0.jpg", "caption": "x", "negative_caption": "y", "kind": "k"}
    table.write_text(json.dumps(entry))
    assert "sugarcrepe.acc.k" in modalign.evaluate(model, [f"sugarcrepe[group=kind]:{table}"]).metrics


def test_mmvp_vlm_through_evaluate(model: modalign.DualEncoder, tmp_path: Path) -> None:
    """Each statement, after "a photo of", finds its picture of the two: the published direction, per pattern."""
    folder = _mmvp_vlm(tmp_path / "MMVP_VLM")
    results = modalign.evaluate(model, [f"mmvp-vlm:{folder}"])
    metrics = results.metrics
    patterns: dict[int, list[bool]] = {}
    for pair in range(6):
        numbers = (2 * pair + 1, 2 * pair + 2)
        pictures = [folder / "MLLM_VLM Images" / f"Pattern {pair // 2}" / f"{n}.jpg" for n in numbers]
        said = [f"a photo of the dog looks {word} {n}" for word, n in zip(("left", "right"), numbers, strict=True)]
        s = _cosines(model, pictures, said)
        patterns.setdefault(pair // 2, []).append(bool(s[0, 0] > s[1, 0] and s[1, 1] > s[0, 1]))
        assert metrics["mmvp_vlm.pair_accuracy"].outcomes[pair] == patterns[pair // 2][-1]
    for number, right in patterns.items():
        assert metrics[f"mmvp_vlm.pair_accuracy.pattern_{number}"].value == np.mean(right)
    assert metrics["mmvp_vlm.pair_accuracy"].value == pytest.approx(np.mean([np.mean(r) for r in patterns.values()]))
    assert results.tasks[0].protocol["captions"] == "a photo of {statement}"


def test_the_gate_compares_pair_files(tmp_path: Path) -> None:
    from modalign.evaluation.gate import judge

    folder = _winoground(tmp_path / "winoground", 6)
    models = [modalign.load(tiny.tiny_hf_clip(tmp_path / f"{seed}", seed=seed)) for seed in (0, 1)]
    before, after = (modalign.evaluate(one, [f"winoground:{folder}"]) for one in models)
    gate = judge(before, after)
    assert [row.metric for row in gate.rows] == [f"winoground.{name}_score" for name in ("text", "image", "group")]
    assert gate.rows[0].difference == pytest.approx(gate.rows[0].after - gate.rows[0].before)


def test_broken_rows_are_named(tmp_path: Path) -> None:
    columns = ["image_0", "image_1", "caption_0", "caption_1"]
    folder = _winoground(tmp_path / "winoground", 3)
    file = folder / "examples.jsonl"
    lines = file.read_text().splitlines()
    broken = json.loads(lines[1]) | {"image_1": "gone", "caption_0": ""}
    file.write_text("\n".join([lines[0], json.dumps(broken), "{", lines[2]]))
    with pytest.raises(DataError, match="2 of 4 rows") as told:
        contrast_files.two_by_two(str(folder), columns)
    assert "examples.jsonl:2: no such file gone; the caption is empty" in str(told.value)
    assert "examples.jsonl:3: not JSON" in str(told.value) and "\n" not in str(told.value)
    kept = contrast_files.two_by_two(str(folder), columns, max_bad=2)
    assert len(kept.data) == 4 and kept.groups == ("", "")
    with pytest.raises(DataError, match=r"no column 'caption_9' \(it has .*'image_0'"):
        contrast_files.two_by_two(str(folder), [*columns[:3], "caption_9"], max_bad=9)
    entries = tmp_path / "x.json"
    entries.write_text(json.dumps({"7": {"filename": "a.jpg", "caption": "b", "negative_caption": "b"}}))
    with pytest.raises(DataError, match=r"x.json: entry 7: no such file a.jpg; both captions are the same"):
        contrast_files.one_by_two(str(entries), [("filename",), ("caption",), ("negative_caption",)])


def test_a_broken_mmvp_vlm_is_named(tmp_path: Path) -> None:
    folder = _mmvp_vlm(tmp_path / "MMVP_VLM", 1)
    (folder / "MLLM_VLM Images" / "Pattern 0" / "3.jpg").unlink()
    with pytest.raises(DataError, match=r"Questions.csv:4: no such file MLLM_VLM Images/Pattern 0/3.jpg"):
        mmvp_vlm(str(folder))
    assert len(mmvp_vlm(str(folder), max_bad=1).groups) == 1
    file = folder / "Questions.csv"
    file.write_text("\n".join(file.read_text().splitlines()[:-1]))
    with pytest.raises(DataError, match="two rows a pair"):
        mmvp_vlm(str(folder), max_bad=9)


# ---- MMVP -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("(a)", "a"),
        ("B", "b"),
        ("b.", "b"),
        ("The answer is (b) closed.", "b"),
        ("Option A: open", "a"),
        ("open", "a"),
        ("Closed.", "b"),
        ("It is a dog", ""),
        ("", ""),
    ],
)
def test_letter_of(response: str, letter: str) -> None:
    assert letter_of(response, "(a) Open (b) Closed") == letter


def test_mmvp_answers(model: modalign.DualEncoder, tmp_path: Path) -> None:
    """Pairs count when both are right: 2 of 3 pairs lose one answer or both."""
    told = [("(a)", "(a)"), ("(b)", "b"), ("(a)", "(a) yes"), ("(b)", "(a)"), ("(a)", "no idea"), ("(b)", "(a)")]
    rows = [
        {"question_id": i, "prompt": "? (a) Yes (b) No", "answer": right, "response": said}
        for i, (right, said) in enumerate(told, start=1)
    ]
    file = tmp_path / "answers.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows[::-1]))
    metrics = modalign.evaluate(model, [f"mmvp:{file}"]).metrics
    assert metrics["mmvp.pair_accuracy"].outcomes.tolist() == [1, 0, 0]
    assert metrics["mmvp.answer_accuracy"].outcomes.tolist() == [1, 1, 1, 0, 0, 0]
    file.write_text(json.dumps(rows[0]))
    with pytest.raises(DataError, match=r"answers.jsonl:1: question 1 has no partner 2"):
        modalign.evaluate(model, [f"mmvp:{file}"])
