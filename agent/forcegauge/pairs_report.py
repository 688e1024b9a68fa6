"""The ranking of preference pairs for people: a table for the terminal and a page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata, resources
from string import Template
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.table import Table
from rich.text import Text

from forcegauge.commands.probes import visible
from forcegauge.pairs_file import Ranking
from forcegauge.pairs_input import Pair
from forcegauge.reporting.outputs import LONGEST_TEXT, prompt_text
from forcegauge.reporting.safe import inline, shown

Row = Mapping[str, Any]

TEXT_START = 60
"""Characters of an answer that the terminal may show."""
BINS = 44
WIDTH, HEIGHT = 660.0, 150.0
"""Of the histogram, in units of its own."""

COLUMNS = {
    "rank": "1 is the most entangled pair",
    "entanglement": "ρ⁺ = ⟨g⁺, g⁻⟩ / ‖g⁺‖² of the gradients of both log-probs through the head: "
    "above 1 a preference step lowers chosen while the margin grows",
    "predicted_chosen_change": "‖g⁺‖² − ⟨g⁺, g⁻⟩: first-order change of chosen’s log-prob per "
    "learning rate and weight, through the head; below 0 chosen falls",
    "predicted_rejected_change": "⟨g⁺, g⁻⟩ − ‖g⁻‖², the same for rejected",
    "ches": "length-normalised CHES, the similarity of hidden states; shown beside, not ranked by",
    "squeeze_law_nats": "Σ (‖π‖² − π_y)₊ over the rejected tokens, forces in one context summed "
    "first: what the push-down takes from every unlikely token, in total",
    "squeeze_law_ratio": "the same per token that is pushed down, from 0 to 1",
    "chosen_logprob_mean": "log-prob of chosen, nats per token",
    "rejected_logprob_mean": "log-prob of rejected, nats per token",
    "preference_margin_nats": "chosen minus rejected, nats per token",
    "shared_prefix_tokens": "tokens that both answers begin with",
    "chosen_tokens": "length of chosen",
    "rejected_tokens": "length of rejected",
    "prompt_tokens": "length of the prompt",
}
"""Columns of the page and what they mean."""

_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="referrer" content="no-referrer">
<link rel="icon" href="data:,">
<title>$title · forcegauge pairs</title>
<style>$style
.histogram { width: 100%; height: auto; display: block; }
.histogram rect { fill: var(--c-one); }
.histogram .over { fill: var(--c-two); }
.histogram line { stroke: var(--soft); }
.histogram .one { stroke: var(--alarm); stroke-dasharray: 5 4; }
.histogram text { fill: var(--soft); font-size: 13px; }
@media (max-width: 600px) { .histogram text { font-size: 26px; } }
</style>
</head>
<body>
<header><p class="brand">forcegauge</p><p class="run">$dataset</p><p class="standing">preference pairs before training with $model</p></header>
<main>
$body
</main>
<footer><p>Measured by forcegauge $version in one forward per pair, without any training. A hint where to look, not an alarm: it sees the first step, and that through the head alone.</p></footer>
</body>
</html>
""")  # noqa: E501


def summary(ranking: Ranking) -> str:
    """How many pairs would displace, in a sentence."""
    known = len(ranking.entanglements)
    if not known:
        return "No pair has a finite entanglement: does the model give finite logits?"
    share = f"{ranking.displacing} of {known} pairs ({ranking.displacing / known:.1%})"
    return (
        f"Entanglement is above 1 in {share}, its median is {ranking.median:.2f}: above 1 the "
        "first step of DPO lowers chosen while the margin grows, as far as the head tells. Under 1 "
        "is no promise: later steps and the other layers count too."
    )


def ranking_table(ranking: Ranking, texts: Mapping[str, Pair]) -> Table:
    """Both ends of the ranking with the start of each answer, for any width."""
    table = Table(box=None, pad_edge=False, expand=True)
    for name in ("rank", "pair", "rho+", "CHES", "squeeze"):
        table.add_column(name, justify="left" if name == "pair" else "right", no_wrap=True)
    for name in ("chosen", "rejected"):
        table.add_column(name, no_wrap=True, overflow="ellipsis", ratio=1)
    for row in ranking.top:
        table.add_row(*_cells(row, texts))
    if ranking.bottom:
        hidden = ranking.count - len(ranking.top) - len(ranking.bottom)
        table.add_row("...", f"{hidden} more" if hidden else "")
    for row in ranking.bottom:
        table.add_row(*_cells(row, texts))
    return table


def _cells(row: Row, texts: Mapping[str, Pair]) -> list[Text]:
    pair = texts[row["id"]]
    numbers = ("entanglement", "ches", "squeeze_law_nats")
    answers = (" ".join(pair.responses[name].split()) for name in ("chosen", "rejected"))
    return [
        Text(str(row["rank"])),
        Text(visible(row["id"])),
        *(Text(_short(row[name])) for name in numbers),
        *(Text(visible(answer[:TEXT_START])) for answer in answers),
    ]


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}" if abs(value) < 1000 else f"{value:.2g}"


def ranking_page(
    ranking: Ranking,
    texts: Mapping[str, Pair],
    dataset: str,
    model: str,
    notes: Sequence[str],
) -> str:
    """The ranking as one page that asks the network for nothing; all texts are escaped."""
    body = (
        _headline(ranking, notes),
        _histogram(ranking.entanglements),
        _section("Most entangled: of these, chosen is likeliest to fall", ranking.top, texts),
        _section("Least entangled", ranking.bottom, texts),
        _meanings(),
    )
    css = resources.files("forcegauge.reporting").joinpath("page.css")
    return _PAGE.substitute(
        title=shown(dataset),
        dataset=inline(dataset),
        model=inline(model),
        style=css.read_text(encoding="utf-8"),
        body="\n".join(part for part in body if part),
        version=metadata.version("forcegauge"),
    )


def _headline(ranking: Ranking, notes: Sequence[str]) -> str:
    known = len(ranking.entanglements)
    share = ranking.displacing / known if known else None
    tiles = {
        "pairs": f"{ranking.count:,}",
        "entanglement above 1": "–" if share is None else f"{share:.1%}",
        "median entanglement": "–" if ranking.median is None else f"{ranking.median:.2f}",
    }
    listed = "".join(
        f'<li class="tile"><span class="name">{name}</span><span class="value">{value}</span></li>'
        for name, value in tiles.items()
    )
    said = "".join(f"<p>{inline(note)}</p>" for note in notes)
    return f'<ul class="tiles">{listed}</ul><section class="card">{said}</section>'


def _histogram(values: npt.NDArray[np.float64]) -> str:
    if not values.size:
        return ""
    low, high = np.quantile(values, (0.01, 0.99))
    low, high = min(float(low), 0.0), max(float(high), 1.2)
    step = (high - low) / BINS
    counts, _ = np.histogram(values.clip(low, high), BINS, (low, high))
    bars = "".join(
        _bar(place, count / counts.max(), low + (place + 0.5) * step > 1, count)
        for place, count in enumerate(counts.tolist())
        if count
    )
    one = (1 - low) / (high - low) * WIDTH
    return (
        '<section class="card"><h2>Entanglement of the pairs</h2><p class="reading">Number of '
        "pairs by ρ⁺; the outermost hundredths are in the first and the last bar. Right of the "
        "dashed line the first step lowers chosen although the margin grows.</p>"
        f'<svg class="histogram" viewBox="0 -4 {WIDTH:g} {HEIGHT + 36:g}" role="img" '
        f'aria-label="Histogram of entanglement">{bars}<line x1="0" x2="{WIDTH:g}" '
        f'y1="{HEIGHT:g}" y2="{HEIGHT:g}"/><line class="one" x1="{one:.1f}" x2="{one:.1f}" y1="0" '
        f'y2="{HEIGHT:g}"/>{_labels(low, high, one)}</svg></section>'
    )


def _bar(place: int, share: float, over: bool, count: int) -> str:
    width, height = WIDTH / BINS, max(share * HEIGHT, 1.0)
    kind = ' class="over"' if over else ""
    return (
        f'<rect{kind} x="{place * width + 1:.1f}" y="{HEIGHT - height:.1f}" '
        f'width="{width - 2:.1f}" height="{height:.1f}"><title>{count} pairs</title></rect>'
    )


def _labels(low: float, high: float, one: float) -> str:
    places = ((0.0, "start", f"{low:.2g}"), (one, "middle", "1"), (WIDTH, "end", f"{high:.2g}"))
    kept = [place for place in places if place[0] == one or abs(place[0] - one) > 70]
    return "".join(
        f'<text x="{x:.1f}" y="{HEIGHT + 24:g}" text-anchor="{anchor}">{_minus(text)}</text>'
        for x, anchor, text in kept
    )


def _section(title: str, rows: Sequence[Row], texts: Mapping[str, Pair]) -> str:
    if not rows:
        return ""
    heads = "".join(f'<th scope="col">{shown(_name(name))}</th>' for name in ["pair", *COLUMNS])
    lines = "".join(_line(row) for row in rows)
    details = "".join(_details(row, texts[row["id"]]) for row in rows)
    return (
        f'<section class="card long"><h2>{title}</h2><div class="scroll" tabindex="0" '
        f'role="region" aria-label="{title}"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>{details}</section>"
    )


def _name(column: str) -> str:
    return column.replace("_", " ").removesuffix(" nats")


def _line(row: Row) -> str:
    cells = "".join(f"<td>{_cell(row.get(name))}</td>" for name in COLUMNS)
    return f'<tr><th scope="row">{inline(row["id"])}</th>{cells}</tr>'


def _cell(value: object) -> str:
    if isinstance(value, float):
        text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3f}"
    else:
        text = "–" if value is None else f"{value:,}"
    return shown(_minus(text))


def _minus(text: str) -> str:
    return text.replace("-", "\N{MINUS SIGN}")


def _details(row: Row, pair: Pair) -> str:
    answers = "".join(
        f'<dt>{name}</dt><dd class="text" dir="auto">{shown(pair.responses[name], LONGEST_TEXT)}'
        "</dd>"
        for name in ("chosen", "rejected")
    )
    return (
        f'<details class="probe"><summary class="text"><small>{row["rank"]:,} · '
        f"{inline(row['id'])}</small> {prompt_text(pair.prompt)}</summary><dl>{answers}</dl>"
        "</details>"
    )


def _meanings() -> str:
    terms: Iterable[str] = (
        f"<dt>{shown(_name(name))}</dt><dd>{shown(meaning)}</dd>"
        for name, meaning in COLUMNS.items()
    )
    return (
        '<section class="card"><h2>What the columns mean</h2><div class="probe"><dl>'
        f"{''.join(terms)}</dl></div></section>"
    )
