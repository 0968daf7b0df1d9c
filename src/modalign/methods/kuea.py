"""KUEA: a tower takes over which inputs a target encoder finds alike, and stays near where it was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from modalign.embeddings import Embeddings
from modalign.methods.base import Diagnosis, Method
from modalign.methods.terms import evenly_spaced, present
from modalign.objectives import feature_anchor, kernel_alignment
from modalign.objectives.kernel_fit import fit_kernel, kernel_spread, spread_warnings
from modalign.objectives.kernel_match import ESTIMATORS
from modalign.objectives.kernels import (
    CosineKernel,
    GaussianKernel,
    Kernel,
    LaplacianKernel,
    LearnableKernel,
    PolynomialKernel,
    scale_of,
    with_scale,
)
from modalign.objectives.validation import require_choice, require_range

KERNELS = ("polynomial", "gaussian", "laplacian", "cosine")
FITTED_ON = 512


@dataclass(kw_only=True)
class Kuea(Method):
    """Kernel-based alignment of one tower with a target encoder; the other tower and the logit scale never change.

        L = anchor_weight·L_reg + kernel_weight·L_align
        L_align = mean over pairs of rows of (k(x_i, x_j) − k_t(g_i, g_j))²,   L_reg = (1/N) Σ_i ‖x_i − f_i‖²

    The batch is the global one. γ, c and the degree belong to the polynomial (normalised to ones on the diagonal), the
    bandwidth to the Gaussian and the Laplacian; the cosine kernel has no parameter, and nothing to learn.

    Args:
        kernel_weight: λ (paper: 0.5; 1 for ViT-L/14-336).
        anchor_weight: of what holds the tower (paper: 1; 0, its ablation, falls below the initial model).
        anchor: "features" is L_reg; "cosine" mean(1 − cos(x_i, f_i)); "weights" L2-SP, ½‖θ − θ_0‖² on the trained
            weights, which the training loop applies to their gradients, so that it is no term of the loss.
        tower: "image", or "text": the same objective on the text tower (ours).
        student_kernel: "polynomial" (paper), "gaussian", "laplacian" or "cosine".
        gamma: γ of the student's (paper, ViT-L/14: 0.0032).
        coef0: c of the student's (paper, ViT-L/14: 0.191623).
        degree: of the student's (paper: 3).
        bandwidth: σ of the student's (paper: 8.7).
        target_kernel: as `student_kernel`, on its own.
        target_gamma: None is 1/d_t (paper).
        target_coef0: (paper: 1).
        target_degree: (paper: 3).
        target_bandwidth: (paper: 15.8).
        estimator: "u" averages over pairs of different rows; "v" over all N² entries (the published runs), which makes
            λ depend on N; "pairs" over N/2 disjoint pairs.
        learn_kernel: trains the student's r = c/γ, or its σ, on a logarithmic scale; False leaves them (published).
        fit_kernel: starts r or σ where 512 training rows of the initial model and the target agree best, instead of at
            gamma and coef0 or bandwidth.

    Source: KUEA, arXiv 2506.02557; "u" as the default, other anchors, the Laplacian and fitting are this library's.
    """

    name: ClassVar[str] = "kuea"
    aligning_terms = ("kernel",)

    kernel_weight: float = 0.5
    anchor_weight: float = 1.0
    anchor: Literal["features", "cosine", "weights"] = "features"
    tower: Literal["image", "text"] = "image"
    student_kernel: Literal["polynomial", "gaussian", "laplacian", "cosine"] = "polynomial"
    gamma: float = 0.0032
    coef0: float = 0.191623
    degree: float = 3.0
    bandwidth: float = 8.7
    target_kernel: Literal["polynomial", "gaussian", "laplacian", "cosine"] = "polynomial"
    target_gamma: float | None = None
    target_coef0: float = 1.0
    target_degree: float = 3.0
    target_bandwidth: float = 15.8
    estimator: Literal["u", "v", "pairs"] = "u"
    learn_kernel: bool = True
    fit_kernel: bool = False

    def __post_init__(self) -> None:
        require_range("kernel_weight", self.kernel_weight, 0, open_low=True)
        require_range("anchor_weight", self.anchor_weight, 0)
        require_choice("anchor", self.anchor, ("features", "cosine", "weights"))
        require_choice("tower", self.tower, ("image", "text"))
        require_choice("student_kernel", self.student_kernel, KERNELS)
        require_choice("target_kernel", self.target_kernel, KERNELS)
        require_choice("estimator", self.estimator, ESTIMATORS)
        for prefix in ("", "target_"):
            gamma = getattr(self, f"{prefix}gamma")
            require_range(f"{prefix}gamma", 1.0 if gamma is None else gamma, 0, open_low=True)
            require_range(f"{prefix}coef0", getattr(self, f"{prefix}coef0"), 0)
            require_range(f"{prefix}degree", getattr(self, f"{prefix}degree"), 0, open_low=True)
            require_range(f"{prefix}bandwidth", getattr(self, f"{prefix}bandwidth"), 0, open_low=True)
        if self.fit_kernel and self.student_kernel == "cosine":
            raise ValueError("fit_kernel has nothing to fit in the cosine kernel; set fit_kernel to false")
        self.towers = frozenset({self.tower})
        self.fewest_rows = 1 if self.estimator == "v" else 2
        self.weight_anchor = self.anchor_weight if self.anchor == "weights" else 0.0
        self._given = _kernel(self.student_kernel, self.gamma, self.coef0, self.degree, self.bandwidth)
        self._scaled: LearnableKernel | None = None
        if self.student_kernel != "cosine" and (self.learn_kernel or self.fit_kernel):
            self._scaled = LearnableKernel(self._given, learn=self.learn_kernel)

    @property
    def needs(self) -> frozenset[str]:
        """The tower's initial features and the target's."""
        return frozenset({f"frozen_{self.tower}", "target"})

    @property
    def needs_fit(self) -> bool:
        """True for a kernel that is fitted."""
        return self.fit_kernel

    def fit(self, features: Mapping[str, Tensor]) -> None:
        """Sets r or σ by `fit_kernel` on 512 rows, evenly spaced over the training set."""
        if self.fit_kernel and self._scaled is not None:
            student, target = evenly_spaced(features, FITTED_ON, f"frozen_{self.tower}", "target")
            self._scaled.set(fit_kernel(student, target, self._given, self._kernel_of_target(target)))

    def module(self) -> nn.Module | None:
        """ρ = log r (or log σ) as parameter "rho"; a buffer where it is fitted and not learnt; None without either."""
        return self._scaled

    @property
    def kernel(self) -> Kernel:
        """The student's kernel as it stands."""
        return self._given if self._scaled is None else self._scaled.kernel

    def kernels(self, target: Tensor) -> tuple[Kernel, Kernel]:
        """The student's kernel, its scale as a number, and the target's."""
        own = self._given if self._scaled is None else with_scale(self._given, scale_of(self.kernel))
        return own, self._kernel_of_target(target)

    def _kernel_of_target(self, target: Tensor) -> Kernel:
        gamma = 1 / target.shape[1] if self.target_gamma is None else self.target_gamma
        return _kernel(self.target_kernel, gamma, self.target_coef0, self.target_degree, self.target_bandwidth)

    def terms(self, embeddings: Embeddings, progress: float) -> dict[str, Tensor]:
        """The terms "anchor" (unless it is on weights, or its weight is 0) and "kernel"."""
        student, frozen, target = present(embeddings, self.tower, f"frozen_{self.tower}", "target")
        terms: dict[str, Tensor] = {}
        if self.anchor_weight and self.anchor != "weights":
            form = "l2" if self.anchor == "features" else "cosine"
            terms["anchor"] = self.anchor_weight * feature_anchor(student, frozen, form)
        loss = kernel_alignment(student, target, self.kernel, self._kernel_of_target(target), self.estimator)
        terms["kernel"] = self.kernel_weight * loss
        return terms

    def diagnose(self, embeddings: Embeddings) -> Diagnosis:
        """How much both kernels vary off the diagonal and how strongly they pull, before the first step."""
        frozen, target = present(embeddings, f"frozen_{self.tower}", "target")
        if len(frozen) < 2:
            return Diagnosis()
        spread = kernel_spread(frozen, target, self.kernel, self._kernel_of_target(target), self.estimator)
        return Diagnosis(spread, tuple(spread_warnings(spread, fitted=self.fit_kernel)))


def _kernel(kind: str, gamma: float, coef0: float, degree: float, bandwidth: float) -> Kernel:
    match kind:
        case "polynomial":
            return PolynomialKernel(gamma, coef0, degree)
        case "gaussian":
            return GaussianKernel(bandwidth)
        case "laplacian":
            return LaplacianKernel(bandwidth)
        case _:
            return CosineKernel()
