"""Questions about pictures, with the answers people gave: a table a row a question.

    {"question_id": 1, "image": "COCO_val2014_1.jpg", "question": "What is on the table?", "answers": ["cup", …]}

`answer` may stand in place of `answers`; VQAv2's own objects ({"answer": "cup", …}) are taken in the list.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modalign.data.bad_rows import Complaint, refuse_above
from modalign.data.captions import is_missing
from modalign.data.files import FileIndex
from modalign.data.named_pictures import Table
from modalign.data.pictures import Picture
from modalign.data.tables import TABLE_READERS, read_table
from modalign.errors import DataError

PICTURE, ANSWERS = ("image", "file_name", "image_path"), ("answers", "answer")


@dataclass(frozen=True)
class VqaQuestion:
    """One question.

    Attributes:
        id: of the file, else the row's place.
        picture: what it is about.
        text: as written.
        answers: at least one.
        where: the file and line.
    """

    id: str
    picture: Picture
    text: str
    answers: tuple[str, ...]
    where: str


def read_questions(spec: str, *, images: str = "", max_bad: int | None = 0) -> list[VqaQuestion]:
    """Reads a csv, jsonl or parquet file of questions.

    Args:
        spec: the file; columns `image`, `question`, `answers` or `answer`, and `question_id` if there is one.
        images: the pictures' folder; "" = beside the file, or `images/` there.
        max_bad: rows that may be bad; each is left out.

    Raises:
        DataError: no such file or column, an id twice, or more bad rows than allowed; names the first ten.
    """
    path = Path(spec).expanduser().absolute()
    if not path.is_file():
        raise DataError(f"{spec}: no such file; name a table of questions ({', '.join(TABLE_READERS)})")
    bases = [Path(images).expanduser().absolute()] if images else [path.parent, path.parent / "images"]
    if images and not bases[0].is_dir():
        raise DataError(f"images={images} is no folder; name the one that holds the pictures")
    table, index = Table(path, path.name, tuple(bases)), FileIndex()
    numbered: list[bool] = []

    def pick(header: Sequence[str]) -> list[str]:
        found = [next((name for name in names if name in header), "") for names in (PICTURE, ("question",), ANSWERS)]
        for name, names in zip(found, (PICTURE, ("question",), ANSWERS), strict=True):
            if not name:
                raise DataError(f"{path} has no column {' or '.join(map(repr, names))}; it has {', '.join(header)}")
        numbered.append("question_id" in header)
        return [*found, *(["question_id"] if numbered[0] else [])]

    bad: list[Complaint] = []
    questions: dict[str, VqaQuestion] = {}
    for place, (where, cells) in enumerate(read_table(path, path.name, pick, bad)):
        picture, reason = table.locate(cells[0], index)
        answers = _answers(cells[2])
        reasons = [reason] * bool(reason)
        reasons += ["no question"] * (not isinstance(cells[1], str) or is_missing(cells[1]))
        reasons += ["no answer, or one that is not a text"] * (not answers)
        identity = str(cells[3]) if numbered[0] and not is_missing(cells[3]) else str(place)
        if identity in questions:
            raise DataError(f"{where}: question_id {identity} is there twice, first at {questions[identity].where}")
        if reasons or picture is None:
            bad.append(Complaint(where, "; ".join(reasons)))
        else:
            questions[identity] = VqaQuestion(identity, picture, cells[1].strip(), answers, where)
    refuse_above(max_bad, bad, len(questions) + len(bad), f"rows of {spec} cannot be used")
    if not questions:
        raise DataError(f"{spec} holds no question; check its content")
    return list(questions.values())


def _answers(cell: Any) -> tuple[str, ...]:
    """The answers of a cell; none where one of them is not a text."""
    items = cell if isinstance(cell, list) else [cell]
    texts = [item.get("answer") if isinstance(item, dict) else item for item in items]
    texts = [str(text) if isinstance(text, int) and not isinstance(text, bool) else text for text in texts]
    said = tuple(text for text in texts if isinstance(text, str) and text.strip())
    return said if len(said) == len(texts) else ()
