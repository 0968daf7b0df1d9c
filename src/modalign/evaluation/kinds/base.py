"""What a kind of task is, and what its author writes.

A kind is one frozen dataclass in a module of its own, entered in the dict literal `KINDS` (`kinds/__init__.py`) under
the name as typed. It holds the data of one task, read and numbered, and knows how to score it:

    @dataclass(frozen=True)
    class CentroidAccuracy(Judged):
        name: ClassVar = "centroid_accuracy"                 as results, metrics and tolerances call it
        options: ClassVar = {"k": Option(1, whole(1), "a whole number ≥ 1")}      of centroid[k=3]:SPEC; {} = none
        data: Labelled                                       what was read; its `spec` is told
        pictures: Tensor                                     N numbers among the suite's pictures
        k: int

        @classmethod
        def read(cls, reading, spec, options):               text → data; every option is there, defaults filled in
            data = reading.labelled(spec, "classification by centroids")
            return cls(data, reading.numbered(data), options["k"])

        def score(self, encoded, row, context):              features → numbers
            readable = readable_of(self, row)
            features = encoded.image[row[self.pictures[readable]]]
            outcomes = …                                     n numbers, one an example
            return labelled_result(self, readable, {"acc1": outcomes}, {"k": self.k}, context)

`reading` numbers pictures and strings over all tasks of a call, so that each is embedded once: `reading.numbered(data)`
and `reading.strings(texts)` give the numbers, `encoded.image[row[numbers]]` and `encoded.text[numbers]` the raw
features; row is −1 for a picture that could not be read. A task with texts overrides `strings` to return its numbers.
A task that reads the image trunk's output overrides `trunk` to be true: it finds `encoded.trunk`, from the same forward
pass. `context.metric(name, outcomes, …)` makes a metric with its interval; one that is no share says its `unit` and
`tolerance`. The maths lives elsewhere, in a module of tensors in and numbers out; heavy imports stay inside `score`.

A task that needs more than features (tokens, a decoder, a language model) sets `needs_model = True` and writes
`score_model(model, encoded, row, context)` instead of `score`; `pictures` may be empty, and it makes its own passes
with `context.batch_size` and `context.workers`. Its metrics' ids are then numbers among the distinct texts of `apart`.

Results are kept by a key of the model, the task as typed, the protocol, the files of `inputs`, the texts of `strings`,
`facts()` and `version`: raise `version` when the numbers change; let `inputs` and `strings` return what is learned from
as well, and `facts()` name everything else that was read or is told (a file's content hash, other labels, what the
templates are called).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from modalign.data.pictures import Picture
from modalign.data.records import Images, Labelled, Pairs
from modalign.errors import RecipeError
from modalign.evaluation.results import Features, Metric, TaskResult

if TYPE_CHECKING:
    from modalign.evaluation.kinds.reading import Reading
    from modalign.models.dual_encoder import DualEncoder

NO_NUMBERS = torch.empty(0, dtype=torch.long)


@dataclass(frozen=True)
class Encoded:
    """The features of a suite's pictures and strings.

    Attributes:
        image: K×d, raw, the pictures that could be read.
        kept: K positions in `Suite.paths`.
        text: S×d, raw, one row a string of `Suite.strings`.
        trunk: K×w, the image projection's inputs, where a task asks for them; else None.
    """

    image: Tensor
    kept: Tensor
    text: Tensor
    trunk: Tensor | None = None

    def rows(self, pictures: int) -> Tensor:
        """The row of each of a suite's pictures, -1 for one that could not be read."""
        row = torch.full((pictures,), -1)
        row[self.kept] = torch.arange(len(self.kept))
        return row


@dataclass(frozen=True)
class Context:
    """What scoring needs beside features.

    Attributes:
        paths: the suite's pictures.
        strings: the suite's captions and prompts.
        resamples: of every interval.
        seed: of everything random.
        batch_size: inputs in one forward pass, of tasks that make their own.
        workers: their decoding processes.
        max_bad: how many of their pictures may be unreadable.
    """

    paths: list[Picture] = field(default_factory=list)
    strings: list[str] = field(default_factory=list)
    resamples: int = 10_000
    seed: int = 0
    batch_size: int = 256
    workers: int = 0
    max_bad: int = 0

    def metric(self, name: str, outcomes: ArrayLike, **more: Any) -> Metric:
        """`Metric.of` with this evaluation's resamples and seed."""
        return Metric.of(name, outcomes, resamples=self.resamples, seed=self.seed, **more)


@dataclass(frozen=True)
class Option:
    """One option of a kind, as in `kind[key=value]:SPEC`.

    Attributes:
        default: where it is not given.
        read: text → value; raises ValueError for what it does not take.
        told: what it takes, for messages: "a whole number ≥ 1".
    """

    default: Any
    read: Callable[[str], Any]
    told: str


def whole(least: int) -> Callable[[str], int]:
    """Reads a whole number of at least so many."""

    def read(text: str) -> int:
        if int(text) < least:
            raise ValueError(text)
        return int(text)

    return read


def choice(*words: str) -> Callable[[str], str]:
    """Reads one of these words."""

    def read(text: str) -> str:
        if text not in words:
            raise ValueError(text)
        return text

    return read


@dataclass(frozen=True)
class Judged(ABC):
    """One task, read. A kind subclasses this; the module's docstring shows how.

    Attributes:
        name: of the kind in results.
        options: key → option.
        version: of its numbers.
        needs_model: whether `score_model` is called in place of `score`.
        data: what was read.
        pictures: numbers among the suite's pictures.
    """

    name: ClassVar[str]
    options: ClassVar[Mapping[str, Option]] = {}
    version: ClassVar[int] = 1
    needs_model: ClassVar[bool] = False

    data: Pairs | Images | Labelled
    pictures: Tensor

    @property
    def strings(self) -> Tensor:
        """Numbers among the suite's strings, of any shape; empty without texts."""
        return NO_NUMBERS

    @property
    def inputs(self) -> Tensor:
        """The numbers of all pictures it reads: those that are judged, and those that are learned from."""
        return self.pictures

    @property
    def apart(self) -> Sequence[str]:
        """Where `pictures` has none: a text for each picture it looks at, equal for equal ones (see `real_paths`).

        The suite gives them numbers clear of all others, and the same as another task's where a picture is the same.
        """
        return ()

    @property
    def answered(self) -> bool:
        """Whether what is judged was said beforehand, whatever the model: two models cannot differ in it."""
        return False

    @property
    def trunk(self) -> bool:
        """Whether it reads `encoded.trunk`."""
        return False

    @classmethod
    @abstractmethod
    def read(cls, reading: Reading, spec: str, options: Mapping[str, Any]) -> Judged:
        """Reads a spec; `options` has a value for every key of `cls.options`."""

    def score(self, encoded: Encoded, row: Tensor, context: Context) -> TaskResult | None:
        """Features to numbers; None = nothing to judge of one model alone.

        Args:
            encoded: the features of the suite.
            row: the row in `encoded.image` of each of the suite's pictures, -1 for one that could not be read.
            context: paths, strings, resamples, seed.

        Raises:
            DataError: none of the task's pictures could be read.
        """
        raise NotImplementedError(f"{type(self).__name__} writes neither score nor score_model")

    def score_model(self, model: DualEncoder, encoded: Encoded, row: Tensor, context: Context) -> TaskResult:
        """The model itself to numbers, for kinds with `needs_model`; arguments as in `score`."""
        raise NotImplementedError(f"{type(self).__name__} needs the model and has no score_model")

    def features(self, encoded: Encoded, row: Tensor, context: Context) -> Features | None:
        """The pairs that the gap is measured on and the report shows, of kinds that have pairs."""
        return None

    def facts(self) -> list[Any]:
        """JSON values that, with the options, tell what is judged."""
        data = self.data
        classes = [data.labels.tolist(), list(data.class_names)] if isinstance(data, Labelled) else None
        return [data.spec, self.pictures.tolist(), self.strings.tolist(), classes]


def read_options(kind: str, known: Mapping[str, Option], given: Mapping[str, str]) -> dict[str, Any]:
    """The value of every option of a kind, defaults filled in.

    Raises:
        RecipeError: a key that the kind does not have, or a value that it does not take.
    """
    for key, text in given.items():
        if key not in known:
            has = f"it takes {', '.join(known)}" if known else "it takes none: write " + f"{kind}:SPEC"
            raise RecipeError(f"task {kind}: no option {key!r}; {has}")
        try:
            known[key].read(text)
        except ValueError:
            raise RecipeError(f"task {kind}: {key}={text} is not {known[key].told}; change it") from None
    return {key: option.read(given[key]) if key in given else option.default for key, option in known.items()}
