"""The probes that moved most: their texts, and per token where the mass went since the baseline."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from forcegauge.errors import InputError
from forcegauge.record import Line, read_scores
from forcegauge.reporting.assets import packed
from forcegauge.reporting.outputs import prompt_text
from forcegauge.reporting.pieces import Pieces, numbers, reader
from forcegauge.reporting.plots import swatch, written
from forcegauge.reporting.safe import inline, shown, visible
from forcegauge.reporting.story import Story, Value, field, number
from forcegauge.scores import FloatArray, Scores, TokenScores

MOST_PROBES = 50
SHOWN_PROBES = 10
"""Probes that are listed at once; the others are behind a click."""
MOST_TOKENS = 128
"""Most tokens of a response that are drawn; more are said."""
LONGEST_TEXT = 600
FULL_NATS = 4.0
"""Change at which a cell or a token has its full colour."""
TRUE_ARGMAX = 1e-4
"""Nats within which the target is the likeliest token itself."""

Places = dict[tuple[int, int], slice]


@dataclass(frozen=True)
class Moved:
    """Both ends of the latest phase, and which probes moved most: indices, the most moved first."""

    baseline: Scores
    latest: Scores
    change: FloatArray
    order: tuple[int, ...]


def find_moved(folder: Path, story: Story) -> Moved | None:
    """Baseline and latest scores of the latest phase; None where the run kept none of both.

    Raises `InputError` for a damaged file.
    """
    if not story.phases or len(story.phases[-1].probes) < 2:
        return None
    steps = story.phases[-1].steps
    paths = [folder / "scores" / f"{step}.safetensors" for step in (steps[0], steps[-1])]
    if not all(path.exists() for path in paths):
        return None
    baseline, latest = map(read_scores, paths)
    if (baseline.ids, baseline.types) != (latest.ids, latest.types):
        return None
    moved = latest.values["logprob_mean"] - baseline.values["logprob_mean"]
    known = np.isfinite(moved)
    size = np.where(known, np.abs(moved), 0.0).sum(1) / np.maximum(1, known.sum(1))
    order = [row for row in np.argsort(-size, kind="stable") if known[row].any()][:MOST_PROBES]
    return Moved(baseline, latest, moved, tuple(int(row) for row in order))


def moved_section(
    folder: Path, story: Story, probes: Sequence[Line], greedy: Sequence[Line]
) -> tuple[str, str]:
    """The section, and packed beside it what its heat maps are drawn from when opened."""
    try:
        moved = find_moved(folder, story)
    except InputError as error:
        return _unreadable(error), ""
    if moved is None:
        return "", ""
    texts = _texts(probes, greedy)
    tokens = _token_rows(moved, _reader(moved, story, texts))
    return _section(moved, story, probes, texts, bool(tokens)), _packed(tokens)


def _unreadable(error: InputError) -> str:
    return (
        '<section class="card"><h2>The probes that moved most</h2>'
        f'<p class="quiet">The scores of single responses cannot be shown: {inline(error)}</p>'
        "</section>"
    )


def _texts(probes: Sequence[Line], greedy: Sequence[Line]) -> dict[tuple[str, str], str]:
    """Text of a response by probe id and type; empty for a run that keeps no texts."""
    texts = {
        (str(row.get("id")), str(kind)): str(text)
        for row in probes
        for kind, text in (field(row, "responses") or {}).items()
    }
    for row in reversed(greedy):
        texts[str(row.get("id")), "greedy"] = str(row.get("text"))
    return texts


def _section(
    moved: Moved,
    story: Story,
    probes: Sequence[Line],
    texts: Mapping[tuple[str, str], str],
    drawn: bool,
) -> str:
    prompts = {str(row.get("id")): row.get("prompt") for row in probes}
    phase, count = story.phases[-1], len(moved.order)
    heat = " Opened, each shows its answers token by token." if drawn else ""
    cards = [_card(moved, place, row, prompts, texts) for place, row in enumerate(moved.order)]
    more = "".join(cards[SHOWN_PROBES:])
    rest = f"<details><summary>{count - SHOWN_PROBES} more</summary>{more}</details>"
    return (
        f'<section class="card long" id="moved"><h2>The {count} probes that moved most</h2>'
        f'<p class="reading">Of {len(moved.latest.ids)}, by the mean size of the change over '
        f"response types, from step {phase.steps[0]} to {phase.steps[-1]}; nats per token."
        f"{heat}</p>{_table(moved)}{_key() if drawn else ''}"
        f"{''.join(cards[:SHOWN_PROBES])}{rest if more else ''}</section>"
    )


def _key() -> str:
    return (
        '<p class="reading key">Background: the token’s log-prob '
        '<b class="t fell">fell</b> or <b class="t rose">rose</b>. Bars below it, at the baseline '
        'and at the latest probe: mass on <b class="part target">the token itself</b>, on '
        '<b class="part argmax">the likeliest one</b> where that is another, and on '
        '<b class="part rest">all the rest</b>.</p>'
    )


def _table(moved: Moved) -> str:
    heads = "".join(
        f'<th scope="col">{inline(kind).replace("_", "_<wbr>")}</th>' for kind in moved.latest.types
    )
    rows = "".join(
        f'<tr><th scope="row">{inline(moved.latest.ids[row])}</th>'
        + "".join(map(_cell, moved.change[row]))
        + "</tr>"
        for row in moved.order
    )
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Change of each response">'
        f'<table class="moves"><thead><tr><th scope="col">probe</th>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _cell(value: float) -> str:
    told = number(float(value))
    return f"<td{_heat(told)}>{written(told, signed=True)}</td>"


def _heat(value: Value) -> str:
    if value is None:
        return ""
    share = round(100 * min(1.0, abs(value) / FULL_NATS))
    return f' class="{"rose" if value > 0 else "fell"}" style="--heat:{share}"'


def _card(
    moved: Moved,
    place: int,
    row: int,
    prompts: Mapping[str, Any],
    texts: Mapping[tuple[str, str], str],
) -> str:
    name = moved.latest.ids[row]
    prompt = prompts.get(name)
    title = "" if prompt is None else f" {prompt_text(prompt)}"
    answers = "".join(
        _answer(moved, row, column, texts.get((name, kind)))
        for column, kind in enumerate(moved.latest.types)
        if np.isfinite(moved.change[row, column])
    )
    return (
        f'<details class="probe moved" data-place="{place}"><summary class="text">'
        f"<small>{place + 1} · {inline(name)}</small>{title}</summary>{answers}</details>"
    )


def _answer(moved: Moved, row: int, column: int, text: str | None) -> str:
    kind = moved.latest.types[column]
    length = number(float(moved.latest.values["tokens"][row, column]))
    count = "" if length is None else f", {length:.0f} tokens"
    change = written(number(float(moved.change[row, column])), signed=True)
    words = "" if text is None else shown(text, LONGEST_TEXT)
    return (
        f'<div class="answer"><p>{swatch(kind)}{inline(kind)} <b>{change}</b>'
        f"<small> nats per token{count}</small></p>"
        f'<div class="text tokens" dir="auto" data-type="{column}">{words}</div></div>'
    )


def _reader(moved: Moved, story: Story, texts: Mapping[tuple[str, str], str]) -> Pieces:
    """Reads the run's tokens; their numbers are shown where the texts are not known, or where a
    tokenizer on this machine reads something else than was asked."""
    if not texts:
        return numbers
    model = str(field(story.runs[-1], "model") or "") if story.runs else ""
    saved = [str(line.get("path")) for line in reversed(story.checkpoints)]
    read = reader(model, saved)
    return read if read is not None and _fits(read, moved, texts) else numbers


def _fits(read: Pieces, moved: Moved, texts: Mapping[tuple[str, str], str]) -> bool:
    tokens = moved.latest.per_token
    places = _places(tokens)
    for (row, column), place in list(places.items())[:3]:
        text = texts.get((moved.latest.ids[row], moved.latest.types[column]), "")
        start = "".join(read(tokens.token[place][:8].tolist())).strip()
        if start and not text.strip().startswith(start.removesuffix("\N{REPLACEMENT CHARACTER}")):
            return False
    return bool(places)


def _places(tokens: TokenScores) -> Places:
    """Where each response's tokens stand, by probe and type."""
    if not tokens.probe.size:
        return {}
    starts = np.flatnonzero(tokens.position == 0)
    ends = [*starts[1:], tokens.probe.size]
    return {
        (int(tokens.probe[start]), int(tokens.type[start])): slice(int(start), int(end))
        for start, end in zip(starts, ends, strict=True)
    }


def _token_rows(moved: Moved, read: Pieces) -> list[dict[str, Any]]:
    """For each of the moved probes its responses' tokens, by the type's place."""
    before, after = moved.baseline.per_token, moved.latest.per_token
    starts, places = _places(before), _places(after)
    found: dict[int, dict[str, Any]] = {row: {} for row in moved.order}
    for (row, column), place in places.items():
        start = starts.get((row, column), slice(0, 0))
        if not np.array_equal(before.token[start], after.token[place]):
            return []
        if row in found:
            found[row][str(column)] = _tokens(before, start, after, place, read)
    return [found[row] for row in moved.order] if places else []


def _tokens(
    before: TokenScores, start: slice, after: TokenScores, place: slice, read: Pieces
) -> dict[str, Any]:
    """Texts, changes in hundredths of a nat, and percent on target and argmax, both times."""
    cut, was = (slice(s.start, min(s.stop, s.start + MOST_TOKENS)) for s in (place, start))
    change = after.values["logprob"][cut] - before.values["logprob"][was]
    return {
        "text": [visible(piece) for piece in read(after.token[cut].tolist())],
        "change": [_whole(value) for value in 100 * change],
        "before": list(_parts(before, was)),
        "after": list(_parts(after, cut)),
        "more": place.stop - cut.stop,
    }


def _parts(tokens: TokenScores, cut: slice) -> Iterator[list[int]]:
    """Percent of the mass on the token itself, then on the argmax where that is another."""
    target, top = tokens.values["logprob"][cut], tokens.values["argmax_logprob"][cut]
    other = np.where(top - target > TRUE_ARGMAX, np.exp(top), 0.0)
    for part in (np.exp(target), other):
        yield [_whole(value) for value in 100 * part]


def _whole(value: np.floating[Any] | npt.NDArray[Any]) -> int:
    return round(float(value)) if np.isfinite(value) else 0


def _packed(tokens: Sequence[Mapping[str, Any]]) -> str:
    return packed(json.dumps(tokens, separators=(",", ":"))) if tokens else ""
