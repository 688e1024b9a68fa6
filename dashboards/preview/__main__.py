"""Draws every dashboard from the replayed runs: ``make preview``.

All pictures go to build/preview/, and the ones of the README to dashboards/pictures/.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
from playwright.sync_api import sync_playwright

from dashboards.preview.answers import Filled, filled
from dashboards.preview.browser import Browser
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
OUTPUT = Path("build/preview")
KEPT = ("dark", 1280)
LOOKS = (KEPT, ("dark", 1920), ("light", 1280), ("light", 1920))
"""Themes and widths in pixels; the first is kept for the README, of the squeezing run."""
CAPTION = (
    "Drawn with Grafana's UI libraries, without a Grafana server, from recorded finetunes that "
    "went through the real exporters into a real Prometheus. Their steps are spread over 24 "
    "hours, and the snapshots are of another short finetune of the same model. What is marked "
    "(stand-in) Grafana draws with a part that its libraries do not hold."
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
        "answers": _answers(it),
    }


def _answers(it: Filled) -> dict[int, list[dict[str, Any]]]:
    """By panel, in the order of its queries."""
    found: dict[int, list[dict[str, Any]]] = {}
    for query in queries(it.dashboard, it.view):
        found.setdefault(query.panel_id, []).append(
            {
                "refId": query.ref,
                "legendFormat": interpolated(query.target.get("legendFormat") or "", it.view),
                "table": query.target.get("format") == "table",
                "step": query.step,
                "series": it.answers[query.key],
            }
        )
    return found


def everything(url: str, names: Sequence[str], quick: bool) -> Iterator[tuple[Path, Any, Filled]]:
    """Every picture to make: its file, what the page draws, and what that is drawn from."""
    for name, dashboard in dashboards().items():
        if names and name not in names:
            continue
        by_run = any(variable["name"] == "run" for variable in variables(dashboard))
        for run in LOOKED_AT if by_run and not quick else (SQUEEZING,):
            it = filled(url, dashboard, shown_with(run), WINDOW)
            if run == SQUEEZING:
                yield PICTURES / f"{name}.png", page_of(it, *KEPT), it
            for look in () if quick else LOOKS:
                file = "-".join((name, run, *map(str, look)))
                yield OUTPUT / f"{file}.png", page_of(it, *look), it


@click.command()
@click.argument("names", nargs=-1)
@click.option("--quick", is_flag=True, help="Only the pictures of the README.")
def main(names: tuple[str, ...], quick: bool) -> None:
    """Draw all dashboards, or the named ones."""
    with tempfile.TemporaryDirectory() as place, sync_playwright() as playwright:
        click.echo(f"{backfill(Path(place))} samples")
        chromium = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = chromium.new_page(timezone_id="UTC", locale="en-GB")
        browser = Browser(page, OUTPUT / "site", END)
        with replayed(Path(place)) as server:
            for file, drawing, it in everything(server.url, names, quick):
                file.parent.mkdir(exist_ok=True)
                file.write_bytes(stamped(browser.picture(drawing), it.stamps))
                click.echo(file)
        chromium.close()


if __name__ == "__main__":
    main()
