"""Text and data from files, made safe for a page or a terminal: all is text, nothing acts."""

from __future__ import annotations

import json
import unicodedata
from html import escape
from typing import Any

KEPT = "\n\t\u200c\u200d"
"""Invisible characters that stay: line breaks, tabs and the joiners that scripts and emoji need."""


def visible(text: object) -> str:
    """Any value as text with control and direction characters made visible, not escaped: for a
    script that puts it on the page as text."""
    return "".join(map(_visible, str(text)))


def shown(text: object, longest: int | None = None) -> str:
    """Any value as HTML text: markup escaped, control and direction characters made visible.

    ``longest`` is in characters; what is cut is said.
    """
    whole = str(text)
    cut = whole if longest is None else whole[:longest]
    more = len(whole) - len(cut)
    return escape(visible(cut)) + (f" … (+{more:,} characters)" if more else "")


def inline(text: object) -> str:
    """`shown`, isolated so that right-to-left text cannot reorder what stands around it."""
    return f"<bdi>{shown(text)}</bdi>"


def plot_text(text: object) -> str:
    """`shown` for plotly, which takes some markup and does not know the entities of quotes."""
    return escape(visible(text), quote=False)


def plain(text: object) -> str:
    """Any value on one line of a terminal: control and direction characters made visible."""
    return " ".join(visible(text).split())


def script_json(value: Any) -> str:
    """JSON that may stand in a script element: no character of it can end the element."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _visible(character: str) -> str:
    if character in KEPT:
        return character
    category = unicodedata.category(character)
    if category == "Cs":
        return "\N{REPLACEMENT CHARACTER}"
    return f"⟨U+{ord(character):04X}⟩" if category in ("Cc", "Cf", "Zl", "Zp") else character
