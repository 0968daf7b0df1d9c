"""Training a decoder on text features alone, kept where it can be found again."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from modalign.errors import DataError, NonFiniteError, OutputError
from modalign.evaluation.captioning.decoder import CaptionDecoder, Settings, Vocabulary

FORMAT = "modalign.decoder/1"
WARM_UP = 0.05
CLIP = 1.0
POOL = 32
"""Batches that are filled together."""
logger = logging.getLogger("modalign")


def train_decoder(
    features: Tensor,
    captions: Sequence[str],
    settings: Settings | None = None,
    *,
    device: torch.device | str = "cpu",
    keep: Path | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> CaptionDecoder:
    """Trains a decoder to say each caption from its own text feature; no picture is involved.

    On CPU the same arguments give the same weights. The global random state is left as it was.

    Args:
        features: N×d, raw or unit, text features.
        captions: N strings.
        settings: `Settings.for_corpus` unless given.
        device: to train on; the decoder stays there.
        keep: a folder. A decoder kept there for these very features, captions and settings is loaded, one whose
            training was cut off goes on after its last whole epoch, and what is trained is kept.
        progress: told (epochs done, mean loss) after each epoch.

    Returns:
        The decoder, in eval mode.

    Raises:
        DataError: no captions, not one feature for each, or features that are not finite.
        NonFiniteError: the loss became NaN or infinite.
        OutputError: the folder cannot be written, or a file in it is damaged.

    Source: Li et al., "DeCap", arXiv 2303.03032, section 3.1.
    """
    settings = settings or Settings.for_corpus(len(captions))
    if features.ndim != 2 or len(features) != len(captions) or not len(captions):
        raise DataError(f"features {tuple(features.shape)} of {len(captions):,} captions: pass one row a caption")
    if not bool(features.isfinite().all()):
        raise DataError("text features hold NaN or infinity: check the model's weights and precision")
    unit = normalize(features.float(), dim=-1).cpu()
    file = None if keep is None else keep / f"decoder-{_key(unit, captions, settings)}.pt"
    stored = _load(file)
    vocabulary = Vocabulary(stored["vocabulary"]) if stored else Vocabulary.learn(captions, settings.vocabulary)
    cuda = [torch.device(device)] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(settings.seed)
        decoder = CaptionDecoder(unit.shape[1], vocabulary, settings).to(device)
        optimizer = torch.optim.AdamW(decoder.parameters(), lr=settings.learning_rate, weight_decay=0.01)
        done = 0
        if stored:
            decoder.load_state_dict(stored["weights"])
            done = int(stored["epochs"])
            if done < settings.epochs:
                optimizer.load_state_dict(stored["optimizer"])
        tokens = vocabulary.encode(captions, settings.longest)
        for epoch in range(done, settings.epochs):
            loss = _epoch(decoder, optimizer, unit, tokens, epoch)
            _save(file, decoder, optimizer, epoch + 1)
            logger.info("decoder: epoch %d of %d, loss %.3f", epoch + 1, settings.epochs, loss)
            if progress is not None:
                progress(epoch + 1, loss)
    return decoder.eval()


def _epoch(
    decoder: CaptionDecoder, optimizer: torch.optim.Optimizer, unit: Tensor, tokens: Sequence[Tensor], epoch: int
) -> float:
    """One pass over the corpus; its order and dropout follow from the seed and the epoch, so that it can be resumed."""
    settings = decoder.settings
    seed = settings.seed * 1_000_003 + epoch
    torch.manual_seed(seed)
    batches = _batches([len(row) for row in tokens], settings.batch_size, torch.Generator().manual_seed(seed))
    decoder.train()
    total = 0.0
    for number, batch in enumerate(batches):
        share = (epoch * len(batches) + number + 1) / (settings.epochs * len(batches))
        rate = min(1.0, share / WARM_UP) * (1 + math.cos(math.pi * max(0.0, share - WARM_UP) / (1 - WARM_UP))) / 2
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * rate
        loss = decoder.loss(unit[batch].to(decoder.prefix.weight.device), [tokens[i] for i in batch.tolist()])
        if not bool(loss.isfinite()):
            raise NonFiniteError(
                f"the decoder's loss is {float(loss.detach())} in epoch {epoch + 1}: lower its learning rate"
            )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), CLIP)
        optimizer.step()
        total += float(loss.detach()) * len(batch)
    return total / len(unit)


def _batches(lengths: Sequence[int], size: int, generator: torch.Generator) -> list[Tensor]:
    """A random order, cut into batches of captions of like length: half the positions would be padding otherwise."""
    shuffled = torch.randperm(len(lengths), generator=generator)
    long = torch.tensor(lengths)
    alike = [pool[long[pool].argsort(stable=True)] for pool in shuffled.split(size * POOL)]
    batches = [batch for pool in alike for batch in pool.split(size)]
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def _key(unit: Tensor, captions: Sequence[str], settings: Settings) -> str:
    """What a decoder depends on: the text features, which follow from tower and corpus, the captions, the settings."""
    import transformers

    told = [list(captions), asdict(settings), torch.__version__, transformers.__version__]
    digest = hashlib.sha256(json.dumps(told, ensure_ascii=False).encode(errors="surrogateescape"))
    digest.update(unit.contiguous().numpy().tobytes())
    return digest.hexdigest()[:24]


def _load(file: Path | None) -> dict[str, Any] | None:
    if file is None or not file.is_file():
        return None
    try:
        stored: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        if stored["format"] == FORMAT:
            return stored
    except Exception:  # whatever unpickling a damaged file raises
        pass
    raise OutputError(f"{file} is damaged or no decoder of modalign; delete it")


def _save(file: Path | None, decoder: CaptionDecoder, optimizer: torch.optim.Optimizer, epochs: int) -> None:
    if file is None:
        return
    kept = {
        "format": FORMAT,
        "epochs": epochs,
        "vocabulary": decoder.vocabulary.text,
        "weights": decoder.state_dict(),
        "optimizer": optimizer.state_dict() if epochs < decoder.settings.epochs else None,
    }
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(kept, temporary)
        temporary.replace(file)
    except (OSError, RuntimeError) as problem:
        reason = getattr(problem, "strerror", None) or str(problem).splitlines()[0]
        raise OutputError(f"{file} cannot be written ({reason}); name another folder to keep decoders in") from None
