"""`evaluate`: all tasks of one model, each distinct picture and string embedded once."""

from __future__ import annotations

from collections.abc import Sequence

from modalign import environment
from modalign.evaluation.results import Results
from modalign.evaluation.suite import Encoded, Suite, Task, parse_task, prepare
from modalign.features import Progress, TrunkMemo, image_features, text_features
from modalign.models.dual_encoder import DualEncoder

__all__ = ["Results", "Task", "encode", "evaluate", "parse_task"]


def evaluate(
    model: DualEncoder,
    tasks: Sequence[str | Task],
    *,
    templates: str = "single",
    batch_size: int = 256,
    workers: int = 0,
    max_bad: int = 0,
    resamples: int = 10_000,
    seed: int = 0,
    gap: bool = True,
    memo: TrunkMemo | None = None,
    progress: Progress | None = None,
) -> Results:
    """Judges a model, in float32, on zero-shot classification and retrieval; every number has a 95 % interval.

    Args:
        model: on its device.
        tasks: "zero-shot:SPEC" or "retrieval:SPEC", each once.
        templates: "single" ("a photo of {class}"), "openai80", or a file with one template a line.
        batch_size: pictures or captions in one forward pass.
        workers: decoding processes.
        max_bad: how many rows of a source, and pictures in all, may be unreadable; they are left out and counted.
        resamples: of every interval.
        seed: of the resamples.
        gap: measure the gap on the first retrieval task.
        memo: trunk outputs shared with other evaluations of the same frozen image trunk.
        progress: told (done, total) pictures.

    Returns:
        `Results`: metrics with per-example outcomes, protocols, gap.

    Raises:
        RecipeError: a task that cannot be read.
        DataError: data or templates that cannot be used, unreadable pictures beyond `max_bad`.

    Example:
        >>> results = modalign.evaluate(model, ["retrieval:flickr30k:data@test"])  # doctest: +SKIP
        >>> results.metrics["retrieval.text_to_image_r1"].value  # doctest: +SKIP
    """
    suite = prepare(tasks, templates=templates, max_bad=max_bad)
    encoded = encode(
        model, suite, batch_size=batch_size, workers=workers, max_bad=max_bad, memo=memo, progress=progress
    )
    return suite.score(
        encoded,
        model={"spec": model.spec, "fingerprint": model.fingerprint},
        environment=environment.describe(seed, str(model.device)),
        resamples=resamples,
        seed=seed,
        gap=gap,
    )


def encode(
    model: DualEncoder,
    suite: Suite,
    *,
    batch_size: int = 256,
    workers: int = 0,
    max_bad: int = 0,
    memo: TrunkMemo | None = None,
    progress: Progress | None = None,
) -> Encoded:
    """Embeds a suite's pictures and strings, each once; arguments as in `evaluate`."""
    seen = image_features(
        model,
        suite.paths,
        suite.wheres,
        batch_size=batch_size,
        workers=workers,
        max_bad=max_bad,
        memo=memo,
        progress=progress,
    )
    text = text_features(model, suite.strings, batch_size=batch_size)
    return Encoded(seen.features, seen.kept, text)
