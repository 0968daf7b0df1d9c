from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import modalign
from modalign import methods
from modalign import recipe as recipes
from modalign.embeddings import Embeddings
from modalign.errors import RecipeError
from modalign.models import DualEncoder
from modalign.training import boundary, scope
from modalign.training.lora import Adapters
from tests.tiny import tiny_hf_clip, tiny_open_clip, write_pairs
from tests.training.families import inputs
from tests.training.test_loop import make, records
from tests.training.test_loop import recipe as toy_recipe
from tests.training.toy import ToyEncoder, toy_pairs

Loaded = Callable[[str], DualEncoder]
BERT = "attention.(self|output)"
FAMILIES = {
    "open_clip": None,
    "siglip": None,
    "hf_clip": None,
    "hf_siglip": None,
    "coca": None,
    "timm+bert": BERT,
    "rn50": "attn",
}


def put_in(model: DualEncoder, target: str | None = None, seed: int = 0) -> tuple[scope.Scope, dict[str, Tensor]]:
    """Adapters with random A and B in place, and the weights they stand for, worked out by hand in the model's type."""
    recipe = recipes.load(None, train="lora", lora={"rank": 3, "alpha": 12, "target": target}, seed=seed)
    chosen = scope.choose(model, methods.from_config({"name": "contrastive"}), recipe)
    base = {name: tensor.detach().clone() for name, tensor in chosen.changing.items()}
    chosen.begin(recipe)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in chosen.trained.values():
            parameter.copy_(0.07 * torch.randn(parameter.shape, generator=generator))
    adapters = dict(chosen.trained)
    effective = {}
    for name, weight in base.items():
        layer = name.removesuffix(".weight").replace("in_proj_weight", "in_proj")
        a, b = (adapters[f"{layer}.lora_{part}.default.weight"] for part in "AB")
        effective[name] = weight + 4 * b @ a  # alpha / rank = 4
    return chosen, effective


def features(model: DualEncoder) -> list[Tensor]:
    pixels, tokens = inputs(model)
    with torch.no_grad():
        return [model.encode_image(pixels), model.encode_text(tokens)]


@pytest.mark.parametrize("family", list(FAMILIES))
def test_merged_and_unmerged_embed_alike_and_only_the_targets_weights_change(family: str, loaded: Loaded) -> None:
    model = loaded(family)
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    chosen, effective = put_in(model, FAMILIES[family])
    unmerged = features(model)
    for _ in range(3):  # embedding does not move the frozen weights by a bit
        features(model)
    chosen.end()
    after = model.module.state_dict()
    assert list(after) == list(before)  # the library's own layout, in its order
    for name, tensor in after.items():
        if name in effective:
            torch.testing.assert_close(tensor, effective[name], rtol=0, atol=1e-6)
        else:
            assert torch.equal(tensor, before[name]), name
    merged = features(model)
    assert max(float((a - b).abs().max()) for a, b in zip(unmerged, merged, strict=True)) < 1e-5
    moved = [float((a - b).abs().max()) for a, b in zip(merged, features(loaded(family)), strict=True)]
    assert max(moved) > 1e-3


@pytest.mark.parametrize("family", ["open_clip", "hf_clip"])
def test_training_begins_at_the_initial_model(family: str, loaded: Loaded) -> None:
    model = loaded(family)
    initial, fingerprint = features(model), model.fingerprint
    recipe = recipes.load(None, train="lora")
    chosen = scope.choose(model, methods.from_config({"name": "contrastive"}), recipe)
    assert model.fingerprint == fingerprint
    assert all(torch.equal(a, b) for a, b in zip(features(model), initial, strict=True))  # not in yet
    chosen.begin(recipe)
    for mine, theirs in zip(features(model), initial, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)
    chosen.end()
    assert model.fingerprint == fingerprint
    assert all(torch.equal(a, b) for a, b in zip(features(model), initial, strict=True))


@pytest.mark.parametrize(("family", "target"), [("open_clip", None), ("open_clip", "mlp|attn"), ("hf_clip", None)])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_the_chunked_gradient_is_that_of_the_effective_weight_in_float64(
    family: str, target: str | None, checkpointed: bool, loaded: Loaded
) -> None:
    """Against the library's own module with W + (alpha/rank)·B·A written into it and one graph for the whole batch."""
    model = loaded(family).to("cpu", torch.float64)
    plain = copy.copy(model)
    plain.module = copy.deepcopy(model.module).requires_grad_(False)
    chosen, effective = put_in(model, target)
    pixels, tokens = inputs(model, rows=7)
    method = methods.from_config({"name": "contrastive"})
    rest = Embeddings(image_ids=torch.arange(7), caption_ids=torch.arange(7), logit_scale=10.0)

    for name, weight in effective.items():
        parent, _, last = name.rpartition(".")
        module = plain.module.get_submodule(parent)
        delattr(module, last)
        setattr(module, last, weight)
    whole = replace(rest, image=plain.encode_image(pixels), text=plain.encode_text(tokens))
    adapters = list(chosen.trained.values())
    expected = torch.autograd.grad(sum(method.terms(whole, 0.5).values()), adapters)

    if checkpointed:
        from modalign.training import blocks

        for tower in ("image", "text"):
            chosen.recomputed += blocks.modules(model, blocks.find(model, tower))
    for chunk in (None, 3):
        sides = {
            "image": boundary.Side(model.encode_image, chosen.parameters["image"], pixels),
            "text": boundary.Side(model.encode_text, chosen.parameters["text"], tokens),
        }
        with chosen.training():
            boundary.backward(sides, rest, slice(0, 7), method, 0.5, chunk=chunk)
        for mine, theirs in zip(adapters, expected, strict=True):
            assert torch.linalg.norm(mine.grad - theirs) <= 1e-9 * torch.linalg.norm(theirs)
            mine.grad = None
    assert all(p.grad is None for p in model.module.parameters())


def test_initial_adapters_depend_on_the_seed_alone_and_leave_the_callers_numbers(loaded: Loaded) -> None:
    def drawn(seed: int) -> dict[str, Tensor]:
        model = loaded("open_clip")
        recipe = recipes.load(None, train="lora", seed=seed)
        chosen = scope.choose(model, methods.from_config({"name": "contrastive"}), recipe)
        chosen.begin(recipe)
        return {name: p.detach() for name, p in chosen.trained.items()}

    torch.manual_seed(1)
    expected = torch.randn(3)
    torch.manual_seed(1)
    first = drawn(5)
    assert torch.equal(torch.randn(3), expected)
    torch.manual_seed(2)
    second, other = drawn(5), drawn(6)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(not p.any() for name, p in first.items() if "lora_B" in name)
    assert not any(torch.equal(first[name], other[name]) for name in first if "lora_A" in name)


def targets(model: DualEncoder, **settings: Any) -> list[str]:
    recipe = recipes.load(None, train="lora", lora=settings or None).lora
    assert recipe is not None
    return [name for names in Adapters(model, ["image", "text"], recipe).targets.values() for name in names]


def test_default_targets_are_the_attention_of_every_block(loaded: Loaded) -> None:
    assert set(targets(loaded("open_clip"))) == {
        f"{tower}transformer.resblocks.{n}.attn.{layer}"
        for tower in ("visual.", "")
        for n in (0, 1)
        for layer in ("in_proj", "out_proj")
    }
    assert set(targets(loaded("hf_clip"))) == {
        f"{tower}_model.encoder.layers.{n}.self_attn.{layer}"
        for tower in ("vision", "text")
        for n in (0, 1)
        for layer in ("q_proj", "k_proj", "v_proj", "out_proj")
    }
    bert = {name.rpartition("encoder.")[2] for name in targets(loaded("timm+bert"), target=BERT)}
    assert bert == {
        f"layer.{n}.attention.{layer}"
        for n in (0, 1)
        for layer in ("self.query", "self.key", "self.value", "output.dense")
    }


def test_targets_that_adapters_do_not_fit_are_refused_in_one_line(loaded: Loaded) -> None:
    for family, settings, message in (
        ("timm+bert", {}, "blocks of the image tower of .* hold no attention"),
        ("rn50", {}, "blocks of the image tower of .* hold no attention"),
        ("hf_siglip", {"target": "head.attention"}, r"head.attention.out_proj of .* is not called as a layer"),
        ("open_clip", {"target": "atn"}, r"lora.target = 'atn' matches no linear layer .* \(one is 'visual"),
        ("open_clip", {"target": "visual.proj$"}, "matches no linear layer"),  # a bare parameter, no layer
    ):
        with pytest.raises(RecipeError, match=message) as told:
            targets(loaded(family), **settings)
        assert "\n" not in str(told.value) and "lora.target" in str(told.value)
    assert targets(loaded("rn50"), target="^transformer.*attn")  # its text tower alone


def test_groups_reach_adapters_by_name_and_any_chunk_gives_the_same_losses(tmp_path: Path) -> None:
    pairs = toy_pairs(tmp_path / "pictures")
    lora = {"train": "lora", "lora": {"rank": 2, "target": "hidden|proj"}}
    groups = [{"match": "lora_B", "lr": 0.5}, {"match": "^text", "freeze": True}]
    loop = make(pairs, tmp_path / "groups", toy_recipe(optimizer={"lr": 0.01, "groups": groups}, **lora))
    rates = {name: group["base_lr"] for group in loop.optimizer.param_groups for name in group["names"]}
    assert rates["visual.hidden.lora_A.default.weight"] == 0.01
    assert {rate for name, rate in rates.items() if "lora_B" in name} == {0.5}
    assert not any("lora_A" in name for name in rates if name.startswith("text"))  # lora_B came first

    whole = make(pairs, tmp_path / "whole", toy_recipe(**lora), torch.float64)
    whole.run()
    for name, changes in {"chunk": {"chunk": 2}, "live": {"frozen": "live", "chunk": 3}}.items():
        other = make(pairs, tmp_path / name, toy_recipe(**lora, **changes), torch.float64)
        other.run()
        for mine, theirs in zip(records(tmp_path / "whole"), records(tmp_path / name), strict=True):
            assert mine["terms"] == pytest.approx(theirs["terms"], rel=1e-9)
        for key, parameter in other.model.module.named_parameters():
            torch.testing.assert_close(whole.model.module.get_parameter(key), parameter, rtol=0, atol=1e-9)
    changed = {n for n, p in whole.model.module.named_parameters() if not torch.equal(p, initial(n))}
    assert changed == {f"{tower}.{layer}.weight" for tower in ("visual", "text") for layer in ("hidden", "proj")}


def initial(name: str) -> Tensor:
    return ToyEncoder(dtype=torch.float64).module.get_parameter(name)


SMALL: dict[str, Any] = {
    "data__batch_size": 8,
    "optimizer__lr": 1e-2,
    "evaluation__resamples": 200,
    "data__validation": 0.5,
    "train": "lora",
    "lora__rank": 2,
    "ema": 0.5,
    "chunk": 4,
    "silent": True,
}


@pytest.mark.parametrize("maker", [tiny_open_clip, tiny_hf_clip], ids=["open_clip", "hf"])
def test_a_run_saves_the_librarys_own_layout_merged_and_the_adapters_beside_it(
    maker: Callable[[Path], str], tmp_path: Path
) -> None:
    spec, data = maker(tmp_path / "clip"), write_pairs(tmp_path / "pairs", n=48)
    run = modalign.refine(spec, data, out=tmp_path / "run", **SMALL)
    base, refined = modalign.load(spec), run.model
    old, new = base.module.state_dict(), refined.module.state_dict()
    assert list(old) == list(new)
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    recipe = recipes.LoraRecipe(rank=2)
    assert changed == set(Adapters(base, ["image", "text"], recipe).weights)
    cost = json.loads((run.folder / "cost.json").read_text())
    assert cost["frozen_parameters"] == sum(p.numel() for p in base.module.parameters())
    assert cost["trainable_parameters"] < 0.1 * cost["frozen_parameters"]

    settings = json.loads((run.folder / "adapter" / "adapter_config.json").read_text())
    assert (settings["peft_type"], settings["r"], settings["lora_alpha"]) == ("LORA", 2, 32)
    if maker is tiny_hf_clip:
        from peft import PeftModel
        from transformers import CLIPModel

        theirs = PeftModel.from_pretrained(CLIPModel.from_pretrained(tmp_path / "clip"), run.folder / "adapter").eval()
        pixels, _ = inputs(refined)
        with torch.no_grad():
            output = theirs.base_model.model.vision_model(pixel_values=pixels).pooler_output
            mine = refined.encode_image(pixels)
            assert torch.allclose(mine, theirs.base_model.model.visual_projection(output), atol=1e-5)
            assert not torch.allclose(mine, base.encode_image(pixels), atol=1e-3)


@pytest.mark.parametrize("family", ["eva01", "rn50", "timm+bert"])
def test_where_the_default_does_not_do_the_message_prints_an_expression_that_does(family: str, loaded: Loaded) -> None:
    with pytest.raises(RecipeError) as told:
        targets(loaded(family))
    (expression,) = re.findall(r"lora\.target: '([^']*)'", str(told.value))
    found = targets(loaded(family), target=expression)
    assert found and all(re.search(expression, name) for name in found)
    put_in(loaded(family), expression)
    if family == "eva01":
        assert {name.rpartition("attn.")[2] for name in found} == {"proj", "in_proj", "out_proj"}
