from __future__ import annotations

from pathlib import Path

import pytest
import torch

from modalign.console import Reporter
from modalign.demo import model
from modalign.demo.run import Centre, centred, recipe, run


def test_centring_leaves_unit_features_without_a_mean() -> None:
    features = torch.randn(500, 8, generator=torch.Generator().manual_seed(0)) * 7 + 3
    mean = torch.nn.functional.normalize(features, dim=-1).mean(dim=0)
    assert mean.norm() > 0.1
    assert Centre(mean)(features).mean(dim=0).norm() < 1e-6


def test_the_centred_model_is_another_model_and_leaves_the_first_alone() -> None:
    base = model.untrained(0)
    before = base.fingerprint
    hidden, words = torch.randn(5, 1280), torch.randn(5, 384)
    with torch.no_grad():
        image, text = base.project_image(hidden), base.project_text(words)
        twin = centred(base, image, text)
        assert twin.project_image(hidden).mean(dim=0).norm() < 1e-6
        assert twin.project_text(words).mean(dim=0).norm() < 1e-6
    assert base.fingerprint == before != twin.fingerprint


def test_the_full_scope_keeps_the_rate_of_the_projections() -> None:
    import re

    groups = recipe("clip-refine", 0, "full").optimizer.groups
    encoder = model.untrained(0)
    matched = {n for n, _ in encoder.module.named_parameters() if any(re.search(g.match, n) for g in groups)}
    assert matched == {*encoder.projection_names("image"), *encoder.projection_names("text")}


@pytest.mark.demo
def test_the_whole_story_runs_and_is_reused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MODALIGN_CACHE", str(tmp_path / "cache"))
    status = run(tmp_path / "runs", reporter=Reporter(silent=True))
    first = capsys.readouterr().out
    assert first.startswith("This is a small CLIP of illustrations")
    assert "not OpenAI's" in first.splitlines()[0]
    for told in (
        "CC BY-SA 4.0",
        "mean-centring",
        "contrastive",
        "centroid gap",
        "Verdict on clip-refine",
        "report.html",
    ):
        assert told in first
    assert (tmp_path / "runs" / "clip-refine-seed0" / "report.html").is_file()

    assert run(tmp_path / "runs", reporter=Reporter(silent=True)) == status
    second = capsys.readouterr().out
    assert "reused" in second
    numbers = [text[text.index("zero-shot accuracy") : text.index("Report:")] for text in (first, second)]
    assert numbers[0] == numbers[1]
