"""How a question is put to a LLaVA, and how a LLaVA is told where the picture is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from modalign.models.hugging_face import ProcessorTransform

SHORT = "Answer the question using a single word or phrase."
"""What LLaVA-1.5 adds to questions that want a short answer (arXiv 2310.03744, section 3.2)."""
MARK = "<image>"


@dataclass(frozen=True)
class Prompting:
    """A LLaVA's tokenizer, image processor and picture tokens.

    Attributes:
        tokenizer: its own, padded on the left: all prompts of a batch end together.
        preprocess: a PIL picture → 3×H×W, by its own image processor.
        token: the text of one picture token.
        count: how many a picture has.
        template: the processor's, whose chat template words the prompts where it has one.
    """

    tokenizer: Any
    preprocess: ProcessorTransform
    token: str
    count: int
    processor: Any

    @classmethod
    def of(cls, processor: Any, config: Any) -> Prompting:
        """Of a LLaVA's processor and configuration; the latter tells how many tokens a picture has."""
        vision, tokenizer = config.vision_config, processor.tokenizer
        tokenizer.padding_side = "left"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        count = (vision.image_size // vision.patch_size) ** 2
        # SigLIP's tower has no class token that "default" could drop, or "full" keep.
        count += vision.model_type.startswith("clip")
        count -= config.vision_feature_select_strategy == "default"
        token = tokenizer.convert_ids_to_tokens(config.image_token_index)
        return cls(tokenizer, ProcessorTransform(processor.image_processor), token, count, processor)

    @property
    def chat_template(self) -> str | None:
        """The template of the processor or its tokenizer, if any."""
        found: str | None = getattr(self.processor, "chat_template", None) or getattr(
            self.tokenizer, "chat_template", None
        )
        return found

    def prompt(self, text: str) -> str:
        """A question about one picture, up to where the answer begins."""
        return self.worded([("user", f"{MARK}\n{text}")], open_end=True)

    def worded(self, turns: Sequence[tuple[str, str]], *, open_end: bool) -> str:
        """A conversation in the chat template, else as LLaVA-1.5 was trained: USER: … ASSISTANT: …</s>.

        Args:
            turns: ("user" or "assistant", text) in turn; the mark of a picture stands where it is shown.
            open_end: end where an answer begins.
        """
        if self.chat_template is None:
            end = self.tokenizer.eos_token
            said = [f"USER: {text} ASSISTANT:" if who == "user" else f" {text}{end}" for who, text in turns]
            return "".join(said)
        told: str = self.processor.apply_chat_template(
            [{"role": who, "content": _content(text)} for who, text in turns], add_generation_prompt=open_end
        )
        return told

    def expanded(self, prompt: str) -> str:
        """Each mark of a picture as that many picture tokens."""
        return prompt.replace(MARK, self.token * self.count)

    def batch(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Token ids and attention mask of prompts with pictures, padded on the left."""
        told = self.tokenizer([self.expanded(prompt) for prompt in prompts], padding=True, return_tensors="pt")
        return {name: told[name] for name in ("input_ids", "attention_mask")}


def _content(text: str) -> list[dict[str, str]]:
    """A turn as chat templates take it: the picture, then the text."""
    shown = [{"type": "image"}] if MARK in text else []
    return [*shown, {"type": "text", "text": text.replace(MARK, "").strip()}]
