"""One probe as one short line: in the training log, and where no screen can be drawn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from forcegauge.reporting.safe import plain

Readings = Mapping[tuple[str, ...], float]
"""Metric's name without its prefix, and its labels' values but the run's -> value."""


def probe_line(
    step: int,
    verdict: str,
    since: int | None,
    signals: Mapping[str, float],
    seconds: float | None,
    alarms: Iterable[str] = (),
) -> str:
    """Verdict, the changes that tell most (nats per token) and what the probe cost, in ASCII.

    ``signals`` are by name; what is not there is left out. ``alarms`` are the names of those that
    are on, shown where they are not the verdict itself.
    """
    began = "" if since is None else f" since {since}"
    others = [name for name in alarms if name != verdict]
    parts = [
        f"forcegauge step {step}: {plain(verdict)}{began}",
        _part("chosen", signals.get("chosen_change_nats"), "+.2f"),
        _part("other prompts", signals.get("other_prompt_change_nats"), "+.2f"),
        _part("squeeze", signals.get("squeeze_nats"), ".2f", " nats"),
        f"on: {', '.join(others)}" if others else "",
        _part("probe", seconds, ".1f", " s"),
    ]
    return " | ".join(part for part in parts if part)


def _part(name: str, value: float | None, form: str, unit: str = "") -> str:
    return "" if value is None else f"{name} {value:{form}}{unit}"


def line_signals(readings: Readings) -> dict[str, float]:
    """The signals of the short line."""
    keys = {
        "chosen_change_nats": ("logprob_change_nats", "chosen"),
        "other_prompt_change_nats": ("logprob_change_nats", "other_prompt"),
        "squeeze_nats": ("squeeze_nats",),
    }
    return {name: readings[key] for name, key in keys.items() if key in readings}
