"""`--llava DIR` on the command line: which tasks it reaches, and what is said where it reaches none."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import modalign
from modalign.cli import app
from modalign.cli.llava import with_llava
from modalign.errors import DataError, RecipeError
from modalign.evaluation.pairing import check_comparable
from tests import tiny


def test_llava_reaches_the_tasks_that_ask() -> None:
    told = with_llava(["vqa[batch=2]:q.jsonl", "retrieval:x", "mmvp:MMVP"], Path("dir"))
    assert told == ["vqa[batch=2,llava=dir]:q.jsonl", "retrieval:x", "mmvp[llava=dir]:MMVP"]
    assert with_llava(["vqa[llava=dir]:q"], Path("dir")) == ["vqa[llava=dir]:q"]
    assert with_llava(["retrieval:x"], None) == ["retrieval:x"]
    with pytest.raises(RecipeError, match="no task asks a language model; add mmvp or vqa"):
        with_llava(["retrieval:x"], Path("dir"))
    with pytest.raises(RecipeError, match="names a LLaVA of its own"):
        with_llava(["vqa[llava=other]:q"], Path("dir"))


def test_evaluate_prints_the_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODALIGN_CACHE", str(tmp_path / "cache"))
    data = Path(tiny.write_pairs(tmp_path / "data", n=2))
    row = {"image": "0000.png", "question": "What?", "answer": "red"}
    (data / "q.jsonl").write_text(json.dumps(row))
    clip, llava = tiny.tiny_hf_clip(tmp_path / "clip"), tiny.tiny_llava(tmp_path / "llava")
    asked = ["evaluate", "--model", clip, "--llava", llava, "--task", f"vqa[max_new_tokens=2]:{data / 'q.jsonl'}"]
    done = CliRunner().invoke(app, [*asked, "--device", "cpu"])
    assert done.exit_code == 0, done.output
    assert "vqa.exact_match" in done.output and "vqa_accuracy" not in done.output
    assert len(list((tmp_path / "cache" / "answers").iterdir())) == 1


def test_another_llava_of_the_same_name_is_not_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODALIGN_CACHE", str(tmp_path / "cache"))
    data = Path(tiny.write_pairs(tmp_path / "data", n=2))
    (data / "q.jsonl").write_text(json.dumps({"image": "0000.png", "question": "What?", "answer": "red"}))
    model, llava = modalign.load(tiny.tiny_hf_clip(tmp_path / "clip")), tmp_path / "llava"
    tiny.tiny_llava(llava)
    task = f"vqa[max_new_tokens=1,llava={llava}]:{data / 'q.jsonl'}"
    before = modalign.evaluate(model, [task], resamples=20)
    for file in llava.iterdir():  # a copy made later is the same LLaVA
        os.utime(file, (0, 0))
    check_comparable(before, modalign.evaluate(model, [task], resamples=20))
    weights = llava / "model.safetensors"
    tensors = load_file(weights)
    name = next(name for name in sorted(tensors) if "language_model" in name)
    tensors[name] = tensors[name] + 1
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(DataError, match="vqa: llava content differs"):
        check_comparable(before, modalign.evaluate(model, [task], resamples=20))
