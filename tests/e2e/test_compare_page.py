"""The comparison in a real browser: nothing but the page itself, at desktop and phone size."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from forcegauge.compare import compare
from forcegauge.reporting.comparison import write_comparison
from tests.benchmarks.report import recorded_run
from tests.e2e.test_report_page import CHROMIUM, DESKTOP, PHONE, Visit, browser, visit

__all__ = ["browser"]

RUNS = ("dpo-squeeze-0", "dpo-squeeze-slow", "dpo-gentle-0")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    found = compare([recorded_run(name, folder / name) for name in RUNS])
    return write_comparison(found, folder / "compare.html")


@pytest.fixture(params=["desktop-light", "desktop-dark", "phone-light", "phone-dark"])
def seen(request: pytest.FixtureRequest, browser: Any, page_file: Path) -> Iterator[Visit]:
    device, scheme = request.param.split("-")
    phone = {"viewport": PHONE, "is_mobile": True, "has_touch": True}
    options = phone if device == "phone" else {"viewport": DESKTOP}
    found = visit(browser, page_file, color_scheme=scheme, **options)
    yield found
    found.page.context.close()


def test_it_opens_without_a_word_and_fits_the_screen(seen: Visit, page_file: Path) -> None:
    assert seen.errors == seen.console == []
    assert [url for url in seen.requests if not url.startswith("data:")] == [page_file.as_uri()]
    assert seen.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_every_figure_is_drawn(seen: Visit) -> None:
    figures = seen.page.locator("figure").count()
    assert figures >= 8
    assert seen.page.locator("figure .plot:has(.main-svg)").count() == figures


def test_the_first_screen_says_which_squeezed(seen: Visit) -> None:
    heading = seen.page.locator("h1")
    assert "Squeezing: dpo-squeeze-slow (since step 4)" in heading.inner_text()
    box = heading.bounding_box()
    assert box["y"] + box["height"] <= seen.page.viewport_size["height"]


def drawn(page: Any, key: str) -> int:
    count: int = page.locator(f"#plot-{key} .scatterlayer .trace").count()
    return count


def test_a_run_is_switched_off_in_every_figure_at_once(browser: Any, page_file: Path) -> None:
    page = visit(browser, page_file, viewport=DESKTOP).page
    page.locator("button[data-role=run-1]").press("Enter")
    assert [drawn(page, key) for key in ("squeeze_nats", "squeezed_ratio")] == [2, 2]
    page.locator("button[data-role=run-1]").press("Enter")
    assert [drawn(page, key) for key in ("squeeze_nats", "squeezed_ratio")] == [3, 3]
    page.context.close()


def test_a_run_has_one_colour_in_all_figures(browser: Any, page_file: Path) -> None:
    page = visit(browser, page_file, viewport=DESKTOP).page
    inks = [
        page.locator(f"#plot-{key} .js-line").nth(0).evaluate("line => line.style.stroke")
        for key in ("squeeze_nats", "squeezed_ratio", "chosen_change_nats")
    ]
    assert len(set(inks)) == 1
    page.context.close()


def test_without_a_script_outcomes_and_tables_remain(browser: Any, page_file: Path) -> None:
    page = browser.new_context(viewport=DESKTOP, java_script_enabled=False).new_page()
    page.goto(page_file.as_uri())
    assert page.locator(".outcomes").is_visible()
    page.locator("figure summary").first.click()
    assert page.locator("figure table").first.is_visible()
    page.context.close()
