"""How things look on every dashboard: colours, words and units of verdicts, types and alarms."""

from __future__ import annotations

import re
from pathlib import Path

from grafana_foundation_sdk.models.dashboard import (
    DynamicConfigValue,
    ValueMap,
    ValueMappingResult,
)

import forcegauge.reporting
from forcegauge.alarms import ALARMS, VERDICTS, Alarm
from forcegauge.probes import RESPONSE_TYPES
from forcegauge.reporting.plots import STYLES
from forcegauge_monitor.alerts import alert_name

NATS = "suffix:nats"
SHARE, STEP, PLAIN, SECONDS, AGO = "percentunit", "none", "none", "s", "dateTimeFromNow"

VERDICT_COLORS = dict(zip(VERDICTS, ("blue", "green", "orange", "red", "purple"), strict=True))
"""Grafana's own names, which follow its theme."""

ALERT_PREFIX = "ForceGauge"

LIMIT_COLOR = "red"
UP_COLOR, DOWN_COLOR = "blue", "orange"

DASHES = {"dash": [10, 6], "dot": [2, 4], "dashdot": [10, 4, 2, 4]}


def _report_colors() -> dict[str, str]:
    """The report's colours by role, midway between its light and its dark ones.

    A dashboard has one colour for both themes; halfway each keeps its hue and reads on either.
    """
    css = Path(forcegauge.reporting.__file__).with_name("page.css").read_text(encoding="utf-8")
    found: dict[str, list[str]] = {}
    for role, color in re.findall(r"--c-(\w+): #(\w{6})", css):
        found.setdefault(role, []).append(color)
    return {role: _midway(*pair) for role, pair in found.items()}


def _midway(one: str, two: str) -> str:
    channels = zip(bytes.fromhex(one), bytes.fromhex(two), strict=True)
    return "#" + bytes((a + b) // 2 for a, b in channels).hex()


# halfway between black and white is one of the greys: the text's colour follows the theme
TYPE_COLORS = {**_report_colors(), "greedy": "text"}


def verdict_map() -> ValueMap:
    """0 to 4 as the verdict's word in its colour."""
    return ValueMap(
        options={
            str(code): ValueMappingResult(text=word, color=VERDICT_COLORS[word], index=code)
            for code, word in enumerate(VERDICTS)
        }
    )


def verdict_cell() -> tuple[DynamicConfigValue, ...]:
    """A table's cell that holds a verdict."""
    return prop("mappings", [verdict_map()]), FILLED


def short_name(row: Alarm) -> str:
    """``Squeezing`` of ``ForceGaugeSqueezing``."""
    return alert_name(row).removeprefix(ALERT_PREFIX)


def alarm_map() -> ValueMap:
    """An alarm's label as the name of its alert without what all names begin with."""
    return ValueMap(
        options={
            row.name: ValueMappingResult(text=short_name(row), index=index)
            for index, row in enumerate(ALARMS)
        }
    )


def prop(name: str, value: object) -> DynamicConfigValue:
    """One property of an override."""
    return DynamicConfigValue(id_val=name, value=value)


FILLED = prop("custom.cellOptions", {"type": "color-background", "mode": "basic"})


def width(pixels: int) -> DynamicConfigValue:
    """The width of a table's column."""
    return prop("custom.width", pixels)


def fixed(color: str) -> DynamicConfigValue:
    """A colour whatever the value."""
    return prop("color", {"mode": "fixed", "fixedColor": color})


def type_looks(response_type: str) -> list[DynamicConfigValue]:
    """Colour, dash and width of a response type's line, as in the report."""
    style = STYLES[response_type]
    looks = [fixed(TYPE_COLORS[response_type]), prop("custom.lineWidth", style.width)]
    if style.dash in DASHES:
        looks.append(prop("custom.lineStyle", {"fill": "dash", "dash": DASHES[style.dash]}))
    return looks


def limit_looks() -> list[DynamicConfigValue]:
    """A threshold as a dashed red line."""
    return [
        fixed(LIMIT_COLOR),
        prop("custom.lineStyle", {"fill": "dash", "dash": [8, 6]}),
        prop("custom.lineWidth", 1),
        prop("custom.fillOpacity", 0),
    ]


ALL_TYPES = {name: type_looks(name) for name in RESPONSE_TYPES}
"""Overrides by the legend's name, for every panel with a line per response type."""
