"""The page in a real browser: nothing is requested, nothing is complained about, nothing is wider than the screen."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modalign.report import page
from tests.report.made_run import make_run

pytestmark = pytest.mark.browser
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright import sync_api

    candidates = (os.environ.get("CHROMIUM"), *map(shutil.which, ("chromium", "chromium-browser", "google-chrome")))
    program = next((path for path in candidates if path), None)
    if program is None:
        assert "CI" not in os.environ, "the browser tests need Chromium, which .ci/run installs"
        pytest.skip("no Chromium: install it, or set CHROMIUM to its path")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=list(QUIET))
        yield started
        started.close()


@pytest.fixture(scope="module", params=["whole", "worse", "empty"])
def report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser") / "a-run-folder-with-a-name-that-is-rather-long-for-a-telephone"
    if request.param == "empty":
        folder.mkdir()
    else:
        make_run(folder, noise_after=0.75 if request.param == "whole" else 6.0)
    return page.write(folder)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_opens_offline_without_complaint_and_fits(browser: Any, report: Path, width: int, scheme: str) -> None:
    opened = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    complaints: list[str] = []
    requests: list[str] = []
    opened.on("console", lambda message: complaints.append(message.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("requestfailed", lambda request: complaints.append(request.url[:80]))
    opened.on("request", lambda request: requests.append(request.url))
    opened.goto(report.as_uri())
    opened.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert complaints == []
    assert [url for url in requests if not url.startswith("data:")] == [report.as_uri()]
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    outside = """width => [...document.querySelectorAll('main *')].filter(
        each => !each.closest('.scroll, thead, svg') && each.getBoundingClientRect().right > width + 1
    ).map(each => each.outerHTML.slice(0, 80))"""
    assert opened.evaluate(outside, width) == []
    assert opened.evaluate("[...document.images].every(each => each.complete && each.naturalWidth > 0)")
    opened.close()


def test_the_verdict_is_the_largest_text_and_stands_on_the_first_screen(browser: Any, report: Path) -> None:
    opened = browser.new_page(viewport={"width": 1280, "height": 700})
    opened.goto(report.as_uri())
    line = opened.locator(".verdict .line")
    assert line.bounding_box()["y"] < 200
    sizes = opened.evaluate(
        "[...document.querySelectorAll('main *')].map(e => parseFloat(getComputedStyle(e).fontSize))"
    )
    assert float(line.evaluate("e => parseFloat(getComputedStyle(e).fontSize)")) == max(sizes)
    opened.close()


def test_chart_labels_stay_readable_on_a_telephone(browser: Any, tmp_path: Path) -> None:
    opened = browser.new_page(viewport={"width": 400, "height": 900})
    opened.goto(page.write(make_run(tmp_path / "run")).as_uri())
    heights = opened.evaluate(
        "[...document.querySelectorAll('figure > svg text')].map(e => e.getBoundingClientRect().height)"
    )
    assert len(heights) > 50
    assert min(heights) >= 9
    opened.close()
