"""What a tokenizer is, as text: two tokenizers with equal identity turn every caption into the same ids."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from modalign.errors import ModelError

VOLATILE = frozenset(
    {
        "_attn_implementation_autoset",
        "_commit_hash",
        "_name_or_path",
        "_processor_class",
        "architectures",
        "device",
        "dtype",
        "name_or_path",
        "processor_class",
        "torch_dtype",
        "transformers_version",
    }
)

VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "sentencepiece.bpe.model", "spiece.model")


def need_vocabulary(folder: Path) -> None:
    """Refuses a folder without a vocabulary, for which transformers 5 makes up one of three words.

    Raises:
        ModelError: names the folder and the files that would do.
    """
    if not any((folder / name).is_file() for name in VOCABULARIES):
        raise ModelError(f"{folder} has no tokenizer: copy the model's own into it, one of {', '.join(VOCABULARIES)}")


def transformers_tokenizer_identity(tokenizer: Any) -> dict[str, Any]:
    """The identity of a transformers tokenizer: its vocabulary, rules and special tokens.

    Truncation and padding are left out: calling a fast tokenizer writes them into it.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.loads(backend.to_str()) if backend is not None else _python_rules(tokenizer)
    rules.pop("truncation", None)
    rules.pop("padding", None)
    return {
        "class": type(tokenizer).__name__,
        "rules": digest(rules),
        "special": {name: str(token) for name, token in sorted(tokenizer.special_tokens_map.items())},
        "padding_side": tokenizer.padding_side,
    }


def _python_rules(tokenizer: Any) -> dict[str, Any]:
    """The rules of a tokenizer without a backend in Rust, such as SigLIP's: its vocabulary and SentencePiece model."""
    pieces = getattr(tokenizer, "sp_model", None)
    return {
        "vocab": sorted(tokenizer.get_vocab().items()),
        "pieces": None if pieces is None else hashlib.sha256(pieces.serialized_model_proto()).hexdigest(),
        "do_lower_case": getattr(tokenizer, "do_lower_case", None),
    }


def simple_tokenizer_identity(tokenizer: Any) -> dict[str, Any]:
    """The identity of open_clip's own byte-pair tokenizer."""
    return {
        "class": type(tokenizer).__name__,
        "rules": digest([" ".join(tokenizer.encoder), " ".join(map(" ".join, tokenizer.bpe_ranks))]),
        "clean": getattr(tokenizer.clean_fn, "__name__", str(tokenizer.clean_fn)),
    }


def stable(content: Any) -> Any:
    """The same settings without what saving, loading or moving a model changes."""
    if isinstance(content, dict):
        return {str(key): stable(value) for key, value in content.items() if key not in VOLATILE}
    if isinstance(content, list | tuple):
        return [stable(value) for value in content]
    return content


def digest(content: Any) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of `content` as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]
