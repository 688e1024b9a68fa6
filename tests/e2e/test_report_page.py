"""The report in a real browser: nothing but the page itself, at desktop and phone size."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from forcegauge.report import write_report
from tests.agent.test_report import HOSTILE
from tests.benchmarks.report import large_run, recorded_run
from tests.synthetic_run import two_phase_run

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 844}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]


@dataclass
class Visit:
    """An open page and what happened on it."""

    page: Any
    console: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(two_phase_run(tmp_path_factory.mktemp("run")))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield chromium
        chromium.close()


def visit(browser: Any, report: Path, *, ready: str = "plots", **options: Any) -> Visit:
    """Open the report in a context of its own and wait until its script is done."""
    page = browser.new_context(**options).new_page()
    seen = Visit(page)
    page.on("console", lambda message: seen.console.append(message.text))
    page.on("pageerror", lambda error: seen.errors.append(str(error)))
    page.on("request", lambda request: seen.requests.append(request.url))
    page.goto(report.as_uri())
    page.wait_for_selector(f"html[data-ready={ready}]", timeout=60_000)
    return seen


@pytest.fixture(params=["desktop-light", "desktop-dark", "phone-light", "phone-dark"])
def seen(request: pytest.FixtureRequest, browser: Any, report: Path) -> Iterator[Visit]:
    device, scheme = request.param.split("-")
    phone = {"viewport": PHONE, "is_mobile": True, "has_touch": True}
    options = phone if device == "phone" else {"viewport": DESKTOP}
    found = visit(browser, report, color_scheme=scheme, **options)
    yield found
    found.page.context.close()


def traces(page: Any) -> int:
    count: int = page.locator("#plot-logprob_change .scatterlayer .trace").count()
    return count


def test_it_opens_without_a_word_on_the_console_and_asks_nobody(seen: Visit, report: Path) -> None:
    assert seen.errors == []
    assert seen.console == []
    assert [url for url in seen.requests if not url.startswith("data:")] == [report.as_uri()]


def test_every_figure_is_drawn(seen: Visit) -> None:
    figures = seen.page.locator("figure").count()
    assert figures >= 10
    assert seen.page.locator("figure .plot .main-svg >> nth=0").count() == 1
    assert seen.page.locator("figure .plot:has(.main-svg)").count() == figures


def test_nothing_is_wider_than_the_screen(seen: Visit) -> None:
    page = seen.page
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    wide = "[...document.querySelectorAll('.plot')].filter(p => p.scrollWidth > p.clientWidth + 1)"
    assert page.evaluate(f"{wide}.length") == 0


def test_the_first_screen_holds_verdict_and_advice(seen: Visit) -> None:
    for part in (".verdict h1", ".verdict .advice"):
        box = seen.page.locator(part).bounding_box()
        assert box["y"] + box["height"] <= seen.page.viewport_size["height"]


def test_a_type_can_be_switched_off_and_on(browser: Any, report: Path) -> None:
    page = visit(browser, report, viewport=DESKTOP).page
    button = page.locator("button[data-role=rejected]").first
    before = traces(page)
    button.press("Enter")
    assert (traces(page), button.get_attribute("aria-pressed")) == (before - 1, "false")
    button.press("Enter")
    assert (traces(page), button.get_attribute("aria-pressed")) == (before, "true")
    page.context.close()


def test_labels_at_the_lines_do_not_overlap(browser: Any, report: Path) -> None:
    page = visit(browser, report, viewport=DESKTOP).page
    names = page.locator("#plot-logprob_change .annotation-text").all()
    boxes = [name.bounding_box() for name in names if "_" in (name.text_content() or "")]
    ends = sorted((box["y"], box["y"] + box["height"]) for box in boxes)
    assert len(ends) > 5
    for (_, bottom), (top, _) in pairwise(ends):
        assert bottom <= top + 2
    page.context.close()


def test_small_changes_do_not_look_large(browser: Any, tmp_path: Path) -> None:
    page_file = write_report(recorded_run("grpo-both", tmp_path))
    page = visit(browser, page_file, viewport=DESKTOP).page
    low, high = page.evaluate("document.getElementById('plot-logprob_change').layout.yaxis.range")
    assert low <= -1
    assert high >= 0.5
    page.context.close()


def margin_ink(page: Any) -> str:
    """The colour of a line, as drawn."""
    ink: str = page.locator("#plot-margin .js-line").first.evaluate("line => line.style.stroke")
    return ink


def test_dark_mode_changes_the_plots_too(browser: Any, report: Path) -> None:
    page = visit(browser, report, viewport=DESKTOP, color_scheme="light").page
    light = margin_ink(page)
    page.emulate_media(color_scheme="dark")
    page.wait_for_timeout(1_000)
    assert margin_ink(page) != light
    page.context.close()


def test_a_dark_screen_prints_on_white_paper(browser: Any, report: Path, tmp_path: Path) -> None:
    page = visit(browser, report, viewport=DESKTOP, color_scheme="dark").page
    dark = margin_ink(page)
    line = "document.querySelector('#plot-margin .js-line').style.stroke"
    page.evaluate(f"addEventListener('beforeprint', () => {{ window.ink = {line}; }})")
    page.pdf(path=str(tmp_path / "report.pdf"))
    assert page.evaluate("window.ink") not in (None, dark)
    page.wait_for_timeout(1_000)
    assert margin_ink(page) == dark
    page.context.close()


def test_hostile_names_in_a_record_do_nothing(browser: Any, tmp_path: Path) -> None:
    hostile = '</script><img src=x onerror="window.hit=1"><a href="javascript:1">a</a>'
    record = two_phase_run(tmp_path) / "record.jsonl"
    text = record.read_text()
    record.write_text(
        text.replace('"unrelated"', json.dumps(hostile)).replace(
            '"phase":"dpo"', f'"phase":{json.dumps(hostile)}'
        )
    )
    found = visit(browser, write_report(tmp_path), viewport=DESKTOP)
    assert found.page.evaluate("window.hit") is None
    assert found.page.locator("img, main a").count() == 0
    assert hostile in found.page.locator("#plot-logprob_change").text_content()
    assert found.errors == found.console == []
    found.page.context.close()


def test_a_browser_that_cannot_inflate_shows_the_tables(browser: Any, report: Path) -> None:
    page = browser.new_context(viewport=DESKTOP).new_page()
    page.add_init_script("delete window.DecompressionStream")
    page.goto(report.as_uri())
    page.wait_for_selector("html[data-ready=tables]", timeout=60_000)
    assert page.locator("figure table").first.is_visible()
    assert page.locator("figure .plain").first.is_visible()
    page.context.close()


def test_without_a_script_verdict_and_tables_remain(browser: Any, report: Path) -> None:
    page = browser.new_context(viewport=DESKTOP, java_script_enabled=False).new_page()
    page.goto(report.as_uri())
    assert page.locator(".verdict h1").inner_text().endswith("since step 26")
    page.locator("figure summary").first.click()
    assert page.locator("figure table").first.is_visible()
    page.context.close()


@pytest.fixture(scope="module")
def moved_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with rows per token, of probes whose texts want to act."""
    folder = large_run(tmp_path_factory.mktemp("moved"), 12, 4)
    probes = folder / "probes.jsonl"
    probes.write_text(probes.read_text().replace("The pot", json.dumps(HOSTILE)[1:-1]))
    return write_report(folder)


def opened(page: Any) -> Any:
    """The first of the most moved probes, opened by the keyboard, with its heat map."""
    card = page.locator("details.moved").first
    card.locator("summary").first.press("Enter")
    card.locator(".t").first.wait_for()
    return card


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_a_moved_probe_opens_token_by_token(
    browser: Any, moved_report: Path, size: dict[str, int]
) -> None:
    found = visit(browser, moved_report, viewport=size)
    card = opened(found.page)
    assert card.locator(".answer").count() == 12
    assert card.locator(".t").count() == 12 * 24
    assert card.locator(".t").first.locator("i").count() == 2
    assert found.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert found.errors == found.console == []
    found.page.context.close()


def test_its_numbers_are_in_a_table_too(browser: Any, moved_report: Path) -> None:
    page = visit(browser, moved_report, viewport=DESKTOP).page
    numbers = opened(page).locator(".numbers").first
    numbers.locator("summary").press("Enter")
    numbers.locator("tbody tr").last.wait_for()
    assert numbers.locator("tbody tr").count() == 24
    assert "→" in numbers.locator("tbody tr").first.inner_text()
    page.context.close()


def test_hostile_texts_of_probes_do_nothing_when_opened(browser: Any, moved_report: Path) -> None:
    found = visit(browser, moved_report, viewport=DESKTOP)
    opened(found.page)
    assert found.page.locator("img").count() == 0
    assert found.errors == found.console == []
    found.page.context.close()


def test_without_a_script_a_moved_probe_shows_its_texts(browser: Any, moved_report: Path) -> None:
    page = browser.new_context(viewport=DESKTOP, java_script_enabled=False).new_page()
    page.goto(moved_report.as_uri())
    page.locator("details.moved summary").first.click()
    assert "<img src=x onerror=alert(2)>" in page.locator("details.moved").first.inner_text()
    page.context.close()


DIM = """() => {
  const lum = (rgb) => {
    const [r, g, b] = rgb.map((v) => { v /= 255; return v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; });
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const parse = (color) => (color.match(/[\\d.]+/g) || []).map(Number);
  const ground = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const [r, g, b, a = 1] = parse(getComputedStyle(e).backgroundColor);
      if (a === 1) return [r, g, b];
    }
    return [255, 255, 255];
  };
  const texts = [...document.querySelectorAll("h1, h2, h3, p, summary, .standing, .tile span, dt, dd, caption, th")];
  return texts.filter((e) => e.offsetParent && e.textContent.trim()).flatMap((e) => {
    const pair = [lum(parse(getComputedStyle(e).color).slice(0, 3)), lum(ground(e))].sort((a, b) => b - a);
    const ratio = (pair[0] + .05) / (pair[1] + .05);
    return ratio < 4.5 ? [`${e.tagName} ${e.className} ${ratio.toFixed(2)}`] : [];
  });
}"""  # noqa: E501
"""Texts with less contrast than WCAG asks for (4.5 to 1)."""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_have_enough_contrast(browser: Any, report: Path, scheme: str) -> None:
    page = visit(browser, report, viewport=DESKTOP, color_scheme=scheme).page
    assert page.evaluate(DIM) == []
    page.context.close()


def test_everything_that_can_be_pressed_has_a_name(browser: Any, report: Path) -> None:
    page = visit(browser, report, viewport=DESKTOP).page
    controls = page.locator("main button, main summary, main [tabindex], main a").all()
    assert len(controls) > 20
    for control in controls:
        name = control.get_attribute("aria-label") or control.text_content() or ""
        assert name.strip()
    page.context.close()
