"""Writes the cost of a snapshot's attribution, as `entk` measured it, into monitor/cost.md."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

Found = Mapping[str, Any]

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "monitor" / "cost.md"
PLOT = ROOT / "monitor" / "pictures" / "cost.svg"
WIDTH, HEIGHT, LEFT, TOP = 300, 190, 52, 26
"""Of one panel and the room for its axis titles, in pixels."""


def rendered(found: Found) -> str:
    """The page as Markdown."""
    parts, ours = found["parts"], found["ways"][0]
    forward, floors = found["forward_seconds"], found["floors"]
    near = {name: ours["seconds"] / seconds for name, seconds in floors.items()}
    units = ours["seconds"] / forward
    return f"""# What attribution costs

{found["probes"]} probes in {found["types"]} response types against {found["samples"]} training \
samples, sequences of {found["tokens"]:.0f} tokens on average, SmolLM2-135M in float32 on a CPU \
({_counted(found["threads"], "thread")}), all in one process. Made by `make bench-entk`.

| way | time | times ours | memory above the model | what was run | differs by |
|---|--:|--:|--:|---|--:|
{_rows(found["ways"])}
{_absent(found["absent"])}
A forward pass of one such sequence takes {forward:.3f} s in batches of 16. Direction hooks take \
{units:,.0f} of them: {parts["directions"] / forward / found["probes"]:.2f} a probe (3 is a \
forward and a backward pass) and {parts["samples"] / forward / found["samples"]:.2f} a sample. \
That is {near["a product for each direction"]:.2f} times (3P + (2+F)U), the floor of a product \
for each direction, and {near["gradients formed once"]:.2f} times (3P + (3+F/T)U), the floor of \
forming each sample's gradient once; P probes, U samples, F types, T tokens of a sequence.

The plan (`--plan`) foresees {found["plan"]["forwards"]:,.0f} forward passes, \
{found["plan"]["forwards"] / units:.2f} of the measured, and \
{found["plan"]["peak_bytes"] / 2**30:.1f} GiB for the whole process; measured were \
{ours["peak_bytes"] / 2**30:.1f} GiB above the loaded model ({found["numbers"] * 4 / 2**30:.1f} \
GiB) and its process.

Time grows linearly with samples: a straight line explains \
{_fit(found["growth"]["samples"])[2]:.1%} of the variance. A response type more adds \
{_added(found):.1%} to the samples' pass.

![Growth of time with samples and with response types](pictures/cost.svg)
"""


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _rows(ways: Sequence[Found]) -> str:
    base = ways[0]["seconds"]
    return "\n".join(
        f"| {way['way']} | {_time(way['seconds'])} | {way['seconds'] / base:.1f} "
        f"| {way['peak_bytes'] / 2**30:.1f} GiB | {way['measured']} | {_apart(way['apart'])} |"
        for way in sorted(ways, key=lambda way: float(way["seconds"]))
    )


def _apart(value: float | None) -> str:
    return "" if not value else f"{value:.0e}"


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min"


def _absent(reason: str) -> str:
    return f"\nbergson was not measured: {reason}.\n" if reason else ""


def _added(found: Found) -> float:
    slope, start, _ = _fit(found["growth"]["types"])
    return slope / (start + slope * float(found["types"]))


def _fit(points: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """Slope, value at 0 and R² of the least-squares line."""
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread
    start = mean_y - slope * mean_x
    error = sum((y - start - slope * x) ** 2 for x, y in points)
    return slope, start, 1 - error / sum((y - mean_y) ** 2 for _, y in points)


def drawn(found: Found) -> str:
    """Both growths as an SVG, each with its least-squares line."""
    panels = [
        _panel(found["growth"][key], title, place * (WIDTH + LEFT + 20))
        for place, (key, title) in enumerate(
            (("samples", "samples, 12 response types"), ("types", "response types"))
        )
    ]
    width, height = 2 * (WIDTH + LEFT + 20), HEIGHT + TOP + 44
    style = "font: 12px sans-serif; fill: #555"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" style="{style}">'
        f'<rect width="{width}" height="{height}" fill="#fff"/>{"".join(panels)}</svg>\n'
    )


def _panel(points: Sequence[Sequence[float]], title: str, offset: int) -> str:
    slope, start, _ = _fit(points)
    top_x, top_y = max(x for x, _ in points), 1.1 * max(y for _, y in points)

    def at(x: float, y: float) -> str:
        return f"{LEFT + WIDTH * x / top_x:.1f},{TOP + HEIGHT * (1 - y / top_y):.1f}"

    dots = "".join(
        '<circle cx="{}" cy="{}" r="4" fill="#1f77b4"/>'.format(*at(x, y).split(","))
        + f'<text x="{at(x, 0).split(",")[0]}" y="{TOP + HEIGHT + 16}" text-anchor="middle">{x:g}'
        "</text>"
        for x, y in points
    )
    scale = "".join(
        f'<text x="{LEFT - 6}" y="{at(0, y).split(",")[1]}" text-anchor="end">{y:.0f} s</text>'
        for y in (0, top_y / 2, top_y)
    )
    axes = f"M{at(0, top_y)} L{at(0, 0)} L{at(top_x, 0)}"
    line = f"M{at(0, start)} L{at(top_x, start + slope * top_x)}"
    return (
        f'<g transform="translate({offset},0)"><path d="{axes}" fill="none" stroke="#999"/>'
        f'<path d="{line}" stroke="#1f77b4" stroke-dasharray="4 3"/>{dots}{scale}'
        f'<text x="{LEFT + WIDTH / 2}" '
        f'y="{TOP + HEIGHT + 36}" text-anchor="middle">{title}</text>'
        f'<text x="{LEFT}" y="14">time of the samples’ pass</text></g>'
    )


@click.command()
@click.argument("measured", type=click.Path(path_type=Path, exists=True))
def main(measured: Path) -> None:
    """Write the page and its plot from a JSON of `tests.benchmarks.entk`."""
    found = json.loads(measured.read_text(encoding="utf-8"))
    PLOT.parent.mkdir(parents=True, exist_ok=True)
    PLOT.write_text(drawn(found), encoding="utf-8")
    PAGE.write_text(rendered(found), encoding="utf-8")
    click.echo(PAGE)


if __name__ == "__main__":
    main()
