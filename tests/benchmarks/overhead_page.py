"""Writes what the agent costs a training, as `overhead` measured it, into agent/cost.md."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

PAGE = Path(__file__).parents[2] / "agent" / "cost.md"


def rendered(found: Mapping[str, Any]) -> str:
    """The page as Markdown."""
    parts, peak, probes = found["parts"], found["peak_mib"], found["probes"]
    scored = sorted({int(probe["probes"]) for probe in probes})
    counts = f"{scored[0]}" if len(scored) == 1 else f"{scored[0]} to {scored[-1]}"
    return f"""# What the agent costs a training

SmolLM2-135M in float32 on a CPU ({found["threads"]} threads), one sequence a step, \
{found["step_seconds"]:.2f} s a step without the agent; {found["steps"]:,} steps with it and a \
budget of {found["budget"]:.0%}, blocks of steps without it between them. All times are the \
benchmark's own. Made by `make bench-overhead` in {found["minutes"]:.0f} minutes.

| | |
|---|--:|
| step times with the agent over those without, after the early probes | {found["ratio"]:.4f} |
| of it: calls of the agent, {len(probes)} probes among them | {parts["calls"]:.4f} |
| of it: reading forces | {parts["reading"]:.4f} |
| these two alone, which the agent can know of | {found["timed"]:.4f} |
| all else | {parts["hooks"]:+.4f} |
| what the benchmark can tell apart (twice the standard error of the last) | \
{found["resolution"]:.4f} |
| the same by the agent's own `forcegauge_probe_overhead_ratio` | {found["own_ratio"]:.4f} |
| peak memory of the process, without | {peak["without"]:,.0f} MiB |
| peak memory of the process, with | {peak["with"]:,.0f} MiB |

A late probe scored {counts} of {found["set"]} probes in turn and took \
{min(p["seconds"] for p in probes):.1f} to {max(p["seconds"] for p in probes):.1f} s, the longest \
those that decode greedy outputs too. The baseline and the dense early probes score all and are \
exempt: {found["early_probes"]} of them took {found["early_seconds"]:.0f} s, once in a phase.
"""


@click.command()
@click.argument("results", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def main(results: Path) -> None:
    """Write the page from RESULTS, the JSON of the benchmark."""
    PAGE.write_text(rendered(json.loads(results.read_text())), encoding="utf-8")
    click.echo(PAGE)


if __name__ == "__main__":
    main()
