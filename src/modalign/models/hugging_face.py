"""The dual encoders of transformers behind the `DualEncoder` contract: what they share, and `CLIPModel`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from modalign.models.dual_encoder import DualEncoder, TowerName
from modalign.models.tokenization import digest, stable, transformers_tokenizer_identity
from modalign.models.tokens import PatchTokens, depth_of
from modalign.models.upcast import upcast

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class ProcessorTransform:
    """A transformers image processor as a function of one PIL image."""

    processor: Any

    def __call__(self, image: Any) -> Tensor:
        """A PIL image → 3×H×W."""
        pixels: Tensor = self.processor(images=image, return_tensors="pt")["pixel_values"][0]
        return pixels


class HuggingFace(DualEncoder):
    """A model of transformers with a `vision_model`, a `text_model` and a `logit_scale`.

    Its `get_*_features` return tensors in transformers 4 and objects in 5; the towers return the same in both, so
    they are called themselves.

    Attributes:
        config: its configuration object.
        processor: its processor (tokenizer and image processor).
    """

    family: ClassVar[str] = "transformers"
    prefix: ClassVar[int]
    """How many tokens of the image tower stand before its patches."""

    def __init__(self, module: nn.Module, processor: Any, spec: str, *, revision: str | None = None) -> None:
        super().__init__(module, spec, revision)
        self.config: Any = module.config
        self.processor = processor
        self.preprocess = ProcessorTransform(processor.image_processor)

    # ---- features -------------------------------------------------------------------------------------------

    def image_trunk(self, pixels: Tensor) -> Tensor:
        """B×3×H×W → B×w: the vision model's pooled output."""
        pooled: Tensor = self._vision(pixels).pooler_output
        return pooled

    def encode_tokens(self, pixels: Tensor, layer: int = -1) -> PatchTokens:
        """The class and patch tokens of one layer of the image tower; see `DualEncoder.encode_tokens`."""
        depth = depth_of(layer, len(self.network.vision_model.encoder.layers), self.spec)
        patch = self.network.vision_model.embeddings.patch_embedding.kernel_size
        rows, columns = (size // edge for size, edge in zip(pixels.shape[-2:], patch, strict=True))
        return PatchTokens(upcast(self._hidden(pixels, depth)), self.prefix, (rows, columns))

    def attention(self, pixels: Tensor, layer: int = -1) -> Tensor:
        """The attention weights of one layer of the image tower; see `DualEncoder.attention`.

        From the layer's own queries and keys: the fused kernels that transformers runs keep no weights.
        """
        blocks = self.network.vision_model.encoder.layers
        depth = depth_of(layer, len(blocks), self.spec, first=1)
        block, attention = blocks[depth - 1], blocks[depth - 1].self_attn
        hidden = block.layer_norm1(self._hidden(pixels, depth - 1))
        query, key = (
            upcast(project(hidden)).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
            for project in (attention.q_proj, attention.k_proj)
        )
        weights: Tensor = (query @ key.transpose(-1, -2) * attention.scale).softmax(dim=-1)
        return weights

    def _hidden(self, pixels: Tensor, depth: int) -> Tensor:
        """B×T×w after `depth` blocks, taken where it passes: not every version returns it from a tower."""
        seen: list[Any] = []
        blocks = self.network.vision_model.encoder.layers
        if depth < len(blocks):
            hook = blocks[depth].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        else:
            hook = blocks[-1].register_forward_hook(lambda module, inputs, output: seen.append(output))
        with hook:
            self._vision(pixels)
        hidden: Tensor = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
        return hidden

    def _vision(self, pixels: Tensor) -> Any:
        vision = self.network.vision_model
        return vision(pixel_values=pixels.to(next(vision.parameters()).dtype))

    # ---- inputs, parameters ---------------------------------------------------------------------------------

    @property
    def context_length(self) -> int:
        """The number of columns `tokenize` makes."""
        positions = int(self.config.text_config.max_position_embeddings)
        return min(positions, int(self.processor.tokenizer.model_max_length))

    def tokenize(self, captions: list[str]) -> Tensor:
        """Captions → B×L token ids, padded to the context length, longer captions cut there."""
        batch = self.processor.tokenizer(
            captions, padding="max_length", truncation=True, max_length=self.context_length, return_tensors="pt"
        )
        tokens: Tensor = batch["input_ids"]
        return tokens

    @property
    def logit_scale(self) -> float:
        """The factor in front of cosine similarities (100.0 for OpenAI's CLIP), not its logarithm."""
        return float(self.network.logit_scale.detach().exp())

    def tower_of(self, name: str) -> TowerName | None:
        """Which tower a parameter of `module` belongs to; None for the logit scale and bias."""
        if name.startswith(("vision_model.", "visual_projection.")):
            return "image"
        return "text" if name.startswith(("text_model.", "text_projection.")) else None

    # ---- identity and disk ----------------------------------------------------------------------------------

    @property
    def architecture(self) -> str:
        """The configuration without names of places and versions."""
        return json.dumps(stable(self.config.to_dict()), sort_keys=True, default=str)

    @property
    def input_identity(self) -> str:
        """A text that changes whenever `preprocess` or `tokenize` would change (their settings, vocabulary hash)."""
        images = self.processor.image_processor
        identity = {
            "preprocess": {"class": type(images).__name__, "settings": digest(stable(images.to_dict()))},
            "tokenizer": transformers_tokenizer_identity(self.processor.tokenizer),
            "context_length": self.context_length,
        }
        return json.dumps(identity, sort_keys=True)

    def write(self, folder: Path) -> None:
        """Writes transformers' own files: configuration, weights, tokenizer and image processor."""
        with quiet():
            self.network.save_pretrained(folder)
        self.processor.save_pretrained(folder)


class HuggingFaceClip(HuggingFace):
    """A `CLIPModel` of the transformers library."""

    prefix: ClassVar[int] = 1

    def project_image(self, hidden: Tensor) -> Tensor:
        """B×w → B×d, raw: the image projection alone."""
        return upcast(self.network.visual_projection(hidden))

    def text_trunk(self, tokens: Tensor) -> Tensor:
        """B×L → B×w: the text model's pooled output; it is causal, so columns after the longest caption are cut."""
        length = int(self.token_lengths(tokens).max())
        pooled: Tensor = self.network.text_model(input_ids=tokens[:, :length]).pooler_output
        return pooled

    def project_text(self, hidden: Tensor) -> Tensor:
        """B×w → B×d, raw: the text projection alone."""
        return upcast(self.network.text_projection(hidden))

    def token_lengths(self, tokens: Tensor) -> Tensor:
        """B×L → B integers: up to and with the first end-of-sequence token, where the feature is read.

        A configuration whose `eos_token_id` is 2 (all that were written before transformers 4.31) is read at the
        highest id instead, as transformers does.
        """
        eos = self.config.text_config.eos_token_id
        if eos == 2:
            return tokens.argmax(dim=1) + 1
        return torch.eq(tokens, eos).int().argmax(dim=1) + 1

    @property
    def embed_dim(self) -> int:
        """The width d of the shared space."""
        return int(self.config.projection_dim)

    def projection_names(self, tower: TowerName) -> list[str]:
        """The names of a tower's projection parameters."""
        return ["visual_projection.weight" if tower == "image" else "text_projection.weight"]


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps transformers' progress bars and load reports off the terminal: what they say is checked by the caller."""
    told: Any = transformers_logging
    level, bars = told.get_verbosity(), told.is_progress_bar_enabled()
    told.set_verbosity_error()
    told.disable_progress_bar()
    try:
        yield
    finally:
        told.set_verbosity(level)
        if bars:
            told.enable_progress_bar()
