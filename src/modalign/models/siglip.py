"""transformers' `SiglipModel` behind the `DualEncoder` contract: SigLIP, and SigLIP 2 at a fixed resolution."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from modalign.errors import ModelError
from modalign.models.dual_encoder import TowerName
from modalign.models.hugging_face import HuggingFace
from modalign.models.upcast import upcast


class HuggingFaceSiglip(HuggingFace):
    """A `SiglipModel` of the transformers library.

    The image tower ends in attention pooling, without a projection of its own; the text tower in a linear head. No
    token is masked in the text tower, padding neither, so captions stay padded to the context length, as in training.
    """

    prefix: ClassVar[int] = 0

    def project_image(self, hidden: Tensor) -> Tensor:
        """B×d → B×d, raw: the identity, for there is no image projection."""
        return upcast(hidden)

    def text_trunk(self, tokens: Tensor) -> Tensor:
        """B×L → B×w: the last token's state after the final norm, before the head."""
        last: Tensor = self.network.text_model(input_ids=tokens).last_hidden_state[:, -1]
        return last

    def project_text(self, hidden: Tensor) -> Tensor:
        """B×w → B×d, raw: the text head alone."""
        return upcast(self.network.text_model.head(hidden))

    def token_lengths(self, tokens: Tensor) -> Tensor:
        """B×L → B integers, all L: padding counts."""
        return torch.full_like(tokens[:, 0], tokens.shape[1])

    @property
    def embed_dim(self) -> int:
        """The width d of the shared space."""
        return int(self.config.vision_config.hidden_size)

    @property
    def logit_bias(self) -> float:
        """What is added to the logits (about −12.9 in the released checkpoints)."""
        return float(self.network.logit_bias.detach())

    def projection_names(self, tower: TowerName) -> list[str]:
        """The names of the text head's parameters; `ModelError` for the image tower, which has no projection."""
        if tower == "image":
            raise ModelError(
                f"the image tower of {self.spec} (SiglipVisionModel) has no projection of its own to train: "
                "use train: image or train: full"
            )
        return ["text_model.head.weight", "text_model.head.bias"]
