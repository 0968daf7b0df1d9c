from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from modalign.data import images as decoding
from modalign.errors import DataError, RecipeError
from modalign.evaluation import suites
from modalign.evaluation.gate import judge
from modalign.evaluation.kinds import ZeroShot
from modalign.evaluation.protocols import PROTOCOLS
from modalign.evaluation.suite import parse_task, prepare
from modalign.evaluation.suites import SUITES, locate, suite_tasks
from modalign.evaluation.tasks import Results, evaluate, evaluate_both
from modalign.models import load
from modalign.models.dual_encoder import DualEncoder
from tests.tiny import tiny_open_clip, write_pairs

NAMES = ["red boat", "blue cat", "green dog"]
TASKS = ("zero-shot", "retrieval", "linear-probe", "clustering", "knn")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> DualEncoder:
    return load(tiny_open_clip(tmp_path_factory.mktemp("model")))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """24 labelled pictures, two captions each."""
    folder = Path(write_pairs(tmp_path / "test", n=24))
    files = sorted(folder.glob("**/*.png"))
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "text", "label"])
        for number, path in enumerate(files):
            for said in ("picture", "view of"):
                label = NAMES[number % 3] if said == "picture" else ""
                writer.writerow([path.relative_to(folder), f"{said} {number}", label])
    return folder


class Counted:
    """How many pictures were decoded, and how many pictures and strings a model was asked about."""

    def __init__(self, model: DualEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
        self.decoded = self.pictures = self.strings = 0
        self._count(monkeypatch, model, "image_trunk", "pictures", len)  # which encode_image asks as well
        self._count(monkeypatch, model, "encode_text", "strings", len)
        self._count(monkeypatch, decoding, "_read", "decoded", lambda _: 1)

    def _count(
        self, monkeypatch: pytest.MonkeyPatch, owner: object, name: str, counter: str, of: Callable[[object], int]
    ) -> None:
        plain = getattr(owner, name)

        def counting(inputs: object, *more: object, **named: object) -> object:
            setattr(self, counter, getattr(self, counter) + of(inputs))
            return plain(inputs, *more, **named)

        monkeypatch.setattr(owner, name, counting)


@pytest.mark.parametrize("probe", ["linear-probe", "linear-probe[features=penultimate]"])
def test_each_picture_is_decoded_and_encoded_once_for_all_tasks_and_never_again(
    model: DualEncoder, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, probe: str
) -> None:
    tasks = [f"{probe if kind == 'linear-probe' else kind}:{data}" for kind in TASKS]
    counted = Counted(model, monkeypatch)
    first = evaluate(model, tasks, store=tmp_path / "store", resamples=200, batch_size=8)
    assert (counted.decoded, counted.pictures, counted.strings) == (24, 24, 48 + len(NAMES))
    again = evaluate(model, tasks, store=tmp_path / "store", resamples=200, batch_size=8)
    assert (counted.decoded, counted.pictures, counted.strings) == (24, 24, 48 + len(NAMES))
    assert again.to_dict() == first.to_dict() and again.gap is not None
    plain = evaluate(model, tasks, resamples=200, batch_size=8)  # without a store: once more, once each
    assert (counted.decoded, counted.pictures) == (48, 48)
    assert plain.metrics.keys() == first.metrics.keys()


def test_a_task_that_is_added_or_killed_costs_only_itself(model: DualEncoder, data: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    whole = evaluate(model, [f"zero-shot:{data}", f"retrieval:{data}"], store=store, resamples=200)
    kept = sorted((store / "results").iterdir())
    assert len(kept) == 2
    kept[0].unlink()
    kept[1].write_text("{")  # cut off: nothing of ours, so not read
    assert evaluate(model, [f"zero-shot:{data}", f"retrieval:{data}"], store=store, resamples=200).to_dict() == (
        whole.to_dict()
    )
    times = {path: path.stat().st_mtime_ns for path in (store / "results").iterdir()}
    more = evaluate(model, [f"zero-shot:{data}", f"retrieval:{data}", f"knn:{data}"], store=store, resamples=200)
    assert len(list((store / "results").iterdir())) == 3 and all(p.stat().st_mtime_ns == t for p, t in times.items())
    assert more.metrics["zero_shot.acc1"].value == whole.metrics["zero_shot.acc1"].value
    assert (
        judge(whole, Results.from_dict({**more.to_dict(), "tasks": more.to_dict()["tasks"][:2]})).worst == "not worse"
    )


def test_what_decides_a_result_is_in_its_key(model: DualEncoder, data: Path, tmp_path: Path) -> None:
    store, task = tmp_path / "store", f"retrieval:{data}"
    kept = lambda: len(list((store / "results").iterdir()))  # noqa: E731
    evaluate(model, [task], store=store, resamples=200)
    evaluate(model, [task], store=store, resamples=201)
    assert kept() == 2
    evaluate(model, [task], store=store, resamples=200, seed=1)
    evaluate(model, [task], store=store, resamples=200, protocol="clip-refine")
    assert kept() == 4
    lines = (data / "metadata.csv").read_text().replace("picture 3", "another 3")
    (data / "metadata.csv").write_text(lines)
    evaluate(model, [task], store=store, resamples=200)
    assert kept() == 5
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(sorted(data.glob("**/*.png"))[0])
    changed = evaluate(model, [task], store=store, resamples=200)
    assert kept() == 6 and changed.tasks[0].protocol["samples"] == 24


def test_protocols_decide_captions_prompts_and_samples(
    model: DualEncoder, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = prepare([f"retrieval:{data}"], protocol="clip-refine")
    assert [one.strings[i] for i in one.tasks[0].strings.tolist()] == [f"picture {i}" for i in range(24)]
    found = evaluate(model, [f"retrieval:{data}", f"zero-shot:{data}"], protocol="clip-refine", resamples=50)
    protocols = [result.protocol for result in found.tasks]
    assert protocols[0]["captions_per_image"] == "1" and {told["protocol"] for told in protocols} == {"clip-refine"}
    assert json.loads(json.dumps(protocols))[1]["templates"] == ["a photo of {class}"]
    with pytest.raises(RecipeError, match="no protocol 'clip': use one of default, standard"):
        prepare([f"retrieval:{data}"], protocol="clip")

    folder = tmp_path / "cifar10" / "test"
    for name in ("airplane", "automobile", "cat"):
        (folder / name).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / name / f"{number}.png")
    standard = prepare([f"zero-shot:{folder}"], protocol="standard")
    assert "a blurry photo of a cat." in standard.strings and len(standard.paths) == 12
    few = PROTOCOLS["kuea"].samples | {"cifar10": 6}
    monkeypatch.setitem(PROTOCOLS, "kuea", PROTOCOLS["kuea"].__class__("kuea", samples=few, not_met={"zero-shot": "x"}))
    some = evaluate(model, [f"zero-shot:{folder}"], protocol="kuea", resamples=50).tasks[0].protocol
    assert (some["samples"], some["classes"], some["not_met"]) == (6, 3, "x")


def test_the_kuea_probe_is_its_own_rule_unless_the_task_says_otherwise(data: Path) -> None:
    rules = [
        prepare([f"linear-probe{given}:{data}"], protocol="kuea", templates="single").tasks[0].chosen["rule"]  # type: ignore[attr-defined]
        for given in ("", "[rule=logistic]")
    ]
    assert rules == ["adamw", "logistic"]


@pytest.mark.parametrize("name", SUITES)
def test_every_suite_names_tasks_that_can_be_read_and_a_protocol(name: str) -> None:
    suite = SUITES[name]
    assert suite.protocol in PROTOCOLS and len(set(suite.tasks)) == len(suite.tasks)
    for task in suite.tasks:
        parse_task(task.replace("{train}", "data"))


def test_suites_have_the_papers_sets() -> None:
    zero_shot = {
        name: [t.partition(":")[2] for t in SUITES[name].tasks if t.startswith("zero-shot:")] for name in SUITES
    }
    assert len(zero_shot["clip-refine"]) == 12 and len(zero_shot["kuea"]) == 16 and len(zero_shot["vtab"]) == 19


def test_data_is_found_in_each_layout_and_what_is_missing_is_told(tmp_path: Path) -> None:
    (tmp_path / "wds_vtab-pets" / "test").mkdir(parents=True)
    (tmp_path / "food101" / "test").mkdir(parents=True)
    (tmp_path / "cifar-100-python").mkdir()
    (tmp_path / "imagenet1k" / "val").mkdir(parents=True)
    (tmp_path / "coco").mkdir()
    (tmp_path / "coco" / "dataset_coco.json").write_text("{}")
    assert locate("pets", tmp_path) == f"wds:{tmp_path}/wds_vtab-pets@test"
    assert locate("food101", tmp_path) == f"{tmp_path}/food101/test"
    assert locate("cifar100", tmp_path) == f"torchvision:cifar100:{tmp_path}@test"
    assert locate("cifar100", tmp_path, "train") == f"torchvision:cifar100:{tmp_path}@train"
    assert locate("imagenet1k", tmp_path) == f"torchvision:imagenet1k:{tmp_path}/imagenet1k@val"
    assert locate("coco", tmp_path) == f"coco:{tmp_path}/coco@karpathy-test"
    assert locate("dtd", tmp_path) is None
    found, missing = suite_tasks("core", tmp_path)
    assert "retrieval:" + str(locate("coco", tmp_path)) in found
    assert f"linear-probe[train=torchvision:cifar100:{tmp_path}@train]:torchvision:cifar100:{tmp_path}@test" in found
    told = {lack.task: lack.expected for lack in missing}
    assert str(tmp_path / "wds_vtab-dtd" / "test") in told["zero-shot:dtd"]
    assert str(tmp_path / "wds_vtab-pets" / "train") in told["linear-probe:pets"]  # the test split is there
    for task in found:
        parse_task(task)


def test_a_suite_without_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds none of the data sets of suite vtab"):
        suite_tasks("vtab", tmp_path)
    with pytest.raises(RecipeError, match="--data-root"):
        suite_tasks("vtab", None)
    with pytest.raises(RecipeError, match="no suite 'all': use one of clip-refine"):
        suite_tasks("all", tmp_path)
    assert suite_tasks("demo", None) == (list(suites.SUITES["demo"].tasks), [])


def test_a_part_of_a_suite_keeps_the_suites_numbers(data: Path) -> None:
    suite = prepare([f"zero-shot:{data}", f"retrieval:{data}"])
    part, pictures, strings = suite.part([0])
    assert [suite.strings[i] for i in strings.tolist()] == part.strings and len(part.strings) == len(NAMES)
    assert torch.equal(pictures, suite.tasks[0].pictures.unique())


def test_the_command_runs_what_is_there_and_names_what_is_not(model: DualEncoder, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from modalign.cli import app

    for name in ("apple pie", "baby back ribs", "sushi"):
        (tmp_path / "food101" / "test" / name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (8, 8), (number, 9, 0)).save(tmp_path / "food101" / "test" / name / f"{number}.png")
    asked = ["evaluate", "--model", model.spec, "--suite", "core", "--data-root", str(tmp_path), "--json"]
    asked += [str(tmp_path / "r.json"), "--store", str(tmp_path / "store"), "--device", "cpu"]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    assert f"zero-shot:dtd left out: looked for {tmp_path}/wds_dtd/test" in done.stderr
    found = Results.load(tmp_path / "r.json")
    assert [result.task for result in found.tasks] == ["zero_shot"]
    told = found.tasks[0].protocol
    assert (told["protocol"], told["prompts"], told["samples"]) == ("standard", "clip-benchmark food101", 9)
    refused = CliRunner().invoke(app, ["evaluate", "--model", model.spec, "--task", "knn:x", "--data-root", "y"])
    assert refused.exit_code == 2 and "--data-root" in refused.stderr


def class_folders(folder: Path, names: tuple[str, ...], color: int = 0) -> None:
    for label, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (8, 8), (number, 60 * label, color)).save(folder / name / f"{number}.png")


CORE_TOLD = ("zero-shot:{root}/eurosat/test", "linear-probe[train={root}/cifar100/train]:{root}/cifar100/test")


@pytest.fixture
def spoiled(tmp_path: Path) -> Path:
    """A folder for --suite core, of which food101, pets and zero-shot on cifar100 can be judged and nothing else."""
    root = tmp_path / "root"
    (root / "eurosat" / "test").mkdir(parents=True)
    class_folders(root / "cifar100" / "train", ("apple",))
    class_folders(root / "cifar100" / "test", ("apple", "baby", "bear"))
    class_folders(root / "food101" / "test", ("apple pie", "baby back ribs", "sushi"), 9)
    class_folders(root / "dtd" / "test", ("banded", "dotted"), 20)
    (root / "dtd" / "test" / "banded" / "1.png").write_bytes(b"")
    return root


def test_a_spoiled_data_set_costs_a_suite_the_tasks_that_read_it_and_no_other(
    model: DualEncoder, spoiled: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "modalign")
    tasks, _ = suite_tasks("core", spoiled)
    found = evaluate(model, [], optional=tasks, protocol="standard", resamples=50, store=tmp_path / "store")
    assert [result.spec for result in found.tasks] == [f"{spoiled}/cifar100/test", f"{spoiled}/food101/test"]
    told = {lack.task: lack.expected for lack in found.left_out}
    assert set(told) == {*(task.format(root=spoiled) for task in CORE_TOLD), f"zero-shot:{spoiled}/dtd/test"}
    assert "1 of 6" in told[f"zero-shot:{spoiled}/dtd/test"] and "banded/1.png" in told[f"zero-shot:{spoiled}/dtd/test"]
    assert "has 1 class" in told[CORE_TOLD[1].format(root=spoiled)]
    assert [line for line in caplog.messages if " left out: " in line] == [str(lack) for lack in found.left_out]
    assert len(list((tmp_path / "store" / "results").iterdir())) == 2  # kept all the same
    again = evaluate(model, [], optional=tasks, protocol="standard", resamples=50, store=tmp_path / "store")
    assert again.to_dict() == found.to_dict() and again.left_out == found.left_out
    lenient = evaluate(model, [], optional=tasks, protocol="standard", resamples=50, max_bad=1)
    assert [result.protocol["left_out"] for result in lenient.tasks] == [0, 1, 0]


def test_a_task_that_was_named_fails_beside_a_suite_as_alone(model: DualEncoder, spoiled: Path) -> None:
    fine, dtd = f"zero-shot:{spoiled}/food101/test", f"zero-shot:{spoiled}/dtd/test"
    with pytest.raises(DataError, match=r"banded/1\.png"):
        evaluate(model, [dtd], optional=[fine], resamples=50)
    with pytest.raises(DataError, match="has 1 class"):
        evaluate(model, [f"zero-shot:{spoiled}/cifar100/train"], optional=[fine], resamples=50)
    with pytest.raises(DataError, match="nothing to judge, for none of 1 tasks can be read"):
        evaluate(model, [], optional=[f"zero-shot:{spoiled}/eurosat/test"])
    with pytest.raises(DataError, match="nothing to judge, for none of 1 tasks can be scored"):
        evaluate(model, [], optional=[dtd])


def test_what_a_task_numbered_before_it_failed_is_not_encoded(spoiled: Path) -> None:
    fine, failing = f"zero-shot:{spoiled}/food101/test", CORE_TOLD[1].format(root=spoiled)
    suite = prepare([], optional=[failing, fine], templates="single")
    assert (len(suite.paths), len(suite.strings), len(suite.left_out)) == (9, 3, 1)


def test_two_models_are_judged_on_what_both_could_be_judged_on(
    model: DualEncoder, spoiled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored = ZeroShot.score
    calls = []

    def fails_for_the_second_model(self: ZeroShot, *arguments: Any) -> Any:
        calls.append(self.data.spec)
        if calls.count(self.data.spec) == 2 and "food101" in self.data.spec:
            raise DataError("not this time; again")
        return scored(self, *arguments)

    monkeypatch.setattr(ZeroShot, "score", fails_for_the_second_model)
    tasks, _ = suite_tasks("core", spoiled)
    before, after, _ = evaluate_both(model, model, [], optional=tasks, protocol="standard")
    assert before.metrics.keys() == after.metrics.keys()
    assert [result.spec for result in before.tasks] == [f"{spoiled}/cifar100/test"]
    assert len(before.left_out) == 4 and judge(before, after).worst == "not worse"


def test_the_command_goes_on_past_a_spoiled_data_set_and_counts_what_it_left_out(
    model: DualEncoder, spoiled: Path, tmp_path: Path
) -> None:
    from typer.testing import CliRunner

    from modalign.cli import app

    more = ["--suite", "core", "--data-root", str(spoiled), "--device", "cpu", "--store", str(tmp_path / "store")]
    done = CliRunner().invoke(app, ["evaluate", "--model", model.spec, *more])
    assert done.exit_code == 0 and "9 of 11 tasks of the suite left out" in done.stderr, done.output
    assert f"zero_shot on {spoiled}/food101/test: protocol: standard; " in done.stdout
    both = CliRunner().invoke(app, ["compare", model.spec, model.spec, *more])
    assert both.exit_code == 0 and "9 of 11 tasks of the suite left out" in both.stderr, both.output
    vtab = tmp_path / "vtab"
    class_folders(vtab / "dsprites_label_orientation" / "test", ("0", "1"))
    more[1:4] = ["vtab", "--data-root", str(vtab)]
    refused = CliRunner().invoke(app, ["evaluate", "--model", model.spec, *more])
    assert isinstance(refused.exception, DataError) and "name of a known data set" in str(refused.exception)
    class_folders(vtab / "dtd" / "test", ("banded", "dotted"))
    assert CliRunner().invoke(app, ["evaluate", "--model", model.spec, *more]).exit_code == 0


def test_a_suites_own_data_needs_no_folder(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"suite demo brings its own data: leave the folder .* \(--data-root\) out"):
        suite_tasks("demo", tmp_path)
    assert suite_tasks("demo")[0] == suite_tasks("demo", None)[0]


def test_rows_without_a_label_are_told_once_for_all_tasks(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "modalign")
    prepare([f"{kind}:{data}" for kind in ("zero-shot", "knn", "clustering")])
    assert sum("carry no label" in line for line in caplog.messages) == 1
    prepare([f"knn:{data}"])  # another call tells it again
    assert sum("carry no label" in line for line in caplog.messages) == 2
