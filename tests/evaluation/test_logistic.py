from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, load_iris, load_wine, make_classification
from sklearn.linear_model import LogisticRegression

from modalign.errors import DataError
from modalign.evaluation.logistic import fit_logistic

PENALTIES = [100.0, 1.0, 0.1]


def data(name: str) -> tuple[np.ndarray, np.ndarray]:
    if name == "digits":
        x, y = load_digits(return_X_y=True)
        return x[:600] / 16, y[:600]
    if name == "iris, far from the origin":
        x, y = load_iris(return_X_y=True)
        return x + 30, y
    if name == "wine, scales of 0.3 to 300":
        return load_wine(return_X_y=True)
    return make_classification(150, 200, n_informative=20, n_classes=4, random_state=0)


@pytest.mark.parametrize(
    "name", ["digits", "iris, far from the origin", "wine, scales of 0.3 to 300", "more columns than rows"]
)
def test_weights_equal_scikit_learn_at_convergence(name: str) -> None:
    x, y = data(name)
    fits = fit_logistic(torch.tensor(x), torch.tensor(y), int(y.max()) + 1, PENALTIES, tolerance=1e-5)
    assert fits.converged.all()
    for number, penalty in enumerate(PENALTIES):
        # scikit-learn's own L-BFGS crawls on badly scaled columns; its Newton solver does not.
        peer = LogisticRegression(C=1 / penalty, solver="newton-cholesky", tol=1e-10, max_iter=1000).fit(x, y)
        scale = np.abs(peer.coef_).max()
        np.testing.assert_allclose(fits.weights[number].numpy(), peer.coef_, atol=1e-4 * scale)
        scores = fits.scores(torch.tensor(x), number)
        np.testing.assert_allclose(torch.softmax(scores, 1).numpy(), peer.predict_proba(x), atol=1e-4)


def test_two_classes_are_scikit_learns_with_half_the_penalty() -> None:
    x, y = load_digits(return_X_y=True)
    x, y = x[y < 2] / 16, y[y < 2]
    fits = fit_logistic(torch.tensor(x), torch.tensor(y), 2, [1.0], tolerance=1e-6)
    peer = LogisticRegression(C=2.0, tol=1e-10, max_iter=10_000).fit(x, y)
    np.testing.assert_allclose((fits.weights[0, 1] - fits.weights[0, 0])[None].numpy(), peer.coef_, atol=1e-4)


def test_the_gradient_is_zero_where_autograd_looks() -> None:
    x, y = (torch.tensor(part) for part in data("digits"))
    fits = fit_logistic(x, y, 10, [0.5], tolerance=1e-7)
    weights, bias = fits.weights[0].clone().requires_grad_(), fits.bias[0].clone().requires_grad_()
    loss = torch.nn.functional.cross_entropy(x @ weights.T + bias, y, reduction="sum")
    (loss + 0.25 * weights.square().sum()).backward()
    assert weights.grad is not None and bias.grad is not None
    assert float(weights.grad.norm()) < 1e-5 * float(weights.detach().norm())
    assert float(bias.grad.norm()) < 1e-5


def test_all_penalties_together_give_what_each_gives_alone_in_single_precision() -> None:
    x, y = data("digits")
    features, labels = torch.tensor(x, dtype=torch.float32), torch.tensor(y)
    together = fit_logistic(features, labels, 10, [1e-2, 1.0, 1e3, 1e6], tolerance=1e-2)
    assert together.converged.all() and together.weights.dtype == torch.float32
    for number, penalty in enumerate(together.penalties):
        alone = fit_logistic(features.double(), labels, 10, [penalty], tolerance=1e-3)
        apart = (together.weights[number].double() - alone.weights[0]).norm()
        assert float(apart / alone.weights.norm()) < 1.1e-2


def test_a_rotation_a_shift_and_the_order_of_rows_change_no_prediction() -> None:
    x, y = (torch.tensor(part) for part in data("digits"))
    source = torch.Generator().manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(64, 64, generator=source, dtype=torch.float64)).Q
    order = torch.randperm(len(x), generator=source)
    plain = fit_logistic(x, y, 10, [1.0], tolerance=1e-6).scores(x, 0).softmax(1)
    turned = (x @ rotation + 5)[order]
    moved = fit_logistic(turned, y[order], 10, [1.0], tolerance=1e-6).scores(turned, 0).softmax(1)
    torch.testing.assert_close(moved, plain[order], atol=1e-6, rtol=0)


def test_what_did_not_converge_is_told() -> None:
    x, y = (torch.tensor(part) for part in data("digits"))
    fits = fit_logistic(x, y, 10, [1e-6, 1e6], most_iterations=20)
    assert fits.converged.tolist() == [False, True]
    assert fits.iterations[0] == 20 and fits.iterations[1] < 20


def test_features_without_variance_and_classes_without_examples() -> None:
    constant = fit_logistic(torch.ones(6, 3), torch.tensor([0, 0, 0, 1, 1, 1]), 2, [1.0])
    assert not constant.weights.any()
    fits = fit_logistic(torch.eye(4), torch.tensor([0, 0, 2, 2]), 4, [0.1])
    assert fits.scores(torch.eye(4), 0).argmax(1).tolist() == [0, 0, 2, 2]


@pytest.mark.parametrize(
    ("features", "labels", "classes", "penalties", "said"),
    [
        (torch.ones(3), torch.zeros(3).long(), 2, [1.0], "pass N×d, N and at least 2"),
        (torch.ones(2, 2), torch.tensor([0, 2]), 2, [1.0], "2 classes allow 0…1"),
        (torch.full((2, 2), float("inf")), torch.tensor([0, 1]), 2, [1.0], "NaN or infinity"),
        (torch.ones(2, 2), torch.tensor([0, 1]), 2, [0.0], "positive numbers only"),
        (torch.ones(2, 2), torch.tensor([0, 1]), 2, [], "at least one"),
    ],
)
def test_refusals_say_what_to_pass(
    features: torch.Tensor, labels: torch.Tensor, classes: int, penalties: list[float], said: str
) -> None:
    with pytest.raises(DataError, match=said):
        fit_logistic(features, labels, classes, penalties)


def test_a_penalty_far_above_the_data_still_tells_many_classes_apart_in_single_precision() -> None:
    source = torch.Generator().manual_seed(0)
    labels = torch.arange(2000) % 50
    centres = torch.randn(50, 128, generator=source)
    rows = torch.nn.functional.normalize(centres[labels] + torch.randn(2000, 128, generator=source) + 5)
    for dtype in (torch.float32, torch.float64):
        fits = fit_logistic(rows.to(dtype), labels, 50, [1e6])
        scores = fits.scores(rows.to(dtype), 0)
        assert bool(fits.converged.all())
        assert float((scores.argmax(1) == labels).double().mean()) > 0.99
