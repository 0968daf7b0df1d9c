from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import modalign
from modalign import methods
from modalign import recipe as recipes
from modalign.embeddings import Embeddings
from modalign.errors import RecipeError
from modalign.models import DualEncoder
from modalign.training import boundary, checkpoint, modes, scope
from tests.tiny import tiny_custom_text, write_pairs
from tests.training.families import inputs
from tests.training.test_loop import make, recipe, records, run_until, same, weights
from tests.training.toy import ToyEncoder, toy_pairs

Loaded = Callable[[str], DualEncoder]
B = 11
CONTRASTIVE = methods.from_config({"name": "contrastive"})


def chosen(model: DualEncoder, **settings: Any) -> scope.Scope:
    return scope.choose(model, CONTRASTIVE, recipes.load(None, **settings))


def sides(model: DualEncoder, found: scope.Scope, pixels: Tensor, tokens: Tensor) -> dict:
    encode = {"image": (model.encode_image, pixels), "text": (model.encode_text, tokens)}
    return {
        tower: boundary.Side(*encode[tower][:1], parameters, encode[tower][1], partial(masks, tower))
        for tower, parameters in found.parameters.items()
    }


def masks(tower: str, row: int) -> Any:
    return modes.masks(4, 9, tower, row, torch.device("cpu"))


def rest(rows: int = B) -> Embeddings:
    return Embeddings(image_ids=torch.arange(rows), caption_ids=torch.arange(rows), logit_scale=20.0)


# ---- dropout ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [None, 4])
def test_the_gradient_is_that_of_the_masks_that_were_drawn(chunk: int | None) -> None:
    """Against the toy's towers written out with explicit masks, in float64, one graph for the whole batch."""
    model = ToyEncoder(dtype=torch.float64, dropout=0.4)
    g = torch.Generator().manual_seed(1)
    pixels, tokens = torch.randn(B, 3, 2, 2, generator=g).double(), torch.randint(0, 64, (B, 8), generator=g)
    found = chosen(model, dropout="on")
    drawn: dict[str, list[Tensor]] = {"visual": [], "text": []}
    for tower, kept in drawn.items():
        module = model.module.get_submodule(tower)["drop"]
        module.register_forward_hook(lambda _, given, out, kept=kept: kept.append((out / given[0]).detach()))
    with found.training():
        boundary.backward(sides(model, found, pixels, tokens), rest(), slice(0, B), CONTRASTIVE, 0.5, chunk=chunk)
    rows = 1 if chunk is None else -(-B // chunk)
    assert len(drawn["visual"]) == (rows if chunk is None else 2 * rows)
    for kept in drawn.values():
        first, again = kept[:rows], kept[-rows:]
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))  # the same masks when embedded again
        assert (torch.cat(first) * 0.6).round(decimals=9).unique().tolist() == [0.0, 1.0]

    plain = {name: p.detach().clone().requires_grad_() for name, p in model.module.named_parameters()}
    hidden = torch.tanh(F.linear(pixels.flatten(1), plain["visual.hidden.weight"], plain["visual.hidden.bias"]))
    hidden = hidden * torch.cat(drawn["visual"][:rows])
    hidden = F.layer_norm(hidden, (10,), plain["visual.norm.weight"], plain["visual.norm.bias"])
    image = F.linear(hidden, plain["visual.proj.weight"], plain["visual.proj.bias"])
    words = plain["text.embed.weight"][tokens].mean(1)
    words = torch.tanh(F.linear(words, plain["text.hidden.weight"], plain["text.hidden.bias"]))
    text = F.linear(words * torch.cat(drawn["text"][:rows]), plain["text.proj.weight"], plain["text.proj.bias"])
    sum(CONTRASTIVE.terms(replace(rest(), image=image, text=text), 0.5).values()).backward()
    for name, parameter in model.module.named_parameters():
        torch.testing.assert_close(parameter.grad, plain[name].grad, rtol=1e-9, atol=1e-14)


def dropping(model: DualEncoder) -> DualEncoder:
    """The timm + BERT model with DropPath in its image tower as well; BERT has its own dropout."""
    from timm.layers import DropPath

    for block in model.module.get_submodule("visual.trunk.blocks").modules():
        if isinstance(getattr(block, "drop_path", None), nn.Identity):
            block.drop_path = DropPath(0.3).eval()
    return model


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("family", ["timm+bert", "hf_clip"])
def test_in_real_towers_too_with_and_without_recomputed_blocks(family: str, checkpointed: bool, loaded: Loaded) -> None:
    """Against one graph over chunks that were embedded once, each under its own seed."""
    model = loaded(family).to("cpu", torch.float64)
    if family == "timm+bert":
        dropping(model)
    else:
        for layer in model.module.modules():
            if type(layer).__name__ == "CLIPAttention":
                layer.dropout = 0.3  # what attention_dropout in the configuration sets
    found = chosen(model, dropout="on", gradient_checkpointing=checkpointed)
    pixels, tokens = inputs(model, B)
    parameters = list(found.trained.values())
    with found.modes.training():
        features = {}
        for tower, encode, whole in (("image", model.encode_image, pixels), ("text", model.encode_text, tokens)):
            parts = []
            for row in range(0, B, 4):
                with masks(tower, row):
                    parts.append(encode(whole[row : row + 4]))
            features[tower] = torch.cat(parts)
        loss = sum(CONTRASTIVE.terms(replace(rest(), **features), 0.5).values())
        expected = torch.autograd.grad(loss, parameters, allow_unused=True)
    with found.training():
        told = boundary.backward(sides(model, found, pixels, tokens), rest(), slice(0, B), CONTRASTIVE, 0.5, chunk=4)
    assert told.loss == pytest.approx(float(loss.detach()), rel=1e-12)
    with torch.no_grad():
        dry = sum(
            CONTRASTIVE.terms(
                replace(rest(), image=model.encode_image(pixels), text=model.encode_text(tokens)), 0.5
            ).values()
        )
    assert abs(float(dry) - told.loss) > 1e-6  # something was dropped, and nothing is outside of a step
    for parameter, theirs in zip(parameters, expected, strict=True):
        if theirs is not None:
            assert torch.linalg.norm(parameter.grad - theirs) <= 1e-9 * (torch.linalg.norm(theirs) + 1e-9)


def test_masks_differ_by_seed_step_tower_and_row_and_leave_the_callers_stream() -> None:
    def draw(*place: Any) -> tuple[float, ...]:
        with modes.masks(*place, torch.device("cpu")):
            return tuple(torch.rand(3).tolist())

    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    base = draw(1, 2, "image", 3)
    others = {draw(0, 2, "image", 3), draw(1, 0, "image", 3), draw(1, 2, "text", 3), draw(1, 2, "image", 0)}
    assert len(others) == 4 and base not in others and draw(1, 2, "image", 3) == base
    assert torch.equal(torch.rand(2), expected)


def test_only_what_drops_leaves_eval_and_only_in_the_towers_that_train(loaded: Loaded) -> None:
    model = dropping(loaded("timm+bert"))
    found = chosen(model, train="text", dropout="on")
    with found.training():
        on = {name for name, module in model.module.named_modules() if module.training}
        model.encode_text(inputs(model, 2)[1])
        assert on == {name for name, module in model.module.named_modules() if module.training}
    assert not any(module.training for module in model.module.modules())
    assert "text.transformer.encoder.layer.0.attention.self" in on  # its dropout is a number handed to a function
    assert "text.transformer.embeddings.dropout" in on
    assert all(name.startswith("text.") for name in on) and not any("LayerNorm" in name for name in on)
    both = chosen(model, dropout="on").modes.modules
    assert {type(module).__name__ for module in both} >= {"DropPath", "Dropout"}
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in both)


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.Dropout(0.1), True),
        (nn.Dropout(0.0), False),
        (nn.MultiheadAttention(4, 2, dropout=0.1), True),
        (nn.MultiheadAttention(4, 2), False),
        (nn.BatchNorm2d(3), False),
        (nn.LayerNorm(3), False),
    ],
)
def test_what_counts_as_dropout(module: nn.Module, expected: bool) -> None:
    assert modes.drops(module) is expected


def test_open_clips_and_timms_own_layers_count() -> None:
    from open_clip.transformer import PatchDropout
    from timm.layers import Attention, DropPath
    from timm.layers import PatchDropout as TimmPatchDropout

    assert modes.drops(PatchDropout(0.5)) and modes.drops(TimmPatchDropout(0.5)) and modes.drops(DropPath(0.1))
    assert modes.drops(Attention(8, 2, attn_drop=0.1)) and not modes.drops(Attention(8, 2))
    assert not modes.drops(DropPath(0.0))


def test_a_model_without_dropout_is_refused_in_one_line(loaded: Loaded) -> None:
    with pytest.raises(RecipeError, match=r"no module of the image and text tower of .* set dropout: off") as told:
        chosen(loaded("open_clip"), dropout="on")
    assert "\n" not in str(told.value)
    lora = {"target": "attn", "dropout": 0.1}
    recipe_ = recipes.load(None, train="lora", dropout="on", lora=lora)
    found = scope.choose(loaded("open_clip"), CONTRASTIVE, recipe_)
    found.begin(recipe_)
    assert len(found.modes.modules) == 2 * 2 * 2  # the adapters' own: two layers in two blocks of two towers


def test_validation_and_the_teacher_see_no_mask(tmp_path: Path) -> None:
    pairs, held = toy_pairs(tmp_path / "pictures", n=30).split_off(0.3, 0)
    validated = {}
    for dropout in ("on", "off"):
        loop = make(pairs, tmp_path / dropout, recipe(dropout=dropout, frozen="live", steps=1), held=held)
        assert loop.signals.teacher is not None
        loop.run()
        validated[dropout] = records(tmp_path / dropout)
    on, off = validated["on"], validated["off"]
    assert on[0] == off[0]  # the initial model, validated
    assert on[1]["loss"] != off[1]["loss"]
    kept = make(pairs, tmp_path / "on", recipe(dropout="on", frozen="live", steps=1), held=held)
    kept.restore()
    assert kept._validate()["loss"] == pytest.approx(on[1]["validation"]["loss"], rel=1e-6)


# ---- BatchNorm ----------------------------------------------------------------------------------------------

BATCH = {"norm": "batch", "frozen": "live"}


def test_batch_statistics_normalise_the_batch_and_move_the_running_ones_once(loaded: Loaded) -> None:
    model = loaded("timm+bert").to("cpu", torch.float64)
    found = chosen(model, **BATCH)
    pixels, tokens = inputs(model, B)
    stem, first = model.module.get_submodule("visual.trunk.conv_stem"), model.module.get_submodule("visual.trunk.bn1")
    seen = []
    handle = first.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    mean, variance = first.running_mean.clone(), first.running_var.clone()
    with found.training():
        images = boundary.Side(model.encode_image, found.parameters["image"], pixels)
        texts = boundary.Side(model.encode_text, found.parameters["text"], tokens)
        boundary.backward({"image": images, "text": texts}, rest(), slice(0, B), CONTRASTIVE, 0.5)
    handle.remove()
    assert len(seen) == 1 and stem.weight.grad is not None
    flat = seen[0].transpose(0, 1).flatten(1).numpy()
    m = first.momentum
    torch.testing.assert_close(first.running_mean, (1 - m) * mean + m * torch.from_numpy(flat.mean(1)))
    torch.testing.assert_close(first.running_var, (1 - m) * variance + m * torch.from_numpy(flat.var(1, ddof=1)))
    assert not any(module.training for module in model.module.modules())
    frozen = copy.deepcopy(first.running_mean)
    with torch.no_grad():
        model.encode_image(pixels)
    assert torch.equal(first.running_mean, frozen)


def test_running_statistics_are_averaged_restored_and_saved(tmp_path: Path, loaded: Loaded) -> None:
    import torch.random

    pairs = toy_pairs(tmp_path / "pictures")
    settings = recipe(**BATCH, ema=0.5, optimizer={"lr": 1e-3}, epochs=1)

    def loop(name: str) -> Any:
        return make(pairs, tmp_path / name, settings, model=loaded("timm+bert"))

    whole = loop("whole")
    initial = whole.model.module.get_submodule("visual.trunk.bn1").running_mean.clone()
    whole.run()
    broken = loop("broken")
    run_until(broken, 3)
    resumed = loop("broken")
    assert resumed.restore() and resumed.step == 2
    resumed.run()
    assert same(weights(whole), weights(resumed))
    a, b = (each.model.module.state_dict() for each in (whole, resumed))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["visual.trunk.bn1.running_mean"], initial)
    kept = checkpoint.newest(tmp_path / "whole" / "checkpoints")
    assert kept is not None
    tensors = kept.tensors()
    assert torch.equal(a["visual.trunk.bn1.running_var"], tensors["average.visual.trunk.bn1.running_var"])
    assert int(tensors["statistics.visual.trunk.bn1.num_batches_tracked"]) == 4


def test_a_run_with_batch_statistics_saves_them_in_the_model(tmp_path: Path) -> None:
    spec, data = tiny_custom_text(tmp_path / "model"), write_pairs(tmp_path / "pairs", n=24)
    run = modalign.refine(
        spec, data, "contrastive", out=tmp_path / "run", silent=True, data__batch_size=8, optimizer__lr=1e-3, **BATCH
    )
    name = "visual.trunk.bn2.running_mean"
    old, new = modalign.load(spec).module.state_dict()[name], run.model.module.state_dict()[name]
    assert not torch.equal(old, new)
    kept = checkpoint.newest(run.folder / "checkpoints")
    assert kept is not None and torch.equal(new, kept.tensors()[f"statistics.{name}"])
    assert json.loads((run.folder / "metrics.jsonl").read_text().splitlines()[0])["step"] == 1


def test_batch_statistics_are_refused_where_they_would_not_be_the_batchs(loaded: Loaded) -> None:
    settings = recipes.load(None, **BATCH)
    with pytest.raises(RecipeError, match=r"2 processes hold a share each; run one process"):
        scope.choose(loaded("rn50"), CONTRASTIVE, settings, world=2)
    with pytest.raises(RecipeError, match=r"no BatchNorm layer of .* trains with train = 'full'"):
        chosen(loaded("open_clip"), **BATCH)
    with pytest.raises(RecipeError, match=r"no BatchNorm layer of .* trains with train = 'text'"):
        chosen(loaded("rn50"), train="text", **BATCH)
    assert len(chosen(loaded("rn50"), train="last:1", **BATCH).modes.modules) == 4  # of the last stage alone
