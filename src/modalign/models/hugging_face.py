"""transformers' `CLIPModel` behind the `DualEncoder` contract."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from huggingface_hub import hf_hub_download
from torch import Tensor, nn
from transformers import CLIPModel, CLIPProcessor
from transformers.utils import logging as transformers_logging

from modalign.errors import ModelError
from modalign.models.dual_encoder import DualEncoder, TowerName
from modalign.models.folder import read_json, read_record
from modalign.models.hub import asking_hub, commit_of, refuse_code
from modalign.models.tokenization import digest, need_vocabulary, stable, transformers_tokenizer_identity

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")

logger = logging.getLogger("modalign")


@dataclass(frozen=True)
class ProcessorTransform:
    """A transformers image processor as a function of one PIL image."""

    processor: Any

    def __call__(self, image: Any) -> Tensor:
        """A PIL image → 3×H×W."""
        pixels: Tensor = self.processor(images=image, return_tensors="pt")["pixel_values"][0]
        return pixels


class HuggingFaceClip(DualEncoder):
    """A `CLIPModel` of the transformers library.

    Attributes:
        config: its `CLIPConfig`.
        processor: its `CLIPProcessor` (tokenizer and image processor).
    """

    family: ClassVar[str] = "transformers"

    def __init__(self, module: nn.Module, processor: Any, spec: str, *, revision: str | None = None) -> None:
        super().__init__(module, spec, revision)
        self.config: Any = module.config
        self.processor = processor
        self.preprocess = ProcessorTransform(processor.image_processor)

    # ---- features -------------------------------------------------------------------------------------------

    def image_trunk(self, pixels: Tensor) -> Tensor:
        """B×3×H×W → B×w: the vision model's pooled output."""
        vision = self.network.vision_model
        pooled: Tensor = vision(pixel_values=pixels.to(next(vision.parameters()).dtype)).pooler_output
        return pooled

    def project_image(self, hidden: Tensor) -> Tensor:
        """B×w → B×d, raw: the image projection alone."""
        return _upcast(self.network.visual_projection(hidden))

    def text_trunk(self, tokens: Tensor) -> Tensor:
        """B×L → B×w: the text model's pooled output; it is causal, so columns after the longest caption are cut."""
        length = int(self.token_lengths(tokens).max())
        pooled: Tensor = self.network.text_model(input_ids=tokens[:, :length]).pooler_output
        return pooled

    def project_text(self, hidden: Tensor) -> Tensor:
        """B×w → B×d, raw: the text projection alone."""
        return _upcast(self.network.text_projection(hidden))

    def token_lengths(self, tokens: Tensor) -> Tensor:
        """B×L → B integers: up to and with the first end-of-sequence token, where the feature is read.

        A configuration whose `eos_token_id` is 2 (all that were written before transformers 4.31) is read at the
        highest id instead, as transformers does.
        """
        eos = self.config.text_config.eos_token_id
        if eos == 2:
            return tokens.argmax(dim=1) + 1
        return torch.eq(tokens, eos).int().argmax(dim=1) + 1

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
    def embed_dim(self) -> int:
        """The width d of the shared space."""
        return int(self.config.projection_dim)

    @property
    def logit_scale(self) -> float:
        """The factor in front of cosine similarities (100.0 for OpenAI's CLIP), not its logarithm."""
        return float(self.network.logit_scale.detach().exp())

    def tower_of(self, name: str) -> TowerName | None:
        """Which tower a parameter of `module` belongs to; None for the logit scale."""
        if name.startswith(("vision_model.", "visual_projection.")):
            return "image"
        return "text" if name.startswith(("text_model.", "text_projection.")) else None

    def projection_names(self, tower: TowerName) -> list[str]:
        """The names of a tower's projection parameters."""
        return ["visual_projection.weight" if tower == "image" else "text_projection.weight"]

    # ---- identity and disk ----------------------------------------------------------------------------------

    @property
    def architecture(self) -> str:
        """The `CLIPConfig` without names of places and versions."""
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
        with _quiet():
            self.network.save_pretrained(folder)
        self.processor.save_pretrained(folder)


def load_hugging_face(rest: str, spec: str) -> HuggingFaceClip:
    """Loads what follows `hf:`; see `modalign.load`."""
    name, _, revision = rest.partition("@")
    if not name:
        raise ModelError("hf: names no model: write hf:<owner>/<name>[@revision] or hf:<folder>")
    folder = Path(rest).expanduser()
    if folder.is_dir():
        return from_folder(folder, spec)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"there is no folder {rest}: check the path after hf:")
    with asking_hub(f"{rest} from the hub", "use a local copy: hf:<folder>"):
        config = Path(hf_hub_download(name, "config.json", revision=revision or None))
        _need_clip(config)
        model = _load(name, spec, revision=commit_of(config))  # all files from one commit
    model.revision = commit_of(config)
    return model


def from_folder(folder: Path, spec: str) -> HuggingFaceClip:
    """Loads a transformers folder: config.json of type clip, weights, tokenizer and image processor.

    Raises:
        ModelError: something is missing, damaged, of another type, or does not fit.
    """
    _need_clip(folder / "config.json")
    if not any((folder / name).is_file() for name in WEIGHTS):
        raise ModelError(f"{folder} has a configuration but no weights: copy {WEIGHTS[0]} into it")
    need_vocabulary(folder)
    refuse_code(folder)
    try:
        model = _load(str(folder), spec, local_files_only=True)
    except ModelError:
        raise
    except Exception as error:  # the library raises what it likes on damaged or missing files
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{folder} cannot be loaded by transformers ({reason}): copy it again") from error
    record = read_record(folder)
    model.revision = record.get("revision")
    return model.to(model.device, getattr(torch, record["dtype"])) if "dtype" in record else model


def _load(name: str, spec: str, **where: Any) -> HuggingFaceClip:
    with _quiet():
        processor: Any = CLIPProcessor.from_pretrained(name, trust_remote_code=False, **where)
        loaded: Any = CLIPModel.from_pretrained(
            name, torch_dtype="auto", output_loading_info=True, ignore_mismatched_sizes=True, **where
        )
    module, told = loaded
    if module.dtype in (torch.float16, torch.bfloat16):
        module.float()
    wrong = {
        "missing": sorted(told["missing_keys"]),
        "unexpected": sorted(key for key in told["unexpected_keys"] if not key.endswith("position_ids")),
        "of another shape": sorted(key if isinstance(key, str) else str(key[0]) for key in told["mismatched_keys"]),
    }
    parts = [f"{len(keys)} {what} ({', '.join(keys[:3])})" for what, keys in wrong.items() if keys]
    if parts:
        raise ModelError(f"the weights of {name} do not fit its config.json: {'; '.join(parts)}. Copy the model again")
    ends, read = processor.tokenizer.eos_token_id, module.config.text_config.eos_token_id
    if read not in (2, ends):
        logger.warning("%s: captions end with id %s but are read at id %s (text_config.eos_token_id)", name, ends, read)
    return HuggingFaceClip(module, processor, spec)


def _need_clip(config: Path) -> None:
    kind = read_json(config).get("model_type")
    if kind != "clip":
        raise ModelError(
            f"{config} has model_type {kind!r}, and only 'clip' (CLIPModel) is read: "
            "use a CLIP, or open_clip:<…> for a model of open_clip"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps transformers' progress bars and load reports off the terminal: what they say is checked here."""
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


def _upcast(feature: Tensor) -> Tensor:
    return feature.float() if feature.dtype in (torch.float16, torch.bfloat16) else feature
