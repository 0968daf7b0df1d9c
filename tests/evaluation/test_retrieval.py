from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modalign.errors import DataError
from modalign.evaluation.retrieval import linked_captions, retrieval_outcomes, retrieve
from tests.memory import peaks


def usual_recall(scores: np.ndarray, positive: np.ndarray, k: int) -> np.ndarray:
    """Top-k by sorting, a query counted when any positive is in it: the definition CLIP_benchmark computes."""
    best = np.argsort(-scores, axis=1)[:, :k]
    return np.take_along_axis(positive, best, axis=1).any(1).astype(float)


def random_case(images: int, per_image: int, seed: int, strings: int | None = None) -> tuple[torch.Tensor, ...]:
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(images), per_image)
    image, text = rng.normal(size=(images, 6)), rng.normal(size=(len(owner), 6))
    ids = np.arange(len(owner)) if strings is None else rng.integers(0, strings, len(owner))
    if strings is not None:  # equal strings have equal features
        text = rng.normal(size=(strings, 6))[ids]
    return tuple(map(torch.from_numpy, (image, text, owner, ids)))


@pytest.mark.parametrize(("images", "per_image"), [(30, 1), (12, 5)])
def test_equal_to_the_usual_recall_without_ties_and_duplicates(images: int, per_image: int) -> None:
    image, text, owner, _ = random_case(images, per_image, 0)
    told = retrieval_outcomes(image, text, owner, chunk=7)
    scores = (image / image.norm(dim=1, keepdim=True)) @ (text / text.norm(dim=1, keepdim=True)).T
    positive = np.arange(images)[:, None] == owner.numpy()
    for k in (1, 5, 10):
        np.testing.assert_array_equal(told[f"image_to_text_r{k}"], usual_recall(scores.numpy(), positive, k))
        np.testing.assert_array_equal(told[f"text_to_image_r{k}"], usual_recall(scores.numpy().T, positive.T, k))


def test_several_captions_worked_by_hand() -> None:
    # Scores       c0   c1   c2   c3        c0, c1 belong to picture 0, c2, c3 to picture 1
    # picture 0   .1   .6   .9   .2   → c2 first: missed at 1; c1 second: found at 2
    # picture 1   .5   .8   .3   .4   → c1, c0 first, then c3: found at 3
    wanted = torch.tensor([[0.1, 0.6, 0.9, 0.2], [0.5, 0.8, 0.3, 0.4]], dtype=torch.float64)
    image = torch.eye(2, 6, dtype=torch.float64)
    rest = torch.zeros(4, 4, dtype=torch.float64)
    rest.diagonal().copy_((1 - wanted.square().sum(0)).clamp_min(0).sqrt())
    text = torch.cat([wanted.T, rest], 1)
    told = retrieval_outcomes(image, text, torch.tensor([0, 0, 1, 1]), ks=(1, 2, 3))
    assert told["image_to_text_r1"].tolist() == [0, 0]
    assert told["image_to_text_r2"].tolist() == [1, 0]
    assert told["image_to_text_r3"].tolist() == [1, 1]
    # Captions choose between two pictures: c0 prefers 1, c1 prefers 1, c2 prefers 0, c3 prefers 1.
    assert told["text_to_image_r1"].tolist() == [0, 0, 0, 1]
    assert told["text_to_image_r2"].tolist() == [1, 1, 1, 1]


def test_identical_captions_are_shared_both_ways() -> None:
    # Pictures 0 and 1 both carry "a dog"; picture 1's feature is the caption's, picture 0's points elsewhere.
    image = torch.tensor([[0.0, 1, 0], [1, 0, 0], [0, 0, 1]])
    text = torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 0, 1]])
    owner = torch.arange(3)
    shared = retrieval_outcomes(image, text, owner, torch.tensor([4, 4, 9]), ks=(1,))
    assert shared["text_to_image_r1"].tolist() == [1, 1, 1]
    apart = retrieval_outcomes(image, text, owner, None, ks=(1,))
    assert apart["text_to_image_r1"].tolist() == [0, 1, 1]
    # Picture 1 finds two equal captions, one of which is only picture 0's unless the string is shared.
    assert shared["image_to_text_r1"].tolist() == [0, 1, 1]
    assert apart["image_to_text_r1"].tolist() == [0, 0, 1]


@given(st.integers(0, 1000), st.integers(2, 9), st.integers(1, 4), st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_shared_captions_against_a_slow_oracle(seed: int, images: int, per_image: int, strings: int) -> None:
    image, text, owner, ids = random_case(images, per_image, seed, strings)
    told = retrieval_outcomes(image, text, owner, ids, ks=(1, 3), chunk=3)
    carried = [set(ids[owner == i].tolist()) for i in range(images)]
    positive = np.array([[int(s) in carried[i] for s in ids] for i in range(images)])
    scores = torch.nn.functional.normalize(image, dim=1) @ torch.nn.functional.normalize(text, dim=1).T
    for k in (1, 3):
        for q in range(images):
            best = scores[q][torch.from_numpy(positive[q])].max()
            wrong = int(((scores[q] >= best - 1e-12) & ~torch.from_numpy(positive[q])).sum())
            assert told[f"image_to_text_r{k}"][q] == (wrong < k)
        for q in range(len(text)):
            best = scores[:, q][torch.from_numpy(positive[:, q])].max()
            wrong = int(((scores[:, q] >= best - 1e-12) & ~torch.from_numpy(positive[:, q])).sum())
            assert told[f"text_to_image_r{k}"][q] == (wrong < k)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constant_features_are_never_rewarded(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    row = torch.randn(1, 33, generator=generator, dtype=dtype)
    image, text = row.expand(101, -1), row.expand(505, -1)
    told = retrieval_outcomes(image, text, torch.arange(101).repeat_interleave(5))
    assert all(outcomes.max() == 0 for outcomes in told.values())
    only_images = retrieval_outcomes(
        image, torch.randn(505, 33, generator=generator, dtype=dtype), torch.arange(505) % 101
    )
    assert only_images["text_to_image_r10"].max() == 0


def test_zero_features_are_never_rewarded() -> None:
    told = retrieval_outcomes(torch.zeros(20, 4), torch.zeros(20, 4), torch.arange(20))
    assert all(outcomes.max() == 0 for outcomes in told.values())


@given(st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_neither_chunks_nor_scale_nor_order_matter(seed: int) -> None:
    image, text, owner, ids = random_case(9, 2, seed, 10)
    told = retrieval_outcomes(image, text, owner, ids)
    again = retrieval_outcomes(3 * image, text / 7, owner, ids, chunk=2)
    order = torch.randperm(len(text), generator=torch.Generator().manual_seed(seed))
    moved = retrieval_outcomes(image, text[order], owner[order], 5 * ids[order])
    for name, outcomes in told.items():
        np.testing.assert_array_equal(again[name], outcomes)
        np.testing.assert_array_equal(moved[name], outcomes[order] if name.startswith("text") else outcomes)


@pytest.mark.parametrize("strings", [70, 6])
def test_ranks_and_precisions_against_sorting_and_scikit_learn(strings: int) -> None:
    from sklearn.metrics import average_precision_score

    image, text, owner, ids = random_case(25, 4, 3, strings=strings)
    found = retrieve(image, text, owner, ids, chunk=6)
    scores = (image / image.norm(dim=1, keepdim=True)) @ (text / text.norm(dim=1, keepdim=True)).T
    carries = np.zeros((25, strings), bool)
    carries[owner, ids] = True
    for way, table, positive in (
        ("image_to_text", scores.numpy(), carries[:, ids]),
        ("text_to_image", scores.numpy().T, carries[:, ids].T),
    ):
        for query, (row, right) in enumerate(zip(table, positive, strict=True)):
            assert found[way].rank[query] == (row[~right] >= row[right].max()).sum() + 1
            each = row - 1e-9 * np.arange(len(row))  # scikit-learn takes items of one score together: tell them apart
            assert found[way].precision[query] == pytest.approx(average_precision_score(right, each), abs=1e-9)


def test_wrong_items_of_equal_score_stand_before_the_right_one() -> None:
    found = retrieve(torch.ones(8, 3), torch.ones(16, 3), torch.arange(16) // 2)
    assert found["text_to_image"].rank.tolist() == [8] * 16
    assert found["image_to_text"].rank.tolist() == [15] * 8
    assert found["image_to_text"].precision[0] == pytest.approx((1 / 15 + 2 / 16) / 2)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_coco_sized_retrieval_stays_below_a_gibibyte() -> None:
    before, after = peaks(
        "import torch\nfrom modalign.evaluation.retrieval import retrieve\n"
        "image, text = torch.randn(5000, 512), torch.randn(25_000, 512)",
        "retrieve(image, text, torch.arange(25_000) // 5)",
    )
    assert after - before < 2**30


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_stays_flat_in_the_gallery() -> None:
    # All scores of 2,000 × 25,000 would be 200 MB, their masks 50 MB more; a chunk of 64 queries is 6 MB.
    before, after = peaks(
        "import torch\nfrom modalign.evaluation.retrieval import retrieval_outcomes\n"
        "image, text = torch.randn(2000, 8), torch.randn(25_000, 8)",
        "retrieval_outcomes(image, text, torch.arange(25_000) % 2000, chunk=64)",
    )
    assert after - before < 120 * 2**20


def test_linked_captions_follow_chains() -> None:
    # Pictures 0–1 share string 7, 1–2 share string 8, picture 3 stands alone.
    pictures, strings = torch.tensor([0, 0, 1, 1, 2, 3]), torch.tensor([5, 7, 7, 8, 8, 9])
    assert linked_captions(pictures, strings).tolist() == [0, 0, 0, 0, 0, 3]


@pytest.mark.parametrize(
    ("image", "text", "owner", "message"),
    [
        (torch.ones(2, 3), torch.ones(2, 4), [0, 1], "do not fit"),
        (torch.ones(2, 3), torch.ones(2, 3), [0, 0], "picture 1 has no caption"),
        (torch.ones(2, 3), torch.ones(2, 3), [0, 2], "names picture 2"),
        (torch.ones(2, 3), torch.ones(2, 3), [0], "pass one each"),
        (torch.ones(2, 3), torch.full((2, 3), torch.nan), [0, 1], "NaN"),
    ],
)
def test_bad_input_is_named(image: torch.Tensor, text: torch.Tensor, owner: list[int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        retrieval_outcomes(image, text, torch.tensor(owner))
