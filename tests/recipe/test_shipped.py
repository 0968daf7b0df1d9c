"""Recipes that ship, run to the end on a tiny model of their family, made by the family's own library."""

from __future__ import annotations

import itertools
import json
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml

import modalign
from modalign import methods, recipe
from tests import tiny, tiny_vision


def test_clip_refine_siglip(tmp_path: Path) -> None:
    """The recipe's own text, with another model, data, and size; the published settings but for unit features."""
    text = recipe.shipped()["clip-refine-siglip"].read_text(encoding="utf-8")
    assert text.startswith("# modalign refine --recipe clip-refine-siglip --out runs/clip-refine-siglip\n")
    assert "Not published" in text
    shipped, published = recipe.load("clip-refine-siglip"), recipe.load("clip-refine-vit-b-16")
    assert shipped.model == "hf:google/siglip-base-patch16-224"
    assert methods.from_config(shipped.method) == methods.ClipRefine(features="unit")
    rest = {"model", "method"}
    assert shipped.model_dump(exclude=rest) == published.model_dump(exclude=rest)

    data = tiny.write_pairs(tmp_path / "pairs", n=80)
    run = modalign.refine(
        tiny.tiny_hf_siglip(tmp_path / "model"),
        data,
        out=tmp_path / "run",
        recipe="clip-refine-siglip",
        data__batch_size=8,
        data__validation=0.3,
        evaluation__tasks=[f"retrieval:{data}"],
        evaluation__resamples=200,
        silent=True,
    )
    steps = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    first = next(step for step in steps if "terms" in step)
    assert set(first["terms"]) == {"rafa", "hycd"}
    assert abs(first["effective_logit_scale"] - 30.0) < 1e-4  # the model's own logit scale
    resolved = yaml.safe_load((run.folder / "recipe.yaml").read_text())
    assert resolved["method"]["features"] == "unit" and resolved["optimizer"]["lr"] == 1e-6
    assert run.gate is not None and run.report.is_file()
    initial = modalign.load(tmp_path / "model")
    assert (run.model.logit_scale, run.model.logit_bias) == (initial.logit_scale, initial.logit_bias)
    assert run.model.fingerprint != initial.fingerprint


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("clip-refine-rn50", tiny.tiny_rn50),
        ("clip-refine-vit-b-32", tiny.tiny_meta_clip),
        ("clip-refine-vit-b-16", tiny.tiny_meta_clip),
        ("clip-refine-vit-l-14", tiny.tiny_meta_clip),
    ],
)
def test_clip_refine_on_openais_towers(name: str, model: Callable[[Path], str], tmp_path: Path) -> None:
    """Another model of the same kind (QuickGELU; ViT or ModifiedResNet), other data and sizes; all else as shipped."""
    text = recipe.shipped()[name].read_text(encoding="utf-8")
    assert text.startswith(f"# modalign refine --recipe {name} --out runs/{name}\n")
    shipped = recipe.load(name)
    architecture = {"rn50": "RN50", "vit-b-32": "ViT-B-32", "vit-b-16": "ViT-B-16", "vit-l-14": "ViT-L-14"}
    assert shipped.model == f"open_clip:{architecture[name.removeprefix('clip-refine-')]}-quickgelu/openai"
    rest = {"model"}
    assert shipped.model_dump(exclude=rest) == recipe.load("clip-refine-vit-b-16").model_dump(exclude=rest)
    assert ("Not published" in text) == (name == "clip-refine-rn50")

    data = tiny.write_pairs(tmp_path / "pairs", n=16)
    run = modalign.refine(
        model(tmp_path / "model"),
        data,
        out=tmp_path / "run",
        recipe=name,
        data__batch_size=5,
        data__validation=0.0,
        evaluation__tasks=[],
        silent=True,
    )
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "terms" in line]
    assert len(steps) == 3 and all(set(step["terms"]) == {"rafa", "hycd"} for step in steps)  # drop_last
    resolved = yaml.safe_load((run.folder / "recipe.yaml").read_text())
    assert resolved["optimizer"]["lr"] == 1e-6 and resolved["train"] == "full"
    before, after = modalign.load(tmp_path / "model").module, run.model.module
    buffers = dict(after.named_buffers())
    assert all(torch.equal(buffers[key], value) for key, value in before.named_buffers())  # BatchNorm's statistics
    moved = [key for key, value in before.named_parameters() if not torch.equal(after.get_parameter(key), value)]
    assert len(moved) > 0.9 * len(list(before.named_parameters()))


@pytest.mark.parametrize(
    ("name", "model", "target"),
    [
        ("kuea-vit-b-16", tiny.tiny_meta_clip, partial(tiny_vision.tiny_dinov2, registers=True)),
        ("kuea-vit-l-14", tiny.tiny_meta_clip, partial(tiny_vision.tiny_dinov2, registers=True)),
        ("kuea-vit-l-14-336", tiny.tiny_meta_clip, partial(tiny_vision.tiny_dinov2, registers=True)),
        ("kuea-siglip", tiny.tiny_open_clip_siglip, partial(tiny_vision.tiny_dinov2, registers=True)),
        ("kuea-dfn", tiny.tiny_meta_clip, partial(tiny_vision.tiny_dinov2, registers=True)),
        ("kuea-metaclip", tiny.tiny_meta_clip, partial(tiny_vision.tiny_dinov2, registers=True)),
        ("kuea-mlcd", tiny.tiny_meta_clip, tiny_vision.tiny_mlcd),
    ],
)
def test_kuea(name: str, model: Callable[[Path], str], target: Callable[[Path], str], tmp_path: Path) -> None:
    """A student and a target of the recipe's families, other pictures and sizes; all else as shipped."""
    text = recipe.shipped()[name].read_text(encoding="utf-8")
    assert text.startswith(f"# modalign refine --recipe {name} --out runs/{name}\n")
    shipped = recipe.load(name)
    strength, batch, epochs, warmup = {
        "kuea-vit-b-16": (0.5, 128, 2, 1400),
        "kuea-vit-l-14-336": (1.0, 32, 4, 5600),
    }.get(name, (0.5, 64, 2, 2800))
    method = methods.from_config(shipped.method)
    assert isinstance(method, methods.Kuea)
    assert (method.kernel_weight, method.estimator, method.learn_kernel) == (strength, "v", False)
    assert (shipped.data.batch_size, shipped.epochs, shipped.schedule.warmup_steps) == (batch, epochs, warmup)
    assert (shipped.optimizer.lr, shipped.optimizer.weight_decay, shipped.schedule.name) == (1e-5, 1e-4, "cosine")

    run = modalign.refine(
        model(tmp_path / "model"),
        f"images:{tiny.write_pairs(tmp_path / 'pairs', n=12)}",
        out=tmp_path / "run",
        recipe=name,
        target=target(tmp_path / "target"),
        data__batch_size=5,
        schedule__warmup_steps=2,
        silent=True,
    )
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2 * epochs and set(lines[0]["terms"]) == {"anchor", "kernel"}
    assert lines[0]["lr"] == 1e-5  # the published first update, at the full rate
    before, after = modalign.load(tmp_path / "model"), run.model
    state = after.module.state_dict()
    moved = {
        before.tower_of(key) for key, value in before.module.state_dict().items() if not torch.equal(state[key], value)
    }
    assert moved == {"image"}


@pytest.mark.parametrize(
    ("name", "terms"),
    [
        ("tpc-cma", {"contrastive", "centroid", "distribution", "geometry"}),
        ("tpc-cma-article", {"contrastive", "centroid", "divergence"}),
    ],
)
def test_tpc_cma(name: str, terms: set[str], tmp_path: Path) -> None:
    """Both forms on a tiny ViT of the family, other pairs and sizes; all else as shipped."""
    text = recipe.shipped()[name].read_text(encoding="utf-8")
    assert text.startswith(f"# modalign refine --recipe {name} --out runs/{name}\n")
    assert "reconstruction" in text
    shipped = recipe.load(name)
    method = methods.from_config(shipped.method)
    assert isinstance(method, methods.TpcCma) and method.alpha_target == 0.05
    assert (shipped.optimizer.clip_norm, shipped.data.batch_size) == (1.0, 512)

    run = modalign.refine(
        tiny.tiny_meta_clip(tmp_path / "model"),
        tiny.write_pairs(tmp_path / "pairs", n=80),
        out=tmp_path / "run",
        recipe=name,
        data__batch_size=8,
        data__validation=0.0,
        evaluation__tasks=[],
        silent=True,
    )
    steps = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert len(steps) == 10 and set(steps[0]["terms"]) == {"contrastive"} and set(steps[-1]["terms"]) == terms
    assert [step["curriculum"]["planned"] for step in steps[:2]] == [0, 0]
    assert 0 < steps[-1]["curriculum"]["alpha"] <= 0.05
    assert ("learning_rates" in steps[-1]["curriculum"]) == (name == "tpc-cma-article")


def test_every_ablation_names_its_command_and_sweeps_what_its_recipe_has() -> None:
    from modalign.sweeping.plan import parse_axes

    found = {name: path for name, path in recipe.shipped().items() if name.startswith("ablations/")}
    assert len(found) == 10
    for name, path in found.items():
        words = shlex.split(path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# "))
        assert words[:4] == ["modalign", "sweep", "--recipe", name]
        over = [after for word, after in itertools.pairwise(words) if word == "--over"]
        for axis in parse_axes(over):
            for value in axis.values:
                resolved = recipe.load(name, [f"{axis.key}={json.dumps(value)}"])
                assert methods.from_config(resolved.method).name == methods.from_config(recipe.load(name).method).name
