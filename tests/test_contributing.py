"""CONTRIBUTING's example is a method file: it must train as it stands there, without touching anything else."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest

from modalign import methods
from tests.training.test_loop import make, recipe, records
from tests.training.toy import toy_pairs

ROOT = Path(__file__).resolve().parents[1]


def test_the_example_method_trains_as_it_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    file = tmp_path / "gentle_pull.py"
    file.write_text(code)
    specification = importlib.util.spec_from_file_location("gentle_pull", file)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, "gentle_pull", module)
    specification.loader.exec_module(module)
    monkeypatch.setitem(methods.METHODS, "gentle-pull", module.GentlePull)

    pairs = toy_pairs(tmp_path / "pictures")
    for changes in ({}, {"train": "projection"}, {"chunk": 2, "frozen": "live"}):
        name = "-".join(map(str, changes.values())) or "plain"
        loop = make(pairs, tmp_path / name, recipe(method={"name": "gentle-pull", "anchor": 0.5}, **changes))
        loop.run()
        found = records(tmp_path / name)
        assert set(found[0]["terms"]) == {"pull", "anchor"}
        assert found[-1]["terms"]["pull"] < found[0]["terms"]["pull"]
        assert "pull|anchor" in found[0]["boundary"]["cosines"]
