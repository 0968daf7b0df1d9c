from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from modalign import methods, recipe
from modalign.errors import RecipeError


def test_defaults_are_the_published_clip_refine_recipe() -> None:
    """CVPR 2025, arXiv 2504.12717: AdamW 1e-6 constant, decay .1 on everything, no clipping, batch 512, one epoch."""
    default = recipe.load(None)
    assert default.method["name"] == "clip-refine" and default.method["alpha"] == 0.5  # every default is written out
    assert (default.optimizer.lr, default.optimizer.betas, default.optimizer.weight_decay) == (1e-6, (0.9, 0.999), 0.1)
    assert default.optimizer.clip_norm is None and default.schedule.name == "constant"
    assert (default.data.batch_size, default.data.drop_last, default.epochs, default.train) == (512, True, 1, "full")


@pytest.mark.parametrize("name", ["clip-refine-vit-b-32", "clip-refine-vit-b-16", "clip-refine-vit-l-14"])
def test_shipped_recipes_state_the_published_settings_and_their_own_command(name: str) -> None:
    shipped = recipe.shipped()[name]
    loaded = recipe.load(name)
    assert shipped.read_text().splitlines()[0] == f"# modalign refine --recipe {name} --out runs/{name}"
    default = recipe.load(None)
    assert loaded.optimizer == default.optimizer and loaded.schedule == default.schedule
    assert methods.from_config(loaded.method) == methods.from_config({"name": "clip-refine"})
    assert loaded.data.validation == 0.01 and loaded.model.endswith("-quickgelu/openai")


def test_a_written_recipe_reads_back_the_same(tmp_path: Path) -> None:
    first = recipe.load(None, ["optimizer.groups=[{match: bias, weight_decay: 0}]", "evaluation.tolerance={a.b: 0.02}"])
    (tmp_path / "r.yaml").write_text(first.to_yaml())
    assert recipe.load(tmp_path / "r.yaml") == first


def test_overrides_win_over_the_file_and_numbers_like_1e_6_are_numbers(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("optimizer:\n  lr: 1e-5\nmethod:\n  name: clip-refine\n  alpha: 0.3\nepochs: 4\n")
    loaded = recipe.load(tmp_path / "r.yaml", ["optimizer.weight_decay=1e-4", "epochs=2"], epochs=3, seed=None)
    assert loaded.optimizer.lr == 1e-5 and loaded.optimizer.weight_decay == 1e-4
    assert loaded.epochs == 2 and loaded.seed == 0
    other = recipe.load(tmp_path / "r.yaml", method__name="contrastive")
    assert (
        other.method["name"] == "contrastive" and "alpha" not in other.method
    )  # alpha belonged to the method that was replaced
    assert recipe.load(tmp_path / "r.yaml", ["method.alpha=0.4"]).method["alpha"] == 0.4
    for odd in ("method: contrastive\n", "method:\n"):
        (tmp_path / "odd.yaml").write_text(odd)
        assert recipe.load(tmp_path / "odd.yaml", method__name="hycd").method["name"] == "hycd"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lrr=1", r"unknown recipe key 'optimizer.lrr' \(value 1\); did you mean 'optimizer.lr'\?"),
        ("optimiser.lr=1", "did you mean 'optimizer'"),
        ("optimizer.groups=[{mtch: a, match: b}]", "'optimizer.groups.0.match'"),
        ("data.batch_size=many", "data.batch_size = 'many'"),
        ("method.alpa=0.5", "did you mean 'alpha'"),
        ("method.alpha=2", "alpha is 2"),
        ("method.name=clip-refin", "clip-refine"),
        ("train=fulll", "'full', 'image', 'text' or 'projection'"),
        ("evaluation.tolerance=-0.1", "cannot be negative"),
        ("optimizer.groups=[{match: '('}]", "not a regular expression"),
        ("optimizer.lr=.nan", "optimizer.lr"),
        ("lr", "write key=value"),
        ("seed=-1", "seed = -1"),
        ("optimizer.lr.x=1", "not a section"),
    ],
)
def test_errors_name_the_key_the_value_and_what_to_write(override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        recipe.load(None, ["optimizer.lr=1e-6", override])
    assert "\n" not in str(caught.value)


def test_files_that_are_no_recipes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="did you mean 'clip-refine-vit-b-32'"):
        recipe.load("clip-refine-vit-b32")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1,\nb: 2")
    with pytest.raises(RecipeError, match=r"broken.yaml: line \d+ is not YAML"):
        recipe.load(broken)
    broken.write_text("- a list")
    with pytest.raises(RecipeError, match="mapping of keys"):
        recipe.load(broken)
    with pytest.raises(RecipeError, match="needs frozen: stored"):
        recipe.load(None, ["train=projection", "frozen=live"])


def test_the_resolved_recipe_holds_every_key() -> None:
    tree = yaml.safe_load(recipe.load(None).to_yaml())
    assert set(tree) == set(recipe.Recipe.model_fields)
    assert set(tree["optimizer"]) == set(recipe.OptimizerRecipe.model_fields)
