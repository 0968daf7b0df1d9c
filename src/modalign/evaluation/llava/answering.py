"""A LLaVA's answers to questions about pictures: greedy, batched, kept line by line so that a kill loses a batch."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from modalign.data.bad_rows import BadRows
from modalign.data.images import image_batches
from modalign.data.pictures import Picture, files_identity
from modalign.errors import OutputError
from modalign.evaluation.llava.assembling import Assembled

logger = logging.getLogger("modalign")


@torch.no_grad()
def answers(
    llava: Assembled,
    pictures: Sequence[Picture],
    wheres: Sequence[str],
    texts: Sequence[str],
    *,
    max_new_tokens: int,
    folder: Path,
    batch_size: int = 8,
    workers: int = 0,
    max_bad: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[str | None]:
    """Answers questions, each about one picture, by greedy decoding.

    Batches are cut from the list of questions, whatever was answered before, so that a run that was killed and begun
    again gives the answers of one that was not.

    Args:
        llava: the model.
        pictures: N pictures.
        wheres: N texts that say where each was named.
        texts: N questions as they are put.
        max_new_tokens: where an answer ends if the model does not end it.
        folder: keeps `<key>.jsonl`, a line a question; the key tells model, questions and settings.
        batch_size: questions at once; part of the key, for padding changes the rounding.
        workers: decoding processes.
        max_bad: how many pictures may be unreadable.
        progress: told (done, total) questions.

    Returns:
        N answers, stripped; None where the picture could not be read.

    Raises:
        DataError: more than `max_bad` pictures cannot be read.
        OutputError: the folder cannot be written.
    """
    asked = [files_identity(pictures), list(texts), max_new_tokens, batch_size, llava.prompting.chat_template]
    key = hashlib.sha256(json.dumps([llava.identity, *asked], ensure_ascii=False).encode()).hexdigest()[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{key}.jsonl"
        known = _known(file, len(texts))
    except OSError as error:
        raise OutputError(f"{folder} cannot be written ({error.strerror}); name another with answers=") from None
    if known:
        logger.info("%d of %d answers are in %s", len(known), len(texts), file)
    bad = BadRows(max_bad, len(texts))
    batches = [batch for batch in torch.arange(len(texts)).split(batch_size) if not set(batch.tolist()) <= known.keys()]
    done = len(texts) - sum(len(batch) for batch in batches)
    loaded = image_batches(pictures, wheres, llava.prompting.preprocess, batches, workers=workers)
    for asked_now, batch in zip(batches, loaded, strict=True):
        bad.add(batch.bad)
        bad.check()
        kept = batch.index.tolist()
        said = _generate(llava, [texts[i] for i in kept], batch.pixels, max_new_tokens) if kept else []
        fresh = {**dict.fromkeys(asked_now.tolist()), **dict(zip(kept, said, strict=True))}
        bad_now = {i for i in asked_now.tolist() if i not in kept}
        _append(file, {place: answer for place, answer in fresh.items() if place not in bad_now})
        known |= fresh
        done += len(asked_now)
        if progress is not None:
            progress(done, len(texts))
    bad.finish()
    return [known[place] for place in range(len(texts))]


def _generate(llava: Assembled, texts: Sequence[str], pixels: torch.Tensor, max_new_tokens: int) -> list[str]:
    module, prompting = llava.module, llava.prompting
    batch = prompting.batch([prompting.prompt(text) for text in texts])
    inputs = {name: ids.to(module.device) for name, ids in batch.items()}
    tokens = module.generate(
        **inputs,
        pixel_values=pixels.to(module.device, module.dtype),
        do_sample=False,
        num_beams=1,
        temperature=None,
        top_p=None,
        top_k=None,
        max_new_tokens=max_new_tokens,
        pad_token_id=prompting.tokenizer.pad_token_id,
    )
    new = tokens[:, batch["input_ids"].shape[1] :]
    return [text.strip() for text in prompting.tokenizer.batch_decode(new, skip_special_tokens=True)]


def _known(file: Path, count: int) -> dict[int, str | None]:
    """What an earlier run answered; a last line that a kill cut short is dropped from the file."""
    if not file.is_file():
        return {}
    known: dict[int, str | None] = {}
    whole: list[str] = []
    for line in file.read_text(encoding="utf-8").split("\n"):  # splitlines would also cut at U+2028
        try:
            told: dict[str, Any] = json.loads(line)
            place, response = int(told["place"]), str(told["response"])
        except (ValueError, KeyError, TypeError):
            break
        if place < count:
            known[place] = response
            whole.append(line + "\n")
    file.write_text("".join(whole), encoding="utf-8")
    return known


def _append(file: Path, said: dict[int, str | None]) -> None:
    lines = (json.dumps({"place": place, "response": text}, ensure_ascii=False) for place, text in said.items())
    with file.open("a", encoding="utf-8") as out:
        out.write("".join(line + "\n" for line in lines))
        out.flush()
