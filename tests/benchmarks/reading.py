"""Writes what the pages for newcomers show: their pictures and the list of metrics.

python -m tests.benchmarks.reading [--no-pictures] [--demo RUN_DIR]. The pictures are the top of the
report of recorded finetunes; these keep no tokens, so that picture is of a run of `make demo`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from shutil import which
from tempfile import TemporaryDirectory
from typing import Any

import click
from click.testing import CliRunner
from playwright.sync_api import sync_playwright

from forcegauge.catalogue import Metric
from forcegauge.commands.metrics import COLUMNS, metrics
from forcegauge.compare import compare
from forcegauge.report import write_report
from forcegauge.reporting.comparison import write_comparison
from forcegauge_monitor import catalogue
from tests.benchmarks.report import recorded_run

PAGES = Path(__file__).parents[2] / "agent"
PICTURES = {
    "healthy": "grpo-both",
    "squeezing": "dpo-squeeze-0",
    "too-fast": "dpo-diverge",
    "hallucinating": "sft-0",
}
"""Picture -> the recorded finetune that it is of."""
SWEEP = ("dpo-gentle-0", "dpo-squeeze-slow", "dpo-squeeze-0")
WIDTH = 1000
SHOWN = ("chosen", "rejected", "chosen_rephrase", "rejected_rephrase")
"""Answers in the picture of tokens: the first of a probe."""

HEAD = """# Metrics

Generated from the catalogues that the code itself exports from; `forcegauge metrics` prints the
first part. What the values mean together: [reading.md](reading.md).

## From the agent

"""
MONITOR = """
## From the monitor

These carry `run` where they belong to one.

"""


def metrics_page() -> str:
    """The list of all metrics."""
    agent = CliRunner().invoke(metrics, ["--format", "markdown"]).output
    return f"{HEAD}{agent}{MONITOR}{_table(catalogue.METRICS)}"


def _table(rows: Sequence[Metric]) -> str:
    cells = [
        (f"`{r.name}`", r.kind, ", ".join(f"`{x}`" for x in r.labels), r.unit, r.meaning, r.formula)
        for r in rows
    ]
    lines = [COLUMNS, ("---",) * len(COLUMNS), *cells]
    texts = (" | ".join(text.replace("|", "\\|") for text in line) for line in lines)
    return "".join(f"| {text} |\n" for text in texts)


def _picture(browser: Any, page_file: Path, path: Path, last: str) -> None:
    """The top of a page down to the end of one element."""
    page = browser.new_page(viewport={"width": WIDTH, "height": 900})
    page.goto(page_file.as_uri())
    page.wait_for_selector("html[data-ready=plots]", timeout=60_000)
    box = page.locator(last).first.bounding_box()
    height = box["y"] + box["height"] + 8
    top = {"x": 0, "y": 0, "width": WIDTH, "height": height}
    page.screenshot(path=path, full_page=True, clip=top)
    page.close()


@click.command()
@click.option("--pictures/--no-pictures", default=True, help="Whether to draw, too.")
@click.option("--demo", type=click.Path(path_type=Path), help="A run of the demo, for tokens.")
def main(pictures: bool, demo: Path | None) -> None:
    """Write metrics.md and the pictures."""
    (PAGES / "metrics.md").write_text(metrics_page(), encoding="utf-8")
    if pictures:
        draw()
    if demo is not None:
        draw_tokens(demo)


def draw() -> None:
    """Write the pictures."""
    with TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name)
        browser = playwright.chromium.launch(executable_path=which("chromium"))
        for picture, run in PICTURES.items():
            report = write_report(recorded_run(run, folder / run))
            _picture(browser, report, PAGES / "pictures" / f"{picture}.png", "figure.wide")
        runs = [recorded_run(run, folder / "sweep" / run) for run in SWEEP]
        page = write_comparison(compare(runs), folder / "compare.html")
        _picture(browser, page, PAGES / "pictures" / "compare.png", "figure.wide")
        browser.close()


def draw_tokens(run_dir: Path) -> None:
    """Write the picture of the probe that moved most, down to its answers to other prompts."""
    with TemporaryDirectory() as name, sync_playwright() as playwright:
        report = write_report(run_dir, Path(name) / "report.html")
        browser = playwright.chromium.launch(executable_path=which("chromium"))
        page = browser.new_page(viewport={"width": WIDTH, "height": 900})
        page.goto(report.as_uri())
        page.wait_for_selector("html[data-ready=plots]", timeout=60_000)
        card = page.locator("details.moved").first
        card.locator("summary").first.click()
        card.locator(".t").first.wait_for()
        for kind in range(len(SHOWN), card.locator(".answer").count()):
            card.locator(".answer").nth(kind).evaluate("answer => { answer.hidden = true; }")
        card.screenshot(path=PAGES / "pictures" / "tokens.png")
        browser.close()


if __name__ == "__main__":
    main()
