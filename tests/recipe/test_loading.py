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
        ("method={name: combine, methods: [{name: hycd}, {name: rafa, raffa: 2}]}", r"methods\[1\].raffa.*'rafa'"),
        ("lr=1e-5", r"unknown recipe key 'lr' \(value 1e-05\); did you mean 'optimizer.lr'\?"),
        ("batch_size=4", "did you mean 'data.batch_size' or 'evaluation.batch_size'"),
        ("data=x", "data = 'x': this is a section; put its keys under it .*batch_size"),
        ("optimizer.betas=[0.9]", "'optimizer.betas.1'"),
        ("trackers=[wandbb]", "trackers.0 = 'wandbb'.*'tensorboard', 'wandb' or 'trackio'"),
        ("trackers=[wandb, wandb]", "named twice"),
        ("optimizer={lr: 1, lr: 2}", "key 'lr' stands in line 1 already"),
        ("optimizer.lr=[1", "this is not YAML"),
        ("train=fulll", "did you mean 'full'"),
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


def test_a_recipe_that_is_neither_a_file_nor_shipped_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(RecipeError, match="did you mean 'clip-refine-vit-b-32'"):
        recipe.load("clip-refine-vit-b32")
    with pytest.raises(RecipeError, match="needs frozen: stored"):
        recipe.load(None, ["train=projection", "frozen=live"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1,\nb: 2", r"r.yaml:2: this is not YAML \("),
        (b"- a list", "mapping of keys to values, this file holds a list"),
        (b"data:\n\tworkers: 2\n", "r.yaml:2: .*a tab stands where YAML wants spaces"),
        (b"model: caf\xe9\n", "r.yaml: byte 10 is not UTF-8"),
        (b"model: a\x00b\n", "special characters"),
        (b"seed: 1\ntrain: full\nseed: 2\n", "r.yaml:3: key 'seed' stands in line 1 already; keep one"),
        (b"optimizer:\n  lr: 1\n  groups:\n    - {match: a, match: b}\n", "r.yaml:4: key 'optimizer.groups.0.match'"),
        (b"optimizer:\n  lrr: 1\n", r"r.yaml:2: unknown recipe key 'optimizer.lrr' .*'optimizer.lr'"),
        (b"method:\n  alpa: 0.5\n", r"r.yaml:2: unknown key 'method.alpa' .*'alpha'"),
        (b"optimizer:\n  groups:\n    - lr: 1\n", r"r.yaml:3: recipe key 'optimizer.groups.0.match' is missing"),
        (b"model: !!python/object/apply:os.system [ls]\n", "r.yaml:1: the tag !!python/object/apply:os.system"),
        (b"model: !!python/name:os.system\n", "r.yaml:1: this is not YAML"),
        (b"data: &a [*a]\n", "holds itself through an alias"),
        (b"? [a]\n: 1\n", "r.yaml:1: a key is one word"),
        (b"--- {}\n--- {}\n", "found another document"),
        (b"[" * 5000, "nested too deeply"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_in_one_line_that_names_the_place(
    content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / "r.yaml").write_bytes(content)
    with pytest.raises(RecipeError, match=message) as caught:
        recipe.load(tmp_path / "r.yaml")
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_a_line_is_named_only_where_the_file_holds_the_value(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("optimizer:\n  lr: 1\n")
    with pytest.raises(RecipeError, match=r"^optimizer.lr = 'x'"):
        recipe.load(tmp_path / "r.yaml", ["optimizer.lr=x"])
    with pytest.raises(RecipeError, match=r"^data.batch_size = 1"):
        recipe.load(tmp_path / "r.yaml", data__batch_size=1)


def test_every_mistake_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("seed: -1\nmethod: {name: hycd, alfa: 1, temperature: hot, hycd: -1}\nepochs: 0\n")
    with pytest.raises(RecipeError) as caught:
        recipe.load(tmp_path / "r.yaml")
    lines = [problem.split(": ")[0].rpartition(":")[2] for problem in caught.value.problems]
    assert sorted(lines) == ["1", "2", "2", "2", "3"]


def test_a_folder_is_a_recipe_where_it_is_a_run(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"is a folder without recipe.yaml"):
        recipe.load(tmp_path)
    (tmp_path / "recipe.yaml").write_text(recipe.load(None, seed=7).to_yaml())
    assert recipe.load(tmp_path).seed == 7


def test_plain_words_and_numbers_are_those_of_yaml_1_2_whoever_reads_them(tmp_path: Path) -> None:
    """YAML 1.1 takes off for false, 1e-6 for a text, 010 for eight, 1:30 for ninety and 2020-01-01 for a date."""
    path = tmp_path / "r.yaml"
    path.write_text(
        "dropout: off\noptimizer: {lr: 1e-5}\nseed: 07\n"
        "data: {train: 1:30, image_column: 2020-01-01, batch_size: 010}\n"
        "evaluation: {templates: '1e5', strict: yes}\n"
    )
    read = recipe.load(path)
    assert (read.dropout, read.optimizer.lr, read.data.batch_size, read.seed) == ("off", 1e-5, 10, 7)
    assert (read.data.train, read.data.image_column) == ("1:30", "2020-01-01")
    assert (read.evaluation.templates, read.evaluation.strict) == ("1e5", True)
    assert yaml.safe_load(read.to_yaml()) == read.model_dump(mode="json")  # what is written means the same in 1.1
    path.write_text(read.to_yaml())
    assert recipe.load(path) == read


def test_the_resolved_recipe_holds_every_key() -> None:
    tree = yaml.safe_load(recipe.load(None).to_yaml())
    assert set(tree) == set(recipe.Recipe.model_fields)
    assert set(tree["optimizer"]) == set(recipe.OptimizerRecipe.model_fields)
