from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import pytest
import torch

from modalign import methods
from modalign import recipe as recipes
from modalign.errors import RecipeError
from modalign.methods.base import Method
from modalign.models import DualEncoder
from modalign.training import blocks, scope
from tests.training.families import MAKERS, inputs
from tests.training.toy import ToyEncoder

Loaded = Callable[[str], DualEncoder]


@dataclass
class ImageOnly(Method):
    """Trains the image tower alone, as KUEA does."""

    name: ClassVar[str] = "image-only"
    towers = frozenset({"image"})


def choose(model: DualEncoder, method: Method | None = None, **settings: Any) -> scope.Scope:
    recipe = recipes.load(None, **settings)
    return scope.choose(model, method or methods.from_config({"name": "contrastive"}), recipe)


def parts(found: scope.Scope) -> set[str]:
    """The modules whose parameters train, blocks without what is inside them."""
    names = set()
    for name in found.trained:
        steps = name.split(".")
        number = next((i for i, step in enumerate(steps) if step.isdigit() or step.startswith("layer")), None)
        inside = number is not None and "proj" not in steps[:number]
        if inside and steps[number] in ("layer", "layers"):
            number += 1
        names.add(".".join(steps[: number + 1]) if inside else name.removesuffix(".weight").removesuffix(".bias"))
    return names


LAST_ONE = {
    "open_clip": {
        "visual.transformer.resblocks.1",
        "visual.ln_post",
        "visual.proj",
        "transformer.resblocks.1",
        "ln_final",
        "text_projection",
    },
    "rn50": {
        "visual.layer4",
        *(f"visual.attnpool.{part}" for part in ("positional_embedding", "q_proj", "k_proj", "v_proj", "c_proj")),
        "transformer.resblocks.1",
        "ln_final",
        "text_projection",
    },
    "timm+bert": {
        "visual.trunk.blocks.4",
        "visual.trunk.conv_head",
        "visual.trunk.bn2",
        "visual.head.mlp.fc1",
        "visual.head.mlp.fc2",
        "text.transformer.encoder.layer.1",
        "text.proj.0",
        "text.proj.2",
    },
    "hf_clip": {
        "vision_model.encoder.layers.1",
        "vision_model.post_layernorm",
        "visual_projection",
        "text_model.encoder.layers.1",
        "text_model.final_layer_norm",
        "text_projection",
    },
}


@pytest.mark.parametrize("family", list(LAST_ONE))
def test_the_last_block_is_named_exactly_with_the_norms_and_projections_after_it(family: str, loaded: Loaded) -> None:
    assert parts(choose(loaded(family), train="last:1")) == LAST_ONE[family]


@pytest.mark.parametrize("family", list(MAKERS))
def test_last_n_grows_to_everything_but_what_comes_before_the_first_block(family: str, loaded: Loaded) -> None:
    model = loaded(family)
    depths = {tower: len(blocks.find(model, tower).names) for tower in ("image", "text")}
    sets = [set(choose(model, train=f"last:{n}").trained) for n in range(1, min(depths.values()) + 1)]
    assert all(smaller < larger for smaller, larger in pairwise(sets))
    every = set(choose(model, train="full").trained)
    if depths["image"] == depths["text"]:
        left = every - sets[-1]
        early = (
            "embed",
            "embedding",
            "cls_emb",
            "cls_token",
            "reg_token",
            "patch_embed",
            "ln_pre",
            "pre_layrnorm",
            "conv1",
        )
        assert left and all(any(word in name for word in early) for name in left)
    with pytest.raises(RecipeError, match=rf"tower of .* has {min(depths.values())} blocks; use at most last:") as told:
        choose(model, train=f"last:{min(depths.values()) + 1}")
    assert "\n" not in str(told.value)


def test_where_only_the_last_block_trains_the_blocks_below_keep_nothing_for_the_backward_pass(loaded: Loaded) -> None:
    model = loaded("open_clip")
    pixels, _ = inputs(model, 8)
    kept = {}
    for train in ("full", "last:1"):
        choose(model, train=train)
        saved: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, into=saved: into.append(t.nbytes) or t, lambda t: t):
            model.encode_image(pixels)
        kept[train] = sum(saved)
    assert kept["last:1"] < 0.6 * kept["full"]


def test_an_expression_picks_parameters_and_restricts_towers(loaded: Loaded) -> None:
    model = loaded("open_clip")
    assert set(choose(model, train=r"ln_(post|final)").trained) == {
        f"{norm}.{kind}" for norm in ("visual.ln_post", "ln_final") for kind in ("weight", "bias")
    }
    only = choose(model, train="match:visual")
    assert set(only.parameters) == {"image"} and only.plan.features == {"text"}
    assert {name for name, p in model.module.named_parameters() if p.requires_grad} == set(only.trained)


def test_a_method_that_trains_one_tower_restricts_every_scope(loaded: Loaded) -> None:
    model = loaded("open_clip")
    for settings in ({"train": "full"}, {"train": "last:1"}, {"train": "ln_"}):
        assert set(choose(model, ImageOnly(), **settings).parameters) == {"image"}
    lora = choose(model, ImageOnly(), train="lora")
    assert set(lora.parameters) == {"image"} and all(name.startswith("visual.") for name in lora.changing)
    with pytest.raises(RecipeError, match="nothing is left to train with method 'image-only'"):
        choose(model, ImageOnly(), train="text")


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ("ful", "did you mean 'full'"),
        ("tex", "did you mean 'text'"),
        ("projections", "did you mean 'projection'"),
        ("last", "write last:N"),
        ("last:0", "write last:N"),
        ("last:two", "write last:N"),
        ("visual.(", "not a regular expression"),
        ("match:(", "not a regular expression"),
    ],
)
def test_a_mistyped_scope_is_refused_when_the_recipe_is_read(train: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as told:
        recipes.load(None, train=train)
    assert str(told.value).startswith("train") and "\n" not in str(told.value)


def test_an_expression_that_matches_nothing_names_near_parameters(loaded: Loaded) -> None:
    with pytest.raises(RecipeError, match=r"matches none of the \d+ parameters; did you mean .*visual\.proj"):
        choose(loaded("open_clip"), train=r"visual\.projj")
    assert choose(loaded("open_clip"), train="match:tex").trained  # said to be an expression, it is one


def test_a_tower_whose_blocks_cannot_be_told_is_refused_by_name() -> None:
    for settings in ({"train": "last:1"}, {"train": "lora"}, {"gradient_checkpointing": True}):
        with pytest.raises(RecipeError, match=r"blocks of the image tower of toy:0 \(Towers\) cannot be told"):
            choose(ToyEncoder(), **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train": "projection", "frozen": "live"}, "needs frozen: stored"),
        ({"train": "projection", "dropout": "on"}, "made without dropout; it needs dropout: off"),
        ({"train": "projection", "gradient_checkpointing": True}, "runs no blocks"),
        ({"train": "full", "lora": {"rank": 4}}, "set train: lora"),
        ({"train": "lora", "lora": {"dropout": 0.1}}, "set dropout: on"),
        ({"train": "lora", "lora": {"target": "("}}, "lora.target .*not a regular expression"),
        ({"train": "lora", "lora": {"rank": 0}}, "lora.rank"),
        ({"ema": 1.0}, "ema"),
        ({"norm": "batch"}, "set frozen: live"),
        ({"norm": "batch", "frozen": "live", "chunk": 4}, "a chunk's statistics.*remove chunk"),
        ({"norm": "batch", "frozen": "live", "gradient_checkpointing": True}, "count its statistics twice"),
        ({"norm": "batch", "frozen": "live", "data": {"drop_last": False}}, "data.drop_last"),
    ],
)
def test_settings_that_exclude_each_other_are_refused_when_the_recipe_is_read(settings: dict, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as told:
        recipes.load(None, **settings)
    assert "\n" not in str(told.value)


def test_lora_settings_are_written_out_and_on_and_off_survive_yaml() -> None:
    import yaml

    resolved = recipes.load(None, ("train=lora", "dropout=on"))
    tree = yaml.safe_load(resolved.to_yaml())
    assert tree["lora"] == {"rank": 16, "alpha": 32, "dropout": 0.0, "target": None} and tree["dropout"] == "on"
    assert recipes.validate(tree) == resolved
    resolved.epochs = 2  # assigning validates again
    assert recipes.load(None).lora is None
