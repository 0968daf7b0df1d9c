from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from modalign.report import page
from modalign.report.captions import captioned
from tests.report.made_run import make_run


def noted(picture: str, said: str) -> dict[str, Any]:
    return {"picture": picture, "direct": said, "memory": f"{said}, near", "references": ["a <b>boat</b>"]}


def test_pictures_noted_on_both_sides_stand_side_by_side_and_are_no_markup(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert "Captions written" not in page.write(run).read_text(encoding="utf-8")
    file = run / "evaluation.json"
    evaluation = json.loads(file.read_text(encoding="utf-8"))
    for side, pictures in (("before", ["1.png", "2.png"]), ("after", ["2.png", "3.png"])):
        captions = [noted(name, f"<i>{side}</i> {name}") for name in pictures]
        evaluation[side]["tasks"][0]["notes"] = {"captions": captions}
    (found,) = captioned(evaluation)
    assert found.picture == "2.png" and found.references == ("a <b>boat</b>",)
    assert [written[1:] for written in found.written] == [
        ("<i>before</i> 2.png", "<i>after</i> 2.png"),
        ("<i>before</i> 2.png, near", "<i>after</i> 2.png, near"),
    ]
    file.write_text(json.dumps(evaluation), encoding="utf-8")
    html = page.write(run).read_text(encoding="utf-8")
    assert "“&lt;i&gt;before&lt;/i&gt; 2.png” before, “&lt;i&gt;after&lt;/i&gt; 2.png” after" in html
    assert "a &lt;b&gt;boat&lt;/b&gt;" in html and "<i>before" not in html
    assert captioned({"before": None, "after": None}) == captioned({}) == []
