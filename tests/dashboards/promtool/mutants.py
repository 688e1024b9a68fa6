"""Rules with one thing changed: a number, a duration, a comparison or a set operation."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from forcegauge_monitor.alert import Alert

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"(\d+)([smhd])")
_STRING = re.compile(r'"[^"]*"')
_FLIPPED = {
    "==": ("!=",),
    ">=": (">", "<"),
    ">": (">=", "<"),
    "and": ("unless",),
    "unless": ("and",),
    "or": ("and",),
}


@dataclass(frozen=True)
class Mutant:
    """A changed alert, and what was changed."""

    alert: Alert
    change: str


def mutants(alert: Alert) -> Iterator[Mutant]:
    """Every alert that differs in one place; ranges of the same length are one constant."""
    yield from _times(alert)
    yield from _ranges(alert)
    for found in _TOKENS.finditer(_blank(alert.expr)):
        for other in _others(found):
            text = alert.expr[: found.start()] + other + alert.expr[found.end() :]
            line = alert.expr[: found.end()].rsplit("\n", 1)[-1]
            yield Mutant(replace(alert, expr=text), f"{line} -> {other}")


def _blank(expr: str) -> str:
    """The expression without what is no number or operator of it, at the same places."""

    def hide(found: re.Match[str]) -> str:
        return "_" * len(found[0])

    without = _STRING.sub(hide, expr)
    without = re.sub(r"\b(on|by) \([^)]*\)", hide, without)
    return re.sub(r"\[[^\]]*\]", hide, without)


_TOKENS = re.compile(
    r"(?P<time>(?<=offset )\d+[smhd])"
    r"|(?P<operator>==|>=|>|\b(?:and|or|unless)\b)"
    r"|(?P<number>(?<![\w.])\d+(?:\.\d+)?\b)"
)


def _others(found: re.Match[str]) -> tuple[str, ...]:
    if found["time"]:
        return _stretched(found["time"])
    return _FLIPPED[found["operator"]] if found["operator"] else _shifted(found["number"])


def _shifted(number: str) -> tuple[str, str]:
    if "." in number:
        return f"{float(number) * 0.75:g}", f"{float(number) * 1.25:g}"
    step = max(1, int(number) // 4)
    return str(int(number) - step), str(int(number) + step)


def _stretched(duration: str) -> tuple[str, str]:
    [(count, unit)] = _DURATION.findall(duration)
    seconds = int(count) * _SECONDS[unit]
    return f"{seconds * 3 // 4}s", f"{seconds * 5 // 4}s"


def _ranges(alert: Alert) -> Iterator[Mutant]:
    for text in sorted(set(re.findall(r"[\[:]\d+[smhd]", alert.expr))):
        for other in _stretched(text[1:]):
            expr = alert.expr.replace(f"{text}]", f"{text[0]}{other}]")
            expr = expr.replace(f"{text}:", f"{text[0]}{other}:")
            yield Mutant(replace(alert, expr=expr), f"{text} -> {other}")


def _times(alert: Alert) -> Iterator[Mutant]:
    for other in _stretched(alert.wait) if alert.wait else ():
        yield Mutant(replace(alert, wait=other), f"for {alert.wait} -> {other}")
    for other in _stretched(alert.keep) if alert.keep else ():
        yield Mutant(replace(alert, keep=other), f"keep_firing_for {alert.keep} -> {other}")
