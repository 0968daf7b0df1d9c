"""From the embedding record to the objectives' arguments: what several methods share."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from modalign.embeddings import Embeddings
from modalign.objectives import effective_logit_scale, hybrid_distillation
from modalign.objectives.validation import require_range


def present(embeddings: Embeddings, *names: str) -> tuple[Tensor, ...]:
    """The named fields of a record.

    Raises:
        ValueError: naming the fields that the batch lacks.
    """
    values: list[Tensor | None] = [getattr(embeddings, name) for name in names]
    missing = [name for name, value in zip(names, values, strict=True) if value is None]
    if missing:
        raise ValueError(f"the batch has no {', '.join(missing)}; give Embeddings all of {', '.join(names)}")
    return tuple(value for value in values if value is not None)


def evenly_spaced(features: Mapping[str, Tensor], rows: int, *names: str) -> tuple[Tensor, ...]:
    """The same rows of several stored signals, no more than asked for, spread over the whole training set.

    Raises:
        ValueError: naming the signals that are missing.
    """
    missing = [name for name in names if name not in features]
    if missing:
        raise ValueError(f"there are no {', '.join(missing)} features to fit to; pass all of {', '.join(names)}")
    count = len(features[names[0]])
    index = torch.arange(min(rows, count)) * count // min(rows, count)
    return tuple(features[name][index] for name in names)


def require_weights(**weights: float) -> None:
    """Checks that the weights of a method's terms are numbers ≥ 0, and not all 0."""
    for name, weight in weights.items():
        require_range(name, weight, 0)
    if not any(weights.values()):
        raise ValueError(f"every weight ({', '.join(weights)}) is 0, so nothing is trained; set one above 0")


def distillation_term(
    embeddings: Embeddings, alpha: float, temperature: float, features: str, positives: Tensor | None
) -> Tensor:
    """Hybrid distillation of one record, unweighted."""
    image, text, frozen_image, frozen_text = present(embeddings, "image", "text", "frozen_image", "frozen_text")
    return hybrid_distillation(
        image,
        text,
        frozen_image,
        frozen_text,
        alpha=alpha,
        temperature=temperature,
        features=features,
        logit_scale=embeddings.logit_scale,
        positives=positives,
    )


def distillation_sharpness(embeddings: Embeddings, temperature: float, features: str) -> float:
    """The factor in front of cosine similarities that distillation really uses, on one record's frozen features."""
    if features == "unit":
        return float(embeddings.logit_scale) / temperature
    return float(effective_logit_scale(*present(embeddings, "frozen_image", "frozen_text"))) / temperature
