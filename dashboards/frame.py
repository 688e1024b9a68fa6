"""What all dashboards share: variables, links, annotations, and their place in the grid."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from grafana_foundation_sdk.builders import dashboard as sdk
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models.common import DataSourceRef

from dashboards.looks import ALERT_PREFIX, prop
from dashboards.panels import SOURCE, Panel, Property
from dashboards.promql import ONE_RUN, series

RUNBOOKS = "http://localhost:8790/runbooks/"
"""The monitor's own."""

TITLES = {
    "forcegauge-fleet": "Fleet",
    "forcegauge-run": "Run",
    "forcegauge-snapshots": "Snapshots",
    "forcegauge-compare": "Compare",
    "forcegauge-operations": "Operations",
}
"""Titles by uid, in the order of the links."""

CLUSTER = 'label_values({__name__=~"forcegauge_run_state|forcegauge_monitor_run_state"}, cluster)'
NAMESPACE = (
    'label_values({__name__=~"forcegauge_run_state|forcegauge_monitor_run_state", '
    'cluster=~"$cluster"}, namespace)'
)
RUN = (
    'label_values({__name__=~"forcegauge_run_state|forcegauge_monitor_run_state", '
    'cluster=~"$cluster", namespace=~"$namespace"}, run)'
)

GRAFANA = DataSourceRef(type_val="grafana", uid="-- Grafana --")
"""Grafana's own annotations: this one exists everywhere under this uid."""


Section = tuple[str, Sequence[Panel]]
"""A heading and what stands under it; the panels of a line share one height."""


def written(dashboard: sdk.Dashboard) -> str:
    """The JSON of a dashboard as its file holds it."""
    return json.dumps(dashboard.build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


def dashboard(
    uid: str,
    description: str,
    sections: Sequence[Section],
    *,
    runs: str = "",
    annotated: bool = False,
) -> sdk.Dashboard:
    """A dashboard of sections; ``runs`` is ``one`` or ``many`` where it lets choose runs."""
    made = (
        sdk.Dashboard(f"forcegauge / {TITLES[uid]}")
        .uid(uid)
        .description(description)
        .tags(["forcegauge"])
        .timezone("utc")
        .readonly()
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .time("now-24h", "now")
        .refresh("1m")
        .variables(_variables(runs))
        .links(_links(uid))
        .annotations(_annotations() if annotated else [])
    )
    return _placed(made, sections)


def to_run() -> Property:
    """From a run's name to its dashboard, with the place and time that are set here."""
    kept = ("datasource", "cluster", "namespace", "runbooks")
    variables = "&".join(f"${{{name}:queryparam}}" for name in kept)
    url = f"/d/forcegauge-run?${{__url_time_range}}&{variables}&var-run=${{__value.raw}}"
    return value_link("what happens in ${__value.raw}", url)


def to_runbook() -> Property:
    """From the name of an alert to its runbook."""
    return value_link("runbook", f"${{runbooks}}{ALERT_PREFIX}${{__value.text}}")


def value_link(title: str, url: str) -> Property:
    """A link on every value of a field."""
    return prop("links", [{"title": title, "url": url}])


def link(title: str, url: str) -> sdk.DashboardLink:
    """A link of a panel."""
    return sdk.DashboardLink(title).type(model.DashboardLinkType.LINK).url(url).target_blank(False)


def _placed(made: sdk.Dashboard, sections: Sequence[Section]) -> sdk.Dashboard:
    numbers = iter(range(1, 1000))
    for title, panels in sections:
        made = made.with_row(sdk.Row(title).id(next(numbers)))
        for panel in panels:
            made = made.with_panel(panel.id(next(numbers)))
    return made


def _variables(runs: str) -> list[Any]:
    source = sdk.DatasourceVariable("datasource").label("data source").type("prometheus")
    found: list[Any] = [source, _place("cluster", CLUSTER), _place("namespace", NAMESPACE)]
    if runs:
        found.append(_run(many=runs == "many"))
    base = sdk.TextBoxVariable("runbooks").label("runbooks at").default_value(RUNBOOKS)
    return [*found, base]


def _asked(name: str, query: str) -> sdk.QueryVariable:
    asked = sdk.QueryVariable(name).label(name).datasource(SOURCE).query(query)
    asked = asked.refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
    return asked.sort(model.VariableSort.ALPHABETICAL_ASC)


def _place(name: str, query: str) -> sdk.QueryVariable:
    everything = model.VariableOption(selected=True, text="All", value="$__all")
    return _asked(name, query).include_all(True).all_value(".*").current(everything)


def _run(*, many: bool) -> sdk.QueryVariable:
    asked = _asked("run", RUN)
    if not many:
        return asked
    everything = model.VariableOption(selected=True, text=["All"], value=["$__all"])
    return asked.multi(True).include_all(True).all_value(".*").current(everything)


def _links(uid: str) -> list[Builder[model.DashboardLink]]:
    others = [
        link(title, f"/d/{other}").include_vars(True).keep_time(True).icon("dashboard")
        for other, title in TITLES.items()
        if other != uid
    ]
    return [*others, link("Runbooks", "${runbooks}").target_blank(True).icon("question")]


def _annotations() -> list[Builder[model.AnnotationQuery]]:
    kinds = (("alarm", "red"), ("verdict", "purple"), ("checkpoint", "blue"), ("phase", "green"))
    return [*(_posted(kind, color) for kind, color in kinds), _verdict_changes()]


def _posted(kind: str, color: str) -> sdk.AnnotationQuery:
    tags = ["forcegauge", "forcegauge-run:${run}", f"forcegauge-{kind}"]
    target = sdk.AnnotationTarget().limit(100).match_any(False).tags(tags).type("tags")
    asked = sdk.AnnotationQuery().name(f"{kind}s").datasource(GRAFANA).enable(True)
    return asked.icon_color(color).target(target)  # type: ignore[arg-type]


def _verdict_changes() -> sdk.AnnotationQuery:
    """From Prometheus, for where no monitor posts annotations; off, since it would tell twice."""
    state = series("run_state", ONE_RUN)
    began = (
        f"max by (run, state) ({state}) == 1 unless max by (run, state) ({state} offset 1m) == 1"
    )
    asked = sdk.AnnotationQuery().name("verdicts, from Prometheus").datasource(SOURCE)
    return (
        asked.enable(False)
        .icon_color("orange")
        .expr(began)
        .step("1m")
        .title_format("{{state}}")
        .text_format("The verdict on {{run}} became {{state}}.")
    )
