from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import ndcg_score

from modalign.errors import DataError
from modalign.evaluation.mixed_retrieval import mixed_retrieval
from modalign.gap.transforms import NNN, Center


def test_a_case_by_hand() -> None:
    query = torch.eye(2)
    # Query 0 ranks the documents 0, 1, 2, 3; query 1 ranks them 3, 2, 1, 0.
    angles = torch.tensor([0.1, 0.5, 1.0, 1.4])
    documents = torch.stack([angles.cos(), angles.sin()], dim=1) * torch.tensor([[1.0], [5.0], [0.2], [3.0]])
    judged = torch.tensor([[0, 1], [0, 3], [1, 3]])
    found = mixed_retrieval(query, documents, ["text", "image", "text", "image"], judged, ks=(1, 2, 4))
    first, second, fourth = 1 / math.log2(2), 1 / math.log2(3), 1 / math.log2(5)
    expected = {
        "r1": [0, 1],
        "r2": [0.5, 1],
        "r4": [1, 1],
        "ndcg1": [0, 1],
        "ndcg2": [second / (first + second), 1],
        "ndcg4": [(second + fourth) / (first + second), 1],
        "share1.text": [1, 0],
        "share1.image": [0, 1],
        "share2.text": [0.5, 0.5],
        "share4.image": [0.5, 0.5],
    }
    for name, values in expected.items():
        np.testing.assert_allclose(found.outcomes[name], values, atol=1e-12)
    assert found.pool_share == {"text": 0.5, "image": 0.5}
    assert found.relevant_share == {"text": 0.0, "image": 1.0}
    metric = found.metrics(resamples=200)["r1"]
    assert (metric.value, metric.interval) == (0.5, (0.0, 1.0))


def test_ndcg_is_scikit_learns_and_recall_is_counted() -> None:
    rng = np.random.default_rng(0)
    queries, documents = rng.normal(size=(40, 8)), rng.normal(size=(60, 8))
    grades = rng.integers(0, 4, size=(40, 60)) * (rng.random((40, 60)) < 0.1)
    grades[:, 7] += grades.sum(1) == 0
    judged = np.argwhere(grades)
    names = ["image" if number % 3 else "text" for number in range(60)]
    found = mixed_retrieval(
        queries, documents, names, judged, grades[tuple(judged.T)], ks=(3, 10, 100), normalize=False
    )
    scores = queries @ documents.T
    for k in (3, 10, 100):
        expected = [ndcg_score(grades[[row]], scores[[row]], k=k) for row in range(40)]
        np.testing.assert_allclose(found.outcomes[f"ndcg{k}"], expected, rtol=1e-12)
        best = np.argsort(-scores, axis=1)[:, :k]
        recall = [(grades[row, best[row]] > 0).sum() / (grades[row] > 0).sum() for row in range(40)]
        np.testing.assert_allclose(found.outcomes[f"r{k}"], recall)
        images = np.array([name == "image" for name in names])
        np.testing.assert_allclose(found.outcomes[f"share{k}.image"], images[best].mean(1))


def test_ties_count_against_and_are_shared_out() -> None:
    query, documents = torch.ones(1, 3), torch.ones(4, 3)
    found = mixed_retrieval(query, documents, ["image", "text", "text", "text"], torch.tensor([[0, 0]]), ks=(1, 3, 4))
    assert [found.outcomes[f"r{k}"][0] for k in (1, 3, 4)] == [0, 0, 1]
    assert found.outcomes["ndcg4"][0] == pytest.approx(1 / math.log2(5))
    assert found.outcomes["share3.image"][0] == pytest.approx(0.25)


def test_centring_brings_back_the_pictures_that_a_gap_hides() -> None:
    rng = np.random.default_rng(0)
    concept = rng.normal(size=(200, 32))
    image = concept + 0.5 * rng.normal(size=(200, 32)) + 3
    text = concept + 0.5 * rng.normal(size=(200, 32)) - 3
    query = concept + 0.5 * rng.normal(size=(200, 32)) - 3
    judged = np.array([[i, i] for i in range(200)])  # the odd documents are pictures
    names = ["image" if i % 2 else "text" for i in range(200)]

    def pool(x: np.ndarray, t: np.ndarray) -> np.ndarray:
        return np.where(np.arange(200)[:, None] % 2 == 1, x, t)

    before = mixed_retrieval(query, pool(image, text), names, judged, ks=(10,))
    centre = Center().fit(image, text)
    after = mixed_retrieval(
        centre.transform(query, "query-text"),
        pool(centre.transform(image, "document-image"), centre.transform(text, "document-text")),
        names,
        judged,
        ks=(10,),
    )
    assert before.outcomes["share10.image"].mean() == 0
    assert after.outcomes["share10.image"].mean() == pytest.approx(0.5, abs=0.05)
    assert after.outcomes["ndcg10"].mean() > before.outcomes["ndcg10"].mean() + 0.3


def test_inner_products_rank_what_nnn_gives() -> None:
    rng = np.random.default_rng(1)
    image, text = rng.normal(size=(2, 50, 6))
    nnn = NNN(k=5).fit(image, text)
    judged = np.array([[i, i] for i in range(50)])
    found = mixed_retrieval(
        nnn.transform(text, "query-text"),
        nnn.transform(image, "document-image"),
        ["image"] * 50,
        judged,
        ks=(1,),
        normalize=False,
    )
    x, t = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (image, text))
    corrected = t @ x.T - 0.75 * np.sort(x @ t.T, axis=1)[:, -5:].mean(1)
    np.testing.assert_array_equal(found.outcomes["r1"], corrected.argmax(1) == np.arange(50))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"documents": torch.ones(2, 4)}, "do not fit"),
        ({"modalities": ["image"]}, "one name a document"),
        ({"judged": torch.tensor([[0, 0]])}, "query 1 has no relevant document"),
        ({"judged": torch.tensor([[0, 0], [1, 2]])}, "judgement 1 is \\(1, 2\\)"),
        ({"judged": torch.tensor([[0, 0], [1, 1], [0, 0]])}, "judged twice"),
        ({"judged": torch.tensor([0, 1])}, "M×2"),
        ({"grades": torch.tensor([1.0, 0.0])}, "not above 0"),
        ({"ks": (0,)}, "from 1"),
        ({"queries": torch.tensor([[1.0, math.nan, 0], [1, 0, 0]])}, "check the model's weights and precision"),
    ],
)
def test_what_cannot_be_judged_is_refused(change: dict, told: str) -> None:
    given = {
        "queries": torch.eye(3)[:2],
        "documents": torch.eye(3)[:2],
        "modalities": ["image", "text"],
        "judged": torch.tensor([[0, 0], [1, 1]]),
    }
    with pytest.raises(DataError, match=told):
        mixed_retrieval(**{**given, **change})
