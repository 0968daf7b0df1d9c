"""`modalign recipe show | check | schema`: what they print is true, and is what the rest of modalign reads."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from modalign import recipe
from modalign.errors import RecipeError
from modalign.methods import METHODS
from modalign.recipe.checking import check
from modalign.recipe.json_schema import DIALECT, schema
from modalign.recipe.showing import arguments, method_keys, show

MIXED = """\
model: hf:./clip
data:
  train:
    - {spec: a, weight: 2}
    - {spec: "b #1", weight: 1}
method:
  name: combine
  methods:
    - {name: hycd, alpha: 0.3}
    - name: rafa
optimizer:
  lr: 1e-5
  groups: [{match: 'bias$', weight_decay: 0}]
evaluation:
  tolerance: {'retrieval.*': 0.02}
"""


def comment_of(text: str, key: str) -> str:
    """The comment of the first line that sets a key."""
    line = next(line for line in text.splitlines() if re.match(rf"[ -]*{key}:", line))
    return line.partition("  # ")[2]


# ---- show ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source", [None, *recipe.shipped(), MIXED, "method: contrastive\n", "data: {text_column: '1e5'}\n"]
)
def test_what_show_prints_loads_as_the_same_recipe(source: str | None, tmp_path: Path) -> None:
    path: Path | str | None = source
    if source is not None and source not in recipe.shipped():
        path = tmp_path / "given.yaml"
        path.write_text(source)
    overrides = ["seed=3", "evaluation.templates='a # b'"]
    text = show(path, overrides)
    (tmp_path / "shown.yaml").write_text(text)
    assert recipe.load(tmp_path / "shown.yaml") == recipe.load(path, overrides)
    (tmp_path / "again.yaml").write_text(show(tmp_path / "shown.yaml"))
    assert recipe.load(tmp_path / "again.yaml") == recipe.load(path, overrides)


def test_show_says_of_every_value_where_it_comes_from(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(MIXED)
    text = show(tmp_path / "r.yaml", ["checkpoint.keep=3"])
    assert comment_of(text, "model").startswith("line 1: model spec")
    assert comment_of(text, "lr").startswith("line 12: base learning rate (CLIP-Refine: 1e-6)")
    assert comment_of(text, "keep").startswith("--set: ") and comment_of(text, "every").startswith("default: ")
    assert comment_of(text, "alpha").startswith("line 9: share of the true pairs in the target (paper: 0.5)")
    assert comment_of(text, "temperature").startswith("default: ")  # of a method the file names, left out there
    assert comment_of(text, "match").startswith("line 13: ") and comment_of(text, "freeze").startswith("default: ")
    assert comment_of(text, r"retrieval\.\*") == "line 15"
    assert comment_of(show(None, ["method=contrastive"]), "name").startswith("--set: ")


def test_every_line_that_show_prints_says_what_the_setting_means() -> None:
    for name in METHODS:
        config = {"name": name}
        text = show(None, [f"method={yaml.safe_dump(config, default_flow_style=True).strip()}"])
        for line in text.splitlines()[1:]:
            if not line.endswith(":"):
                assert re.search(r"  # (\w+|--set|default): .{8,}|  # [A-Z]", line), line


@pytest.mark.parametrize("name", METHODS)
def test_a_methods_docstring_describes_exactly_its_settings(name: str) -> None:
    settings = {field.name for field in fields(METHODS[name]) if field.init}  # type: ignore[arg-type]
    assert set(method_keys(name)) == settings


def test_descriptions_are_read_from_the_args_of_a_docstring() -> None:
    docstring = "What.\n\n    x = y: z\n\nArgs:\n    first: one\n        and more: yes.\n    second: two\n"
    docstring += "\nReturns:\n    third: no\n"
    assert arguments(docstring) == {"first": "one and more: yes", "second": "two"}
    assert arguments("Nothing here.") == {}


# ---- check --------------------------------------------------------------------------------------------------


def test_check_names_every_problem_in_a_line_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        "model: open_clip:ViT-B-33/openai\n"
        "data: {train: coc:data/x, batch_size: 1}\n"
        "method: {name: hycd, alpa: 0.3, temperature: hot}\n"
        "optimizer:\n  groups:\n    - match: '('\n"
        "evaluation:\n  tasks: [retrieval:nowhere, zeroshot:x]\n  templates: missing.txt\n"
        "  protocol: kueaa\n"
        "device: gpu\n"
    )
    expected = {
        "1: model": "'ViT-B-32'",
        "2: data.train": "coco:data/x",
        "2: data.batch_size": "2",
        "3: unknown key 'method.alpa'": "alpha",
        "3: method.temperature": "number",
        "6: optimizer.groups.0.match": "regular expression",
        "8: evaluation.tasks.0": "nowhere",
        "8: evaluation.tasks.1": "did you mean zero-shot:x?",
        "9: evaluation.templates": "missing.txt",
        "10: evaluation.protocol": "tpc-cma",
        "11: device": "cuda:N",
    }
    problems = check(path)
    assert len(problems) == len(expected)
    for place, part in expected.items():
        found = [problem for problem in problems if problem.startswith(f"{path}:{place}")]
        assert len(found) == 1 and part in found[0] and "\n" not in found[0], (place, problems)


def test_check_finds_nothing_where_a_run_could_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("clip", "a", "tars", "data/coco", "data/imagenet/train", "data/imagenet/val"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("t.csv", "tower.pt", "weights.pt", "tars/0.tar", "tars/1.tar"):
        (tmp_path / file).write_bytes(b"")
    (tmp_path / "data/cc3m").mkdir()
    for number in range(576):
        (tmp_path / f"data/cc3m/cc3m-train-{number:04d}.tar").write_bytes(b"")
    assert [check(name) for name in recipe.shipped()] == [[]] * len(recipe.shipped())  # where their data lie
    models = ["clip", "hf:./clip", "hf:openai/clip-vit-base-patch32@main", "open_clip:local-dir:clip", "demo", "demo:1"]
    models += ["open_clip:ViT-B-32@weights.pt", "open_clip:hf-hub:laion/x", "demo+visual@tower.pt"]
    for model in models:
        assert check("clip-refine-vit-b-32", [f"model='{model}'"]) == []
    for target in ["timm:vit_small_patch14_dinov2", "timm:resnet18@weights.pt", "hf:facebook/dinov2-small", "demo"]:
        assert check("kuea-vit-l-14", [f"target='{target}'"]) == []
    for data in [
        "a",
        "t.csv",
        "wds:tars/{0..1}.tar",
        "tars/*.tar",
        "hf:owner/name@train",
        "demo",
    ]:
        assert check("clip-refine-vit-b-32", [f"data.train='{data}'"]) == []
    for data in ["images:a", "images:demo:test"]:
        assert check("kuea-vit-l-14", [f"data.train='{data}'"]) == []


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("model=hf:./nowhere", "no folder ./nowhere"),
        ("model=hf:a/b/c", "no folder a/b/c"),
        ("model=open_clip:ViT-B-32", "names no weights"),
        ("model=open_clip:ViT-B-32@nowhere.pt", "no file nowhere.pt"),
        ("model=open_clip:local-dir:nowhere", "no folder nowhere"),
        ("model=opn_clip:ViT-B-32/openai", "did you mean open_clip:ViT-B-32/openai?"),
        ("model=demo:x", "demo:1"),
        ("model=demo+visual@nowhere.pt", "no file nowhere.pt"),
        ("target=timm:resnet18@nowhere.pt", "no file nowhere.pt"),
        ("target=tim:resnet18", "'tim:resnet18' is no folder"),
        ("data.train=coco:data/coco", "names no split"),
        ("data.train=images:nowhere", "no such file or folder"),
        ("data.train=coco:nowhere@val2017", "no folder nowhere"),
        ("data.train=wds:nowhere/{0..2}.tar", "nowhere/0.tar"),
        ("data.train=[{spec: nowhere}]", "data.train.0.spec"),
        ("data.train='hf:'", "hf:<owner>/<name>"),
        ("data.train=''", "data.train is empty"),
        ("data.train=[]", "data.train is empty"),
        ("data.train=[{spec: demo, weight: 1}, {spec: demo}]", "data.train.1 (demo) has no weight while others have"),
        ("data.train=folder@train", "'folder@train': there is no such file or folder"),
        ("data.train=splits", "has several splits"),
        ("data.train=splits@val", "has no split 'val'"),
        ("data.train=datasets:splits", "has several splits"),
        ("data.train=images:demo", "reads captions"),
        ("data.text_column=words", "data.text_column = 'words'"),
        ("target=demo", "reads no target"),
        ("method=kuea", "aligns with a target and the recipe names none"),
    ],
)
def test_check_sees_specs_that_cannot_work_without_reading_anything(
    override: str, part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    problems = check("clip-refine-vit-b-32", [override, "evaluation.tasks=[]"])
    assert any(part in problem for problem in problems), problems
    assert all("\n" not in problem for problem in problems)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("train: projection\nseed: 1\nfrozen: live\n", "3: frozen: train: projection"),
        ("lora:\n  rank: 4\n", "1: lora: train: full makes no adapters"),
        ("train: lora\nlora:\n  rank: 4\n  dropout: 0.1\n", "4: lora.dropout has no effect"),
        ("frozen: live\nnorm: batch\ndata:\n  drop_last: false\n", "4: data.drop_last: norm: batch"),
        ("norm: batch\n", " frozen: norm: batch"),  # a default clashes: no line holds it
        ("data:\n  train:\n    - {spec: a, weight: 1}\n    - {spec: b}\n", "4: data.train.1 (b) has no weight"),
        ("data:\n  stratify: true\n", "2: data.stratify: there is no data.fraction"),
    ],
)
def test_settings_that_clash_name_the_line_to_change(text: str, place: str, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError) as told:
        recipe.load(path)
    at = place if place.startswith(" ") else f"{path}:{place}"
    assert at.strip() in str(told.value) and str(told.value).count(str(path)) == (not place.startswith(" "))


# ---- schema -------------------------------------------------------------------------------------------------

KNOWN = {
    *("$ref", "type", "const", "enum", "anyOf", "oneOf", "properties", "required", "additionalProperties", "items"),
    *("prefixItems", "minItems", "maxItems", "minLength", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
}
ANNOTATIONS = {"title", "description", "default", "$schema", "$defs"}
TYPES: dict[str, Any] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "null": type(None),
    "integer": int,
    "number": (int, float),
}


def fits(value: Any, rule: Any, root: dict[str, Any]) -> bool:
    """A small validator of the part of JSON Schema 2020-12 that the schema uses; an unknown keyword is an error."""
    if isinstance(rule, bool):
        return rule
    assert set(rule) <= KNOWN | ANNOTATIONS, set(rule) - KNOWN - ANNOTATIONS
    if "$ref" in rule and not fits(value, root["$defs"][rule["$ref"].removeprefix("#/$defs/")], root):
        return False
    if "anyOf" in rule and not any(fits(value, part, root) for part in rule["anyOf"]):
        return False
    if "oneOf" in rule and sum(fits(value, part, root) for part in rule["oneOf"]) != 1:
        return False
    if ("const" in rule and value != rule["const"]) or ("enum" in rule and value not in rule["enum"]):
        return False
    kind = rule.get("type")
    if kind and not (isinstance(value, TYPES[kind]) and (isinstance(value, bool) == (kind == "boolean"))):
        return False
    if isinstance(value, int | float) and not isinstance(value, bool):
        infinity = float("inf")
        return bool(
            rule.get("minimum", -infinity) <= value <= rule.get("maximum", infinity)
            and rule.get("exclusiveMinimum", -infinity) < value < rule.get("exclusiveMaximum", infinity)
        )
    if isinstance(value, str):
        return len(value) >= rule.get("minLength", 0)
    if isinstance(value, list):
        first = rule.get("prefixItems", [])
        return rule.get("minItems", 0) <= len(value) <= rule.get("maxItems", len(value)) and all(
            fits(item, first[i] if i < len(first) else rule.get("items", True), root) for i, item in enumerate(value)
        )
    if isinstance(value, dict):
        known = rule.get("properties", {})
        return set(rule.get("required", ())) <= set(value) and all(
            fits(item, known.get(key, rule.get("additionalProperties", True)), root) for key, item in value.items()
        )
    return True


def test_every_recipe_that_loads_fits_the_schema(tmp_path: Path) -> None:
    rules = schema()
    assert rules["$schema"] == DIALECT
    for name, path in recipe.shipped().items():
        assert fits(yaml.safe_load(path.read_text()), rules, rules), name
    for overrides in (["method={name: combine, methods: [{name: hycd}, {name: rafa}]}"], ["train=lora"], []):
        resolved = recipe.load(None, overrides).model_dump(mode="json")
        assert fits(resolved, rules, rules)
    for name in METHODS:
        assert fits({"method": name}, rules, rules)
        assert fits({"method": recipe.load(None, method__name=name).method}, rules, rules)
    assert fits({"method": {"alpha": 0.3}}, rules, rules)  # without a name: the default method's settings


@pytest.mark.parametrize(
    "tree",
    [
        {"optimiser": {}},
        {"optimizer": {"lrr": 1}},
        {"optimizer": {"lr": "fast"}},
        {"optimizer": {"betas": [0.9]}},
        {"optimizer": {"betas": [0.9, 1.5]}},
        {"optimizer": {"groups": [{"lr": 1}]}},
        {"data": {"batch_size": 1}},
        {"data": {"train": [{"weight": 1}]}},
        {"method": "clip-refin"},
        {"method": {"name": "contrastive", "alpha": 0.5}},
        {"method": {"alpa": 0.5}},
        {"method": {"name": "combine", "methods": []}},
        {"method": {"name": "combine", "methods": [{"name": "hycd", "rafa": 1}]}},
        {"schedule": {"name": "linear"}},
        {"trackers": ["mlflow"]},
        {"seed": -1},
    ],
)
def test_what_the_loader_refuses_does_not_fit_the_schema(tree: dict[str, Any]) -> None:
    rules = schema()
    assert not fits(tree, rules, rules)
    with pytest.raises(RecipeError):
        recipe.resolve(recipe.Given({"method": {"name": "clip-refine"}, **_named(tree)}, None, frozenset()))


def _named(tree: dict[str, Any]) -> dict[str, Any]:
    method = tree.get("method")
    if isinstance(method, str):
        return {"method": {"name": method}}
    return {**tree, "method": {"name": "clip-refine", **method}} if method else tree
