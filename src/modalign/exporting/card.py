"""The README.md of an export: what it is, and the code that loads it, which verification runs as it stands."""

from __future__ import annotations

from modalign.exporting.verify import Verification
from modalign.models import DualEncoder
from modalign.models.open_clip import OpenClip
from modalign.models.siglip import HuggingFaceSiglip

OPEN_CLIP = """\
import open_clip

folder = "path/to/this/folder"
model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
model.eval()
"""

OPEN_CLIP_TEXT_TOWER = """\
import json
from pathlib import Path

import open_clip

folder = "path/to/this/folder"
config = json.loads(Path(folder, "open_clip_config.json").read_text(encoding="utf-8"))["model_cfg"]
text_cfg = config["text_cfg"] | {"hf_model_name": folder}  # config.json of the text tower lies in the folder
model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}", text_cfg=text_cfg)
tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
model.eval()
"""

TRANSFORMERS = """\
from transformers import CLIPModel, CLIPProcessor

folder = "path/to/this/folder"
model = CLIPModel.from_pretrained(folder).eval()
processor = CLIPProcessor.from_pretrained(folder)
"""

SIGLIP = """\
from transformers import SiglipModel, SiglipProcessor

folder = "path/to/this/folder"
model = SiglipModel.from_pretrained(folder).eval()
processor = SiglipProcessor.from_pretrained(folder)
"""


def card(model: DualEncoder, verification: Verification | None = None) -> str:
    """The model card, with the measured differences once there are some."""
    parts = [_head(model), "## Load it\n", f"```python\n{_code(model)}```\n"]
    if isinstance(model, OpenClip) and model.config["text_cfg"].get("hf_model_name"):
        parts.append(
            "open_clip looks a text tower of transformers up by the name in its configuration; the code above points "
            "it at this folder, wherever that lies. (`modalign.load` does so by itself.)\n"
        )
    if isinstance(model, HuggingFaceSiglip):
        parts.append(
            f"Captions are padded to {model.context_length} tokens, as in training: the text tower sees the padding. "
            f'`processor(text=captions, padding="max_length", truncation=True, max_length={model.context_length})`\n'
        )
    if verification is not None:
        parts += [
            "## Checked\n",
            "Loaded back by the code above in a fresh process that could reach nothing but a copy of this folder:\n",
            f"```\n{verification.to_table()}\n```\n",
            "The last two rows compare the library's own preprocessing with the one the model was made with; "
            "export.json names captions that differ.\n",
        ]
    return "\n".join(parts)


def _head(model: DualEncoder) -> str:
    origin = f"`{model.spec}`" + (f" at revision `{model.revision}`" if model.revision else "")
    return f"""\
---
library_name: {"open_clip" if model.family == "open_clip" else "transformers"}
pipeline_tag: zero-shot-image-classification
tags:
- clip
- modalign
---

# Image–text model

Exported by modalign from {origin}, embedding width {model.embed_dim}.
"""


def _code(model: DualEncoder) -> str:
    if isinstance(model, HuggingFaceSiglip):
        return SIGLIP
    if not isinstance(model, OpenClip):
        return TRANSFORMERS
    return OPEN_CLIP_TEXT_TOWER if model.config["text_cfg"].get("hf_model_name") else OPEN_CLIP
