"""A small GPT-2 that says what a feature means."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from modalign.errors import DataError

LAYERS, HEADS = 4, 4
PAD = -1
LEAST_STEPS = 1_500
ROWS_AT_ONCE = 256
"""Captions decoded together: fixed, because a batch's width may move the last bit of a logit."""


@dataclass(frozen=True)
class Settings:
    """What a decoder is trained with. The same of every model that is compared.

    Attributes:
        epochs: passes over the corpus.
        width: of the GPT-2, a multiple of 4.
        vocabulary: BPE tokens at most.
        longest: tokens of a caption; longer ones are cut there.
        batch_size: captions in one step.
        learning_rate: the highest, of AdamW: warmed up over the first 5 % of steps, then a cosine down to 0.
        seed: of the weights, the order and the dropout.
    """

    epochs: int = 10
    width: int = 128
    vocabulary: int = 4096
    longest: int = 40
    batch_size: int = 64
    learning_rate: float = 1e-3
    seed: int = 0

    @classmethod
    def for_corpus(cls, captions: int, *, epochs: int | None = None, seed: int = 0) -> Self:
        """The defaults; without `epochs`, as many as make 1,500 steps over so many captions, and 10 at least."""
        settings = cls(seed=seed)
        enough = math.ceil(LEAST_STEPS / math.ceil(max(1, captions) / settings.batch_size))
        return replace(settings, epochs=epochs or max(settings.epochs, enough))


class Vocabulary:
    """Byte-level BPE of lower-cased text, learned from the corpus itself.

    It has no special tokens, so no caption can spell one: `end` is the number after its last.
    """

    def __init__(self, text: str) -> None:
        from tokenizers import Tokenizer

        self.text = text
        self._tokenizer = Tokenizer.from_str(text)
        self.end: int = self._tokenizer.get_vocab_size()

    @classmethod
    def learn(cls, captions: Sequence[str], size: int) -> Vocabulary:
        """The most frequent pieces of these captions, `size` at most, all 256 bytes among them."""
        from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

        tokenizer = Tokenizer(models.BPE())
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
        tokenizer.train_from_iterator(captions, trainer)
        return cls(tokenizer.to_str())

    def encode(self, captions: Sequence[str], longest: int) -> list[Tensor]:
        """Token numbers of each caption, `end` behind them where it was not cut."""
        return [
            torch.tensor([*found.ids, self.end][:longest]) for found in self._tokenizer.encode_batch(list(captions))
        ]

    def decode(self, tokens: Tensor) -> list[str]:
        """B×T numbers → captions, each up to its first `end`."""
        rows = [row[: row.index(self.end)] if self.end in row else row for row in tokens.tolist()]
        return [text.strip() for text in self._tokenizer.decode_batch(rows)]


class CaptionDecoder(nn.Module):
    """A feature, projected, is the first position of a GPT-2 (4 layers, 4 heads) that writes the caption behind it.

    Source: Li et al., "DeCap", arXiv 2303.03032, section 3.
    """

    def __init__(self, embed_dim: int, vocabulary: Vocabulary, settings: Settings) -> None:
        from transformers import GPT2Config, GPT2LMHeadModel

        super().__init__()
        self.vocabulary = vocabulary
        self.settings = settings
        end = vocabulary.end
        config = GPT2Config(
            vocab_size=end + 1,
            n_positions=settings.longest + 1,
            n_embd=settings.width,
            n_layer=LAYERS,
            n_head=HEADS,
            bos_token_id=end,
            eos_token_id=end,
        )
        self.prefix = nn.Linear(embed_dim, settings.width)
        self.language: Any = GPT2LMHeadModel(config)

    def loss(self, features: Tensor, tokens: Sequence[Tensor]) -> Tensor:
        """Mean cross-entropy of the captions' tokens, each from the feature and the tokens before it.

        Args:
            features: B×d, raw or unit.
            tokens: B lists of token numbers.
        """
        padded = nn.utils.rnn.pad_sequence(list(tokens), batch_first=True, padding_value=PAD).to(features.device)
        words = self.language.transformer.wte(padded[:, :-1].clamp_min(0))
        read = torch.cat([self._start(features), words], dim=1)
        # Padding stands behind the words, where a causal model does not look; the vocabulary is the costly part.
        hidden = self.language.transformer(inputs_embeds=read).last_hidden_state[padded != PAD]
        return cross_entropy(self.language.lm_head(hidden).float(), padded[padded != PAD])

    @torch.no_grad()
    def generate(self, features: Tensor, beams: int = 1) -> list[str]:
        """Writes a caption for each feature.

        Args:
            features: N×d, raw or unit.
            beams: 1 = the likeliest token each time; more = beam search.

        Returns:
            N captions, lower-case; a caption may be empty.

        Raises:
            DataError: features of another width than the decoder was trained on.
        """
        if features.ndim != 2 or features.shape[1] != self.prefix.in_features:
            raise DataError(
                f"features {tuple(features.shape)} for a decoder of width {self.prefix.in_features}: "
                "pass features of the model it was trained on"
            )
        self.eval()
        captions: list[str] = []
        for rows in features.to(self.prefix.weight.device).split(ROWS_AT_ONCE):
            start = self._start(rows)
            tokens = self.language.generate(
                inputs_embeds=start,
                attention_mask=torch.ones(start.shape[:2], dtype=torch.long, device=start.device),
                max_new_tokens=self.settings.longest,
                num_beams=beams,
                do_sample=False,
                pad_token_id=self.vocabulary.end,
            )
            captions += self.vocabulary.decode(tokens.cpu())
        return captions

    def _start(self, features: Tensor) -> Tensor:
        # At unit length a prefix is hardly heard beside the words, and is learned several times more slowly.
        scaled = normalize(features.to(self.prefix.weight.dtype), dim=-1) * math.sqrt(features.shape[-1])
        start: Tensor = self.prefix(scaled)[:, None]
        return start
