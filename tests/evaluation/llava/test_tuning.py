"""LoRA tuning of a tiny LLaVA, and the 2×2 table, on conversations it can learn."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import modalign
from modalign.errors import DataError, RecipeError
from modalign.evaluation.llava import tuning
from modalign.evaluation.llava.answering import answers
from modalign.evaluation.llava.assembling import Assembled, Parts, assemble
from modalign.evaluation.llava.conversations import read_conversations, tokenized
from modalign.evaluation.llava.recipe import LlavaRecipe, TuneRecipe, load_recipes
from modalign.evaluation.llava.table import run_rows, table
from tests import tiny

SHIPPED = Path(__file__).parents[3] / "recipes" / "llava-2x2"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA, a CLIP with its tower's shape, and conversations whose one answer is "ok", some without a picture."""
    root = tmp_path_factory.mktemp("tuning")
    tiny.tiny_llava(root / "llava")
    tiny.tiny_hf_clip(root / "clip")
    tiny.tiny_hf_clip(root / "refined", seed=3)
    (root / "images").mkdir()
    talks: list[dict[str, Any]] = []
    for i in range(12):
        Image.new("RGB", (32, 32), (20 * i, 40, 90)).save(root / "images" / f"{i}.png")
        said = [{"from": "human", "value": f"<image>\nWhat {i}?"}, {"from": "gpt", "value": "ok"}]
        talks.append({"id": str(i), "image": f"{i}.png", "conversations": said})
    more = [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "ok"}] * 2
    talks.append({"id": "text", "conversations": more})
    (root / "talks.json").write_text(json.dumps(talks))
    rows = [{"image": f"../images/{i}.png", "question": f"What {i}?", "answer": "ok"} for i in range(4)]
    (root / "ask").mkdir()
    (root / "ask" / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def _settings(place: Path, **more: Any) -> TuneRecipe:
    given = {"data": str(place / "talks.json"), "images": str(place / "images"), "precision": "fp32", "max_length": 128}
    return TuneRecipe(**{**given, "rank": 4, "alpha": 8, "lr": 0.02, "batch_size": 5, "epochs": 1, **more})


def _assembled(place: Path) -> Assembled:
    return assemble(Parts(str(place / "llava")), modalign.load(f"hf:{place / 'clip'}"))


def test_only_answers_are_learnt(place: Path) -> None:
    """The labels, decoded, are the assistant's words and their end; everything else is left out."""
    prompting = _assembled(place).prompting
    talks = read_conversations(str(place / "talks.json"), str(place / "images"))
    ids, labels = tokenized(talks[0], prompting, 512)
    whole = prompting.tokenizer.decode(ids)
    assert whole == f"USER: {'<image>' * 16}\nWhat 0? ASSISTANT: ok</s>"
    assert prompting.tokenizer.decode(labels[labels >= 0]) == " ok</s>"
    ids, labels = tokenized(talks[-1], prompting, 512)
    assert prompting.tokenizer.decode(labels[labels >= 0]) == " ok</s> ok</s>"
    with pytest.raises(DataError, match="leaves no room"):
        tokenized(talks[0], prompting, 20)


def test_broken_conversations_are_named(tmp_path: Path) -> None:
    talks = [
        {"conversations": [{"from": "gpt", "value": "x"}]},
        {
            "image": "gone.png",
            "conversations": [{"from": "human", "value": "<image> a"}, {"from": "gpt", "value": "b"}],
        },
        {"conversations": [{"from": "human", "value": "<image> a"}, {"from": "gpt", "value": "b"}]},
    ]
    (tmp_path / "t.json").write_text(json.dumps(talks))
    with pytest.raises(
        DataError, match=r"entry 0: human and gpt .*; t.json: entry 1: no such file .*entry 2: 1 <image> where 0"
    ):
        read_conversations(str(tmp_path / "t.json"), str(tmp_path))


def test_pieces_of_a_batch_add_up_to_its_gradient(place: Path, tmp_path: Path) -> None:
    """Two conversations at once or all: the same losses and weights, to rounding; and the image tower never moves."""
    found = []
    for micro in (2, 13):
        llava = _assembled(place)
        tower = {name: tensor.clone() for name, tensor in llava.module.model.vision_tower.state_dict().items()}
        settings = _settings(place, batch_size=13, micro_batch=micro, dropout=0.0, lr=1e-3)
        losses = tuning.tune(llava, settings, tmp_path / str(micro))
        found.append(losses)
        assert all(torch.equal(t, tower[n]) for n, t in llava.module.model.vision_tower.state_dict().items())
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_tuning_is_learnt_kept_and_resumed(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it was taught is what it says, from the folder alone; cut off, it ends with the same weights."""
    from safetensors.torch import load_file

    settings = _settings(place, epochs=12)
    losses = tuning.tune(_assembled(place), settings, tmp_path / "whole", seed=1)
    assert losses[-1] < 0.1 * losses[0]
    llava = assemble(
        Parts(str(place / "llava"), adapter=str(tmp_path / "whole")), modalign.load(f"hf:{place / 'clip'}")
    )
    pictures = [place / "images" / f"{i}.png" for i in range(3)]
    said = answers(llava, pictures, ["x"] * 3, ["What 1?"] * 3, max_new_tokens=4, folder=tmp_path / "said")
    assert said == ["ok"] * 3

    class Killed(Exception):  # noqa: N818 — no error
        pass

    real, calls = tuning._step, []

    def killed(*given: Any) -> float:
        calls.append(1)
        if len(calls) > 20:
            raise Killed
        return real(*given)

    monkeypatch.setattr(tuning, "EVERY", 7)
    monkeypatch.setattr(tuning, "_step", killed)
    with pytest.raises(Killed):
        tuning.tune(_assembled(place), settings, tmp_path / "cut", seed=1)
    monkeypatch.setattr(tuning, "_step", real)
    assert tuning.tune(_assembled(place), settings, tmp_path / "cut", seed=1) == losses
    for name in ("adapter_model.safetensors", "projector.safetensors"):
        whole, cut = (load_file(tmp_path / run / name) for run in ("whole", "cut"))
        assert whole.keys() == cut.keys() and all(torch.equal(whole[key], cut[key]) for key in whole)


def test_shipped_rows_share_data_seed_and_settings() -> None:
    """The four differ in the tower and in whether they are tuned, and in nothing else; settings as published."""
    recipes = load_recipes(SHIPPED)
    assert list(recipes) == ["baseline", "align", "peft", "both", "additive-mof"]
    base, align, peft, both, mixed = recipes.values()
    assert base.tune is None and align.tune is None and peft.tune == both.tune == mixed.tune
    assert base.model == peft.model == mixed.model and align.model == both.model == "runs/kuea-vit-l-14-336"
    shared = {(r.llava, tuple(r.tasks), r.seed) for r in recipes.values()}
    assert len(shared) == 1 and mixed.mix is not None and all(r.mix is None for r in (base, align, peft, both))
    tune = both.tune
    assert tune is not None
    assert (tune.rank, tune.alpha, tune.lr, tune.batch_size, tune.epochs) == (128, 256, 2e-4, 128, 1)
    assert (tune.weight_decay, tune.precision) == (0, "bf16")
    for file in SHIPPED.glob("*.yaml"):
        assert re.match(r"# modalign llava recipes/llava-2x2", file.read_text())


@pytest.mark.slow
def test_the_two_by_two_to_its_table(place: Path, tmp_path: Path) -> None:
    """The shipped recipes' own four rows on a tiny LLaVA; a second call reads what the first one finished."""
    tune = {**_settings(place, epochs=12).model_dump()}
    models = {"baseline": "clip", "align": "refined", "peft": "clip", "both": "refined"}
    recipes = {
        name: LlavaRecipe(
            llava=str(place / "llava"),
            model=f"hf:{place / models[name]}",
            tune=recipe.tune and TuneRecipe(**tune),
            tasks=[f"vqa[max_new_tokens=4]:{place / 'ask' / 'q.jsonl'}"],
        )
        for name, recipe in load_recipes(SHIPPED).items()
        if name in models
    }
    results = run_rows(recipes, tmp_path / "rows")
    told = table(results)
    assert [line.split("|")[1].strip() for line in told.splitlines()[2:6]] == list(models)
    assert results["baseline"].metrics["vqa.exact_match"].value == 0
    assert results["peft"].metrics["vqa.exact_match"].value == results["both"].metrics["vqa.exact_match"].value == 1
    assert re.search(r"\| both \| 100.00 \(\+100.00 \[", told)
    (tmp_path / "rows" / "both" / "adapter" / "adapter_config.json").unlink()  # no longer needed
    assert table(run_rows(recipes, tmp_path / "rows")) == told
    with pytest.raises(RecipeError, match="begun with another recipe"):
        run_rows({"both": recipes["both"].model_copy(update={"seed": 5})}, tmp_path / "rows")


def test_recipes_are_checked(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("llava: a\nmodel: b\ntune: {data: c, images: d, rnak: 3}\ntasks: []\n")
    with pytest.raises(RecipeError, match=r"x.yaml: tune.rnak: .*x.yaml: tasks:"):
        load_recipes(tmp_path)
    assert load_recipes(SHIPPED / "both.yaml", ["tune.rank=8", "llava=x"])["both"].tune.rank == 8  # type: ignore[union-attr]
