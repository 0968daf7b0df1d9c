"""LLaVA's instruction data: conversations about pictures, as token ids of which the answers are learnt.

[{"id": "1", "image": "coco/train2017/1.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat …?"},
                                                                {"from": "gpt", "value": "A cup."}, …]}, …]
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modalign.data.bad_rows import Complaint, refuse_above
from modalign.data.files import FileIndex
from modalign.errors import DataError
from modalign.evaluation.llava.prompting import MARK, Prompting

SPEAKERS = {"human": "user", "gpt": "assistant"}
UNLEARNT = -100


@dataclass(frozen=True)
class Conversation:
    """One conversation.

    Attributes:
        picture: what it is about; None where it shows none.
        turns: ("user" or "assistant", text), in turn, the user first.
        where: the file and entry.
    """

    picture: Path | None
    turns: tuple[tuple[str, str], ...]
    where: str


def read_conversations(spec: str, images: str, *, max_bad: int | None = 0) -> list[Conversation]:
    """Reads a JSON list of conversations (LLaVA-1.5's mix, say).

    Args:
        spec: the file.
        images: the folder that pictures are named from.
        max_bad: entries that may be bad; each is left out.

    Raises:
        DataError: no such file or folder, or more bad entries than allowed; names the first ten.
    """
    path, root = Path(spec).expanduser().absolute(), Path(images).expanduser().absolute()
    if not root.is_dir():
        raise DataError(f"images: {images} is no folder; name the one that pictures are named from")
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}); check the path") from None
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}); download it again") from None
    if not isinstance(content, list):
        raise DataError(f"{path} holds no list of conversations; is it the right file?")
    bad: list[Complaint] = []
    found: list[Conversation] = []
    index = FileIndex()
    for number, entry in enumerate(content):
        where = f"{path.name}: entry {number}"
        try:
            said = [(SPEAKERS[turn["from"]], str(turn["value"])) for turn in entry["conversations"]]
            picture = root / entry["image"] if entry.get("image") else None
        except (KeyError, TypeError, AttributeError) as error:
            bad.append(Complaint(where, f"no conversation ({error!r:.60})"))
            continue
        reason = _wrong(said, picture is not None)
        if picture is not None and str(picture) not in index:
            reason = f"no such file {picture}"
        if reason:
            bad.append(Complaint(where, reason))
        else:
            found.append(Conversation(picture, tuple(said), where))
    refuse_above(max_bad, bad, len(content), f"conversations of {spec} cannot be used")
    if not found:
        raise DataError(f"{spec} holds no conversation; check its content")
    return found


def tokenized(conversation: Conversation, prompting: Prompting, longest: int) -> tuple[Tensor, Tensor]:
    """Token ids, and labels that are the ids of the answers and `UNLEARNT` elsewhere; cut at `longest`.

    Raises:
        DataError: the picture's tokens do not fit, or the chat template words a beginning otherwise than the whole.
    """
    ids: list[int] = [prompting.tokenizer.bos_token_id] * bool(_begins(prompting))
    labels = [UNLEARNT] * len(ids)
    before = ""
    for number, (who, _) in enumerate(conversation.turns, start=1):
        told = prompting.worded(conversation.turns[:number], open_end=who == "user")
        if not told.startswith(before):
            raise DataError(f"{conversation.where}: the chat template words its first {number} turns anew; use another")
        piece = prompting.tokenizer(prompting.expanded(told[len(before) :]), add_special_tokens=False)["input_ids"]
        ids += piece
        labels += piece if who == "assistant" else [UNLEARNT] * len(piece)
        before = told
    if conversation.picture is not None and longest < prompting.count + 8:
        raise DataError(f"max_length {longest} leaves no room beside a picture's {prompting.count} tokens; raise it")
    return torch.tensor(ids[:longest]), torch.tensor(labels[:longest])


def padded(rows: Sequence[tuple[Tensor, Tensor]], pad: int) -> dict[str, Tensor]:
    """A batch, padded on the right: input_ids, attention_mask and labels."""
    longest = max(len(ids) for ids, _ in rows)
    batch = {
        "input_ids": torch.full((len(rows), longest), pad),
        "attention_mask": torch.zeros(len(rows), longest, dtype=torch.long),
        "labels": torch.full((len(rows), longest), UNLEARNT),
    }
    for row, (ids, labels) in enumerate(rows):
        batch["input_ids"][row, : len(ids)] = ids
        batch["attention_mask"][row, : len(ids)] = 1
        batch["labels"][row, : len(ids)] = labels
    return batch


def _wrong(turns: Sequence[tuple[str, str]], shown: bool) -> str:
    if not turns or [who for who, _ in turns] != ["user", "assistant"] * (len(turns) // 2):
        return "human and gpt do not speak in turn"
    marks = sum(text.count(MARK) for _, text in turns)
    if marks != shown or (shown and MARK not in turns[0][1]):
        return f"{marks} {MARK} where {int(shown)} is wanted, in the first turn"
    return "an empty turn" if not all(text.replace(MARK, "").strip() for _, text in turns) else ""


def _begins(prompting: Prompting) -> Any:
    """Whether the tokenizer puts its first token before a prompt by itself."""
    first = prompting.tokenizer("a")["input_ids"][:1]
    return prompting.tokenizer.bos_token_id is not None and first == [prompting.tokenizer.bos_token_id]
