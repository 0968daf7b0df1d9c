from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from modalign.errors import OutputError
from modalign.report import page
from tests.report.made_run import HOSTILE, features, make_run, metrics_lines, write_features, write_pictures

VOID = {"meta", "link", "img", "br", "path", "use", "line", "circle", "rect"}


class Document(HTMLParser):
    """The page's elements in order, its visible text, and whether its tags close."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("report") / "run")


@pytest.fixture(scope="module")
def html(run: Path) -> str:
    return page.write(run).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def document(html: str) -> Document:
    return Document(html)


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "run"))


def written(folder: Path) -> Document:
    return Document(page.write(folder).read_text(encoding="utf-8"))


def test_the_page_closes_what_it_opens_and_says_the_verdict_first(document: Document) -> None:
    assert document.open == []
    text = document.text
    said = text.index("Not worse In all 6 metrics the 95 % interval of the change lies above the tolerated drop")
    assert said < text.index("Tasks, before and after")
    assert text.startswith("Not worse · run · modalign modalign report")


def test_sections_follow_the_verdict(document: Document) -> None:
    ids = [
        attributes["id"] for tag, attributes in document.elements if tag in ("div", "section") and "id" in attributes
    ]
    assert ids == [
        "verdict",
        "tasks",
        "gap",
        "controls",
        "training",
        "similarities",
        "plane",
        "examples",
        "cost",
        "environment",
    ]
    anchors = {attributes["href"] for attributes in document.all("a")}
    assert {f"#{name}" for name in ids[1:]} <= anchors


def test_nothing_is_loaded_from_anywhere_and_nothing_can_run(html: str, document: Document) -> None:
    assert document.all("script") == [] and document.all("iframe") == []
    for _, attributes in document.elements:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "xlink:href", "srcset", "action", "data"):
            if name in attributes:
                assert re.match(r"data:|#", attributes[name] or "")
    assert not re.search(r"@import|url\((?!#)", html)
    (policy,) = [meta["content"] for meta in document.all("meta") if "http-equiv" in meta]
    assert policy is not None and policy.startswith("default-src 'none'")


def test_identifiers_are_unique(document: Document) -> None:
    found = [attributes["id"] for _, attributes in document.elements if "id" in attributes]
    assert len(found) == len(set(found))


def test_every_picture_is_embedded_and_described(document: Document) -> None:
    pictures = document.all("img")
    assert 20 <= len(pictures) <= 30
    for picture in pictures:
        assert (picture["src"] or "").startswith("data:image/jpeg;base64,")
        assert picture["alt"]
    for figure in document.all("figure"):
        assert figure.get("role") is None or figure["aria-label"]


def test_every_table_has_headers_for_its_columns_and_rows(document: Document) -> None:
    assert len(document.all("table")) == 4
    assert len([th for th in document.all("th") if th.get("scope") == "col"]) == 8 + 4 + 4 + 4
    # 6 metrics, 28 gap measures (8 of them shown at once), and the metrics and 11 measures again beside the control.
    assert len([th for th in document.all("th") if th.get("scope") == "row"]) == 6 + 28 + 6 + 11


def test_captions_and_file_names_are_text_and_never_markup(html: str, document: Document) -> None:
    assert "<script" not in html
    assert HOSTILE in document.text
    assert "./pairs & <more>" in document.text


def test_the_table_says_what_the_evaluation_says(run: Path, document: Document) -> None:
    evaluation = json.loads((run / "evaluation.json").read_text())
    for row in evaluation["gate"]["rows"]:
        assert row["difference"] == pytest.approx(row["after"] - row["before"]) and row["difference"] != 0
    row = evaluation["gate"]["rows"][0]
    told = document.text
    assert f"{100 * row['before']:.2f}" in told and f"{100 * row['difference']:+.2f}" in told
    assert evaluation["gate"]["method"] in told
    assert "samples: 90; captions: 90" in told
    assert told.count("✓ not worse") >= 6


def test_cost_environment_and_recipe_are_told(document: Document) -> None:
    for fact in (
        "towers 40.0 s 67 %",
        "1 min 00 s",
        "1.50 GiB",
        "1,100,000",
        "19,125 saved",
        "10,625",
        "0123abc",
        "batch_size: 128",
    ):
        assert fact in document.text


def test_a_worse_run_says_so_first(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", noise_after=6.0)
    evaluation = json.loads((folder / "evaluation.json").read_text())
    evaluation["interpolation"] = {
        "weight": 0.3,
        "pictures": {"selection": 45, "reported": 45},
        "reported": {"worst": "not worse"},
    }
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    text = written(folder).text
    said = re.search(r"Worse: \d retrieval metrics Weights in between", text)
    assert said is not None
    assert said.start() < text.index("0.3 × refined + 0.7 × original") < text.index("Tasks, before and after")


@pytest.mark.parametrize(
    "name", ["recipe.yaml", "environment.json", "evaluation.json", "cost.json", "metrics.jsonl", "features"]
)
def test_a_missing_file_is_named_with_the_command_that_makes_it(copy: Path, name: str) -> None:
    target = copy / name
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    document = written(copy)
    assert re.search(
        rf"{re.escape(name)}/? (is missing|holds no before.safetensors)\. This makes it: modalign refine ",
        document.text,
    )
    assert document.open == []


@pytest.mark.parametrize("text", ["{", '{"gate": 3}', '{"gate": {"rows": [{}]}}', '{"gap": {"after": 5}}', "{}", "[]"])
def test_an_evaluation_of_another_shape_never_stops_the_page(tmp_path: Path, text: str) -> None:
    (tmp_path / "evaluation.json").write_text(text)
    (tmp_path / "recipe.yaml").write_text("model: x\n")
    document = written(tmp_path)
    assert "No verdict" in document.text
    assert "Resolved recipe" in document.text
    (box,) = re.findall(r"No verdict[^.]*?(evaluation.json|No task).*? This makes it: modalign \w+", document.text)
    assert box


def test_a_collapse_is_warned_of_and_its_text_is_no_markup(copy: Path) -> None:
    evaluation = json.loads((copy / "evaluation.json").read_text())
    evaluation["gap"] = {**(evaluation.get("gap") or {}), "collapse": "collapse: the <b>raw gap fell"}
    (copy / "evaluation.json").write_text(json.dumps(evaluation))
    assert "Warning. Collapse: the <b>raw gap fell." in " ".join(written(copy).text.split())


def test_a_run_that_judged_nothing_tells_how_to_judge_it(copy: Path) -> None:
    (copy / "evaluation.json").write_text(json.dumps({"before": None, "after": None, "gate": None, "gap": None}))
    text = written(copy).text
    assert "No verdict: nothing was judged" in text
    assert f"modalign compare open_clip:ViT-B-32-quickgelu/openai {copy} --task retrieval:SPEC" in text


def test_an_empty_folder_still_makes_a_page(tmp_path: Path) -> None:
    document = written(tmp_path)
    assert "No verdict yet" in document.text
    assert document.text.count("This makes it:") == 6
    ids = {attributes["id"] for _, attributes in document.elements if "id" in attributes}
    assert {(anchor["href"] or "").removeprefix("#") for anchor in document.all("a")} <= ids


def test_a_log_cut_in_mid_line_is_drawn(copy: Path) -> None:
    whole = (copy / "metrics.jsonl").read_text()
    (copy / "metrics.jsonl").write_text(whole[:-40])
    text = written(copy).text
    assert "hycd" in text and "Unreadable" not in text


def test_pictures_that_are_gone_leave_their_name(copy: Path) -> None:
    rows = json.loads((copy / "features" / "rows.json").read_text(encoding="utf-8"))
    rows["paths"] = [f"/gone/<i>{Path(path).name}" for path in rows["paths"]]
    (copy / "features" / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    document = written(copy)
    assert document.all("img") == [] and document.all("i") != []
    assert "cannot be read" in document.text
    assert not any(attributes.get("src", "").startswith("/gone") for _, attributes in document.elements)


def test_relative_picture_paths_start_at_the_run_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    paths, captions = write_pictures(folder / "pictures", 12)
    relative = [path.relative_to(folder) for path in paths]
    write_features(folder / "features", features(12, 1, 1, 1), features(12, 1, 1, 2), relative, captions)
    assert written(folder).all("img")


def test_a_large_run_stays_small_and_the_page_is_the_same_twice(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    paths, _ = write_pictures(folder / "pictures", 60)
    generator = np.random.default_rng(0)
    sides = [features(12_000, offset, 1.0, seed, dim=16) for seed, offset in enumerate((1.0, 0.5))]
    captions = [f"{'word ' * 60}{i}" for i in generator.permutation(12_000)]
    for side in sides:
        side.image = side.image[:60]
    write_features(folder / "features", *sides, paths, captions)
    rows = {"paths": list(map(str, paths)), "captions": captions, "image_of_text": [i % 60 for i in range(12_000)]}
    (folder / "features" / "rows.json").write_text(json.dumps(rows))
    (folder / "metrics.jsonl").write_text("\n".join(metrics_lines(20_000)))
    first = page.write(folder).read_bytes()
    assert len(first) < 1_500_000
    assert page.write(folder).read_bytes() == first
    assert [path.name for path in folder.glob("*.tmp")] == [path.name for path in folder.glob(".*")] == []


def test_a_folder_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="gone is no folder; name the --out"):
        page.write(tmp_path / "gone")
