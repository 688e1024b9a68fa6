"""A snapshot as one self-contained page: who pushes what, the kernel, and whether theory holds.

Like the run's report it asks the network for nothing and has every number in a table.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import metadata, resources
from pathlib import Path
from string import Template
from typing import Any

from forcegauge.reporting.plots import digits
from forcegauge.reporting.pushed import pushers_html, summary
from forcegauge.reporting.safe import inline, script_json, shown
from forcegauge.textfiles import write_whole
from forcegauge_monitor.figures import Spec, figures
from forcegauge_monitor.job import PUSHERS

PAGE_NAME = "snapshot.html"
HARDLY = 0.1
"""Share of the largest effect under which an effect is not told by its sign."""


def write_page(folder: Path) -> Path:
    """Write SNAPSHOT/snapshot.html from the snapshot's files and return its path."""
    target = folder / PAGE_NAME
    write_whole(target, render(folder))
    return target


def render(folder: Path) -> str:
    """The page as HTML."""
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    pushers = json.loads((folder / "pushers.json").read_text(encoding="utf-8"))
    drawn = list(figures(metrics, folder))
    body = (
        _headline(metrics),
        '<div class="grid">' + "".join(_card(*each) for each in drawn) + "</div>",
        _stability(metrics),
        _pushers(pushers, metrics["updated"]),
        _facts(metrics),
    )
    step = metrics.get("snapshot_step")
    return Template(_asset("forcegauge_monitor", "page.html")).substitute(
        title=f"{shown(Path(metrics['checkpoint']).name)} · forcegauge snapshot",
        name=inline(Path(metrics["checkpoint"]).name),
        standing=f"snapshot of step {step}" if step is not None else "snapshot",
        body="\n".join(part for part in body if part),
        figures=script_json([spec for spec, _, _, _ in drawn]),
        plotly=_packed_plotly(),
        style=_asset("forcegauge.reporting", "page.css"),
        script=_asset("forcegauge_monitor", "page.js"),
        version=metadata.version("forcegauge"),
    )


def _card(spec: Spec, title: str, reading: str, table: str) -> str:
    key = spec["key"]
    return (
        f'<figure class="card"><figcaption><h2>{shown(title)}</h2>'
        f'<p class="reading" id="reading-{key}">{reading}</p></figcaption>'
        f'<div class="plot" id="plot-{key}" role="img" aria-label="{shown(title)}" '
        f'aria-describedby="reading-{key}"></div>'
        '<p class="plain">This browser draws no plots: here are the numbers.</p>'
        "<noscript><p>Without a script there are no plots: the numbers are below.</p></noscript>"
        f'<details><summary>Numbers</summary><div class="scroll" tabindex="0" role="region" '
        f'aria-label="{shown(title)}, numbers">{table}</div></details></figure>'
    )


def _headline(metrics: Mapping[str, Any]) -> str:
    pushes = {name: row["sample"] for name, row in metrics["attribution_nats"].items()}
    least = HARDLY * max(map(abs, pushes.values()), default=0.0)
    moved = {
        "raises": [name for name, value in pushes.items() if value > least],
        "lowers": [name for name, value in pushes.items() if value < -least],
        "hardly moves": [name for name, value in pushes.items() if abs(value) <= least],
    }
    said = ", ".join(f"{what} {_list(names)}" for what, names in moved.items() if names)
    note = ""
    if metrics["reference"].startswith("none given"):
        note = (
            '<p class="on"><b>No reference model was given:</b> the loss’s weights are those of a '
            "model that equals its reference, as at the first step.</p>"
        )
    return (
        '<section class="card"><p class="eyebrow">on average over '
        f"{metrics['samples']} training samples, loss {shown(metrics['loss'])}</p>"
        f'<p class="meaning">A step on a sample {said}.</p>{note}</section>'
    )


def _list(names: Sequence[str]) -> str:
    return ", ".join(f"<b>{inline(name)}</b>" for name in names)


def _stability(metrics: Mapping[str, Any]) -> str:
    found = metrics.get("stability")
    if found is None:
        return ""
    if isinstance(found, str):
        return f'<section class="card"><h2>Stability</h2><p>{shown(found)}</p></section>'
    rows = "".join(
        f'<tr><th scope="row">against the {name} snapshot</th><td>{digits(each["alignment"])}</td>'
        f"<td>{digits(each['velocity'])}</td><td>"
        + (", ".join(f"{inline(u)} {digits(v)}" for u, v in each["rank"].items()) or "–")
        + "</td></tr>"
        for name, each in found.items()
    )
    return (
        '<section class="card"><h2>Stability of the kernel</h2><p class="reading">Through the same '
        "random seeds: alignment 1 is the same kernel up to its size, 0 an unrelated one; velocity "
        "is the size of the difference; rank is Spearman’s correlation of the response types’ "
        'norms, by what is updated.</p><div class="scroll" tabindex="0" role="region" '
        'aria-label="Stability"><table><thead><tr><th></th><th scope="col">alignment</th>'
        '<th scope="col">velocity</th><th scope="col">rank</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div></section>"
    )


def _pushers(pushers: Mapping[str, Any], sides: Sequence[str]) -> str:
    return (
        f'<section class="card long"><h2>Who pushes most</h2><p class="reading">{summary(sides)}'
        f"</p>{pushers_html(pushers, PUSHERS)}</section>"
    )


def _facts(metrics: Mapping[str, Any]) -> str:
    left_out, control = metrics["left_out"], metrics.get("entk_head_control_ratio")
    facts = {
        "checkpoint": metrics["checkpoint"],
        "loss": f"{metrics['loss']}, beta {metrics['beta']:g}",
        "reference": metrics["reference"],
        "probes": f"{metrics['probes']}, hash {metrics['probe_hash'][:12]}",
        "Adam": metrics.get("adam", "attributed with the checkpoint’s optimizer state"),
        "left out": (
            f"{left_out['ratio']:.1%} of the trained parameters: {', '.join(left_out['names'])}"
            if left_out["names"]
            else "nothing: all trained parameters count"
        ),
        "head control": digits(control) if control else "none: the head is tied or not trained",
        "directions": metrics["plan"]["storage"],
        "peak memory": f"{metrics['peak_memory_bytes'] / 2**30:.1f} GiB, "
        f"{metrics['plan']['peak_bytes'] / 2**30:.1f} planned",
        "took": f"{metrics['seconds']:.0f} s",
    }
    rows = "".join(f"<dt>{name}</dt><dd>{shown(value)}</dd>" for name, value in facts.items())
    return f'<section class="card"><h2>Facts</h2><div class="facts"><dl>{rows}</dl></div></section>'


def _asset(package: str, name: str) -> str:
    return resources.files(package).joinpath(name).read_text(encoding="utf-8")


@cache
def _packed_plotly() -> str:
    """The plotting library, gzip in base64; the page inflates it."""
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), 9, mtime=0)).decode()
