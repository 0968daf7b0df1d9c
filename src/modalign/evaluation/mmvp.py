"""MMVP-VLM, 135 pairs of pictures that CLIP confuses, and MMVP, 150 pairs of questions to a language model.

Published layouts (docs/pair-files.md):

    MMVP_VLM/Questions.csv                       Question ID, Type, Statement: two rows a pair
    MMVP_VLM/MLLM_VLM Images/<Type>/<ID>.jpg
    MMVP/Questions.csv                           Index, Question, Options, Correct Answer: two rows a pair
    MMVP/MMVP Images/<Index>.jpg

Source: arXiv 2401.06209 ("Eyes Wide Shut?"), sections 2 and 3, and the data sets MMVP_VLM and MMVP on the hub.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modalign.data.bad_rows import Complaint, refuse_above
from modalign.data.files import FileIndex
from modalign.data.named_pictures import Table
from modalign.data.records import PairRow
from modalign.data.tables import Row, read_table
from modalign.errors import DataError
from modalign.evaluation.contrast_files import Contrasts, contrasts

PROMPT = "a photo of {}"
VLM_IMAGES = ("MLLM_VLM Images", "images", ".")
MMVP_IMAGES = ("MMVP Images", "MMVP Imgaes", "images", ".")  # the second as the published script spells it
VLM_COLUMNS = ("Question ID", "Type", "Statement")
RULE = "the first option letter, (a) or a, of the response; else the option whose text is the response; else wrong"
_LETTER = re.compile(r"\(([a-z])\)|(?<![a-z'])([a-z])(?=[).:]|$)", re.IGNORECASE)
_OPTION = re.compile(r"\(([a-z])\)\s*([^(]*)", re.IGNORECASE)


def mmvp_vlm(spec: str, *, max_bad: int | None = 0) -> Contrasts:
    """Reads MMVP-VLM's folder; each statement becomes "a photo of …", as in the published evaluation.

    Args:
        spec: the folder with Questions.csv, or a csv of these columns with its pictures beside it.
        max_bad: pairs that may be bad; each is left out whole.

    Raises:
        DataError: no such file or column, rows that do not come in pairs of one type, or more bad pairs than allowed.
    """
    path = _questions(spec)
    bad: list[Complaint] = []
    read = _rows(path, VLM_COLUMNS, bad)
    index = FileIndex()
    rows: list[PairRow] = []
    groups: list[str] = []
    for first, second in _two(path, read, bad):
        kinds = [str(cells[1] or "").strip() for _, cells in (first, second)]
        said = [PROMPT.format(str(cells[2] or "").strip()) for _, cells in (first, second)]
        found = [
            _picture(path, [f"{folder}/{kind}" for folder in VLM_IMAGES], cells[0], index)
            for kind, (_, cells) in zip(kinds, (first, second), strict=True)
        ]
        reasons = [reason for _, reason in found if reason]
        reasons += ["no statement"] * any(not cells[2] for _, cells in (first, second))
        reasons += [f"a pair of two types, {kinds[0]!r} and {kinds[1]!r}"] * (kinds[0] != kinds[1])
        if reasons:
            bad.append(Complaint(first[0], "; ".join(reasons)))
            continue
        for (picture, _), (where, _), texts in zip(found, (first, second), (said, said[::-1]), strict=True):
            rows.append(PairRow(picture, tuple(texts), where))
        groups.append(kinds[0])
    return contrasts(spec, rows, groups, 2, bad, max_bad)


@dataclass(frozen=True)
class Question:
    """One multiple-choice question of MMVP.

    Attributes:
        number: its index; 2k−1 and 2k are a pair.
        picture: the file, None in a file of answers.
        text: question and options, as it is put.
        options: "(a) … (b) …", may be empty in a file of answers.
        answer: the right option, such as "(a)".
        response: what the model said, "" before it was asked.
        where: where it was read.
    """

    number: int
    picture: Any
    text: str
    options: str
    answer: str
    response: str
    where: str


def mmvp_questions(spec: str, *, max_bad: int | None = 0) -> list[Question]:
    """Reads MMVP's folder: the questions that a language model is asked.

    Raises:
        DataError: no such file or column, or more bad rows than allowed.
    """
    path = _questions(spec)
    bad: list[Complaint] = []
    index = FileIndex()
    questions: list[Question] = []
    for where, cells in _rows(path, ("Index", "Question", "Options", "Correct Answer"), bad):
        picture, reason = _picture(path, MMVP_IMAGES, cells[0], index)
        texts = [str(cell or "").strip() for cell in cells]
        reason = reason or ("" if all(texts) else "an empty cell")
        if reason:
            bad.append(Complaint(where, reason))
            continue
        number, text, options, answer = texts
        questions.append(Question(int(number), picture, f"{text} {options}", options, answer, "", where))
    refuse_above(max_bad, bad, len(questions) + len(bad), f"rows of {spec} cannot be used")
    return _paired(spec, questions)


def mmvp_answers(spec: str, *, max_bad: int | None = 0) -> list[Question]:
    """Reads a table of answers: `question_id`, `answer` (the right one) and `response`; `prompt` or `options` if any.

    Raises:
        DataError: no such file or column, a pair with one answer, or more bad rows than allowed.
    """
    path = Path(spec).expanduser().absolute()
    if not path.is_file():
        raise DataError(f"{spec}: no such file; name a jsonl of answers, or MMVP's folder with --llava")
    bad: list[Complaint] = []
    more: list[str] = []

    def pick(header: Sequence[str]) -> list[str]:
        more[:] = [name for name in ("options", "prompt") if name in header][:1]
        return [*_needed(("question_id", "answer", "response"), header, path), *more]

    questions: list[Question] = []
    for where, cells in read_table(path, path.name, pick, bad):
        number, answer, response = cells[:3]
        if not str(number).isdecimal() or not isinstance(answer, str) or not isinstance(response, str):
            bad.append(Complaint(where, "question_id must be a whole number, answer and response texts"))
            continue
        options = cells[3] if more and isinstance(cells[3], str) else ""
        questions.append(Question(int(number), None, "", options, answer, response, where))
    refuse_above(max_bad, bad, len(questions) + len(bad), f"rows of {spec} cannot be used")
    return _paired(spec, questions)


def mmvp_outcomes(questions: Sequence[Question], responses: Sequence[str]) -> tuple[NDArray[np.float64], ...]:
    """Whether each answer is right, and whether both of each pair are.

    Args:
        questions: 2P, pairs side by side.
        responses: 2P texts.

    Returns:
        2P and P zeros and ones.

    Source: arXiv 2401.06209, section 3 (a pair counts when both are right); there a language model read the responses,
    here a rule does (`RULE`).
    """
    right = np.array([_is_right(q, response) for q, response in zip(questions, responses, strict=True)], np.float64)
    return right, right.reshape(-1, 2).min(axis=1)


def letter_of(response: str, options: str = "") -> str:
    """The option that a response names, "a", "b", …; "" where it names none."""
    told = response.strip()
    if found := _LETTER.search(told):
        return str(found[1] or found[2]).lower()
    plain = told.rstrip(" .").casefold()
    for letter, text in _OPTION.findall(options):
        if plain and plain == text.strip(" .,;").casefold():
            return str(letter).lower()
    return ""


def _is_right(question: Question, response: str) -> bool:
    wanted = letter_of(question.answer, question.options)
    return bool(wanted) and letter_of(response, question.options) == wanted


def _paired(spec: str, questions: list[Question]) -> list[Question]:
    """Sorted by number, every pair whole."""
    known: dict[int, Question] = {}
    for question in questions:
        if question.number in known:
            raise DataError(f"{question.where}: question {question.number} is there twice; keep one")
        known[question.number] = question
    for number, question in known.items():
        other = number + 1 if number % 2 else number - 1
        if other not in known:
            raise DataError(f"{question.where}: question {number} has no partner {other}; add it, or drop this one")
    if not known:
        raise DataError(f"{spec} holds no question; check its content")
    return [known[number] for number in sorted(known)]


def _questions(spec: str) -> Path:
    path = Path(spec).expanduser().absolute()
    path = path / "Questions.csv" if path.is_dir() else path
    if not path.is_file():
        raise DataError(f"{spec}: no such file {path}; name the folder that holds Questions.csv")
    return path


def _rows(path: Path, columns: Sequence[str], bad: list[Complaint]) -> list[Row]:
    return read_table(path, path.name, lambda header: _needed(columns, header, path), bad)


def _needed(columns: Sequence[str], header: Sequence[str], path: Path) -> list[str]:
    """The header's own spelling of the columns: case, spaces and underscores aside.

    MMVP-VLM's published script reads its three columns by their place, whatever they are called.
    """
    if columns is VLM_COLUMNS and len(header) == len(columns):
        return list(header)
    plain = {_plain(name): name for name in header}
    for name in columns:
        if _plain(name) not in plain:
            raise DataError(f"{path} has no column {name!r} (it has {', '.join(header)}); is it the right file?")
    return [plain[_plain(name)] for name in columns]


def _plain(name: str) -> str:
    return re.sub(r"[\s_]", "", name.lower())


def _two(path: Path, rows: Sequence[Row], bad: Sequence[Complaint]) -> list[tuple[Row, Row]]:
    """Row 2k with row 2k + 1, once it is sure that they belong together."""
    if bad or len(rows) % 2:
        where = f": {bad[0]}" if bad else f"; it ends at {rows[-1][0]}"
        raise DataError(f"{path} does not hold two rows a pair ({len(rows)} rows{where}); download it again")
    return list(zip(rows[::2], rows[1::2], strict=True))


def _picture(path: Path, folders: Sequence[str], number: Any, index: FileIndex) -> tuple[Any, str]:
    if not str(number).strip().isdecimal():
        return None, f"{number!r:.40} is no number of a picture"
    table = Table(path, path.name, tuple(path.parent / folder for folder in folders))
    for suffix in (".jpg", ".png"):
        found, _ = table.locate(f"{int(str(number))}{suffix}", index)
        if found is not None:
            return found, ""
    return None, f"no such file {folders[0]}/{number}.jpg"
