from __future__ import annotations

from pathlib import Path

import pytest

from modalign.errors import DataError
from modalign.evaluation.prompts import read_prompts


def test_single_is_the_papers_prompt_without_a_full_stop() -> None:
    assert read_prompts("single")("hot dog") == ["a photo of hot dog"]


def test_openai80_are_open_clips() -> None:
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    prompts = read_prompts("openai80")("hot dog")
    assert len(prompts) == 80
    assert prompts == [template("hot dog") for template in OPENAI_IMAGENET_TEMPLATES]


def test_a_file_may_use_either_placeholder_and_blank_lines(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_bytes("\ufeffa drawing of {}.\r\n\r\n  {class}, sketched \n".encode())
    prompts = read_prompts(str(file))
    # A class name that itself looks like a placeholder is inserted as it is.
    assert prompts("{class} {}") == ["a drawing of {class} {}.", "{class} {}, sketched"]
    assert prompts.name == "mine.txt"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no template in it"),
        (b"\n \n", "no template in it"),
        (b"a photo of {}\na photo\n", r"mine.txt:2: 'a photo' holds 0 placeholders"),
        (b"\n{} and {class}\n", r"mine.txt:2: .* holds 2 placeholders"),
        (b"a {} of {}", r"mine.txt:1: .* holds 2 placeholders"),
        (b"\xff\xfe\xfa {}", "is not UTF-8 text"),
    ],
)
def test_bad_files_are_named_with_their_line(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "mine.txt"
    file.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_prompts(str(file))
    assert "\n" not in str(caught.value)


def test_an_unknown_name_tells_what_there_is() -> None:
    with pytest.raises(DataError, match="'openai79': neither single nor openai80"):
        read_prompts("openai79")
