from __future__ import annotations

import json
import random
import struct
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import modalign
from modalign.training import trackers
from modalign.training.log import MetricsLog
from modalign.training.trackers import TRACKERS, Trackers, flat
from tests.tiny import tiny_open_clip, write_pairs

SENT: list[tuple[int, dict[str, float]]] = []
OPENED: list[tuple[str, bool]] = []


class Recorder:
    """Keeps what it is sent, through restarts."""

    def __init__(self, folder: Path, config: Mapping[str, Any], identity: str, resumed: bool) -> None:
        OPENED.append((identity, resumed))

    def log(self, numbers: dict[str, float], step: int) -> None:
        SENT.append((step, numbers))

    def finish(self) -> None: ...


class Clumsy(Recorder):
    """Draws from every global stream and prints."""

    def log(self, numbers: dict[str, float], step: int) -> None:
        random.random(), np.random.rand(), torch.rand(3)
        print("tracking!", file=sys.stdout)
        print("tracking!", file=sys.stderr)


class Failing(Recorder):
    def log(self, numbers: dict[str, float], step: int) -> None:
        if step == 2:
            raise ConnectionError("no route\nto host")
        super().log(numbers, step)


class Hanging(Recorder):
    def finish(self) -> None:
        time.sleep(60)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> None:
    SENT.clear()
    OPENED.clear()
    for name, cls in (("recorder", Recorder), ("clumsy", Clumsy), ("failing", Failing), ("hanging", Hanging)):
        monkeypatch.setitem(TRACKERS, name, cls)


def part(folder: Path, start: int, stop: int, names: list[str], *, value: float = 1.0, killed: bool) -> list[str]:
    """One part of a run: restored at step `start`, killed or closed after step `stop`; returns what was said."""
    said: list[str] = []
    tracked = Trackers(names, folder, {"seed": 0}, said.append)
    with MetricsLog(folder / "metrics.jsonl", start, tracked) as log:
        for step in range(start + 1, stop + 1):
            log.write({"step": step, "loss": value, "terms": {"rafa": value}})
    if not killed:
        tracked.close()
    return said


def test_nested_records_become_paths_and_only_finite_numbers_are_sent() -> None:
    record = {"loss": 1, "terms": {"a": {"b": 2.5}}, "nan": float("nan"), "none": None, "text": "x", "flag": True}
    assert flat(record) == {"loss": 1, "terms/a/b": 2.5}


@pytest.mark.usefixtures("recorder")
def test_a_resumed_run_goes_on_with_its_id_and_sends_no_step_twice(tmp_path: Path) -> None:
    part(tmp_path, 0, 5, ["recorder"], killed=True)
    part(tmp_path, 3, 4, ["recorder"], value=7.0, killed=True)  # computes step 4 again, is killed before it is past 5
    part(tmp_path, 3, 7, ["recorder"], value=9.0, killed=False)
    assert [step for step, _ in SENT] == [1, 2, 3, 4, 5, 6, 7]
    assert [numbers["loss"] for _, numbers in SENT] == [1, 1, 1, 1, 1, 9, 9]
    assert len({identity for identity, _ in OPENED}) == 1 and [resumed for _, resumed in OPENED] == [False, True, True]


@pytest.mark.usefixtures("recorder")
def test_a_tracker_named_first_on_a_resume_or_missing_for_a_while_gets_what_it_missed(tmp_path: Path) -> None:
    part(tmp_path, 0, 3, [], killed=True)
    part(tmp_path, 2, 5, ["recorder"], killed=True)
    part(tmp_path, 5, 7, [], killed=True)
    part(tmp_path, 7, 8, ["recorder"], killed=False)
    assert [step for step, _ in SENT] == [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.usefixtures("recorder")
def test_a_tracker_that_fails_is_told_once_and_off_and_a_later_part_makes_it_whole(tmp_path: Path) -> None:
    said = part(tmp_path, 0, 4, ["failing", "recorder"], killed=False)
    assert said == ["warning: failing is off from here on: log failed (ConnectionError: no route)"]
    assert [step for step, _ in SENT] == [1, 1, 2, 3, 4]  # the other one goes on
    SENT.clear()
    assert part(tmp_path, 4, 5, ["failing"], killed=False) == said  # step 2 was never sent, and still cannot be
    assert len(json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])) == 3


@pytest.mark.usefixtures("recorder")
def test_a_hanging_tracker_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(trackers.SECONDS, "finish", 0.2)
    begin = time.monotonic()
    said = part(tmp_path, 0, 1, ["hanging"], killed=False)
    assert time.monotonic() - begin < 10
    assert said == ["warning: hanging is off from here on: finish failed (TimeoutError: no answer in 0.2 s)"]


@pytest.mark.usefixtures("recorder")
def test_a_tracker_reaches_neither_the_random_streams_nor_the_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # type: ignore[index]
    part(tmp_path, 0, 3, ["clumsy"], killed=False)
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # type: ignore[index]
    assert before[:2] == after[:2] and torch.equal(before[2], after[2])
    assert capfd.readouterr() == ("", "")


def test_what_is_not_installed_or_cannot_start_costs_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, "trackio", None)
    monkeypatch.setenv("WANDB_MODE", "online")
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))  # so that no key is found on any machine
    said = part(tmp_path, 0, 2, ["tensorboard", "trackio", "wandb"], killed=False)
    assert said[:2] == [
        "warning: tensorboard is off: it needs the package tensorboard: pip install tensorboard",
        "warning: trackio is off: it needs the package trackio: pip install trackio",
    ]
    assert len(said) == 3 and said[2].startswith("warning: wandb is off from here on: start failed")
    assert "WANDB_MODE=offline" in said[2] and len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


# ---- the real ones ------------------------------------------------------------------------------------------

SETTINGS: dict[str, Any] = {
    "data__batch_size": 8,
    "optimizer__lr": 1e-3,
    "evaluation__resamples": 200,
    "data__validation": 0.5,
    "silent": True,
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The same run twice: without trackers, and with TensorBoard and wandb (offline)."""
    folder = tmp_path_factory.mktemp("runs")
    clip, data = tiny_open_clip(folder / "clip", quick_gelu=True), write_pairs(folder / "pairs", n=48)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        modalign.refine(clip, data, out=folder / "plain", **SETTINGS)
        modalign.refine(clip, data, out=folder / "tracked", trackers=["tensorboard", "wandb"], **SETTINGS)
        yield folder


def test_trackers_change_no_bit_of_a_run(runs: Path) -> None:
    for name in ("metrics.jsonl", "model/open_clip_model.safetensors"):
        assert (runs / "plain" / name).read_bytes() == (runs / "tracked" / name).read_bytes(), name
    assert not (runs / "plain" / "trackers.json").exists()


def expected(run: Path) -> dict[tuple[str, int], float]:
    """(name, step) → number, of metrics.jsonl and of the gate."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    numbers = {(name, line["step"]): v for line in lines for name, v in flat(line).items() if name != "step"}
    for row in json.loads((run / "evaluation.json").read_text())["gate"]["rows"]:
        values = (row["before"], row["after"], row["difference"], *row["interval"])
        for what, value in zip(("before", "after", "difference", "low", "high"), values, strict=True):
            numbers[f"gate/{row['metric']}/{what}", lines[-1]["step"]] = value
    return numbers


def test_tensorboard_shows_every_number_of_the_log_and_of_the_gate(runs: Path) -> None:
    shown = dict(tensorboard_numbers(runs / "tracked" / "tensorboard"))
    wanted = expected(runs / "tracked")
    assert any(name.startswith("boundary/cosines/") for name, _ in wanted)
    assert any(name == "validation/loss" and step == 3 for name, step in wanted)
    assert shown.keys() == wanted.keys()
    assert all(shown[key] == pytest.approx(value, rel=1e-6) for key, value in wanted.items())


def test_wandb_keeps_every_number_under_the_runs_id_and_folder_name(runs: Path) -> None:
    (file,) = (runs / "tracked" / "wandb").glob("offline-run-*/*.wandb")
    shown: dict[tuple[str, int], float] = {}
    for record in wandb_records(file):
        if record.WhichOneof("record_type") == "run":
            assert record.run.run_id == json.loads((runs / "tracked" / "trackers.json").read_text())["wandb"]["id"]
            assert (record.run.display_name, record.run.project) == ("tracked", "modalign")
            config = {item.key: item.value_json for item in record.run.config.update}
            assert json.loads(config["optimizer"])["lr"] == 1e-3
        for item in record.history.item:
            name = "/".join(item.nested_key) or item.key
            if not name.startswith("_"):
                shown[name, record.history.step.num] = json.loads(item.value_json)
    assert shown == expected(runs / "tracked")


def test_tensorboard_holds_no_step_twice_after_a_kill(tmp_path: Path) -> None:
    part(tmp_path, 0, 5, ["tensorboard"], killed=True)
    time.sleep(1.1)  # event files are named by the second
    part(tmp_path, 3, 7, ["tensorboard"], value=9.0, killed=False)
    losses = [(step, value) for (name, step), value in tensorboard_numbers(tmp_path / "tensorboard") if name == "loss"]
    assert len(losses) == len(dict(losses)) and dict(losses)[7] == 9.0


def test_trackio_keeps_every_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trackio is in no extra that tests install: it holds Pillow back."""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    import sqlite3

    assert part(tmp_path, 0, 5, ["trackio"], killed=False) == []
    assert part(tmp_path, 3, 7, ["trackio"], value=9.0, killed=False) == []
    with sqlite3.connect(tmp_path / "trackio" / "modalign.db") as database:
        rows = database.execute("select run_name, step, metrics from metrics order by id").fetchall()
    assert len({name for name, _, _ in rows}) == 1 and rows[0][0].startswith(f"{tmp_path.name}-")
    assert [(step, json.loads(text)["loss"]) for _, step, text in rows] == [
        *((step, 1.0) for step in range(1, 6)),
        *((step, 9.0) for step in (6, 7)),
    ]


def tensorboard_numbers(folder: Path) -> list[tuple[tuple[str, int], float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: list[tuple[tuple[str, int], float]] = []
    for file in sorted(folder.iterdir()):  # read one by one: together, what is double would be dropped
        events = EventAccumulator(str(file), size_guidance={"scalars": 0}).Reload()
        for name in events.Tags()["scalars"]:
            found += [((name, event.step), event.value) for event in events.Scalars(name)]
    return found


def wandb_records(file: Path) -> Iterator[Any]:
    """The records of a .wandb file: LevelDB's log format (32 KiB blocks; checksum, length, kind) behind 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, at, whole = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        fragment = data[at + 7 : at + 7 + length]
        whole = fragment if kind in (1, 2) else whole + fragment  # 1 full, 2 first, 3 middle, 4 last
        at += 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            yield record
