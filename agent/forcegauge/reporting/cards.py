"""A figure on a page: its title, how to read it, its legend, the plot and its numbers."""

from __future__ import annotations

from forcegauge.reporting.figures import Figure
from forcegauge.reporting.plots import swatch
from forcegauge.reporting.safe import inline, shown


def figure_card(figure: Figure, table: str, thin: str, legend: bool = True) -> str:
    """The HTML of a figure; ``table`` holds its numbers, ``thin`` says what it leaves out."""
    wide = " wide" if figure.wide else ""
    unit = "" if figure.percent else f" <small>{figure.unit}</small>"
    return (
        f'<figure class="card{wide}"><figcaption><h2>{figure.title}{unit}</h2>'
        f'<p class="reading" id="reading-{figure.key}">{figure.reading}</p></figcaption>'
        f"{_legend(figure) if legend else ''}"
        f'<div class="plot" id="plot-{figure.key}" role="img" '
        f'aria-label="{figure.title}" aria-describedby="reading-{figure.key}"></div>'
        '<p class="plain">This browser draws no plots: here are the numbers.</p>'
        f"<noscript><p>Without a script there are no plots: the numbers are below.</p></noscript>"
        f'<details><summary>Numbers{thin}</summary><div class="scroll" tabindex="0" '
        f'role="region" aria-label="{figure.title}, numbers">{table}</div></details>'
        "</figure>"
    )


def _legend(figure: Figure) -> str:
    items = "".join(f"<li>{_legend_item(figure, s.name, s.role)}</li>" for s in figure.series)
    labelled = "" if figure.toggles or figure.stacked else " labelled"
    return f'<ul class="legend{labelled}">{items}</ul>'


def _legend_item(figure: Figure, name: str, role: str) -> str:
    inside = f"{swatch(role)}{inline(name)}"
    return toggle(role, inside) if figure.toggles else f"<span>{inside}</span>"


def toggle(role: str, inside: str) -> str:
    """A button that switches all lines of a role off and on; ``inside`` is HTML."""
    return f'<button type="button" aria-pressed="true" data-role="{shown(role)}">{inside}</button>'
