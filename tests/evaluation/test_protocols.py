"""What a protocol decides of probes and of the data that is learned from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from modalign.evaluation.protocols import PROTOCOLS
from modalign.evaluation.suite import prepare


def folders(root: Path, split: str, shade: int, count: int = 4) -> Path:
    for name in ("airplane", "automobile", "cat"):
        (root / split / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (8, 8), (number, shade, 0)).save(root / split / name / f"{number}.png")
    return root / split


def test_a_limit_on_what_is_judged_leaves_what_is_learned_from_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    test, train = (folders(tmp_path / "cifar10", split, shade) for shade, split in enumerate(("test", "train")))
    monkeypatch.setitem(PROTOCOLS, "kuea", replace(PROTOCOLS["kuea"], samples={"cifar10": 6}))
    (task,) = prepare([f"linear-probe[train={train}]:{test}"], protocol="kuea").tasks
    assert len(task.pictures) == 6 and len(task.inputs) == 6 + 12


@pytest.mark.parametrize(("protocol", "rule"), [("default", "logistic"), ("standard", "adamw"), ("kuea", "adamw")])
def test_the_probe_is_the_protocol_s(tmp_path: Path, protocol: str, rule: str) -> None:
    data = folders(tmp_path, "test", 0)
    (task,) = prepare([f"linear-probe:{data}"], protocol=protocol, templates="single").tasks
    assert task.chosen["rule"] == rule  # type: ignore[attr-defined]


def test_what_kuea_does_not_tell_of_localisation_is_said() -> None:
    assert "chosen here" in PROTOCOLS["kuea"].told("localization", "")["not_met"]
