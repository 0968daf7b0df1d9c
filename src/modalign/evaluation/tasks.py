"""`evaluate`: all tasks of one model, each distinct picture and string embedded once."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from modalign import environment
from modalign.console import Reporter, Update
from modalign.embedder import Embedder
from modalign.encoders import Tower
from modalign.errors import DataError, RecipeError
from modalign.evaluation.certificate import Certified
from modalign.evaluation.certifying import certificate, drift_results, need_base, same_text
from modalign.evaluation.kept import KeptResults
from modalign.evaluation.kinds import Drift
from modalign.evaluation.kinds.base import NO_NUMBERS
from modalign.evaluation.results import Results
from modalign.evaluation.suite import Encoded, Suite, Task, parse_task, prepare
from modalign.features import Progress, TrunkMemo, image_features, project, text_features
from modalign.models.dual_encoder import DualEncoder

RESAMPLES = 10_000
logger = logging.getLogger("modalign")

__all__ = ["Results", "Task", "encode", "evaluate", "evaluate_both", "parse_task"]


def evaluate(
    model: DualEncoder | str | Path,
    tasks: Sequence[str | Task],
    *,
    optional: Sequence[str | Task] = (),
    against: DualEncoder | str | Path | None = None,
    templates: str | None = None,
    protocol: str = "default",
    batch_size: int = 256,
    workers: int = 0,
    max_bad: int = 0,
    image_column: str | None = None,
    text_column: str | Sequence[str] | None = None,
    label_column: str | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    gap: bool = True,
    memo: TrunkMemo | None = None,
    store: Path | str | None = None,
    progress: Progress | None = None,
) -> Results:
    """Judges a model, in float32, on any kinds of task; every metric has a 95 % interval.

    Args:
        model: on its device, or a spec for `modalign.load`.
        tasks: "zero-shot:SPEC", "retrieval:SPEC", "knn[key=value]:SPEC", …, each once (see docs/evaluation.md).
        optional: more tasks, before the others, such as a suite's: those that cannot be read or scored (of more than
            `max_bad` unreadable pictures each) are left out, told and listed in `left_out`.
        against: the model before, likewise, whose image features drift tasks compare with.
        templates: "single" ("a photo of {class}"), "openai80", "clip-benchmark" (those of each data set, with its class
            names), a data set's name, or a file with one template a line; None = the protocol's.
        protocol: "default", "standard" (CLIP_benchmark's) or a paper's (see docs/evaluation.md).
        batch_size: pictures or captions in one forward pass.
        workers: decoding processes.
        max_bad: how many rows of a source, and pictures in all, may be unreadable; they are left out and counted.
        image_column: as for `modalign.pairs`, for all tasks whose data has columns.
        text_column: likewise, of retrieval.
        label_column: likewise, of labelled data.
        resamples: of every interval.
        seed: of the resamples.
        gap: measure the gap on the first retrieval task.
        memo: trunk outputs shared with other evaluations of the same frozen image trunk.
        store: a folder where features are read from and kept (see `modalign.embed`), instead of a memo, and every
            task's result as it is done: what is known of this model and data is read.
        progress: told (done, total) pictures.

    Returns:
        `Results`: metrics with per-example outcomes, protocols, gap, certificates of drift.

    Raises:
        RecipeError: a task that cannot be read, a drift task without `against`, or `against` without one; a number
            that is too small.
        DataError: data or templates that cannot be used, unreadable pictures beyond `max_bad`.

    Example:
        >>> results = modalign.evaluate(model, ["retrieval:flickr30k:data@test"])  # doctest: +SKIP
        >>> results.metrics["retrieval.text_to_image_r1"].value  # doctest: +SKIP
    """
    store = _checked(store, batch_size=batch_size, workers=workers, max_bad=max_bad, seed=seed)
    model, against = _loaded(model), None if against is None else _loaded(against)
    suite = prepare(
        tasks,
        optional=optional,
        templates=templates,
        protocol=protocol,
        max_bad=max_bad,
        image_column=image_column,
        text_column=text_column,
        label_column=label_column,
    )
    if against is None:
        need_base(suite)
    elif not suite.drifts:
        raise RecipeError("only drift tasks compare with a model before: add drift:SPEC, or leave --against out")
    passes: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "max_bad": max_bad, "store": store}
    kept = _kept(model, store, batch_size, resamples, seed, max_bad)
    pending = suite.pending(kept, gap)
    wanted = torch.cat([NO_NUMBERS, *(task.pictures for task in suite.drifts)]).unique()
    tolerant = {**passes, "max_bad": _tolerated(suite, max_bad)}
    encoded, here = _encode_pending(model, suite, pending, memo, progress, len(wanted), tolerant)
    results = suite.score(
        encoded,
        model={"spec": model.spec, "fingerprint": model.fingerprint},
        encoder=model,
        environment=environment.describe(seed, str(model.device)),
        resamples=resamples,
        seed=seed,
        gap=gap,
        batch_size=batch_size,
        workers=workers,
        max_bad=max_bad,
        kept=kept,
    )
    _refuse_nothing(suite, [results])
    if against is not None:
        part = encode(against, suite.of(wanted), progress=_share(progress, here, here + len(wanted)), **passes)
        text = encoded.text if same_text(against, model, suite.strings) else None
        base = replace(part, kept=wanted[part.kept])
        results.drift = drift_results(suite, base, encoded, against.spec, text)
    return results


def evaluate_both(
    before: DualEncoder | str | Path,
    after: DualEncoder | str | Path,
    tasks: Sequence[str | Task],
    *,
    optional: Sequence[str | Task] = (),
    templates: str | None = None,
    protocol: str = "default",
    batch_size: int = 256,
    workers: int = 0,
    max_bad: int = 0,
    image_column: str | None = None,
    text_column: str | Sequence[str] | None = None,
    label_column: str | None = None,
    seed: int = 0,
    store: Path | str | None = None,
    progress: Progress | None = None,
) -> tuple[Results, Results, Certified | None]:
    """`evaluate` of two models on the same tasks, each distinct picture once for each, and what is certain of them.

    Args:
        before: on its device, or a spec for `modalign.load`.
        after: likewise.
        tasks: as in `evaluate`; at least one that is judged, so not drift alone.
        optional: likewise; what is left out of one model's results is left out of the other's.
        templates: as in `evaluate`; so are the others.
        protocol: likewise.
        batch_size: likewise.
        workers: likewise.
        max_bad: likewise.
        image_column: likewise.
        text_column: likewise.
        label_column: likewise.
        seed: likewise.
        store: likewise.
        progress: likewise.

    Returns:
        Both results, drift tasks in the second, and the certificate over all pictures where the text towers are equal
        bit for bit, else None.

    Raises:
        RecipeError: a task that cannot be read, whose result no model decides, or nothing to judge; a number that is
            too small.
        DataError: as in `evaluate`.
    """
    store = _checked(store, batch_size=batch_size, workers=workers, max_bad=max_bad, seed=seed)
    before, after = _loaded(before), _loaded(after)
    suite = prepare(
        tasks,
        optional=optional,
        templates=templates,
        protocol=protocol,
        max_bad=max_bad,
        image_column=image_column,
        text_column=text_column,
        label_column=label_column,
    )
    if len(suite.drifts) == len(suite.tasks):
        raise RecipeError(
            "drift alone gives nothing to judge: add a zero-shot, knn or retrieval task, or use "
            "`modalign evaluate --model AFTER --against BEFORE`"
        )
    suite.refuse_answered()
    seen, found = [], []
    for number, model in enumerate((before, after)):
        share = _share(progress, number * len(suite.paths), 2 * len(suite.paths))
        encoded = encode(
            model,
            suite,
            batch_size=batch_size,
            workers=workers,
            max_bad=_tolerated(suite, max_bad),
            store=store,
            progress=share,
        )
        told = {"spec": model.spec, "fingerprint": model.fingerprint}
        seen.append(encoded)
        scored = suite.score(
            encoded,
            model=told,
            encoder=model,
            environment=environment.describe(seed, str(model.device)),
            seed=seed,
            batch_size=batch_size,
            workers=workers,
            max_bad=max_bad,
            kept=_kept(model, store, batch_size, RESAMPLES, seed, max_bad),
        )
        found.append(scored)
    _judge_the_same(suite, found)
    _refuse_nothing(suite, found)
    suite = suite.without(lack.task for lack in found[0].left_out)
    text = seen[1].text if same_text(before, after, suite.strings) else None
    found[1].drift = drift_results(suite, seen[0], seen[1], before.spec, text)
    certain = certificate(suite, seen[0], seen[1], before.spec, text) if text is not None else None
    return found[0], found[1], certain


def encode(
    model: DualEncoder,
    suite: Suite,
    *,
    batch_size: int = 256,
    workers: int = 0,
    max_bad: int = 0,
    memo: TrunkMemo | None = None,
    store: Path | None = None,
    progress: Progress | None = None,
) -> Encoded:
    """Embeds a suite's pictures and strings, each once; arguments as in `evaluate`."""
    if store is not None:
        embedder = Embedder(
            store, batch_size=batch_size, workers=workers, max_bad=max_bad, reporter=_PassedOn(progress)
        )
        known = embedder.images(Tower(model, part="trunk" if suite.trunk else "features"), suite.paths, suite.wheres)
        said = embedder.texts(Tower(model, "text"), suite.strings)
        rows = known.rows[:]
        if not suite.trunk:
            return Encoded(rows, known.kept, said.rows[:])
        return Encoded(project(model, "image", rows, batch_size=batch_size), known.kept, said.rows[:], rows)
    if suite.trunk and memo is None:
        memo = TrunkMemo()
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
    if not suite.trunk or memo is None:
        return Encoded(seen.features, seen.kept, text)
    trunk = [memo.rows[suite.paths[position]] for position in seen.kept.tolist()]
    return Encoded(seen.features, seen.kept, text, torch.stack(trunk) if trunk else torch.empty(0, model.embed_dim))


def _checked(store: Path | str | None, **numbers: int) -> Path | None:
    """The store's folder; refuses numbers that are too small before anything is read."""
    for name, value in numbers.items():
        least = 1 if name == "batch_size" else 0
        if value < least:
            raise RecipeError(f"{name}={value}: pass a whole number ≥ {least}")
    return None if store is None else Path(store)


def _tolerated(suite: Suite, max_bad: int) -> int:
    """How many pictures one pass may find unreadable: with optional tasks any, which are then counted by task."""
    return max(max_bad, len(suite.paths)) if suite.optional else max_bad


def _judge_the_same(suite: Suite, pair: Sequence[Results]) -> None:
    """Leaves out of both results what could not be scored for one of them."""
    lost = {lack.task: lack for found in pair for lack in found.left_out}
    for found in pair:
        scored = suite.without(lack.task for lack in found.left_out)
        judged = [asked for asked, task in zip(scored.asked, scored.tasks, strict=True) if not isinstance(task, Drift)]
        found.tasks = [result for task, result in zip(judged, found.tasks, strict=True) if str(task) not in lost]
        found.left_out = list(lost.values())


def _refuse_nothing(suite: Suite, found: Sequence[Results]) -> None:
    """Tells which optional tasks could not be scored.

    Raises:
        DataError: that leaves none.
    """
    unscored = found[0].left_out[len(suite.left_out) :]
    for lack in unscored:
        logger.info("%s", lack)
    if unscored and not found[0].tasks and not suite.drifts:
        raise DataError(f"nothing to judge, for none of {len(found[0].left_out)} tasks can be scored: {unscored[0]}")


def _loaded(model: DualEncoder | str | Path) -> DualEncoder:
    from modalign.models import load

    return load(model) if isinstance(model, str | Path) else model


def _kept(
    model: DualEncoder, store: Path | None, batch_size: int, resamples: int, seed: int, max_bad: int
) -> KeptResults | None:
    """Where this model's results are kept, beside its features."""
    if store is None:
        return None
    facts = {
        "model": model.fingerprint,
        "versions": environment.versions(),
        "device": model.device.type,
        "batch_size": batch_size,
        "resamples": resamples,
        "seed": seed,
        "max_bad": max_bad,  # else what a lenient evaluation left out would stand in a strict one
    }
    return KeptResults(store / "results", facts)


def _encode_pending(
    model: DualEncoder,
    suite: Suite,
    pending: Sequence[int],
    memo: TrunkMemo | None,
    progress: Progress | None,
    after: int,
    passes: Mapping[str, Any],
) -> tuple[Encoded, int]:
    """The features that the pending tasks need, under the suite's own numbers, and how many pictures those are.

    Args:
        model: to embed with.
        suite: all tasks.
        pending: positions of those without a result.
        memo: as in `evaluate`.
        progress: likewise.
        after: how many pictures another model will embed, for the progress.
        passes: batch_size, workers, max_bad and store.
    """
    if len(pending) == len(suite.tasks) or suite.drifts:  # which look at the classes of the tasks beside them
        whole = len(suite.paths)
        return encode(model, suite, memo=memo, progress=_share(progress, 0, whole + after), **passes), whole
    if not pending:
        nothing = torch.empty(0, model.embed_dim)
        return Encoded(nothing, NO_NUMBERS, nothing), 0
    part, pictures, strings = suite.part(pending)
    whole = len(pictures)
    seen = encode(model, part, memo=memo, progress=_share(progress, 0, whole + after), **passes)
    text = torch.full((len(suite.strings), seen.text.shape[1]), torch.nan, dtype=seen.text.dtype)
    text[strings] = seen.text
    return replace(seen, kept=pictures[seen.kept], text=text), whole


def _share(progress: Progress | None, before: int, whole: int) -> Progress | None:
    """The progress of one of several passes, told as part of the whole."""
    if progress is None:
        return None
    told = progress
    return lambda done, _: told(before + done, whole)


class _PassedOn(Reporter):
    """Tells a function of (done, total) about pictures, and the user nothing."""

    def __init__(self, told: Progress | None) -> None:
        super().__init__(silent=True)
        self.told = told

    @contextmanager
    def progress(self, title: str, total: int, unit: str = "steps", start: int = 0) -> Iterator[Update]:
        def update(done: int, note: str = "") -> None:
            if self.told is not None and unit == "pictures":
                self.told(done, total)

        yield update
