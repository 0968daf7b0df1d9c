from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, load_wine, make_classification
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import normalize

from modalign.errors import DataError
from modalign.evaluation.linear_probe import PENALTIES, Probe, fit_adamw, fit_probe
from modalign.evaluation.splits import stratified_split


def sets(name: str) -> tuple[np.ndarray, np.ndarray]:
    if name == "digits":
        x, y = load_digits(return_X_y=True)
        return x[:1000], y[:1000]
    if name == "wine":
        return load_wine(return_X_y=True)
    return make_classification(
        1500, 60, n_informative=30, n_classes=8, n_clusters_per_class=1, class_sep=1.2, random_state=1
    )


@pytest.mark.parametrize("name", ["digits", "wine", "synthetic"])
@pytest.mark.parametrize("scale", ["unit", "raw"])
def test_accuracy_is_within_two_tenths_of_a_point_of_scikit_learns_at_the_same_penalty(name: str, scale: str) -> None:
    x, y = sets(name)
    if scale == "raw":
        x = (x - x.mean(0)) / x.std(0).clip(1e-9)
    held = stratified_split(torch.tensor(y), 0.5, seed=3).numpy()
    features, labels = torch.tensor(x, dtype=torch.float32), torch.tensor(y)
    classes = int(y.max()) + 1
    seen = normalize(x) if scale == "unit" else x
    for penalty in (1e-2, 1.0, 10.0):
        probe = fit_probe(features[~held], labels[~held], classes, scale=scale, penalties=[penalty])  # type: ignore[arg-type]
        ours = probe.outcomes(features[held], labels[held])["acc1"]
        peer = LogisticRegression(C=1 / penalty, max_iter=5000, tol=1e-6).fit(seen[~held], y[~held])
        assert abs(ours.mean() - peer.score(seen[held], y[held])) <= 0.002


def test_the_whole_recipe_reaches_scikit_learns_loop_over_the_penalties() -> None:
    x, y = sets("digits")
    held = stratified_split(torch.tensor(y), 0.5, seed=0).numpy()
    features, labels = torch.tensor(x, dtype=torch.float32), torch.tensor(y)
    validation = stratified_split(labels[~held], 0.2).numpy()
    penalties = PENALTIES[4:18:2]
    probe = fit_probe(features[~held], labels[~held], 10, penalties=penalties)
    train, target = normalize(x[~held]), y[~held]
    # The solver matters: scikit-learn's default stops early at weak penalties, and by chance differs by a picture.
    best = max(
        LogisticRegression(C=1 / penalty, max_iter=1000, solver="newton-cholesky", tol=1e-8)
        .fit(train[~validation], target[~validation])
        .score(train[validation], target[validation])
        for penalty in penalties
    )
    assert probe.notes["validation_accuracy"] == pytest.approx(best, abs=0.002)
    peer = LogisticRegression(C=1 / probe.notes["penalty"], max_iter=5000, tol=1e-6).fit(train, target)
    ours = probe.outcomes(features[held], labels[held])["acc1"].mean()
    assert abs(ours - peer.score(normalize(x[held]), y[held])) <= 0.002


def test_the_penalty_is_chosen_on_the_validation_rows_alone() -> None:
    source = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 2
    # Column 0 tells the class of every row, column 1 (far louder) that of the training rows alone.
    informative = torch.stack([labels * 2.0 - 1, 20.0 * (labels * 2.0 - 1)], 1)
    validation = torch.arange(200) >= 100
    informative[validation, 1] = 20 * torch.randn(100, generator=source)
    probe = fit_probe(informative, labels, 2, validation=validation, scale="raw", penalties=PENALTIES[::4], refit=False)
    best = max(
        fit_probe(informative, labels, 2, validation=validation, scale="raw", penalties=[p], refit=False)
        .outcomes(informative[validation], labels[validation])["acc1"]
        .mean()
        for p in PENALTIES[::4]
    )
    assert probe.notes["validation_accuracy"] == pytest.approx(best)


def test_a_tie_counts_against_and_constant_features_score_0() -> None:
    probe = Probe(torch.tensor([[1.0, 0], [1.0, 0], [0, 1.0]]), torch.zeros(3), "raw", {})
    found = probe.outcomes(torch.tensor([[1.0, 0], [0, 1.0]]), torch.tensor([0, 2]), ks=(1, 2, 3))
    assert found["acc1"].tolist() == [0, 1] and found["acc2"].tolist() == [1, 1] and "acc3" not in found
    labels = torch.arange(60) % 3
    constant = fit_probe(torch.ones(60, 4), labels, 3)
    assert constant.outcomes(torch.ones(60, 4), labels)["acc1"].sum() == 0


def test_unit_scale_does_not_see_the_norm_and_raw_does() -> None:
    x, y = sets("digits")
    features, labels = torch.tensor(x, dtype=torch.float64), torch.tensor(y)
    stretched = features * torch.linspace(0.5, 3, len(x), dtype=torch.float64)[:, None]
    plain, longer = (fit_probe(f, labels, 10, penalties=[1.0]) for f in (features, stretched))
    torch.testing.assert_close(plain.weights, longer.weights, atol=1e-6, rtol=0)
    raw = fit_probe(stretched, labels, 10, penalties=[1.0], scale="raw")
    assert float((raw.weights - longer.weights).abs().max()) > 1e-2


def test_the_adamw_rule_is_a_pure_function_of_its_seed_and_equals_a_hand_written_loop() -> None:
    x, y = sets("digits")
    features, labels = torch.tensor(x, dtype=torch.float32), torch.tensor(y)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    first, again, other = (fit_adamw(features, labels, 10, seed=seed) for seed in (4, 4, 5))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.weights, again.weights) and not torch.equal(first.weights, other.weights)

    unit = torch.nn.functional.normalize(features)
    torch.manual_seed(4)
    layer = torch.nn.Linear(64, 10)
    orders = [torch.randperm(len(unit)) for _ in range(10)]
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, weight_decay=0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10 * -(-len(unit) // 64))
    for order in orders:
        for batch in order.split(64):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(layer(unit[batch]), labels[batch]).backward()
            optimizer.step()
            schedule.step()
    torch.testing.assert_close(first.weights, layer.weight.detach(), atol=1e-3, rtol=1e-3)
    assert first.outcomes(features, labels)["acc1"].mean() > 0.93


def test_features_to_judge_must_be_finite() -> None:
    probe = Probe(torch.ones(2, 2), torch.zeros(2), "unit", {})
    with pytest.raises(DataError, match="NaN or infinity"):
        probe.outcomes(torch.full((1, 2), float("nan")), torch.zeros(1).long())
