"""The contract every image-text model meets, whatever library it comes from."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from modalign.errors import ModelError
from modalign.models.folder import whole_folder, write_record
from modalign.models.tokens import PatchTokens
from modalign.models.weights import fingerprint

TowerName = Literal["image", "text"]
TOWERS: tuple[TowerName, ...] = ("image", "text")


class DualEncoder(ABC):
    """An image tower and a text tower that meet in one d-dimensional space.

    The towers stay in `eval()` mode, also while they train: dropout is off and BatchNorm statistics are frozen,
    so that a feature does not depend on the batch it was computed in.

    Attributes:
        module: the library's own network; parameter names in recipes are its names ("visual.proj", …).
        spec: what was passed to `modalign.load`.
        revision: the commit a hub name resolved to, None for local files.
        embed_dim: d.
    """

    family: ClassVar[str]

    def __init__(self, module: nn.Module, spec: str, revision: str | None = None) -> None:
        self.module = module.eval()
        self.spec = spec
        self.revision = revision

    @property
    def network(self) -> Any:
        """`module` for a forward pass: put back into `eval()` should somebody have called `train()` on it.

        Single modules that a training step put into `train()` (dropout, BatchNorm) are left as they are.
        """
        if self.module.training:
            self.module.eval()
        return self.module

    # ---- features -------------------------------------------------------------------------------------------

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Raw image features.

        Args:
            pixels: B×3×H×W, as `preprocess` makes them.

        Returns:
            B×d, raw (not normalised); half precision is upcast to float32, float64 is kept.
        """
        return self.project_image(self.image_trunk(pixels))

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Raw text features, computed at the captions' true length where that is exact.

        Args:
            tokens: B×L token ids, as `tokenize` makes them.

        Returns:
            B×d, raw (not normalised); half precision is upcast to float32, float64 is kept.
        """
        return self.project_text(self.text_trunk(tokens))

    @abstractmethod
    def image_trunk(self, pixels: Tensor) -> Tensor:
        """B×3×H×W → B×w: the image tower up to, and without, its projection."""

    @abstractmethod
    def project_image(self, hidden: Tensor) -> Tensor:
        """B×w → B×d, raw: the image projection alone."""

    @abstractmethod
    def text_trunk(self, tokens: Tensor) -> Tensor:
        """B×L → B×w: the text tower up to, and without, its projection."""

    @abstractmethod
    def project_text(self, hidden: Tensor) -> Tensor:
        """B×w → B×d, raw: the text projection alone."""

    @abstractmethod
    def token_lengths(self, tokens: Tensor) -> Tensor:
        """B×L → B integers: how many leading columns of each row can change its feature (L where padding counts)."""

    def encode_tokens(self, pixels: Tensor, layer: int = -1) -> PatchTokens:
        """The class and patch tokens of one layer of the image tower, before the final norm.

        Args:
            pixels: B×3×H×W, as `preprocess` makes them.
            layer: as transformers counts `hidden_states`: 0 = the embeddings, k = after k blocks, negative from the
                end (-1 = after the last block; -2 is what LLaVA reads).

        Returns:
            The tokens, raw; half precision is upcast to float32.

        Raises:
            ModelError: the tower is no transformer over patches, or has no such layer.
        """
        raise self._no_tokens(type(self.module).__name__)

    def attention(self, pixels: Tensor, layer: int = -1) -> Tensor:
        """The attention weights of one layer of the image tower.

        Args:
            pixels: B×3×H×W, as `preprocess` makes them.
            layer: k = of the k-th block, counted from 1: the one whose output `encode_tokens` gives for the same
                `layer`; negative from the end.

        Returns:
            B×heads×T×T; rows sum to 1, T as in `encode_tokens`.

        Raises:
            ModelError: the tower is no transformer over patches, or has no such layer.
        """
        raise self._no_tokens(type(self.module).__name__)

    def _no_tokens(self, tower: str) -> ModelError:
        return ModelError(
            f"the image tower of {self.spec} ({tower}) gives no patch tokens or attention: use a model with a ViT"
        )

    # ---- inputs ---------------------------------------------------------------------------------------------

    preprocess: Callable[[Any], Tensor]
    """A PIL image → 3×H×W; the model's evaluation transform, picklable."""

    @abstractmethod
    def tokenize(self, captions: list[str]) -> Tensor:
        """Captions → B×L token ids, padded to the context length, longer captions cut there."""

    @property
    @abstractmethod
    def embed_dim(self) -> int:
        """The width d of the shared space."""

    @property
    @abstractmethod
    def logit_scale(self) -> float:
        """The factor in front of cosine similarities (100.0 for OpenAI's CLIP), not its logarithm."""

    @property
    def logit_bias(self) -> float | None:
        """What is added to the logits (SigLIP), or None."""
        return None

    # ---- parameters -----------------------------------------------------------------------------------------

    @abstractmethod
    def tower_of(self, name: str) -> TowerName | None:
        """Which tower a parameter of `module` belongs to; None for the logit scale and bias, and what never trains."""

    @abstractmethod
    def projection_names(self, tower: TowerName) -> list[str]:
        """The names of a tower's projection parameters; `ModelError` where it has no separate projection."""

    def named_parameters(self, tower: TowerName) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters of one tower, under the library's own names."""
        for name, parameter in self.module.named_parameters():
            if self.tower_of(name) == tower:
                yield name, parameter

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Self:
        """Moves the network; returns self."""
        self.module.to(device=device, dtype=dtype)
        return self

    @property
    def device(self) -> torch.device:
        """Where the network lives."""
        return next(self.module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights, which pixels are cast to."""
        return next(self.module.parameters()).dtype

    def frozen_copy(self) -> Self:
        """A copy that shares nothing that trains: the teacher."""
        twin = copy.copy(self)
        twin.module = copy.deepcopy(self.module).eval().requires_grad_(False)
        return twin

    # ---- identity and disk ----------------------------------------------------------------------------------

    @property
    @abstractmethod
    def input_identity(self) -> str:
        """A text that changes whenever `preprocess` or `tokenize` would change (their settings, vocabulary hash)."""

    @property
    def architecture(self) -> str:
        """A text that changes whenever equal weights would compute something else (activation, heads, pooling)."""
        return str(self.module)

    @property
    def fingerprint(self) -> str:
        """A hash of weights, architecture, preprocessing and tokenizer: 64 hexadecimal digits, computed when asked."""
        identity = f"{self.architecture}\n{self.input_identity}"
        return fingerprint(identity, sorted(self.module.state_dict().items()))

    def save(self, folder: str | Path) -> None:
        """Writes safetensors + JSON that `modalign.load(folder)` reads back, in the library's own layout.

        The folder appears whole or not at all.

        Args:
            folder: where; files of an earlier save are replaced.

        Raises:
            OutputError: the folder cannot be written.
        """
        with whole_folder(Path(folder)) as draft:
            self.write(draft)
            write_record(self, draft)

    @abstractmethod
    def write(self, folder: Path) -> None:
        """Writes the library's own files (weights, configuration, tokenizer) into an existing folder."""
