"""How fast `forcegauge watch` opens long records, and what memory it takes.

    python -m tests.benchmarks.watch

For each number of probe ticks: a record of that many in a temporary folder, then a process of its
own that shows it on a terminal of 80 x 24. Told are seconds from its first import to its first
screen and to the whole record being read, on the clock and on the CPU (the same on an idle
machine), and the most memory it held.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click

from forcegauge.record import Line
from tests.synthetic_run import two_phase_run

PROGRAM = """
import io, json, resource, sys, time
start = time.monotonic()
def spent():
    return time.monotonic() - start, time.process_time()
from pathlib import Path
from rich.console import Console
from forcegauge.watching.screen import screen
from forcegauge.watching.showing import Recorded

console = Console(file=io.StringIO(), force_terminal=True, width=80, height=24)
first, views = None, 0
for view in Recorded(Path(sys.argv[1])).views():
    console.print(screen(view, 80, 24))
    views += 1
    first = first or spent()
memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"first": first, "all": spent(), "megabytes": memory, "verdict": view.verdict,
    "since": view.since, "count": view.count, "screens": views}))
"""


def long_record(folder: Path, ticks: int) -> Path:
    """A DPO of so many probes that squeezes for its last part."""
    short = two_phase_run(folder / "short") / "record.jsonl"
    lines = [json.loads(row) for row in short.read_bytes().splitlines()]
    dpo = [line for line in lines if line["phase"] == "dpo"]
    path = folder / "long" / "record.jsonl"
    path.parent.mkdir()
    with path.open("wb") as file:
        file.writelines(_stretched(dpo, ticks))
    return path.parent


def _stretched(lines: list[Line], ticks: int) -> Iterator[bytes]:
    probes = [line for line in lines if line["kind"] == "probe"]
    each, step = ticks // len(probes), 20
    for line in lines:
        copies = each if line["kind"] == "probe" else 1
        head, tail = _around_step(line)
        for _ in range(copies):
            step += line["kind"] == "probe"
            yield b"%s%d%s\n" % (head, step, tail)


def _around_step(line: Line) -> tuple[bytes, bytes]:
    data = json.dumps(line, separators=(",", ":")).encode()
    head, _, tail = data.partition(b'"step":%d' % line["step"])
    return head + b'"step":', tail


@click.command()
@click.option("--ticks", multiple=True, type=int, default=(1_000, 10_000, 100_000))
@click.option("--folder", type=click.Path(path_type=Path), help="Where records go; 1.3 GB.")
def main(ticks: tuple[int, ...], folder: Path | None) -> None:
    """Print a row per number of probe ticks."""
    click.echo("  ticks      MB   first screen (CPU)   whole record (CPU)  memory")
    for count in ticks:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            record = long_record(Path(place), count)
            size = (record / "record.jsonl").stat().st_size / 1e6
            done = subprocess.run(
                [sys.executable, "-c", PROGRAM, record], capture_output=True, text=True, check=True
            )
            found = json.loads(done.stdout)
            click.echo(
                f"{found['count']:7,} {size:7,.0f} {_seconds(found['first'])} "
                f"{_seconds(found['all'])} {found['megabytes']:6.0f} MB   "
                f"{found['verdict']} since {found['since']}"
            )


def _seconds(found: list[float]) -> str:
    wall, processor = found
    return f"{wall:8.2f} s ({processor:5.2f} s)"


if __name__ == "__main__":
    main()
