"""A model whose features go through a transform: what evaluations see of one."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NoReturn, Self

import torch
from torch import Tensor

from modalign.errors import ModelError
from modalign.gap.transforms.base import Transform
from modalign.gap.transforms.nnn import NNN
from modalign.models.dual_encoder import DualEncoder, TowerName

if TYPE_CHECKING:
    from modalign.models.tokens import PatchTokens


class Transformed(DualEncoder):
    """What `applied` returns. Trunks, tokenizer and parameters are the model's own; its features carry no gradient.

    Attributes:
        model: the model beneath.
        transform: what its features go through.
    """

    family: ClassVar[str] = "transformed"

    def __init__(self, model: DualEncoder, transform: Transform) -> None:
        super().__init__(model.module, f"{model.spec}, {transform!r}", model.revision)
        self.model, self.transform = model, transform
        self.preprocess = model.preprocess

    # ---- features -------------------------------------------------------------------------------------------

    def encode_image(self, pixels: Tensor) -> Tensor:
        """B×3×H×W → B×w, mapped."""
        return self.transform.transform(self.model.encode_image(pixels), "image")

    def encode_text(self, tokens: Tensor) -> Tensor:
        """B×L → B×w, mapped."""
        return self.transform.transform(self.model.encode_text(tokens), "text")

    def image_trunk(self, pixels: Tensor) -> Tensor:
        """The model's."""
        return self.model.image_trunk(pixels)

    def project_image(self, hidden: Tensor) -> Tensor:
        """The model's image projection, mapped."""
        return self.transform.transform(self.model.project_image(hidden), "image")

    def text_trunk(self, tokens: Tensor) -> Tensor:
        """The model's."""
        return self.model.text_trunk(tokens)

    def project_text(self, hidden: Tensor) -> Tensor:
        """The model's text projection, mapped."""
        return self.transform.transform(self.model.project_text(hidden), "text")

    def token_lengths(self, tokens: Tensor) -> Tensor:
        """The model's."""
        return self.model.token_lengths(tokens)

    def encode_tokens(self, pixels: Tensor, layer: int = -1) -> PatchTokens:
        """The model's: a transform maps pooled features alone."""
        return self.model.encode_tokens(pixels, layer)

    def attention(self, pixels: Tensor, layer: int = -1) -> Tensor:
        """The model's."""
        return self.model.attention(pixels, layer)

    # ---- inputs, parameters ---------------------------------------------------------------------------------

    def tokenize(self, captions: list[str]) -> Tensor:
        """The model's."""
        return self.model.tokenize(captions)

    @property
    def embed_dim(self) -> int:
        """The width w of mapped features."""
        rows = torch.zeros(1, self.model.embed_dim)
        rows[0, 0] = 1
        return int(self.transform.transform(rows, "image").shape[1])

    @property
    def logit_scale(self) -> float:
        """The model's."""
        return self.model.logit_scale

    @property
    def logit_bias(self) -> float | None:
        """The model's."""
        return self.model.logit_bias

    def tower_of(self, name: str) -> TowerName | None:
        """As the model says."""
        return self.model.tower_of(name)

    def projection_names(self, tower: TowerName) -> list[str]:
        """As the model says."""
        return self.model.projection_names(tower)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Self:
        """Moves the model beneath; the transform computes in float64 on the CPU."""
        self.model.to(device, dtype)
        return self

    @property
    def device(self) -> torch.device:
        """The model's."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """The model's."""
        return self.model.dtype

    def frozen_copy(self) -> Self:
        """A copy over a frozen copy of the model."""
        twin = copy.copy(self)
        twin.model = self.model.frozen_copy()
        twin.module = twin.model.module
        return twin

    # ---- identity and disk ----------------------------------------------------------------------------------

    @property
    def input_identity(self) -> str:
        """The model's."""
        return self.model.input_identity

    @property
    def architecture(self) -> str:
        """The model's, and the transform's hash."""
        return f"{self.model.architecture}\n{self.transform.fingerprint}"

    def save(self, folder: str | Path) -> NoReturn:
        """Refused: no checkpoint format has a place for a transform."""
        raise ModelError(f"{self.spec} is no checkpoint: save the model and, with its own save(), the transform")

    def write(self, folder: Path) -> NoReturn:
        """Refused, as `save`."""
        self.save(folder)


def applied(model: DualEncoder, transform: Transform) -> DualEncoder:
    """A model whose features are mapped, for `modalign.evaluate` and everything else that reads features.

    Args:
        model: whose raw features are mapped; its network is shared, not copied.
        transform: fitted on features of this model; any but `NNN`, which corrects scores.

    Returns:
        A model with the same trunks, so that it can share a `TrunkMemo` with the other.

    Raises:
        ModelError: the transform is `NNN`, or was not fitted.
        FeatureError: it was fitted on features of another width.
    """
    if isinstance(transform, NNN):
        raise ModelError("nnn corrects scores and maps no features: take its bias(…) from the scores instead")
    transform.check_fits(model.embed_dim)
    return Transformed(model, transform)
