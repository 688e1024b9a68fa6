"""The page of each alert, as the wheel carries it: Markdown, and HTML for a browser."""

from __future__ import annotations

import re
from functools import cache
from html import escape
from importlib import resources
from string import Template

from markdown_it import MarkdownIt

from forcegauge_monitor.alerts import ALERTS

_PACKAGE = resources.files("forcegauge_monitor")
_PAGES = _PACKAGE / "data" / "runbooks"
_MARK = re.compile(r"^<!-- /?conditions -->\n", re.MULTILINE)


@cache
def runbook(alert: str) -> str | None:
    """The page of an alert (``ForceGaugeSqueezing``) as Markdown; None for an unknown one."""
    if alert not in {row.name for row in ALERTS}:
        return None
    return (_PAGES / f"{alert}.md").read_text(encoding="utf-8")


def contents() -> str:
    """All pages in a list, as Markdown."""
    rows = (f"- [{row.name}]({row.name}) ({row.severity}): {row.summary}" for row in ALERTS)
    return "\n".join(["# Runbooks", "", *rows, ""])


def as_page(text: str) -> str:
    """A runbook's Markdown as an HTML page without scripts; HTML inside of it is escaped."""
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    title = text.partition("\n")[0].removeprefix("# ")
    template = Template((_PACKAGE / "runbook.html").read_text(encoding="utf-8"))
    return template.substitute(title=escape(title), body=markdown.render(_MARK.sub("", text)))
