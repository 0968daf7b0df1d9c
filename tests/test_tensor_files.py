from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from modalign.errors import OutputError
from modalign.tensor_files import write_tensors


@pytest.fixture(params=[0o022, 0o027, 0o077])
def mask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_a_file_is_readable_by_whom_the_umask_says_and_keeps_what_it_was_given(tmp_path: Path, mask: int) -> None:
    wanted = {"a": torch.arange(6.0).view(2, 3).t(), "b": torch.tensor(3)}  # the first lies scattered
    write_tensors(tmp_path / "x.safetensors", wanted, {"format": "pt"})
    assert stat.S_IMODE((tmp_path / "x.safetensors").stat().st_mode) == 0o666 & ~mask
    found = load_file(tmp_path / "x.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items()) and len(found) == 2
    (tmp_path / "x.safetensors").chmod(0o640)
    write_tensors(tmp_path / "x.safetensors", wanted)
    assert stat.S_IMODE((tmp_path / "x.safetensors").stat().st_mode) == 0o640


def test_what_cannot_be_written_is_told_in_a_line(tmp_path: Path) -> None:
    for place in (tmp_path / "nowhere" / "x.safetensors", tmp_path):
        with pytest.raises(OutputError, match="cannot be written") as told:
            write_tensors(place, {"a": torch.zeros(2)})
        assert str(place) in str(told.value) and "\n" not in str(told.value)
