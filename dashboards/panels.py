"""The few kinds of panels that the dashboards are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from grafana_foundation_sdk.builders import (
    common,
    stat,
    statetimeline,
    table,
    text,
    timeseries,
)
from grafana_foundation_sdk.builders import dashboard as sdk
from grafana_foundation_sdk.builders import prometheus as query
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    BigValueTextMode,
    DataSourceRef,
    GraphThresholdsStyleMode,
    LegendDisplayMode,
    LegendPlacement,
    LineInterpolation,
    SortOrder,
    StackingMode,
    TableCellHeight,
    TableSortByFieldState,
    TooltipDisplayMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat
from grafana_foundation_sdk.models.text import TextMode

from dashboards.looks import verdict_map
from dashboards.promql import known

SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")

Property = model.DynamicConfigValue
Overrides = Mapping[str, Sequence[Property]]
"""Properties by the name that a field has: its legend, or its column's title."""

Panel = timeseries.Panel | stat.Panel | table.Panel | statetimeline.Panel | text.Panel
BANDS, LOOKS = 400, 720
"""Moments of the time range that a timeline and a table's subqueries look at: few are quick."""

P = TypeVar("P", timeseries.Panel, stat.Panel, table.Panel, statetimeline.Panel, text.Panel)
V = TypeVar("V", timeseries.Panel, stat.Panel, table.Panel, statetimeline.Panel)


@dataclass(frozen=True)
class Frame:
    """What every panel has: size in grid units (24 are the whole width), title, description."""

    title: str
    about: str
    w: int
    h: int
    links: tuple[sdk.DashboardLink, ...] = ()


@dataclass(frozen=True)
class Scale:
    """How values are written, which colours they take from where on, and what absence says."""

    unit: str
    decimals: int | None = 2
    steps: tuple[tuple[float, str], ...] = ()
    empty: str = "no data yet"
    base: str = "text"
    """The colour below the first step."""


def about(text: str, *metrics: str) -> str:
    """A description: plain words, then each metric's meaning and formula from the catalogue."""
    rows = [
        f"- `{known(name).name}`: {known(name).meaning} Formula: `{known(name).formula}`"
        for name in metrics
    ]
    return "\n".join([text, "", *rows])


def lines(
    frame: Frame,
    scale: Scale,
    asks: Mapping[str, str],
    *,
    overrides: Overrides | None = None,
    stacked: bool = False,
    limited: bool = False,
    bounds: tuple[float | None, float | None] = (None, None),
) -> timeseries.Panel:
    """Lines over time in steps, since a gauge holds its value until the next probe.

    ``asks`` are expressions by legend; ``limited`` draws the scale's steps as dashed lines;
    ``bounds`` are what the axis shows at least.
    """
    panel = _scaled(_framed(timeseries.Panel(), frame), scale)
    panel = panel.line_interpolation(LineInterpolation.STEP_AFTER).line_width(2).fill_opacity(0)
    panel = panel.show_points(VisibilityMode.NEVER).legend(_legend(frame, asks))
    tooltip = common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI)
    panel = panel.tooltip(tooltip.sort(SortOrder.DESCENDING))
    # by name, two of a dozen runs often get the same colour
    panel = panel.color_scheme(sdk.FieldColor().mode(model.FieldColorModeId.PALETTE_CLASSIC))
    if stacked:
        panel = panel.stacking(common.StackingConfig().mode(StackingMode.NORMAL)).fill_opacity(60)
    if limited:
        style = common.GraphThresholdsStyleConfig().mode(GraphThresholdsStyleMode.DASHED)
        panel = panel.thresholds_style(style)
    low, high = bounds
    panel = panel if low is None else panel.axis_soft_min(low)
    panel = panel if high is None else panel.axis_soft_max(high)
    return _asked(_overridden(panel, overrides), asks)


def number(
    frame: Frame,
    scale: Scale,
    asks: Mapping[str, str],
    *,
    overrides: Overrides | None = None,
    mappings: Sequence[model.ValueMapping] = (),
    filled: bool = False,
    named: bool = False,
) -> stat.Panel:
    """The last value in large letters.

    ``filled`` colours the background, ``named`` shows the legend instead.
    """
    panel = _scaled(_framed(stat.Panel(), frame), scale).graph_mode(BigValueGraphMode.NONE)
    mode = BigValueColorMode.BACKGROUND_SOLID if filled else BigValueColorMode.VALUE
    panel = panel.color_mode(mode).mappings(list(mappings))
    several = len(asks) > 1 or "{{" in "".join(asks)
    texts = BigValueTextMode.VALUE_AND_NAME if several else BigValueTextMode.VALUE
    # wide, a number stands nearer to the next name than to its own
    panel = panel.text_mode(BigValueTextMode.NAME if named else texts).wide_layout(False)
    panel = panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    return _asked(_overridden(panel, overrides), asks, instant=True)


def verdicts(
    frame: Frame, asks: Mapping[str, str], *, empty: str = "no data yet"
) -> statetimeline.Panel:
    """Verdicts over time as coloured bands."""
    scale = Scale("none", 0, empty=empty)
    panel = _scaled(_framed(statetimeline.Panel(), frame), scale).mappings([verdict_map()])
    panel = (
        panel.max_data_points(BANDS)
        .show_value(VisibilityMode.AUTO)
        .legend(_legend(frame, {}))
        .row_height(0.8)
    )
    return _asked(panel, asks)


@dataclass(frozen=True)
class Column:
    """A column of a table: its title, query, how it is written, width in pixels, and the rest.

    Every column has a width: one without takes 150 pixels at least, and pushes others out.
    """

    title: str
    expr: str
    scale: Scale
    width: int
    looks: tuple[Property, ...] = ()


def rows(
    frame: Frame,
    columns: Sequence[Column],
    *,
    labels: Mapping[str, str],
    order: Sequence[str],
    hidden: Sequence[str] = (),
    overrides: Overrides | None = None,
    sort: Sequence[str] = (),
) -> table.Panel:
    """A table with a row per set of labels and a column per query.

    ``labels`` are the titles of the label columns; ``order`` are all titles from left to right,
    ``sort`` those to sort by, the largest values on top.
    """
    panel = _scaled(_framed(table.Panel(), frame), Scale("none", None, empty="–"))
    panel = panel.cell_height(TableCellHeight.SM).show_header(True).max_data_points(LOOKS)
    for ref, column in zip(_REFS, columns, strict=False):
        panel = panel.with_target(_target(column.expr, ref, instant=True, as_table=True))
        panel = panel.override_by_name(column.title, [*_column_scale(column), *column.looks])
    panel = _overridden(panel, overrides)
    values = {f"Value #{ref}": c.title for ref, c in zip(_REFS, columns, strict=False)}
    titles = sorted({**labels, **values}.items(), key=lambda pair: order.index(pair[1]))
    panel = panel.with_transformation(_transformation("merge", {}))
    panel = panel.with_transformation(_organize(dict(titles), ("Time", *hidden)))
    by: list[Builder[TableSortByFieldState]] = [
        common.TableSortByFieldState().display_name(title).desc(True) for title in sort
    ]
    return panel.sort_by(by) if by else panel


def matrix(
    frame: Frame,
    scale: Scale,
    expr: str,
    sides: tuple[str, str],
    order: Sequence[str],
    looks: Sequence[Property],
) -> table.Panel:
    """A table of the first label against the second, every cell coloured by its value."""
    row, column = sides
    panel = _scaled(_framed(table.Panel(), frame), scale)
    panel = panel.cell_height(TableCellHeight.SM).show_header(True)
    panel = panel.with_target(_target(expr, "A", instant=True, as_table=True))
    options = {"rowField": row, "columnField": column, "valueField": "Value"}
    panel = panel.with_transformation(_transformation("groupingToMatrix", options))
    titles = {f"{row}\\{column}": "moved ↓  by training on →"} | {name: name for name in order}
    panel = panel.with_transformation(_organize(titles, ()))
    return panel.override_by_field_type("number", list(looks))


def words(frame: Frame, markdown: str) -> text.Panel:
    """Markdown."""
    return _framed(text.Panel(), frame).mode(TextMode.MARKDOWN).content(markdown)


_REFS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def _framed(panel: P, frame: Frame) -> P:
    panel = panel.title(frame.title).description(frame.about).span(frame.w).height(frame.h)
    return panel.links(list(frame.links)) if frame.links else panel


def _scaled(panel: V, scale: Scale) -> V:
    panel = panel.datasource(SOURCE).unit(scale.unit).no_value(scale.empty)
    if scale.decimals is not None:
        panel = panel.decimals(scale.decimals)
    return panel.thresholds(_thresholds(scale))


def _thresholds(scale: Scale) -> sdk.ThresholdsConfig:
    found = [model.Threshold(value=None, color=scale.base)]
    found += [model.Threshold(value=value, color=color) for value, color in scale.steps]
    return sdk.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(found)


def _asked(panel: V, asks: Mapping[str, str], *, instant: bool = False) -> V:
    for ref, (legend, expr) in zip(_REFS, asks.items(), strict=False):
        panel = panel.with_target(_target(expr, ref, legend, instant=instant))
    return panel


def _target(
    expr: str, ref: str, legend: str = "", *, instant: bool = False, as_table: bool = False
) -> query.Dataquery:
    asked = query.Dataquery().expr(expr).ref_id(ref).datasource(SOURCE).legend_format(legend)
    asked = asked.instant() if instant else asked.range()
    return asked.format(PromQueryFormat.TABLE if as_table else PromQueryFormat.TIME_SERIES)


def _legend(frame: Frame, asks: Mapping[str, str]) -> common.VizLegendOptions:
    """At the right, with last values, where many lines have room; else below."""
    legend = common.VizLegendOptions().show_legend(True)
    if frame.w >= 12 and "{{" in "".join(asks):
        legend = legend.display_mode(LegendDisplayMode.TABLE).placement(LegendPlacement.RIGHT)
        return legend.calcs(["lastNotNull"]).sort_by("Last *").sort_desc(True)
    return legend.display_mode(LegendDisplayMode.LIST).placement(LegendPlacement.BOTTOM).calcs([])


def _overridden(panel: V, overrides: Overrides | None) -> V:
    for name, properties in (overrides or {}).items():
        panel = panel.override_by_name(name, list(properties))
    return panel


def _column_scale(column: Column) -> list[Property]:
    scale = column.scale
    found = [Property("unit", scale.unit), Property("custom.width", column.width)]
    if scale.decimals is not None:
        found.append(Property("decimals", scale.decimals))
    if scale.steps:
        steps = _thresholds(scale).build()
        found.append(Property("thresholds", steps))
        found.append(Property("custom.cellOptions", {"type": "color-text"}))
    return found


def _organize(titles: Mapping[str, str], hidden: Sequence[str]) -> model.DataTransformerConfig:
    return _transformation(
        "organize",
        {
            "excludeByName": dict.fromkeys(hidden, True),
            "indexByName": {name: index for index, name in enumerate(titles)},
            "renameByName": {name: title for name, title in titles.items() if name != title},
        },
    )


def _transformation(name: str, options: Mapping[str, object]) -> model.DataTransformerConfig:
    return model.DataTransformerConfig(id_val=name, options=dict(options))
