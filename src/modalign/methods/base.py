"""What a method is: which towers it trains, which frozen signals it reads, and which weighted terms it sums.

A method knows no tower, no device, no process group and no loop. To add one, write a dataclass with `terms`
and name it in `modalign.methods.METHODS`; nothing else changes (see CONTRIBUTING).
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from modalign.embeddings import Embeddings

FROZEN_SIGNALS = frozenset({"frozen_image", "frozen_text", "target"})


class Method:
    """Base of every method; subclasses are dataclasses whose fields are the recipe's keys.

    Attributes:
        name: the word used on the command line and in recipes.
        towers: which towers the method can train; the loop trains those of them that the recipe's scope names.
    """

    name: ClassVar[str]
    towers: frozenset[str] = frozenset({"image", "text"})

    @property
    def needs(self) -> frozenset[str]:
        """The frozen signals the terms read, of "frozen_image", "frozen_text", "target"; computed once per image."""
        return frozenset()

    @property
    def needs_fit(self) -> bool:
        """Whether `fit` must see the frozen features of the whole training set before the first step."""
        return False

    def fit(self, frozen_image: Tensor, frozen_text: Tensor) -> None:
        """Sets what depends on the frozen features (kept in `module()`, so that it is checkpointed).

        Args:
            frozen_image: N×d, raw, of the whole training set.
            frozen_text: M×d, raw, of all its captions.
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

    def effective_logit_scale(self, embeddings: Embeddings) -> float | None:
        """The factor that turns the method's similarities into cosines, where it is not CLIP's own; logged once."""
        return None

    def module(self) -> nn.Module | None:
        """The method's own parameters and buffers: optimised, checkpointed, identical on every process."""
        return None
