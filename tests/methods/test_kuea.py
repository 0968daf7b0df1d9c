from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from modalign.embeddings import Embeddings
from modalign.errors import RecipeError
from modalign.methods import ClipRefine, Combine, Contrastive, Kuea, from_config
from modalign.objectives import feature_anchor, kernel_alignment
from modalign.objectives.kernel_fit import fit_kernel
from modalign.objectives.kernels import CosineKernel, GaussianKernel, LaplacianKernel, PolynomialKernel, scale_of
from tests.methods.batches import batch


def with_target(rows: int = 6, dim: int = 8, width: int = 5) -> Embeddings:
    target = torch.randn(rows, width, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    return replace(batch(rows, dim), target=target)


def test_the_defaults_are_the_papers_settings_with_the_unbiased_estimator() -> None:
    found = Kuea().terms(given := with_target(), 1.0)
    own, other = PolynomialKernel(0.0032, 0.191623, 3), PolynomialKernel(1 / 5, 1.0, 3)
    expected = 0.5 * kernel_alignment(given.image, given.target, own, other, "u")
    assert found["kernel"].item() == pytest.approx(expected.item(), rel=1e-12)
    assert found["anchor"].item() == pytest.approx(feature_anchor(given.image, given.frozen_image).item(), rel=1e-14)
    assert found.keys() == {"anchor", "kernel"}
    assert Kuea().towers == {"image"} and Kuea().needs == {"frozen_image", "target"}


@pytest.mark.parametrize(
    ("settings", "own", "other"),
    [
        ({"student_kernel": "gaussian"}, GaussianKernel(8.7), PolynomialKernel(0.2, 1.0)),
        ({"student_kernel": "laplacian", "bandwidth": 3}, LaplacianKernel(3.0), PolynomialKernel(0.2, 1.0)),
        ({"student_kernel": "cosine"}, CosineKernel(), PolynomialKernel(0.2, 1.0)),
        ({"target_kernel": "gaussian"}, PolynomialKernel(0.0032, 0.191623), GaussianKernel(15.8)),
        (
            {"degree": 2.5, "gamma": 0.1, "coef0": 9, "target_gamma": 0.3, "target_coef0": 2, "target_degree": 2},
            PolynomialKernel(0.1, 9.0, 2.5),
            PolynomialKernel(0.3, 2.0, 2),
        ),
    ],
)
def test_kernels_are_chosen_side_by_side(settings: dict[str, object], own: object, other: object) -> None:
    given = with_target()
    for estimator in ("u", "v", "pairs"):
        method = from_config({"name": "kuea", "kernel_weight": 2.0, "estimator": estimator, **settings})
        expected = 2.0 * kernel_alignment(given.image, given.target, own, other, estimator)
        assert method.terms(given, 1.0)["kernel"].item() == pytest.approx(expected.item(), rel=1e-12)


def test_a_learnt_kernel_is_one_parameter_and_a_published_one_is_none() -> None:
    learnt, published = Kuea().module(), Kuea(learn_kernel=False).module()
    assert learnt is not None and [name for name, _ in learnt.named_parameters()] == ["rho"]
    assert published is None
    assert Kuea(student_kernel="cosine").module() is None
    method = Kuea()
    method.terms(with_target(), 1.0)["kernel"].backward()
    (rho,) = method.module().parameters()
    assert rho.grad is not None and abs(rho.grad) > 0


@pytest.mark.parametrize("learn", [True, False])
@pytest.mark.parametrize("kind", ["polynomial", "gaussian"])
def test_a_fitted_kernel_comes_from_spread_rows_and_travels_in_the_state(kind: str, learn: bool) -> None:
    source = torch.Generator().manual_seed(1)
    features = {
        "frozen_image": torch.randn(1500, 8, generator=source),
        "target": torch.randn(1500, 5, generator=source),
    }
    method, resumed = (Kuea(student_kernel=kind, fit_kernel=True, learn_kernel=learn) for _ in range(2))
    assert method.needs_fit and not Kuea().needs_fit
    method.fit(features)
    index = torch.arange(512) * 1500 // 512
    like = PolynomialKernel(1.0, 1.0) if kind == "polynomial" else GaussianKernel(1.0)
    expected = fit_kernel(features["frozen_image"][index], features["target"][index], like)
    assert scale_of(method.kernel) == pytest.approx(scale_of(expected), rel=1e-12)
    assert bool(list(method.module().parameters())) is learn
    resumed.module().load_state_dict(method.module().state_dict())
    assert scale_of(resumed.kernel) == scale_of(method.kernel)
    with pytest.raises(ValueError, match="there are no target features to fit to"):
        method.fit({"frozen_image": features["frozen_image"]})


def test_the_text_tower_takes_the_same_objective() -> None:
    method, given = Kuea(tower="text"), with_target()
    assert method.towers == {"text"} and method.needs == {"frozen_text", "target"}
    swapped = replace(given, image=given.text, frozen_image=given.frozen_text, text=None, frozen_text=None)
    expected = Kuea().terms(swapped, 1.0)
    found = method.terms(replace(given, image=None, frozen_image=None), 1.0)
    assert {name: term.item() for name, term in found.items()} == {name: t.item() for name, t in expected.items()}


def test_the_anchor_is_on_features_angles_or_weights() -> None:
    given = with_target()
    assert Kuea(anchor="cosine", anchor_weight=3).terms(given, 1.0)["anchor"].item() == pytest.approx(
        3 * feature_anchor(given.image, given.frozen_image, "cosine").item()
    )
    on_weights = Kuea(anchor="weights", anchor_weight=0.01)
    assert on_weights.terms(given, 1.0).keys() == {"kernel"} and on_weights.weight_anchor == 0.01
    assert Kuea(anchor_weight=0).terms(given, 1.0).keys() == {"kernel"}
    assert Kuea().weight_anchor == 0
    assert Combine([on_weights, Kuea()]).weight_anchor == 0.01


def test_what_is_told_before_the_first_step_needs_no_trained_feature() -> None:
    given = replace(with_target(), image=None, text=None)
    told = Kuea(gamma=0.1, coef0=0.1).diagnose(given)
    assert told.values.keys() == {
        "student_kernel_mean", "student_kernel_std", "target_kernel_mean", "target_kernel_std", "kernel_gradient_norm"
    }  # fmt: skip
    assert told.warnings == ()
    (warning,) = Kuea(student_kernel="gaussian", bandwidth=1000).diagnose(given).warnings
    assert "the student's kernel is nearly constant" in warning


def test_diagnoses_of_several_methods_are_told_together() -> None:
    given = with_target()
    told = Combine([ClipRefine(temperature=50), Contrastive(), Kuea(student_kernel="gaussian", bandwidth=1000)])
    found = told.diagnose(given)
    assert "effective_logit_scale" in found.values and "student_kernel_std" in found.values
    assert [("logit scale" in w, "kernel" in w) for w in found.warnings] == [(True, False), (False, True)]
    assert Contrastive().diagnose(given).values == {}


def test_a_signal_that_is_missing_is_named() -> None:
    with pytest.raises(ValueError, match="the batch has no target; give Embeddings all of image, frozen_image, target"):
        Kuea().terms(batch(), 1.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kernel_weight": 0}, "kernel_weight is 0; use a number above 0"),
        ({"anchor_weight": -1}, "anchor_weight is -1; use a number from 0 up"),
        ({"gamma": 0}, "gamma is 0; use a number above 0"),
        ({"target_gamma": -1}, "target_gamma is -1; use a number above 0"),
        ({"target_bandwidth": float("nan")}, "target_bandwidth is nan; use a finite number"),
        ({"coef0": 0}, "coef0 is 0, so that r = c/γ has no logarithm; set coef0 above 0 or learn_kernel to false"),
        ({"student_kernel": "cosine", "fit_kernel": True}, "fit_kernel has nothing to fit in the cosine kernel"),
        ({"student_kernel": "rbf"}, "method.student_kernel = 'rbf': input should be 'polynomial', 'gaussian'"),
        ({"lambda": 1}, "unknown key 'method.lambda' (value 1) for kuea"),
    ],
)
def test_mistakes_are_one_line_that_names_the_key(values: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)) as caught:
        from_config({"name": "kuea", **values})
    assert "\n" not in str(caught.value)
    assert Kuea(coef0=0, learn_kernel=False).kernel is not None


def test_all_rows_alike_or_zero_leave_a_finite_loss_and_gradient() -> None:
    given = with_target()
    for image in (torch.zeros(6, 8), torch.full((6, 8), 7.3)):
        rows: Tensor = image.double().requires_grad_()
        for kind in ("polynomial", "gaussian", "laplacian", "cosine"):
            total = sum(Kuea(student_kernel=kind).terms(replace(given, image=rows), 1.0).values())
            (slope,) = torch.autograd.grad(total, rows)
            assert bool(slope.isfinite().all()) and bool(torch.isfinite(total))
