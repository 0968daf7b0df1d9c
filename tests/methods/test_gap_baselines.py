from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from modalign.methods import AlignClip, Contrastive, CsAligner, Cua, CyClip, Method, ModGap
from tests.methods.batches import batch


def unit(rows: torch.Tensor) -> np.ndarray:
    array = rows.detach().numpy()
    return array / np.linalg.norm(array, axis=1, keepdims=True)


def values(method: Method, progress: float = 1.0) -> dict[str, float]:
    return {name: float(term.detach()) for name, term in method.terms(batch(), progress).items()}


X, T = (unit(f) for f in (batch().image, batch().text))
OFF = ~np.eye(len(X), dtype=bool)
PLAIN = float(Contrastive().terms(batch(), 1.0)["contrastive"].detach())


def squares(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return ((a[:, None] - b[None]) ** 2).sum(-1)


def crowding(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.log(np.exp(-2 * squares(a, b))[OFF].mean()))


def test_cyclip_by_numpy() -> None:
    found = values(CyClip(contrastive=0.5))
    assert found["contrastive"] == pytest.approx(0.5 * PLAIN)
    assert found["in_modal"] == pytest.approx(0.25 * ((X @ X.T - T @ T.T) ** 2).mean())
    assert found["cross_modal"] == pytest.approx(0.25 * ((X @ T.T - T @ X.T) ** 2).mean())


def test_cua_by_numpy() -> None:
    found = values(Cua(align=2.0))
    assert found["align"] == pytest.approx(2 * ((X - T) ** 2).sum(1).mean())
    assert found["uniformity"] == pytest.approx((crowding(X, X) + crowding(T, T)) / 2)
    assert found["cross_uniformity"] == pytest.approx(crowding(X, T))


def test_align_clip_asks_the_initial_text_tower_how_alike_captions_are() -> None:
    method = AlignClip()
    assert method.needs == {"frozen_text"}
    meaning = unit(batch().frozen_text)
    logits = 20 * np.where(OFF, (X @ X.T) * (1 - meaning @ meaning.T), np.diag((X * T).sum(1)))
    expected = np.mean([np.log(np.exp(row).sum()) - row[i] for i, row in enumerate(logits)])
    assert values(method)["intra_modal"] == pytest.approx(0.5 * expected)


def test_cs_aligner_by_numpy() -> None:
    pooled = np.concatenate([X, T])
    rows, columns = np.triu_indices(len(pooled), 1)
    distances = np.sort(squares(pooled, pooled)[rows, columns])
    sigma2 = distances[(len(distances) - 1) // 2]  # the lower median, as torch takes it

    def mean(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.exp(-squares(a, b) / (2 * sigma2)).mean())

    expected = np.log(mean(X, X)) + np.log(mean(T, T)) - 2 * np.log(mean(X, T))
    assert values(CsAligner())["cauchy_schwarz"] == pytest.approx(expected)


def test_modgap_ramps_after_a_flat_fifth_and_has_no_contrastive_term() -> None:
    middle = X + T
    middle /= np.linalg.norm(middle, axis=1, keepdims=True)
    pull, spread = ((X - T) ** 2).sum(1).mean(), crowding(middle, middle)
    for progress, (u, v) in {0.1: (1, 1), 0.2: (1, 1), 0.6: (1.5, 0.5), 1.0: (2, 0)}.items():
        found = values(ModGap(), progress)
        assert set(found) == {"true_pair", "centroid_uniformity"}
        assert found["true_pair"] == pytest.approx(u * pull)
        assert found["centroid_uniformity"] == pytest.approx(v * spread, abs=1e-12)


@pytest.mark.parametrize("method", [AlignClip, CsAligner, Cua, CyClip, ModGap])
def test_a_term_of_weight_zero_is_left_out_and_none_at_all_is_refused(method: type[Method]) -> None:
    own = method.aligning_terms
    nothing = dict.fromkeys(own, 0.0)
    assert set(values(method(contrastive=1.0, **nothing))) == {"contrastive"}
    with pytest.raises(ValueError, match="so nothing is trained"):
        method(contrastive=0.0, **nothing)
    with pytest.raises(ValueError, match="the batch has no image"):
        method().terms(replace(batch(), image=None), 1.0)
