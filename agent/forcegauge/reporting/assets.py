"""Files that every page is made of: style, script, and the plotting library, packed."""

from __future__ import annotations

import base64
import gzip
from functools import cache
from importlib import resources


def asset(name: str) -> str:
    """A file of this package as text."""
    return resources.files("forcegauge.reporting").joinpath(name).read_text(encoding="utf-8")


def packed(text: str) -> str:
    """Text as gzip in base64, which the page's script inflates."""
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


@cache
def packed_plotly() -> str:
    """The plotting library: 2 MB in place of 5."""
    from plotly.offline import get_plotlyjs

    return packed(get_plotlyjs())
