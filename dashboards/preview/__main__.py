"""Draws every dashboard from the replayed runs: ``make preview``.

All pictures go to build/preview/, and the ones of the README to dashboards/pictures/.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import click
from playwright.sync_api import Page, Route, sync_playwright

from dashboards.preview.answers import Filled, filled
from dashboards.preview.queries import (
    FOLDER,
    dashboards,
    interpolated,
    laid_out,
    queries,
    text_of,
    variables,
)
from dashboards.preview.stamp import stamped
from tests.dashboards.replay import (
    END,
    HEALTHY,
    LOOKED_AT,
    SQUEEZING,
    WINDOW,
    backfill,
    replayed,
)

PICTURES = FOLDER.parent / "pictures"
THEMES, WIDTHS = ("dark", "light"), (1280, 1920)
KEPT = (SQUEEZING, "dark", 1280)
ORIGIN = "http://preview.invalid"
CAPTION = (
    "Drawn with Grafana's UI libraries, without a Grafana server, from recorded finetunes that "
    "went through the real exporters into a real Prometheus; their steps are spread over 24 "
    "hours. What is marked (stand-in) Grafana draws with a part that its libraries do not hold."
)


def shown_with(run: str) -> tuple[str, str]:
    """The run, and a healthy one to stand beside it where there is room for two."""
    return run, HEALTHY if run != HEALTHY else SQUEEZING


def page_of(it: Filled, theme: str, width: int) -> dict[str, Any]:
    """What the page draws."""
    view, dashboard = it.view, it.dashboard
    texts = {name: text_of(chosen) for name, chosen in view.chosen.items()}
    panels = [
        {**panel, "options": panel.get("options", {}), "fieldConfig": panel.get("fieldConfig", {})}
        for panel in laid_out(dashboard)
    ]
    answers: dict[int, list[dict[str, Any]]] = {}
    for query in queries(dashboard, view):
        target = query.target
        answers.setdefault(query.panel_id, []).append(
            {
                "refId": query.ref,
                "legendFormat": interpolated(target.get("legendFormat") or "", view),
                "table": target.get("format") == "table",
                "step": query.step,
                "series": it.answers[query.key],
            }
        )
    return {
        "title": dashboard["title"],
        "theme": theme,
        "width": width,
        "begin": view.begin,
        "end": view.end,
        "variables": [
            {"name": v["name"], "label": v.get("label") or v["name"], "text": texts[v["name"]]}
            for v in variables(dashboard)
            if v["name"] in texts
        ],
        "links": [link["title"] for link in dashboard.get("links", ())],
        "caption": CAPTION,
        "panels": panels,
        "answers": answers,
    }


def plots(page: Mapping[str, Any]) -> set[int]:
    """The panels that must hold one plot each: those with a time axis and something to show."""
    return {
        panel["id"]
        for panel in page["panels"]
        if panel["type"] in ("timeseries", "state-timeline")
        and any(each["series"] for each in page["answers"].get(panel["id"], ()))
    }


class Browser:
    """Chromium with the built page; what it complains about raises `click.ClickException`."""

    def __init__(self, page: Page, site: Path) -> None:
        self._page, self._site, self._drawing = page, site, "{}"
        self._complaints: list[str] = []
        page.on("console", lambda said: self._heard(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: self._heard(str(error)))
        page.route(f"{ORIGIN}/**", self._serve)
        # dates such as "3 hours ago" count from here
        page.clock.set_fixed_time(END)

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
        self._page.set_viewport_size({"width": drawing["width"], "height": 800})
        self._page.goto(f"{ORIGIN}/")
        try:
            self._page.wait_for_function("window.__ready", timeout=60_000)
        except Exception as error:
            raise click.ClickException(f"{drawing['title']}: {self._complaints}") from error
        self._check(drawing)
        return self._page.screenshot(full_page=True)

    def _check(self, drawing: Mapping[str, Any]) -> None:
        for panel in plots(drawing):
            found = self._page.locator(f"[data-panel='{panel}'] .uplot").count()
            if found != 1:
                self._complaints.append(f"panel {panel} holds {found} plots")
        if self._complaints:
            raise click.ClickException(f"{drawing['title']}: {'; '.join(self._complaints)}")


def everything(url: str, names: list[str], quick: bool) -> Iterator[tuple[str, Path, Any, Filled]]:
    """Every picture to make: its run, file, page and what it is drawn from."""
    for name, dashboard in dashboards().items():
        if names and name not in names:
            continue
        for run in LOOKED_AT:
            it = filled(url, dashboard, shown_with(run), WINDOW)
            for theme in THEMES:
                for width in WIDTHS:
                    kept = (run, theme, width) == KEPT
                    if kept or not quick:
                        file = Path(f"{name}-{run}-{theme}-{width}.png")
                        yield name if kept else "", file, page_of(it, theme, width), it


@click.command()
@click.argument("names", nargs=-1)
@click.option("--site", type=click.Path(path_type=Path), default=Path("build/preview/site"))
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("build/preview"))
@click.option("--quick", is_flag=True, help="Only the pictures of the README.")
def main(names: tuple[str, ...], site: Path, output: Path, quick: bool) -> None:
    """Draw all dashboards, or the named ones."""
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place, sync_playwright() as playwright:
        click.echo(f"{backfill(Path(place))} samples")
        chromium = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = chromium.new_page(timezone_id="UTC", locale="en-GB")
        browser = Browser(page, site)
        with replayed(Path(place)) as server:
            for kept, file, drawing, it in everything(server.url, list(names), quick):
                png = stamped(browser.picture(drawing), it.stamps)
                (output / file).write_bytes(png)
                click.echo(file)
                if kept:
                    PICTURES.mkdir(exist_ok=True)
                    (PICTURES / f"{kept}.png").write_bytes(png)
        chromium.close()


if __name__ == "__main__":
    main()
