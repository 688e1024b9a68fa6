"""Pictures of `forcegauge watch`, from recorded finetunes, at the sizes of two terminals.

    python -m tests.benchmarks.watch_pictures -o FOLDER

Needs Chromium. The README's picture is the squeezing DPO at 80 x 24.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

import click
from playwright.sync_api import ViewportSize, sync_playwright
from rich.console import Console

from forcegauge.record import Line, read_record
from forcegauge.watching.following import Follower
from forcegauge.watching.screen import screen
from forcegauge.watching.view import record_view
from tests.benchmarks.report import recorded_run

SIZES = ((80, 24), (140, 40))
STEP_SECONDS, PROBE_SECONDS = 9.0, 2.1
SPACING = 4
"""Steps between probes; a checkpoint is saved at every second one."""

SCENES: dict[str, tuple[str, int | None]] = {
    "sft": ("sft-0", 14),
    "squeezing": ("dpo-squeeze-slow", 24),
    "after": ("dpo-squeeze-slow", None),
    "healthy": ("grpo-both", 20),
    "too-fast": ("sft-diverge", 8),
}
"""The recorded finetune, and the step up to which it has come; None is its end."""


def write_run(folder: Path, name: str, until: int | None) -> None:
    """A recorded finetune as the agent would have kept it so far, with checkpoints."""
    lines = read_record(recorded_run(name, folder))
    start = time.time() - 3600
    shown = [line for line in lines if until is None or _is_known(line, until)]
    rows = [{**line, "run": "my-run", "time": _time(line, start)} for line in shown]
    (folder / "record.jsonl").write_text("".join(json.dumps(row) + "\n" for row in _saved(rows)))


def _is_known(line: Line, until: int) -> bool:
    return bool(line["kind"] != "end" and line["step"] <= until)


def _time(line: Line, start: float) -> float:
    return float(start + (STEP_SECONDS + PROBE_SECONDS / SPACING) * line["step"])


def _saved(rows: Sequence[Line]) -> Iterator[Line]:
    """The lines with settings, costs, and a checkpoint at every second probe."""
    on: set[str] = set()
    for row, following in zip_longest(rows, rows[1:]):
        if row["kind"] == "run":
            row["settings"] |= {"every": SPACING, "budget": None}
            row["model"] = "HuggingFaceTB/SmolLM2-135M-Instruct"
        if row["kind"] == "probe":
            row["duration_seconds"] = PROBE_SECONDS
        if row["kind"] == "alarm":
            (on.add if row["on"] else on.discard)(row["alarm"])
        yield row
        due = row["step"] and row["step"] % (2 * SPACING) == 0
        if due and row["kind"] != "end" and (following is None or following["step"] > row["step"]):
            path = f"out/checkpoint-{row['step']}"
            place = {key: row[key] for key in ("schema", "run", "phase", "step", "time")}
            yield {**place, "kind": "checkpoint", "path": path, "healthy": not on}


def draw(folder: Path, size: tuple[int, int]) -> str:
    """The last screen of a record as an SVG, some seconds after its last line."""
    *_, course = Follower(folder).read()
    view = record_view(course)
    width, height = size
    console = Console(record=True, width=width, height=height, file=io.StringIO())
    now = (view.heard or 0.0) + 14.0
    console.print(screen(view, width, height, now))
    return console.export_svg(title=f"forcegauge watch out/forcegauge   {width} x {height}")


def pictures(output: Path) -> Iterator[Path]:
    """Write every scene at every size, as SVG and PNG."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        for name, (recorded, until) in SCENES.items():
            with tempfile.TemporaryDirectory() as folder:
                write_run(Path(folder), recorded, until)
                for size in SIZES:
                    path = output / f"watch-{name}-{size[0]}.svg"
                    path.write_text(draw(Path(folder), size))
                    page = browser.new_page(viewport=_size_of(path.read_text()))
                    page.goto(path.resolve().as_uri())
                    page.locator("svg").screenshot(path=path.with_suffix(".png"))
                    page.close()
                    yield path.with_suffix(".png")
        browser.close()


def _size_of(svg: str) -> ViewportSize:
    found = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    assert found is not None
    return {"width": round(float(found[1])), "height": round(float(found[2]))}


@click.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
def main(output: Path) -> None:
    """Write the pictures into a folder."""
    output.mkdir(parents=True, exist_ok=True)
    for path in pictures(output):
        click.echo(path)


if __name__ == "__main__":
    main()
