"""Pictures of `forcegauge watch`, from recorded finetunes, at the sizes of two terminals.

    python -m tests.benchmarks.watch_pictures -o FOLDER

Needs Chromium. The README's picture is the squeezing DPO at 80 x 24.
"""

from __future__ import annotations

import io
import itertools
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
from playwright.sync_api import ViewportSize, sync_playwright
from rich.console import Console

from forcegauge.detectors import Detector
from forcegauge.phase import pushes_down
from forcegauge.record import Record, open_record
from forcegauge.watching.following import Follower
from forcegauge.watching.screen import screen
from forcegauge.watching.view import record_view
from tests.benchmarks.calibration import RECORDS, Run, load
from tests.synthetic_run import write_judgement

SIZES = ((80, 24), (140, 40))
STEP_SECONDS, PROBE_SECONDS = 9.0, 2.1
SPACING = 4

SCENES: dict[str, tuple[Sequence[str], int | None]] = {
    "sft": (("sft-0",), 14),
    "squeezing": (("sft-0", "dpo-squeeze-slow"), 24),
    "after": (("sft-0", "dpo-squeeze-slow"), None),
    "healthy": (("sft-both", "dpo-both-0"), None),
    "diverging": (("sft-diverge",), 8),
}
"""The finetunes that follow one another, and the step up to which the last one has come; None is
its end."""


def write_run(folder: Path, phases: Sequence[str], until: int | None) -> None:
    """The record of a run whose phases are recorded finetunes, as the agent would have kept it."""
    now = itertools.count(time.time() - 3600)
    clock = [next(now)]
    record = open_record(folder, "my-run", clock=lambda: clock[0])
    offset = 0
    for name in phases:
        run = load(RECORDS / f"{name}.jsonl")
        last = until if until is not None and name == phases[-1] else run.length
        _write_phase(record, run, offset, last, clock)
        offset += last
    if until is None:
        record.append("end", {"reason": "finished"}, phase=_phase(run), step=offset)
    record.close()


def _phase(run: Run) -> str:
    return str(run.config["loss"])


def _write_phase(record: Record, run: Run, offset: int, last: int, clock: list[float]) -> None:
    phase, start = _phase(run), clock[0]
    settings = {"every": SPACING, "budget": None, "loss": phase}
    facts = {"model": "HuggingFaceTB/SmolLM2-135M-Instruct", "settings": settings}
    record.append("run", {**facts, "resumed_from": None}, phase=phase, step=offset)
    detector = Detector(offset, pushes_down(phase))
    said = ""
    for number, probe in enumerate(row for row in run.probes if row["step"] <= last):
        step = offset + probe["step"]
        clock[0] = start + STEP_SECONDS * probe["step"] + PROBE_SECONDS * (number + 1)
        signals, noise = probe["signals"], probe["noise"]
        judged = detector.update(step, signals, noise) if number else detector.idle()
        line = {
            "scores": {t: {"logprob_mean": {"mean": v[0]}} for t, v in probe["levels"].items()},
            "signals": signals,
            "noise": noise,
            "verdict": judged.verdict,
            "duration_seconds": PROBE_SECONDS,
        }
        forces = {k: v for k, v in signals.items() if k.startswith(("force_", "valley_"))}
        if forces:
            record.append("forces", forces, phase=phase, step=step)
        record.append("probe", line, phase=phase, step=step)
        write_judgement(record, phase, step, judged, said)
        said = judged.verdict
        if probe["step"] and probe["step"] % (2 * SPACING) == 0:
            saved = {"path": f"out/{phase}/checkpoint-{probe['step']}", "healthy": judged.healthy}
            record.append("checkpoint", saved, phase=phase, step=step)


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
        for name, (phases, until) in SCENES.items():
            with tempfile.TemporaryDirectory() as folder:
                write_run(Path(folder), phases, until)
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
