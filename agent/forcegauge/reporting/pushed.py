"""Which training samples push a response type most, from a snapshot's pushers.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from forcegauge.reporting.facts import MEANINGS
from forcegauge.reporting.plots import digits
from forcegauge.reporting.safe import inline, shown
from forcegauge.reporting.story import field, number

LONGEST_PROMPT = 400
LONGEST_ANSWER = 600


def pushers_html(pushers: Mapping[str, object], most: int, *, texts: bool = True) -> str:
    """Per response type up to ``most`` samples that raise it and that lower it, strongest first.

    ``texts`` says whether prompts and answers are shown beside the samples' names. What is not
    of the form that snapshots write is left out.
    """
    return "".join(
        f'<details class="probe"{" open" if name == "chosen" else ""}><summary>{inline(name)} '
        f"<small>{MEANINGS.get(name, '')}</small></summary>"
        f'<div class="ends"><div><h4>raise it most</h4>{_named(each, "up", most, texts)}</div>'
        f"<div><h4>lower it most</h4>{_named(each, 'down', most, texts)}</div></div></details>"
        for name, each in pushers.items()
    )


def _named(each: object, way: str, most: int, texts: bool) -> str:
    samples = field(each, way)
    listed = samples[:most] if isinstance(samples, list) else []
    return "".join(_pusher(each, texts) for each in listed) or '<p class="quiet">None.</p>'


def _pusher(sample: object, texts: bool) -> str:
    held = field(sample, "sides")
    sides = held if isinstance(held, Mapping) else {}
    told = "".join(
        f"<p><small>{inline(name)} {_nats(side)}</small></p>"
        + (f'<p class="text">{_text(side)}</p>' if texts else "<p></p>")
        for name, side in sides.items()
    )
    prompt = f"{shown(field(sample, 'prompt'), LONGEST_PROMPT)}<br>" if texts else ""
    return (
        f'<div class="pusher"><p><b>{_nats(sample)}</b></p><p class="text">{prompt}'
        f"<small>{inline(field(sample, 'sample'))}</small></p>{told}</div>"
    )


def _nats(of: object) -> str:
    return digits(number(field(of, "nats")))


def _text(side: object) -> str:
    tokens = field(side, "tokens")
    if not isinstance(tokens, list):
        return shown(field(side, "text"), LONGEST_ANSWER)
    pairs = [each for each in tokens if isinstance(each, list) and len(each) == 2]
    known = [(text, number(value) or 0.0) for text, value in pairs]
    largest = max((abs(value) for _, value in known), default=1.0) or 1.0
    return "".join(_token(text, value, value / largest) for text, value in known)


def _token(text: object, value: float, share: float) -> str:
    color = "one" if share > 0 else "two"
    strength = round(70 * abs(share))
    return (
        f'<span class="pushing" title="{digits(value)}" style="background:color-mix(in srgb, '
        f'var(--c-{color}) {strength}%, transparent)">{shown(text)}</span>'
    )


def summary(sides: Sequence[str]) -> str:
    """How the numbers are to be read, by the sequences that a sample has."""
    whole = " (a pair: both of its sequences together)" if len(sides) > 1 else ""
    return (
        "Training samples by what a step on them alone does to each response type, in nats per "
        f"unit of learning rate{whole}."
    )
