"""Visual instruction tuning of a LLaVA by LoRA, with its image tower frozen.

    loss = − Σ log p(answer tokens) / (number of answer tokens in the batch)

The language model's linear layers get adapters, the projector is trained whole. Rank, α, learning rate, batch, epochs
and precision are KUEA's (arXiv 2506.02557, appendix B.3); what it does not say (warm-up and cosine, dropout, the
projector's rate, the cut at 2,048 tokens) is LLaVA-1.5's published LoRA script's.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modalign.data.images import decode
from modalign.errors import NonFiniteError, OutputError
from modalign.evaluation.llava.assembling import PROJECTOR, Assembled, language_model_of, projector_of
from modalign.evaluation.llava.conversations import Conversation, padded, read_conversations, tokenized
from modalign.evaluation.llava.recipe import TuneRecipe

STATE, EVERY, TOLD_SECONDS = "state.pt", 200, 15.0
logger = logging.getLogger("modalign")


def tune(llava: Assembled, settings: TuneRecipe, folder: Path, *, seed: int = 0) -> list[float]:
    """Trains adapters and projector, and writes them in peft's format; goes on where an earlier call was cut off.

    Everything random comes from the seed: the order of the conversations, the adapters' beginning, dropout (by step).

    Args:
        llava: put together, with the image tower it is to be used with; changed in place.
        settings: data and training.
        folder: takes adapter_config.json, adapter_model.safetensors and projector.safetensors.
        seed: of everything random.

    Returns:
        The loss of each step.

    Raises:
        DataError: the conversations cannot be read.
        NonFiniteError: the loss is no number.
        OutputError: the folder cannot be written.
    """
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import save_file

    talks = read_conversations(settings.data, settings.images, max_bad=settings.max_bad)
    module, device = llava.module, llava.module.device
    module.requires_grad_(False)
    prefix = next(name for name, part in module.named_modules() if part is language_model_of(module))
    linear = [
        f"{prefix}.{name}" for name, part in language_model_of(module).named_modules() if isinstance(part, nn.Linear)
    ]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LoraConfig(
            r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.dropout, target_modules=linear
        )
        adapted: Any = get_peft_model(module, config)
    adapters = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    # Steps of 2e-5 would be lost in bfloat16.
    whole = list(projector_of(module).float().requires_grad_(settings.projector_lr > 0).parameters())
    groups = [{"params": adapters, "lr": settings.lr}]
    groups += [{"params": whole, "lr": settings.projector_lr}] if settings.projector_lr else []
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999), weight_decay=settings.weight_decay)
    steps = settings.epochs * -(-len(talks) // settings.batch_size)
    warmup = math.ceil(settings.warmup * steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, warmup, steps))
    trained = {name: value for name, value in adapted.named_parameters() if value.requires_grad}
    folder.mkdir(parents=True, exist_ok=True)
    losses = _resumed(folder / STATE, trained, optimizer, schedule)
    precision = torch.autocast(device.type, torch.bfloat16) if settings.precision == "bf16" else nullcontext()
    adapted.train()
    _tower_in_eval(adapted)
    last = time.monotonic()
    for step, chosen in enumerate(_order(len(talks), settings, seed)):
        if step < len(losses):
            continue
        losses.append(_step(llava, adapted, [talks[i] for i in chosen], settings, precision, seed + step))
        if not math.isfinite(losses[-1]):
            raise NonFiniteError(f"the loss of step {step} is {losses[-1]}; lower the learning rate, or use fp32")
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if (step + 1) % EVERY == 0:
            _keep(folder / STATE, trained, optimizer, schedule, losses)
        if time.monotonic() - last > TOLD_SECONDS:
            last = time.monotonic()
            logger.info("tuning: step %d of %d, loss %.4g", step + 1, steps, losses[-1])
    adapted.eval()
    try:
        adapted.save_pretrained(str(folder))
        tensors = {name: value.detach().cpu().contiguous() for name, value in projector_of(module).state_dict().items()}
        save_file(tensors, folder / PROJECTOR)
    except OSError as error:
        raise OutputError(f"{folder} cannot be written ({error.strerror}); choose another --out") from None
    (folder / STATE).unlink(missing_ok=True)
    return losses


def _step(
    llava: Assembled, adapted: Any, talks: Sequence[Conversation], settings: TuneRecipe, precision: Any, seed: int
) -> float:
    """The gradient of one batch, in pieces that fit: each piece's sum over the whole batch's number of answers."""
    rows = [tokenized(talk, llava.prompting, settings.max_length) for talk in talks]
    learnt = max(sum(int((labels[1:] >= 0).sum()) for _, labels in rows), 1)
    total = 0.0
    with torch.random.fork_rng(devices=[llava.module.device] if llava.module.device.type == "cuda" else []):
        torch.manual_seed(seed)
        for start in range(0, len(talks), settings.micro_batch):
            piece = slice(start, start + settings.micro_batch)
            batch = padded(rows[piece], int(llava.prompting.tokenizer.pad_token_id))
            inputs = {name: ids.to(llava.module.device) for name, ids in batch.items() if name != "labels"}
            shown = [llava.prompting.preprocess(decode(t.picture)) for t in talks[piece] if t.picture is not None]
            if shown:
                inputs["pixel_values"] = torch.stack(shown).to(llava.module.device, llava.module.dtype)
            with precision:
                logits: Tensor = adapted(**inputs).logits
            wanted = batch["labels"].to(logits.device)[:, 1:]
            loss = nn.functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), wanted.flatten(), reduction="sum")
            (loss / learnt).backward()
            total += float(loss.detach()) / learnt
    return total


def _tower_in_eval(adapted: Any) -> None:
    """Puts all but the language model back: only the adapters have dropout to draw."""
    for name, part in adapted.named_modules():
        if "vision_tower" in name or "multi_modal_projector" in name:
            part.eval()


def _order(count: int, settings: TuneRecipe, seed: int) -> Iterator[list[int]]:
    """The conversations of each step, anew in each epoch; the last batch of an epoch may be short."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(settings.epochs):
        for batch in torch.randperm(count, generator=generator).split(settings.batch_size):
            yield batch.tolist()


def _rate(step: int, warmup: int, steps: int) -> float:
    """Linear warm-up, then a cosine to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))


def _keep(file: Path, trained: dict[str, Tensor], optimizer: Any, schedule: Any, losses: list[float]) -> None:
    temporary = file.with_suffix(".tmp")
    state = {"losses": losses, "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
    torch.save({**state, "weights": {name: value.detach() for name, value in trained.items()}}, temporary)
    temporary.replace(file)


def _resumed(file: Path, trained: dict[str, Tensor], optimizer: Any, schedule: Any) -> list[float]:
    """Puts back what an earlier run kept; its losses, one a step."""
    if not file.is_file():
        return []
    state = torch.load(file, weights_only=True, map_location="cpu")
    if state["weights"].keys() != trained.keys():
        raise OutputError(f"{file} is of another recipe; remove it, or choose another --out")
    with torch.no_grad():
        for name, value in trained.items():
            value.copy_(state["weights"][name])
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    return list(state["losses"])
