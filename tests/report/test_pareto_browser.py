"""The page of a sweep in a real browser: it requests nothing, complains of nothing, and fits the screen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from modalign.report import pareto
from tests.report.test_page_browser import browser  # noqa: F401 - a fixture
from tests.report.test_pareto import made_sweep

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    long_name = ",data.train=a-folder-whose-name-goes-on-and-on-for-longer-than-any-telephone-is-wide"
    sweep = made_sweep(tmp_path_factory.mktemp("sweep"), long_name=long_name)
    pareto.write(sweep)
    return sweep.report


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_opens_offline_without_complaint_and_fits(
    browser: Any,  # noqa: F811
    page: Path,
    width: int,
    scheme: str,
) -> None:
    opened = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    complaints: list[str] = []
    requests: list[str] = []
    opened.on("console", lambda message: complaints.append(message.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("request", lambda request: requests.append(request.url))
    opened.goto(page.as_uri())
    opened.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert complaints == []
    assert [url for url in requests if not url.startswith("data:")] == [page.as_uri()]
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    outside = """width => [...document.querySelectorAll('main *')].filter(
        each => !each.closest('.scroll, thead, svg') && each.getBoundingClientRect().right > width + 1
    ).map(each => each.outerHTML.slice(0, 80))"""
    assert opened.evaluate(outside, width) == []
    heights = opened.evaluate(
        "[...document.querySelectorAll('figure > svg text')].map(e => e.getBoundingClientRect().height)"
    )
    assert len(heights) > 50 and min(heights) >= 7.5
    opened.close()
