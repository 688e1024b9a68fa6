"""The few kinds of panels that the dashboards are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from grafana_foundation_sdk.builders import (
    bargauge,
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
    BarGaugeDisplayMode,
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
    VizOrientation,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat
from grafana_foundation_sdk.models.text import TextMode

from dashboards.looks import verdict_map
from dashboards.promql import known

SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")

Property = model.DynamicConfigValue
Overrides = Mapping[str, Sequence[Property]]
"""Properties by the name that a field has: its legend, or its column's title."""

Panel = (
    timeseries.Panel | stat.Panel | bargauge.Panel | table.Panel | statetimeline.Panel | text.Panel
)
P = TypeVar(
    "P", timeseries.Panel, stat.Panel, bargauge.Panel, table.Panel, statetimeline.Panel, text.Panel
)
V = TypeVar("V", timeseries.Panel, stat.Panel, bargauge.Panel, table.Panel, statetimeline.Panel)


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
    calcs: Sequence[str] = ("lastNotNull",),
) -> timeseries.Panel:
    """Lines over time in steps, since a gauge holds its value until the next probe.

    ``asks`` are expressions by legend; ``limited`` draws the scale's steps as dashed lines.
    """
    panel = _scaled(_framed(timeseries.Panel(), frame), scale)
    panel = panel.line_interpolation(LineInterpolation.STEP_AFTER).line_width(2).fill_opacity(0)
    panel = panel.show_points(VisibilityMode.NEVER).legend(_legend(calcs))
    tooltip = common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI)
    panel = panel.tooltip(tooltip.sort(SortOrder.DESCENDING))
    panel = panel.color_scheme(
        sdk.FieldColor().mode(model.FieldColorModeId.PALETTE_CLASSIC_BY_NAME)
    )
    if stacked:
        panel = panel.stacking(common.StackingConfig().mode(StackingMode.NORMAL)).fill_opacity(60)
    if limited:
        style = common.GraphThresholdsStyleConfig().mode(GraphThresholdsStyleMode.DASHED)
        panel = panel.thresholds_style(style)
    low, high = bounds
    panel = panel if low is None else panel.min(low)
    panel = panel if high is None else panel.max(high)
    return _asked(_overridden(panel, overrides), asks)


def number(
    frame: Frame,
    scale: Scale,
    asks: Mapping[str, str],
    *,
    overrides: Overrides | None = None,
    mappings: Sequence[model.ValueMapping] = (),
    filled: bool = False,
) -> stat.Panel:
    """The last value in large letters; ``filled`` colours the background."""
    panel = _scaled(_framed(stat.Panel(), frame), scale).graph_mode(BigValueGraphMode.NONE)
    mode = BigValueColorMode.BACKGROUND_SOLID if filled else BigValueColorMode.VALUE
    panel = panel.color_mode(mode).mappings(list(mappings))
    several = len(asks) > 1 or "{{" in "".join(asks)
    panel = panel.text_mode(BigValueTextMode.VALUE_AND_NAME if several else BigValueTextMode.VALUE)
    panel = panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    return _asked(_overridden(panel, overrides), asks, instant=True)


def bars(frame: Frame, scale: Scale, asks: Mapping[str, str]) -> bargauge.Panel:
    """Horizontal bars of the last values."""
    panel = _scaled(_framed(bargauge.Panel(), frame), scale)
    panel = panel.display_mode(BarGaugeDisplayMode.BASIC).orientation(VizOrientation.HORIZONTAL)
    panel = panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    return _asked(panel, asks, instant=True)


def verdicts(frame: Frame, asks: Mapping[str, str]) -> statetimeline.Panel:
    """Verdicts over time as coloured bands."""
    scale = Scale("none", 0)
    panel = _scaled(_framed(statetimeline.Panel(), frame), scale).mappings([verdict_map()])
    panel = panel.show_value(VisibilityMode.AUTO).legend(_legend(())).row_height(0.8)
    return _asked(panel, asks)


@dataclass(frozen=True)
class Column:
    """A column of a table: its query, its title, how it is written, and what else it is."""

    title: str
    expr: str
    scale: Scale
    looks: tuple[Property, ...] = ()


def rows(
    frame: Frame,
    columns: Sequence[Column],
    *,
    labels: Mapping[str, str],
    hidden: Sequence[str] = (),
    overrides: Overrides | None = None,
    sort: Sequence[str] = (),
    empty: str = "no data yet",
) -> table.Panel:
    """A table with a row per set of labels and a column per query, in the order given.

    ``labels`` are the titles of the label columns, which stand first; ``sort`` are titles, the
    largest values on top.
    """
    panel = _scaled(_framed(table.Panel(), frame), Scale("none", None, empty=empty))
    panel = _filed(panel.cell_height(TableCellHeight.SM).filterable(True))
    for ref, column in zip(_REFS, columns, strict=False):
        panel = panel.with_target(_target(column.expr, ref, instant=True, as_table=True))
        panel = panel.override_by_name(column.title, [*_column_scale(column), *column.looks])
    panel = _overridden(panel, overrides)
    titles = {f"Value #{ref}": c.title for ref, c in zip(_REFS, columns, strict=False)}
    if len(columns) == 1:
        titles = {"Value": columns[0].title, **titles}
    panel = panel.with_transformation(_transformation("merge", {}))
    panel = panel.with_transformation(_organize({**labels, **titles}, ("Time", *hidden)))
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
    panel = _filed(panel.cell_height(TableCellHeight.SM))
    panel = panel.with_target(_target(expr, "A", instant=True, as_table=True))
    options = {"rowField": row, "columnField": column, "valueField": "Value"}
    panel = panel.with_transformation(_transformation("groupingToMatrix", options))
    head = f"{row}\\{column}"
    panel = panel.with_transformation(_organize({head: head} | {name: name for name in order}, ()))
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
    return panel.thresholds(_thresholds(scale.steps))


def _thresholds(steps: Sequence[tuple[float, str]]) -> sdk.ThresholdsConfig:
    found = [model.Threshold(value=None, color="text")]
    found += [model.Threshold(value=value, color=color) for value, color in steps]
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


def _legend(calcs: Sequence[str]) -> common.VizLegendOptions:
    legend = common.VizLegendOptions().placement(LegendPlacement.BOTTOM).show_legend(True)
    mode = LegendDisplayMode.TABLE if len(calcs) > 1 else LegendDisplayMode.LIST
    return legend.display_mode(mode).calcs(list(calcs))


def _overridden(panel: V, overrides: Overrides | None) -> V:
    for name, properties in (overrides or {}).items():
        panel = panel.override_by_name(name, list(properties))
    return panel


def _column_scale(column: Column) -> list[Property]:
    scale = column.scale
    found = [Property("unit", scale.unit)]
    if scale.decimals is not None:
        found.append(Property("decimals", scale.decimals))
    if scale.steps:
        steps = _thresholds(scale.steps).build()
        found.append(Property("thresholds", steps))
        found.append(Property("custom.cellOptions", {"type": "color-text"}))
    return found


def _filed(panel: table.Panel) -> table.Panel:
    return panel.show_header(True)


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
