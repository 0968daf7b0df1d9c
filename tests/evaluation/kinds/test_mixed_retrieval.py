from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from modalign.errors import DataError
from modalign.evaluation.suite import Encoded, prepare
from tests.tiny import write_pairs


def table(folder: Path, rows: list[tuple[int, str]]) -> str:
    root = Path(write_pairs(folder, n=3))
    files = sorted(root.glob("**/*.png"))
    with (root / "metadata.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "text"])
        writer.writerows([files[number].relative_to(root), said] for number, said in rows)
    return str(root)


def test_captions_find_their_picture_and_its_other_captions_in_one_pool(tmp_path: Path) -> None:
    spec = table(tmp_path / "d", [(0, "a"), (0, "a2"), (1, "b"), (1, "b2"), (2, "a"), (2, "c2")])
    suite = prepare([f"mixed-retrieval:{spec}"])
    assert suite.strings == ["a", "a2", "b", "b2", "c2"]
    # "a" asks for pictures 0 and 2 and for "a2" and "c2"; "b" for picture 1 and "b2". By cosine with a = x, b = y:
    image = torch.tensor([[0.9, 0.1, 0.5], [0.1, 0.2, 0.9], [0.8, -0.1, 0.9]])
    text = torch.tensor([[1.0, 0, 0], [0.99, 0, 0.1], [0, 1.0, 0], [0, 0.9, 0.1], [0.3, 0, 0.9]])
    scored = suite.score(Encoded(image, torch.arange(3), text), model={}, resamples=50, gap=False)
    found = scored.tasks[0]
    # a: a2, picture 0, picture 2, c2 are the first four;  b: b2 first, picture 1 second
    assert found.metrics["r5"].outcomes.tolist() == [1, 1]
    assert found.metrics["r1"].outcomes.tolist() == [0.25, 0.5]
    assert found.metrics["ndcg5"].value == pytest.approx(1)
    assert found.notes["share1.text"] == 1 and found.notes["share_of_pool"] == {"image": 0.5, "text": 0.5}
    assert (found.protocol["queries"], found.protocol["texts_in_pool"]) == (2, 3)
    assert np.array_equal(found.metrics["r1"].owners, [0, 1])


def test_a_pool_without_texts_is_refused(tmp_path: Path) -> None:
    suite = prepare([f"mixed-retrieval:{table(tmp_path / 'd', [(0, 'a'), (1, 'b'), (2, 'c')])}"])
    with pytest.raises(DataError, match="no picture has a second caption"):
        suite.score(Encoded(torch.rand(3, 4), torch.arange(3), torch.rand(3, 4)), model={}, resamples=50)
