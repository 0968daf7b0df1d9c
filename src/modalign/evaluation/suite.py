"""A set of tasks, read once: what has to be embedded for all of them together, and the scores of what was."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from modalign.data.bad_rows import BadRows
from modalign.data.pictures import Picture, files_identity, real_paths
from modalign.errors import DataError, RecipeError
from modalign.evaluation.kept import Kept, KeptResults
from modalign.evaluation.kinds import KINDS, Context, Drift, Encoded, Judged, Reading
from modalign.evaluation.kinds.base import NO_NUMBERS, read_options
from modalign.evaluation.kinds.reading import Numbers, name_of
from modalign.evaluation.prompts import read_prompts
from modalign.evaluation.protocols import PROTOCOLS, Protocol, protocol_of
from modalign.evaluation.results import Features, Ids, Results, TaskResult
from modalign.evaluation.scoring import digest
from modalign.evaluation.suites import Missing
from modalign.features import readable
from modalign.gap import measure

if TYPE_CHECKING:
    from modalign.models.dual_encoder import DualEncoder

__all__ = ["Encoded", "Suite", "Task", "parse_task", "prepare"]

GAP_RESAMPLES = 1_000
logger = logging.getLogger("modalign")
TYPED = re.compile(r"(?P<kind>[^:\[\]]+)(\[(?P<options>[^\]]*)\])?:(?P<spec>.+)", re.DOTALL)


@dataclass(frozen=True)
class Task:
    """What to judge: a kind of task, a data spec, and the kind's options as given."""

    kind: str
    spec: str
    options: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        told = ",".join(f"{key}={value}" for key, value in self.options)
        return f"{self.kind}[{told}]:{self.spec}" if told else f"{self.kind}:{self.spec}"


def parse_task(text: str) -> Task:
    """Reads "kind:SPEC" or "kind[key=value,key=value]:SPEC"; everything after the first colon behind it is SPEC.

    Raises:
        RecipeError: another kind, no spec, or an option that the kind does not take.
    """
    found = TYPED.fullmatch(text)
    if found is None:
        raise RecipeError(
            f"task {text!r}: write KIND:SPEC, such as retrieval:flickr30k:data@test; kinds are {', '.join(KINDS)}"
        )
    if found["kind"] not in KINDS:
        near = difflib.get_close_matches(found["kind"].lower(), KINDS, n=1)
        meant = (
            f"did you mean {near[0]}{text.removeprefix(found['kind'])}?" if near else f"kinds are {', '.join(KINDS)}"
        )
        raise RecipeError(f"task {text!r}: there is no kind {found['kind']!r}; {meant}")
    kind, given = found["kind"], dict[str, str]()
    for part in filter(None, (found["options"] or "").split(",")):
        key, equals, value = part.partition("=")
        if not equals or key.strip() in given:
            raise RecipeError(f"task {text!r}: option {part!r}: write each once, as key=value")
        given[key.strip()] = value.strip()
    read_options(kind, KINDS[kind].options, given)
    return Task(kind, found["spec"], tuple(sorted(given.items())))


@dataclass(frozen=True)
class Suite:
    """Tasks whose pictures and strings are numbered together, so that each is embedded once.

    Attributes:
        paths: the distinct pictures over all tasks.
        wheres: where each was first named, for messages.
        strings: the distinct captions and prompts over all tasks.
        tasks: the data of each task.
        asked: each task as it was asked for.
        protocol: how it is judged.
        optional: those of `asked` that are left out, and no error, where they cannot be scored.
        left_out: the optional tasks that could not be read, and why.
    """

    paths: list[Picture]
    wheres: list[str]
    strings: list[str]
    tasks: tuple[Judged, ...]
    asked: tuple[Task, ...]
    protocol: Protocol = PROTOCOLS["default"]
    optional: frozenset[Task] = frozenset()
    left_out: tuple[Missing, ...] = ()

    @property
    def identity(self) -> str:
        """A hash of what is judged: tasks, strings, labels, and every picture's path, size and modification time."""
        facts: list[Any] = [files_identity(self.paths), self.strings, self.protocol.name]
        for asked, task in zip(self.asked, self.tasks, strict=True):
            facts += [str(asked), task.facts()]
        return digest(facts)

    @property
    def drifts(self) -> list[Drift]:
        """The drift tasks."""
        return [task for task in self.tasks if isinstance(task, Drift)]

    @property
    def trunk(self) -> bool:
        """Whether a task reads the image trunk's outputs."""
        return any(task.trunk for task in self.tasks)

    def of(self, pictures: Tensor) -> Suite:
        """Only these pictures, by number, to be embedded without any task."""
        paths, wheres = ([values[number] for number in pictures.tolist()] for values in (self.paths, self.wheres))
        return replace(self, paths=paths, wheres=wheres, strings=[], tasks=(), asked=())

    def without(self, tasks: Iterable[str]) -> Suite:
        """All tasks but these, as typed; pictures and strings keep their numbers."""
        lost = set(tasks)
        kept = [i for i, asked in enumerate(self.asked) if str(asked) not in lost]
        return replace(self, asked=tuple(self.asked[i] for i in kept), tasks=tuple(self.tasks[i] for i in kept))

    def part(self, positions: Sequence[int]) -> tuple[Suite, Tensor, Tensor]:
        """What some of the tasks need embedded: those pictures and strings, and their numbers in this suite."""
        tasks = tuple(self.tasks[position] for position in positions)
        pictures, strings = (
            torch.cat([NO_NUMBERS, *(numbers.flatten() for numbers in needed)]).unique()
            for needed in ([task.inputs for task in tasks], [task.strings for task in tasks])
        )
        # Their tasks tell whether the trunk is needed; they are not scored here.
        return (
            replace(self.of(pictures), strings=[self.strings[n] for n in strings.tolist()], tasks=tasks),
            pictures,
            strings,
        )

    def key(self, position: int, facts: Mapping[str, Any], gap: bool) -> str:
        """A hash of what decides a task's result: the task, its files, its texts, and what holds for all of them."""
        asked, task = self.asked[position], self.tasks[position]
        pictures = [self.paths[number] for number in task.inputs.unique().tolist()]
        said = [self.strings[number] for number in task.strings.unique().tolist()]
        told = [str(asked), task.version, self.protocol.name, files_identity(pictures), said, task.facts(), gap]
        return digest([dict(facts), told])

    def pending(self, kept: KeptResults | None, gap: bool) -> list[int]:
        """The positions of the tasks without a kept result."""
        with_gap = self._gap_position if gap else None
        return [
            position
            for position, task in enumerate(self.tasks)
            if kept is None
            or isinstance(task, Drift)
            or kept.read(self.key(position, kept.facts, position == with_gap)) is None
        ]

    @property
    def _gap_position(self) -> int | None:
        """The first task with pairs."""
        shown = (i for i, task in enumerate(self.tasks) if type(task).features is not Judged.features)
        return next(shown, None)

    def score(
        self,
        encoded: Encoded,
        *,
        model: dict[str, Any],
        encoder: DualEncoder | None = None,
        environment: dict[str, Any] | None = None,
        resamples: int = 10_000,
        seed: int = 0,
        gap: bool = True,
        batch_size: int = 256,
        workers: int = 0,
        max_bad: int = 0,
        kept: KeptResults | None = None,
    ) -> Results:
        """Turns features into results.

        Args:
            encoded: of this suite's `paths` and `strings`; only those of the tasks that are pending need be there.
            model: {"spec", "fingerprint"} of what made them.
            encoder: what made them, on its device, for the tasks that need more than features.
            environment: versions and machine, kept with the results.
            resamples: of every interval.
            seed: of the resamples.
            gap: measure the gap on the first task with pairs (each picture with its first caption).
            batch_size: inputs in one forward pass of those tasks.
            workers: their decoding processes.
            max_bad: how many of their pictures may be unreadable.
            kept: results to read instead, and to keep as each task is done.

        Returns:
            The `Results`, without drift, which needs the features of a model before as well.

        Raises:
            DataError: none of a task's pictures could be read; with optional tasks, more than `max_bad` could not.
            RecipeError: a task needs the model itself and there are only features.
        """
        row = encoded.rows(len(self.paths))
        results = Results(model, [], None, environment or {}, left_out=list(self.left_out))
        context = Context(self.paths, self.strings, resamples, seed, batch_size, workers, max_bad)
        apart = self._numbers_apart()
        for position in range(len(self.tasks)):
            measured = gap and position == self._gap_position
            key = self.key(position, kept.facts, measured) if kept is not None else ""
            found = kept.read(key) if kept is not None else None
            if found is None:
                try:
                    self._refuse_unreadable(position, row, max_bad)
                    found = self._scored(position, encoded, row, context, encoder, measured, results)
                except (DataError, RecipeError) as problem:
                    if self.asked[position] not in self.optional:
                        raise
                    results.left_out.append(Missing(str(self.asked[position]), str(problem)))
                if kept is not None and found is not None:
                    kept.write(key, found)
            if found is not None:
                results.tasks.append(found.result.renumbered(apart[position]) if position in apart else found.result)
                results.gap = found.gap or results.gap
        return results

    def refuse_answered(self) -> None:
        """To be called where two models are compared.

        Raises:
            RecipeError: a task's answers were given beforehand, so that the models cannot differ in it.
        """
        for asked, task in zip(self.asked, self.tasks, strict=True):
            if task.answered:
                raise RecipeError(
                    f"task {asked} reads a file of answers, which is the same for both models: evaluate each model's "
                    "own file with --json and compare the two JSON files, or name a LLaVA (--llava DIR)"
                )

    def _refuse_unreadable(self, position: int, row: Tensor, max_bad: int) -> None:
        """With optional tasks a pass lets every unreadable picture by: here they are counted, task by task."""
        numbers = self.tasks[position].inputs.unique()
        gone = numbers[row[numbers] < 0].tolist() if self.optional else []
        if len(gone) > max_bad:
            paths, wheres = ([values[number] for number in gone] for values in (self.paths, self.wheres))
            bad = BadRows(max_bad, len(numbers))
            bad.add(readable(paths, wheres, max_bad=len(gone))[1])
            bad.finish()

    def _numbers_apart(self) -> dict[int, Ids]:
        """The numbers, over all tasks, of the pictures of those that number them by themselves."""
        tasks = {position: keys for position, task in enumerate(self.tasks) if (keys := task.apart)}
        numbers = Numbers()
        numbers(real_paths(self.paths) if tasks else ())
        return {position: numbers(list(dict.fromkeys(keys))).numpy() for position, keys in tasks.items()}

    def _scored(
        self,
        position: int,
        encoded: Encoded,
        row: Tensor,
        context: Context,
        encoder: DualEncoder | None,
        gap: bool,
        results: Results,
    ) -> Kept | None:
        """One task's result; shows its pairs in `results` where they are the first."""
        asked, task = self.asked[position], self.tasks[position]
        if (task.needs_model and encoder is None) or (task.trunk and encoded.trunk is None):
            raise RecipeError(f"task {asked} needs the model, and here are features alone; leave the task out")
        if task.needs_model and encoder is not None:
            found: TaskResult | None = task.score_model(encoder, encoded, row, context)
        else:
            found = task.score(encoded, row, context)
        measured = None
        if position == self._gap_position and (shown := task.features(encoded, row, context)) is not None:
            results.features = shown
            if gap:
                measured = _gap(shown, asked.spec, min(context.resamples, GAP_RESAMPLES), context.seed)
        if found is None:
            return None
        told = self.protocol.told(asked.kind, name_of(asked.spec))
        return Kept(replace(found, options=dict(asked.options), protocol={**told, **found.protocol}), measured)


def prepare(
    tasks: Sequence[str | Task],
    *,
    optional: Sequence[str | Task] = (),
    templates: str | None = None,
    protocol: str = "default",
    max_bad: int = 0,
    image_column: str | None = None,
    text_column: str | Sequence[str] | None = None,
    label_column: str | None = None,
) -> Suite:
    """Reads the data of all tasks and numbers their pictures and strings together.

    Args:
        tasks: each as `parse_task` reads it, each once.
        optional: more of them, before the others; those that cannot be read are left out, and it is told why.
        templates: "single", "openai80", "clip-benchmark", a data set's name or a file (see `read_prompts`); None =
            the protocol's.
        protocol: one of `PROTOCOLS`.
        max_bad: rows that may be bad in each data source.
        image_column: as for `modalign.pairs`, for all tasks whose data has columns.
        text_column: likewise, of retrieval.
        label_column: likewise, of labelled data.

    Returns:
        The `Suite`.

    Raises:
        RecipeError: no task, an unknown kind, the same task twice.
        DataError: data that cannot be read, two classes of one name, templates that cannot be used; of optional tasks
            where there is no other.
    """
    for given in (tasks, optional):
        if isinstance(given, str):
            raise RecipeError(f"tasks are a list, and {given!r} is one string: write [{given!r}]")
    may_fail, must = ([parse_task(t) if isinstance(t, str) else t for t in given] for given in (optional, tasks))
    asked = (*may_fail, *must)
    if not asked:
        raise RecipeError("no task to evaluate: name at least one, such as retrieval:SPEC")
    if twice := [str(task) for position, task in enumerate(asked) if task in asked[:position]]:
        raise RecipeError(f"task {twice[0]} is named twice: name it once")
    rules = protocol_of(protocol)
    prompts = read_prompts(rules.templates if templates is None else templates)
    left_out: dict[Task, str] = {}
    with _told_once():
        while True:
            reading = Reading(prompts, image_column, text_column, label_column, max_bad, rules)
            read, unread = _read(reading, asked, may_fail)
            if not unread:
                break
            left_out |= unread
            # Read again without them: what they numbered before they failed belongs to no task.
            asked = tuple(task for task in asked if task not in unread)
    lacks = tuple(Missing(str(task), why) for task, why in left_out.items())
    for lack in lacks:
        logger.info("%s", lack)
    if not asked:
        raise DataError(f"nothing to judge, for none of {len(lacks)} tasks can be read: {lacks[0]}")
    reading.refuse_unused()
    strings = list(reading.strings.known)
    return Suite(reading.paths, reading.wheres, strings, tuple(read), asked, rules, frozenset(may_fail), lacks)


def _read(reading: Reading, asked: Sequence[Task], may_fail: Sequence[Task]) -> tuple[list[Judged], dict[Task, str]]:
    """The data of all tasks but those that cannot be read, and why not."""
    read, unread = list[Judged](), dict[Task, str]()
    for task in asked:
        kind = KINDS[task.kind]
        given = {**reading.protocol.options.get(task.kind, {}), **dict(task.options)}
        try:
            read.append(kind.read(reading, task.spec, read_options(task.kind, kind.options, given)))
        except (DataError, RecipeError) as problem:
            if task not in may_fail:
                raise
            unread[task] = str(problem)
    return read, unread


@contextmanager
def _told_once() -> Iterator[None]:
    """What is told of one source for several tasks is told once."""
    told = set[str]()

    def new(record: logging.LogRecord) -> bool:
        known, said = len(told), record.getMessage()
        told.add(said)
        return len(told) > known

    logger.addFilter(new)
    try:
        yield
    finally:
        logger.removeFilter(new)


def _gap(features: Features, spec: str, resamples: int, seed: int) -> dict[str, Any] | None:
    """The gap of each picture and its first caption; None for fewer than three pictures."""
    pictures = len(features.image)
    if pictures < 3:
        return None
    first = torch.full((pictures,), len(features.captions))
    first.scatter_reduce_(0, features.image_of_text, torch.arange(len(features.captions)), "amin")
    report = measure(features.image, features.text[first], seed=seed, resamples=resamples)
    return {**report.to_dict(), "spec": spec, "pairing": "each picture with its first caption"}
