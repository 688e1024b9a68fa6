"""What the model writes: greedy outputs before, between and now, and the probes behind it all."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from forcegauge.record import Line
from forcegauge.reporting.plots import swatch
from forcegauge.reporting.safe import inline, shown
from forcegauge.reporting.story import field

SHOWN_PROMPTS = 4
MOST_PROMPTS = 24
SHOWN_PROBES = 3
LONGEST_TEXT = 1200
WORDS = 4
"""Length of a repeated stretch that is marked, in words."""


def outputs_section(rows: Sequence[Line]) -> str:
    """Greedy outputs of several prompts: before training, before the last phase, latest."""
    by_id: dict[str, list[Line]] = {}
    for row in rows:
        by_id.setdefault(str(row.get("id")), []).append(row)
    cards = [_output_card(found) for found in list(by_id.values())[:MOST_PROMPTS]]
    if not cards:
        return ""
    more = "".join(cards[SHOWN_PROMPTS:])
    rest = (
        f"<details><summary>More prompts ({len(cards) - SHOWN_PROMPTS})</summary>{more}</details>"
    )
    return (
        '<section class="card"><h2>What the model writes</h2>'
        '<p class="reading">Greedy decoding from the prompt, nothing else. Stretches of '
        f"{WORDS} words that came before in the same output are <mark>marked</mark>.</p>"
        f"{''.join(cards[:SHOWN_PROMPTS])}{rest if more else ''}</section>"
    )


def _output_card(rows: Sequence[Line]) -> str:
    stages = "".join(
        f'<div class="stage"><h4>{title} <small>{inline(row.get("phase"))}, step '
        f"{shown(row.get('step'))}</small></h4>{_written(row.get('text'))}</div>"
        for title, row in _stages(rows)
    )
    return (
        f'<article class="output"><h3 class="text">{prompt_text(rows[0].get("prompt"))}</h3>'
        f'<div class="stages">{stages}</div></article>'
    )


def _stages(rows: Sequence[Line]) -> list[tuple[str, Line]]:
    """First and last output, and the first one of the last phase between them."""
    first, last = rows[0], rows[-1]
    begun = next(row for row in rows if row.get("phase") == last.get("phase"))
    stages = [("Before", first), (f"Before {inline(last.get('phase'))}", begun), ("Now", last)]
    kept = {id(row): (title, row) for title, row in reversed(stages)}
    return [kept[key] for key in dict.fromkeys(id(row) for _, row in stages)]


def _written(text: object) -> str:
    words = re.findall(r"\S+\s*|\s+", str(text or "")[:LONGEST_TEXT])
    if not words:
        return '<p class="text quiet">(nothing: it stopped at once)</p>'
    marks = zip(words, _repeated([word.strip() for word in words]), strict=True)
    pieces = [f"<mark>{shown(word)}</mark>" if again else shown(word) for word, again in marks]
    joined = re.sub(r"(\s+)</mark>", r"</mark>\1", "".join(pieces).replace("</mark><mark>", ""))
    return f'<p class="text" dir="auto">{joined}</p>'


def _repeated(words: Sequence[str]) -> list[bool]:
    """Whether a word is part of a stretch of `WORDS` words that stood earlier in the text."""
    seen: set[tuple[str, ...]] = set()
    marked = [False] * len(words)
    for start in range(len(words) - WORDS + 1):
        stretch = tuple(words[start : start + WORDS])
        if stretch in seen:
            marked[start : start + WORDS] = [True] * WORDS
        seen.add(stretch)
    return marked


def prompt_text(prompt: Any) -> str:
    """A prompt as HTML: plain text, or the messages of a chat with their roles."""
    if not isinstance(prompt, list | tuple):
        return f'<bdi dir="auto">{shown(prompt, LONGEST_TEXT)}</bdi>'
    return "<br>".join(
        f"<small>{inline(field(message, 'role'))}</small> "
        f'<bdi dir="auto">{shown(field(message, "content"), LONGEST_TEXT)}</bdi>'
        for message in prompt
    )


def probes_section(rows: Sequence[Line]) -> str:
    """A few probes with all their responses, so that one sees what is asked."""
    if not rows:
        return ""
    cards = "".join(_probe_card(row) for row in rows[:SHOWN_PROBES])
    return (
        f'<section class="card"><h2>What is asked</h2><p class="reading">{SHOWN_PROBES} of '
        f"{len(rows)} probes, as examples. Every response is scored as it stands.</p>"
        f"{cards}</section>"
    )


def _probe_card(row: Line) -> str:
    responses = row.get("responses")
    pairs = responses.items() if isinstance(responses, Mapping) else ()
    listed = "".join(
        f'<dt>{swatch(str(kind))}{inline(kind)}</dt><dd class="text" dir="auto">'
        f"{shown(text, LONGEST_TEXT)}</dd>"
        for kind, text in pairs
    )
    return (
        f'<details class="probe"><summary class="text">{prompt_text(row.get("prompt"))}</summary>'
        f"<dl>{listed}</dl></details>"
    )
