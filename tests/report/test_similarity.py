from __future__ import annotations

import numpy as np
import pytest
import torch

from modalign.evaluation.retrieval import retrieval_outcomes
from modalign.report.run_folder import Features
from modalign.report.similarity import Matches, histograms, plane, rank_changes, text_to_image


def make(images: int = 40, captions_each: int = 2, dim: int = 12, seed: int = 0, **changed: object) -> Features:
    generator = np.random.default_rng(seed)
    concepts = generator.normal(size=(images, dim))
    owner = np.repeat(np.arange(images), captions_each)

    def noisy(rows: np.ndarray) -> np.ndarray:
        return (rows + generator.normal(size=rows.shape)).astype(np.float32)

    parts = {
        "image_before": noisy(concepts),
        "image_after": noisy(concepts),
        "text_before": noisy(concepts[owner]),
        "text_after": noisy(concepts[owner]),
        "paths": tuple(f"{i}.png" for i in range(images)),
        "captions": tuple(f"caption {i}" for i in range(images * captions_each)),
        "image_of_text": owner,
    }
    return Features(**{**parts, **changed})  # type: ignore[arg-type]


def cosines(image: np.ndarray, text: np.ndarray) -> np.ndarray:
    image, text = image.astype(np.float64), text.astype(np.float64)
    return (image @ text.T) / np.linalg.norm(image, axis=1)[:, None] / np.linalg.norm(text, axis=1)


def test_histograms_count_every_pair_once_and_agree_with_the_full_matrix() -> None:
    features = make()
    before, after = histograms(features)
    own = features.image_of_text[None, :] == np.arange(40)[:, None]
    for histogram, image, text in (
        (before, features.image_before, features.text_before),
        (after, features.image_after, features.text_after),
    ):
        scores = cosines(image, text)
        assert histogram.matched.sum() == 80
        assert histogram.unmatched.sum() == 40 * 80 - 80
        assert histogram.matched_mean == pytest.approx(scores[own].mean(), abs=1e-6)
        assert histogram.unmatched_mean == pytest.approx(scores[~own].mean(), abs=1e-6)
    assert np.array_equal(before.edges, after.edges)


def test_pairs_that_share_a_caption_or_a_picture_are_never_unmatched() -> None:
    features = make(4, 1, captions=("same", " same ", "other", "last"), paths=("a", "b", "c", "c"))
    before, _ = histograms(features)
    # 16 pairs; matched: same×{a, b} twice over, and other and last each with both rows of picture c.
    assert before.unmatched.sum() == 16 - 4 - 4
    assert before.matched.sum() == 4


def test_a_large_set_is_sampled_the_same_way_before_and_after() -> None:
    features = make(60, 3)
    before, after = histograms(features, max_pairs=100)
    assert before.matched.sum() == after.matched.sum() == 100
    assert 90 <= before.unmatched.sum() == after.unmatched.sum() <= 100


def test_the_plane_is_the_pca_of_the_union_of_all_four_sets() -> None:
    from sklearn.decomposition import PCA

    features = make()
    sets = [features.image_before, features.text_before, features.image_after, features.text_after]
    union = np.concatenate([part / np.linalg.norm(part, axis=1, keepdims=True) for part in sets]).astype(np.float64)
    oracle = PCA(2, svd_solver="full").fit(union)
    seen = plane(features)
    points = np.concatenate([seen.image_before, seen.text_before, seen.image_after, seen.text_after])
    expected = oracle.transform(union)
    for axis in range(2):
        sign = np.sign(points[:, axis] @ expected[:, axis])
        assert np.allclose(points[:, axis], sign * expected[:, axis], atol=1e-4)
    assert seen.explained == pytest.approx(oracle.explained_variance_ratio_, abs=1e-5)


def test_the_plane_does_not_depend_on_the_length_of_raw_features() -> None:
    features = make()
    longer = make(image_after=features.image_after * 7)
    assert np.allclose(plane(features).image_after, plane(longer).image_after, atol=1e-5)


def test_features_of_different_widths_share_no_plane() -> None:
    narrow = np.ones((40, 3), dtype=np.float32)
    with pytest.raises(ValueError, match="3, 12"):
        plane(make(image_after=narrow))


def brute_force_ranks(features: Features) -> list[int]:
    """Rank of the best right picture among distinct pictures, wrong ones that tie going first."""
    scores = cosines(features.image_before, features.text_before)
    pictures: dict[str, int] = {}
    for row, path in enumerate(features.paths):
        pictures.setdefault(path, row)
    owners: dict[str, set[str]] = {}
    for caption, row in zip(features.captions, features.image_of_text, strict=True):
        owners.setdefault(caption, set()).add(features.paths[row])
    ranks = []
    for number, caption in enumerate(features.captions):
        best = max(scores[pictures[path], number] for path in owners[caption])
        wrong = [row for path, row in pictures.items() if path not in owners[caption]]
        ranks.append(1 + sum(scores[row, number] >= best for row in wrong))
    return ranks


def test_ranks_against_a_loop_with_shared_captions_and_repeated_pictures() -> None:
    generator = np.random.default_rng(3)
    features = make(
        30,
        2,
        captions=tuple(f"c{i}" for i in generator.integers(25, size=60)),
        paths=tuple(f"p{i % 28}" for i in range(30)),
    )
    ranked = text_to_image(features.image_before, features.text_before, Matches.of(features), chunk=7)
    assert ranked.rank.tolist() == brute_force_ranks(features)


def test_ranks_agree_with_the_evaluation_s_recall() -> None:
    features = make(50, 2, captions=tuple(f"c{i % 90}" for i in range(100)))
    matches = Matches.of(features)
    ranks = text_to_image(features.image_before, features.text_before, matches).rank
    outcomes = retrieval_outcomes(
        torch.from_numpy(features.image_before),
        torch.from_numpy(features.text_before),
        torch.from_numpy(features.image_of_text),
        torch.from_numpy(matches.caption_ids),
    )
    for k in (1, 5, 10):
        assert np.array_equal(ranks <= k, outcomes[f"text_to_image_r{k}"] == 1)


def test_constant_features_rank_last_instead_of_first() -> None:
    generator = np.random.default_rng(0)
    constant = np.repeat(generator.normal(size=(1, 384)), 200, axis=0).astype(np.float32)
    features = make(200, 1, 384, image_before=constant, text_before=constant)
    ranks = text_to_image(constant, constant, Matches.of(features)).rank
    assert (ranks == 200).all()


def line_of_pictures(ranks_after: list[int]) -> Features:
    """Caption i ranks its picture first before, and at `ranks_after[i]` after; features are one-hot."""
    count = len(ranks_after)
    identity = np.eye(count, dtype=np.float32)
    text = np.zeros((count, count), dtype=np.float32)
    for caption, rank in enumerate(ranks_after):
        order = [i for i in range(count) if i != caption]
        order.insert(rank - 1, caption)
        text[caption, order] = np.arange(count, 0, -1)
    return make(count, 1, count, image_before=identity, image_after=identity, text_before=identity, text_after=text)


def test_the_captions_that_moved_furthest_are_chosen_in_order() -> None:
    changes = rank_changes(line_of_pictures([1, 9, 1, 4, 12, 1, 2, 1, 1, 3, 1, 1]), examples=4)
    assert changes.improved == ()
    assert changes.lost == (4, 1, 3, 9)
    assert changes.after.rank[[4, 1, 3, 9]].tolist() == [12, 9, 4, 3]
    assert changes.pictures == 12


def test_both_directions_are_shown_and_unmoved_captions_never() -> None:
    features = make(80, 1, seed=5)
    changes = rank_changes(features)
    gained = changes.before.rank - changes.after.rank
    assert len(changes.improved) == len(changes.lost) == 5
    assert gained[list(changes.improved)].min() > 0 > gained[list(changes.lost)].max()
    assert gained[list(changes.improved)].tolist() == sorted(gained, reverse=True)[:5]
    assert gained[list(changes.lost)].tolist() == sorted(gained)[:5]


def test_a_picture_is_shown_once_though_all_its_captions_moved() -> None:
    features = make(30, 5, seed=2)
    changes = rank_changes(features)
    owners = features.image_of_text[[*changes.improved, *changes.lost]]
    assert len(set(owners.tolist())) == 10
