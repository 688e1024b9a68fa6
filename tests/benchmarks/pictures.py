"""A plotly figure as a PNG, drawn by the browser that the tests use."""

from __future__ import annotations

from pathlib import Path
from shutil import which
from tempfile import TemporaryDirectory
from typing import Any

from playwright.sync_api import sync_playwright


def save_png(figure: Any, path: Path, *, width: int = 900, height: int = 480) -> None:
    """Draw ``figure`` (a plotly figure) into ``path``; sizes in CSS pixels, twice as many dots."""
    figure.update_layout(width=width, height=height, template="plotly_white")
    with TemporaryDirectory() as folder, sync_playwright() as playwright:
        page_file = Path(folder, "figure.html")
        figure.write_html(page_file, include_plotlyjs=True, config={"displayModeBar": False})
        browser = playwright.chromium.launch(executable_path=which("chromium"))
        page = browser.new_page(
            viewport={"width": width + 16, "height": height + 16}, device_scale_factor=2
        )
        page.goto(page_file.as_uri())
        page.locator(".plotly-graph-div .main-svg").first.wait_for()
        page.locator(".plotly-graph-div").screenshot(path=path)
        browser.close()
