"""What a method is: which towers it trains, which frozen signals it reads, and which weighted terms it sums.

A method knows no tower, no device, no process group and no loop. To add one, write a dataclass with `terms`
and name it in `modalign.methods.METHODS`; nothing else changes (see CONTRIBUTING).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn

from modalign.embeddings import Embeddings
from modalign.objectives.distillation import sharpness_warning
from modalign.objectives.kernels import AnyKernel
from modalign.training.curriculum import Curriculum

FROZEN_SIGNALS = frozenset({"frozen_image", "frozen_text", "target"})


@dataclass(frozen=True)
class Diagnosis:
    """What a method says about the first batch.

    Attributes:
        values: logged once, by name.
        warnings: told to the user, one line each, ending in what to do.
    """

    values: dict[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


class Method:
    """Base of every method; subclasses are dataclasses whose fields are the recipe's keys.

    Attributes:
        name: the word used on the command line and in recipes.
        towers: which towers the method can train; the loop trains those of them that the recipe's scope names.
        weight_anchor: λ of the pull λ/2·‖θ − θ_0‖² on the trained weights (L2-SP), which no term can compute from
            embeddings; the loop adds λ(θ − θ_0) to their gradients.
        needs_logit_bias: whether the terms read the model's logit bias, so that a model without one is refused.
        fewest_rows: of a batch that the terms can be computed of; a last, smaller one is refused beforehand.
        aligning_terms: the names of the terms that move features together, which a curriculum brings in slowly.
        curriculum: α(t) of a method whose aligning terms come in along one; the boundary moves it on at every step.
    """

    name: ClassVar[str]
    towers: frozenset[str] = frozenset({"image", "text"})
    weight_anchor: float = 0.0
    needs_logit_bias: bool = False
    fewest_rows: int = 1
    aligning_terms: ClassVar[tuple[str, ...]] = ()
    curriculum: Curriculum | None = None

    @property
    def needs(self) -> frozenset[str]:
        """The frozen signals the terms read, of "frozen_image", "frozen_text", "target"; computed once per image."""
        return frozenset()

    @property
    def needs_fit(self) -> bool:
        """Whether `fit` must see the frozen features of the whole training set before the first step."""
        return False

    def fit(self, features: Mapping[str, Tensor]) -> None:
        """Sets what depends on the frozen features (kept in `module()`, so that it is checkpointed).

        Args:
            features: of the whole training set, raw: "frozen_image" N×d, "frozen_text" M×d of all captions, "target"
                N×d_t; those of the towers it reads and of the signals in `needs`.
        """

    def draw(self, seed: int, step: int, rows: int, dim: int) -> dict[str, Tensor]:
        """The method's random numbers of one step: a pure function of its arguments, on CPU.

        Args:
            seed: the run's seed.
            step: the global step, counted from 0.
            rows: the size B of the *global* batch; row i belongs to global row i on every process.
            dim: the embedding width d.

        Returns:
            Named tensors, handed back to `terms` in `Embeddings.draws`.
        """
        return {}

    def terms(self, embeddings: Embeddings, progress: float) -> dict[str, Tensor]:
        """The weighted loss terms of one global batch; their sum is the loss.

        Args:
            embeddings: the global batch, float32 or wider.
            progress: (step counted from 1) / steps, in (0, 1].

        Returns:
            Name → scalar, already multiplied by its weight. A term of weight 0 is not computed.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define terms()")

    def parts(self, embeddings: Embeddings, progress: float) -> tuple[Tensor | None, Tensor | None]:
        """The base and the aligning loss of a method on a curriculum, neither of them multiplied by α.

        Their gradients are compared at the embeddings; only a method with a `curriculum` is asked.

        Args:
            embeddings: as for `terms`.
            progress: likewise.

        Returns:
            Two scalars; None for one that has no terms.
        """
        raise NotImplementedError(f"{type(self).__name__} is on no curriculum")

    def effective_logit_scale(self, embeddings: Embeddings) -> float | None:
        """The factor that turns the method's similarities into cosines, where it is not CLIP's own; logged once."""
        return None

    def diagnose(self, embeddings: Embeddings) -> Diagnosis:
        """What should be known before the first step: logged once, with warnings where it bodes ill.

        Args:
            embeddings: the first global batch; the frozen features are where the trained ones begin.
        """
        scale = self.effective_logit_scale(embeddings)
        if scale is None:
            return Diagnosis()
        warning = sharpness_warning(scale)
        return Diagnosis({"effective_logit_scale": scale}, (warning,) if warning is not None else ())

    def stand_in(self, target: Tensor) -> Tensor | None:
        """What replaces the image features in an evaluation; None for a method that trains a tower instead.

        Args:
            target: N×d_t, raw, of the pictures evaluated.

        Returns:
            N×d, raw, in the space of the texts.
        """
        return None

    def kernels(self, target: Tensor) -> tuple[AnyKernel, AnyKernel] | None:
        """The kernels of student and target that the method aligns, as they stand; None for one without.

        Args:
            target: N×d_t, raw, on whose width the target's kernel may depend.
        """
        return None

    def module(self) -> nn.Module | None:
        """The method's own parameters and buffers: optimised, checkpointed, identical on every process."""
        return None
