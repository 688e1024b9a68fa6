"""Chromium with the built page: one picture for each drawing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import click
from playwright.sync_api import Page, Route, TimeoutError

PATIENCE_MS = 30_000
ORIGIN = "http://preview.invalid"


def wanted(page: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Panels with something to show, by title, and a selector of what must stand in each."""
    inside = {"timeseries": ".uplot", "state-timeline": ".uplot", "table": "[role=gridcell]"}
    for panel in page["panels"]:
        answered = any(each["series"] for each in page["answers"].get(panel["id"], ()))
        if answered and panel["type"] in inside:
            yield panel["title"], f"[data-panel='{panel['id']}'] {inside[panel['type']]}"


class Browser:
    """Draws on one page of Chromium, as if it were ``now``; what it complains about raises
    `click.ClickException`."""

    def __init__(self, page: Page, site: Path, now: float) -> None:
        self._page, self._site, self._drawing = page, site, "{}"
        self._complaints: list[str] = []
        page.on("console", lambda said: self._heard(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: self._heard(str(error)))
        page.route(f"{ORIGIN}/**", self._serve)
        # dates such as "3 hours ago" count from here
        page.clock.set_fixed_time(now)

    def _heard(self, text: str) -> None:
        self._complaints.append(text)

    def _serve(self, route: Route) -> None:
        place = urlparse(route.request.url).path.lstrip("/") or "index.html"
        file = self._site / place
        if place == "view.json":
            route.fulfill(body=self._drawing, content_type="application/json")
        elif file.is_file():
            route.fulfill(path=file)
        else:
            self._heard(f"{place} is missing")
            route.fulfill(status=404)

    def picture(self, drawing: Mapping[str, Any]) -> bytes:
        """The whole page as PNG."""
        self._complaints.clear()
        self._drawing = json.dumps(drawing)
        rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in drawing["panels"])
        # as high as the page, or tables that are out of sight stay empty
        self._page.set_viewport_size({"width": drawing["width"], "height": 40 * rows + 200})
        self._page.goto(f"{ORIGIN}/")
        self._await("window.__ready", "the page")
        for title, selector in wanted(drawing):
            self._await(f"document.querySelector({json.dumps(selector)})", title)
        plots = [selector for _, selector in wanted(drawing) if selector.endswith(".uplot")]
        if plots and self._page.locator(", ".join(plots)).count() != len(plots):
            self._heard("a panel holds more than one plot")
        if self._complaints:
            raise click.ClickException(f"{drawing['title']}: {'; '.join(self._complaints)}")
        return self._page.locator(".page").screenshot()

    def _await(self, condition: str, what: str) -> None:
        try:
            self._page.wait_for_function(condition, timeout=PATIENCE_MS)
        except TimeoutError:
            self._heard(f"{what} was not drawn")
