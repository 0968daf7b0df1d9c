"""`vqa:SPEC` and `mmvp:SPEC`: what a LLaVA answers with the model's image tower inside it."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from modalign.data.pictures import files_identity, real_paths
from modalign.data.records import PairRow, Pairs
from modalign.errors import DataError, RecipeError
from modalign.evaluation import mmvp
from modalign.evaluation.kinds.base import NO_NUMBERS, Context, Encoded, Judged, Option, choice, whole
from modalign.evaluation.kinds.reading import Numbers, Reading
from modalign.evaluation.llava.questions import VqaQuestion, read_questions
from modalign.evaluation.llava.vqa_accuracy import FEWEST, vqa_outcomes
from modalign.evaluation.results import TaskResult
from modalign.evaluation.scoring import digest, split_of

if TYPE_CHECKING:
    from modalign.models.dual_encoder import DualEncoder

BATCH = 8
TOLD_SECONDS = 15.0
DECIDING = (".safetensors", ".bin", ".json", ".model", ".txt", ".jinja")
"""The endings of the files that decide what a LLaVA or an adapter says."""
logger = logging.getLogger("modalign")


def _share(text: str) -> float:
    if not 0 <= float(text) <= 1:
        raise ValueError(text)
    return float(text)


MODEL: dict[str, Option] = {
    "llava": Option("", str, "the folder of a transformers LLaVA"),
    "adapter": Option("", str, "a folder of LoRA adapters"),
    "mix": Option("", str, "the spec of a second image encoder"),
    "share": Option(0.5, _share, "a share between 0 and 1"),
    "answers": Option("", str, "a folder to keep answers in"),
    "batch": Option(BATCH, whole(1), "a whole number ≥ 1"),
}


@dataclass(frozen=True)
class Asked(Judged):
    """Questions about pictures.

    Attributes:
        data: a row a question; its caption is the question as it is put.
        pictures: none, for the dual encoder itself need not look at them.
        given: the options.
    """

    needs_model: ClassVar[bool] = True
    version: ClassVar[int] = 3

    data: Pairs
    given: Mapping[str, Any]

    def responses(self, model: DualEncoder, context: Context, max_new_tokens: int) -> list[str | None]:
        """What the LLaVA says to each row."""
        from modalign.data.images import decode
        from modalign.demo.cache import cache_dir
        from modalign.evaluation.llava.answering import answers
        from modalign.evaluation.llava.assembling import Parts, assemble
        from modalign.exporting.llava import pixel_difference

        given = self.given
        parts = Parts(given["llava"], given["adapter"], given["mix"], given["share"])
        llava = assemble(parts, model, model.device)
        for row in self.data.rows[:1]:
            with contextlib.suppress(DataError):  # counted where it is asked about
                told = pixel_difference(llava.prompting.preprocess.processor, model, [decode(row.path)])
                logger.info("%s", told)
        return answers(
            llava,
            self.data.paths,
            self.data.wheres,
            [row.captions[0] for row in self.data.rows],
            max_new_tokens=max_new_tokens,
            folder=Path(given["answers"]).expanduser() if given["answers"] else cache_dir() / "answers",
            batch_size=given["batch"],
            workers=context.workers,
            max_bad=context.max_bad,
            progress=_telling(),
        )

    def told(self) -> dict[str, Any]:
        """What the protocol says of the LLaVA."""
        given = self.given
        parts = {"llava": Path(given["llava"]).name, "llava_content": _content(given["llava"])}
        parts["adapter"] = Path(given["adapter"]).name
        if given["adapter"]:
            parts["adapter_content"] = _content(given["adapter"])
        if given["mix"]:
            parts |= {"mixed_in": f"{given['share']:g} of {given['mix']}", "mixed_in_content": self._mixed_in[:16]}
        return {**parts, "decoding": "greedy", "batch": given["batch"]}

    @cached_property
    def _mixed_in(self) -> str:
        """The fingerprint of the second encoder, "" without one."""
        from modalign.models.vision import load_vision

        return load_vision(self.given["mix"]).fingerprint if self.given["mix"] else ""

    def facts(self) -> list[Any]:
        """The questions, their pictures, the files of the LLaVA and the adapter, and the second encoder."""
        from modalign.evaluation.llava.assembling import files_of

        parts: list[Any] = [files_of(self.given[name]) if self.given[name] else [] for name in ("llava", "adapter")]
        parts.append(self._mixed_in)
        return [*super().facts(), files_identity(self.data.paths), [row.captions for row in self.data.rows], parts]


@dataclass(frozen=True)
class Vqa(Asked):
    """Questions with the answers of people."""

    name: ClassVar[str] = "vqa"
    options: ClassVar[Mapping[str, Option]] = {
        **MODEL,
        "images": Option("", str, "a folder of pictures"),
        "prompt": Option("short", choice("short", "plain"), "short or plain"),
        "max_new_tokens": Option(16, whole(1), "a whole number ≥ 1"),
    }

    questions: tuple[VqaQuestion, ...]

    @classmethod
    def read(cls, reading: Reading, spec: str, options: Mapping[str, Any]) -> Vqa:
        """A table of questions."""
        from modalign.evaluation.llava.prompting import SHORT

        _need_llava("vqa", spec, options)
        questions = read_questions(spec, images=options["images"], max_bad=reading.max_bad)
        more = f"\n{SHORT}" if options["prompt"] == "short" else ""
        rows = tuple(PairRow(question.picture, (question.text + more,), question.where) for question in questions)
        return cls(Pairs(spec, rows), NO_NUMBERS, options, tuple(questions))

    def score_model(self, model: DualEncoder, encoded: Encoded, row: torch.Tensor, context: Context) -> TaskResult:
        """Exact match, and VQA's accuracy where the questions have answers enough."""
        said = self.responses(model, context, self.given["max_new_tokens"])
        kept = _kept(self, said)
        questions = [self.questions[i] for i in kept]
        outcomes = vqa_outcomes([said[i] or "" for i in kept], [question.answers for question in questions])
        fewest = min(len(question.answers) for question in questions)
        protocol = {
            "split": split_of(self.data.spec),
            "samples": len(kept),
            "left_out": len(said) - len(kept),
            "answers_per_question": fewest,
            "vqa_accuracy": "min(matches / 3, 1)" if fewest >= FEWEST else f"not taken: below {FEWEST} answers",
            "prompt": self.given["prompt"],
            "max_new_tokens": self.given["max_new_tokens"],
            **self.told(),
            "examples": digest([[q.id, q.picture.name, q.text, *q.answers] for q in questions]),
        }
        clusters = Numbers()(self.apart).numpy()[kept]
        metrics = {name: context.metric(name, values, clusters=clusters) for name, values in outcomes.items()}
        return TaskResult(self.name, self.data.spec, protocol, metrics)

    @property
    def apart(self) -> list[str]:
        """The picture of each question."""
        return real_paths(self.data.paths)

    def facts(self) -> list[Any]:
        """The questions and what people said."""
        return [*super().facts(), [[question.id, *question.answers] for question in self.questions]]


@dataclass(frozen=True)
class Mmvp(Asked):
    """Pairs of questions about pairs of pictures, or a file of answers to them."""

    name: ClassVar[str] = "mmvp"
    options: ClassVar[Mapping[str, Option]] = {
        **MODEL,
        "max_new_tokens": Option(64, whole(1), "a whole number ≥ 1"),
    }

    questions: tuple[mmvp.Question, ...]

    @classmethod
    def read(cls, reading: Reading, spec: str, options: Mapping[str, Any]) -> Mmvp:
        """MMVP's folder, where a LLaVA is named, else a table of answers."""
        load: Callable[..., list[mmvp.Question]] = mmvp.mmvp_questions if options["llava"] else mmvp.mmvp_answers
        questions = load(spec, max_bad=reading.max_bad)
        rows = tuple(PairRow(q.picture, (q.text,), q.where) for q in questions if q.picture is not None)
        return cls(Pairs(spec, rows), NO_NUMBERS, options, tuple(questions))

    @property
    def answered(self) -> bool:
        """Where no LLaVA is named."""
        return not self.given["llava"]

    def score_model(self, model: DualEncoder, encoded: Encoded, row: torch.Tensor, context: Context) -> TaskResult:
        """Pairs with both answers right, and single answers."""
        asked = bool(self.given["llava"])
        said: list[str | None] = [q.response for q in self.questions]
        if asked:
            said = self.responses(model, context, self.given["max_new_tokens"])
        kept = [i for i in _kept(self, said) if said[i ^ 1] is not None]
        questions = [self.questions[i] for i in kept]
        if not questions:
            raise DataError(f"{self.data.spec}: no pair of pictures can be read; check the files")
        right, pairs = mmvp.mmvp_outcomes(questions, [said[i] or "" for i in kept])
        protocol = {
            "split": split_of(self.data.spec),
            "pairs": len(pairs),
            "left_out": (len(said) - len(kept)) // 2,
            "judged_by": mmvp.RULE,
            **(
                {**self.told(), "max_new_tokens": self.given["max_new_tokens"]}
                if asked
                else {"responses": "the file's"}
            ),
            "examples": digest([[q.number, q.text, q.answer] for q in questions]),
        }
        numbers = np.array(kept) // 2
        metrics = [
            context.metric("pair_accuracy", pairs, clusters=numbers[::2]),
            context.metric("answer_accuracy", right, clusters=numbers),
        ]
        return TaskResult(self.name, self.data.spec, protocol, {metric.name: metric for metric in metrics})

    @property
    def apart(self) -> list[str]:
        """The pairs: their two pictures are never apart, and a table of answers has none."""
        return [f"MMVP's pair {q.number // 2}" for q in self.questions[1::2]]

    def facts(self) -> list[Any]:
        """Questions, options, right answers and, of a file, the responses."""
        return [*super().facts(), [[q.number, q.text, q.options, q.answer, q.response] for q in self.questions]]


def _content(folder: str) -> str:
    """A hash of what is in a folder's weights, settings and vocabularies, whatever the folder is called."""
    found = []
    for path in sorted(Path(folder).expanduser().glob("*")):
        if path.is_file() and path.suffix in DECIDING:
            with path.open("rb") as file:
                found.append([path.name, hashlib.file_digest(file, "sha256").hexdigest()])
    return digest(found)


def _telling() -> Callable[[int, int], None]:
    """Says every now and then how many questions are answered."""
    last = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last > TOLD_SECONDS:
            last = time.monotonic()
            logger.info("answered %d of %d questions", done, total)

    return tell


def _need_llava(kind: str, spec: str, options: Mapping[str, Any]) -> None:
    if not options["llava"]:
        raise RecipeError(f"task {kind} needs a language model: add --llava DIR, or write {kind}[llava=DIR]:{spec}")


def _kept(task: Asked, said: Sequence[str | None]) -> list[int]:
    kept = [i for i, answer in enumerate(said) if answer is not None]
    if not kept:
        raise DataError(f"{task.data.spec}: none of its {len(said):,} pictures can be read; check the files")
    return kept
