"""A model as the start of downstream fine-tuning: a classifier, and as much of the image tower as is asked for.

    logits = W·x/‖x‖ + b,   W = s·zero-shot classifier, b = 0 at first        s = the model's logit scale

The copy that trains begins at the model's own zero-shot predictions; the text tower takes no part. Budget, order of the
pictures and adapters depend on the seed alone, so that two models are compared at the same start line.

Source: Wortsman et al., "Robust fine-tuning of zero-shot models", arXiv 2109.01903 (the head; cross-entropy, AdamW with
decay 0.1, a cosine to 0).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from modalign.data.images import image_batches
from modalign.data.pictures import Picture
from modalign.errors import NonFiniteError
from modalign.methods.base import Method
from modalign.methods.drawing import stable_seed
from modalign.models.dual_encoder import DualEncoder
from modalign.recipe import Recipe
from modalign.training import scope

WEIGHT_DECAY = 0.1
RATES = {"head": 1e-3, "lora": 1e-4}
RATE = 1e-5


@dataclass(frozen=True)
class Budget:
    """What fine-tuning may spend.

    Attributes:
        scope: "head", "full", "last:N" or "lora".
        epochs: passes over the training pictures.
        batch_size: pictures a step.
        lr: AdamW's, of everything that trains; None = 1e-3 of a head, 1e-4 of adapters, 1e-5 else.
    """

    scope: str = "full"
    epochs: int = 3
    batch_size: int = 32
    lr: float | None = None

    @property
    def rate(self) -> float:
        """The learning rate."""
        return self.lr if self.lr is not None else RATES.get(self.scope, RATE)

    @property
    def told(self) -> str:
        """In one line."""
        return (
            f"{self.scope} for {self.epochs} epochs in batches of {self.batch_size}; AdamW, learning rate "
            f"{self.rate:g} to 0 by a cosine, decay {WEIGHT_DECAY:g}; no augmentation; head begins as the zero-shot one"
        )


@dataclass(frozen=True)
class Tuned:
    """A fine-tuned copy.

    Attributes:
        model: the copy; the model itself where only the head trained.
        weights: C×d, of unit features.
        bias: C.
        losses: one a step.
    """

    model: DualEncoder
    weights: Tensor
    bias: Tensor
    losses: list[float]


class _Start(Method):
    """What `scope.choose` has to know: the image tower trains, and nothing is stored."""

    name: ClassVar[str] = "finetune"
    towers: frozenset[str] = frozenset({"image"})


def fine_tune(
    model: DualEncoder,
    pictures: Sequence[Picture],
    wheres: Sequence[str],
    features: Tensor,
    labels: Tensor,
    classifier: Tensor,
    budget: Budget,
    *,
    seed: int = 0,
    workers: int = 0,
) -> Tuned:
    """Fine-tunes a copy of the model and a classifier on labelled pictures.

    Args:
        model: left as it is.
        pictures: N readable pictures.
        wheres: N texts that say where each was named.
        features: N×d, raw, of the model; all that a head reads.
        labels: N class numbers.
        classifier: C×d, unit: the zero-shot one.
        budget: what may be spent.
        seed: of the order of the pictures, and of adapters.
        workers: decoding processes.

    Returns:
        The `Tuned`.

    Raises:
        RecipeError: a scope that the model does not have.
        NonFiniteError: the loss became NaN or infinite.
    """
    head = nn.Linear(classifier.shape[1], len(classifier))
    with torch.no_grad():
        head.weight.copy_(model.logit_scale * classifier)
        head.bias.zero_()
    head.to(model.device)
    labels = labels.to(model.device)
    trained: list[nn.Parameter] = list(head.parameters())
    twin, chosen = model, None
    if budget.scope != "head":
        twin = model.frozen_copy()
        recipe = Recipe(train=budget.scope, seed=seed)
        chosen = scope.choose(twin, _Start(), recipe)
        chosen.begin(recipe)
        trained += chosen.trained.values()
    optimizer = torch.optim.AdamW(trained, lr=budget.rate, weight_decay=WEIGHT_DECAY)
    order = list(_order(len(labels), budget, seed))
    if chosen is None:
        inputs: Iterator[Tensor] = (features[batch].to(model.device) for batch in order)
    else:
        seen = image_batches(pictures, wheres, twin.preprocess, order, workers=workers)
        inputs = (twin.encode_image(batch.pixels.to(twin.device, twin.dtype)) for batch in seen)
    losses: list[float] = []
    for step, (batch, image) in enumerate(zip(order, inputs, strict=True)):
        optimizer.param_groups[0]["lr"] = budget.rate * 0.5 * (1 + math.cos(math.pi * step / len(order)))
        unit = nn.functional.normalize(image.float(), dim=-1)
        loss = nn.functional.cross_entropy(head(unit), labels[batch])
        if not bool(loss.isfinite()):
            raise NonFiniteError(f"finetune: the loss is {loss.item()} at step {step}; lower lr={budget.rate:g}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    if chosen is not None:
        chosen.end()
        twin.module.requires_grad_(False)
    return Tuned(twin, head.weight.detach().cpu(), head.bias.detach().cpu(), losses)


def _order(rows: int, budget: Budget, seed: int) -> Iterator[Tensor]:
    """The rows of every step: a new permutation each epoch."""
    for epoch in range(budget.epochs):
        source = torch.Generator().manual_seed(stable_seed(seed, "finetune", epoch))
        yield from torch.randperm(rows, generator=source).split(budget.batch_size)
