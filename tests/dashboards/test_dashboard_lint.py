"""The conventions of the dashboards; each check has a control, a dashboard that breaks it."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from itertools import chain, combinations
from typing import Any

import pytest

from dashboards.frame import TITLES, written
from dashboards.generate import DASHBOARDS
from forcegauge.alarms import ALARMS
from forcegauge.catalogue import METRICS as OF_AGENTS
from forcegauge.probes import RESPONSE_TYPES
from forcegauge_monitor.alerts import ALERTS
from forcegauge_monitor.catalogue import METRICS as OF_MONITOR
from forcegauge_monitor.catalogue import SERVICE

Json = dict[str, Any]
Check = Callable[[Json], Iterator[str]]
Damage = Callable[[Json], None]

ALL: dict[str, Json] = {made.__name__: json.loads(written(made())) for made in DASHBOARDS}

METRICS = {row.name: row for row in (*OF_AGENTS, *OF_MONITOR)}
TARGET_LABELS = {"cluster", "namespace", "instance"}
LABELS = {
    name: TARGET_LABELS.union(row.labels, () if row in SERVICE else ("run",))
    for name, row in METRICS.items()
}
EVERY_LABEL = set(chain.from_iterable(LABELS.values()))
KINDS = {"row", "stat", "table", "text", "timeseries", "state-timeline"}
UNITS = {
    *("none", "short", "sishort", "percentunit", "s", "reqps", "dateTimeFromNow"),
    *("bool_yes_no", "bool_on_off", "suffix:nats", "suffix:/min", "suffix:×"),
}
ALERT_NAMES = {row.name for row in ALERTS}

AGGREGATION = re.compile(r"\b(?:max|min|sum|count|topk)\s*(?:by \([^)]*\))?\s*$")


def panels(dashboard: Json) -> list[Json]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def asked(dashboard: Json) -> list[tuple[Json, Json]]:
    return [(panel, each) for panel in panels(dashboard) for each in panel.get("targets", [])]


def expressions(dashboard: Json) -> list[str]:
    """Of panels, variables and annotations."""
    found = [target["expr"] for _, target in asked(dashboard)]
    found += [each["query"] for each in dashboard["templating"]["list"] if each["type"] == "query"]
    return found + [each["expr"] for each in dashboard["annotations"]["list"] if "expr" in each]


def data_sources(dashboard: Json) -> Iterator[str]:
    queries = [each for each in dashboard["templating"]["list"] if each["type"] == "query"]
    notes = [e for e in dashboard["annotations"]["list"] if e["datasource"]["type"] != "grafana"]
    shown = [panel for panel in panels(dashboard) if panel["type"] != "text"]
    for each in (*shown, *(target for _, target in asked(dashboard)), *queries, *notes):
        if each.get("datasource") != {"type": "prometheus", "uid": "${datasource}"}:
            yield f"not the chosen data source: {each.get('datasource')}"


def variables(dashboard: Json) -> Iterator[str]:
    names = [each["name"] for each in dashboard["templating"]["list"]]
    if [name for name in names if name != "run"] != [
        *("datasource", "cluster", "namespace", "runbooks")
    ]:
        yield f"variables: {names}"
    for each in dashboard["templating"]["list"]:
        if each.get("includeAll") and each.get("allValue") != ".*":
            yield f"{each['name']}: All leaves out what lacks the label"
        if each["name"] in ("cluster", "namespace") and not each.get("includeAll"):
            yield f"{each['name']} cannot be All"


def settings(dashboard: Json) -> Iterator[str]:
    uid = dashboard["uid"]
    if len(uid) > 40 or dashboard["title"] != f"forcegauge / {TITLES.get(uid)}":
        yield f"uid or title: {uid}, {dashboard['title']}"
    wanted = {"editable": False, "timezone": "utc", "tags": ["forcegauge"], "refresh": "1m"}
    yield from (name for name, value in wanted.items() if dashboard.get(name) != value)


def kinds(dashboard: Json) -> Iterator[str]:
    yield from (p["type"] for p in dashboard["panels"] if p["type"] not in KINDS)
    yield from (p["title"] for p in dashboard["panels"] if p.get("collapsed"))


def scales(dashboard: Json) -> Iterator[str]:
    for panel in panels(dashboard):
        if panel["type"] == "text":
            continue
        defaults = panel["fieldConfig"]["defaults"]
        written_units = [each["value"] for each in _properties(panel, "unit")]
        if not {defaults.get("unit"), *written_units} <= UNITS:
            yield f"{panel['title']}: unit {defaults.get('unit')} {written_units}"
        if not defaults.get("noValue") or not defaults.get("thresholds"):
            yield f"{panel['title']}: what absence says, or thresholds"
        # times and tables have decimals by column or none at all
        if (
            "decimals" not in defaults
            and panel["type"] not in ("table",)
            and (defaults["unit"] != "dateTimeFromNow")
        ):
            yield f"{panel['title']}: decimals"


def _properties(panel: Json, name: str) -> list[Json]:
    overrides = panel.get("fieldConfig", {}).get("overrides", [])
    return [each for one in overrides for each in one["properties"] if each["id"] == name]


def descriptions(dashboard: Json) -> Iterator[str]:
    for panel in panels(dashboard):
        text = panel.get("description", "")
        formulas = re.findall(r"`(forcegauge_\w+)`: .+ Formula: `.+`", text)
        if not formulas or not set(formulas) <= set(METRICS):
            yield f"{panel['title']}: no formula"
        if not text or not text.splitlines()[0].endswith("."):
            yield f"{panel['title']}: no plain words first"
        used = {n for t in panel.get("targets", []) for n in _names(t["expr"])}
        if used - set(formulas) - {"forcegauge_probe_timestamp_seconds", "forcegauge_run_active"}:
            yield f"{panel['title']}: does not tell of {used - set(formulas)}"


def _names(expr: str) -> set[str]:
    return set(re.findall(r"\bforcegauge_\w+", expr))


def metrics(dashboard: Json) -> Iterator[str]:
    for expr in expressions(dashboard):
        yield from _names(expr) - set(METRICS)


def labels(dashboard: Json) -> Iterator[str]:
    for expr in expressions(dashboard):
        for name, inside in re.findall(r"(\w*){([^}]*)}", expr):
            known = LABELS.get(name, EVERY_LABEL | {"__name__"})
            used = set(re.findall(r"(\w+)\s*(?:=~|!=|=)\s*\"", inside))
            yield from (f"{name}{{{each}}}" for each in used - known)
        grouped = re.findall(r"\b(?:by|on) \(([^)]*)\)", expr)
        yield from set(", ".join(grouped).split(", ")) - EVERY_LABEL - {""}
    for _, target in asked(dashboard):
        yield from set(re.findall(r"{{(\w+)}}", target.get("legendFormat", ""))) - EVERY_LABEL


def explosions(dashboard: Json) -> Iterator[str]:
    """Graphs keep the run and one label of a bounded set: all else is aggregated away."""
    for panel, target in asked(dashboard):
        if panel["type"] not in ("timeseries", "state-timeline"):
            continue
        expr = target["expr"]
        for found in re.finditer(r"\bforcegauge_\w+", expr):
            if not _aggregated(expr, found.start()):
                yield f"{panel['title']}: {found.group()} is not aggregated"
        for group in re.findall(r"\bby \(([^)]*)\)", expr):
            if len(set(group.split(", ")) - {"run"}) > 1:
                yield f"{panel['title']}: by {group}"


def _aggregated(expr: str, at: int) -> bool:
    """Whether one of the brackets around a place belongs to an aggregation."""
    depth = 0
    for index in range(at - 1, -1, -1):
        depth += {")": 1, "(": -1}.get(expr[index], 0)
        if depth < 0:
            if AGGREGATION.search(expr[:index]):
                return True
            depth = 0
    return False


def rates(dashboard: Json) -> Iterator[str]:
    """A fixed window is empty where the scrape interval is long."""
    for expr in expressions(dashboard):
        windows = re.findall(r"\[([^\]]+)\]", expr)
        allowed = {"$__range", "$__rate_interval", "$__range:$__interval"}
        yield from (f"[{window}]" for window in windows if window not in allowed)


def grid(dashboard: Json) -> Iterator[str]:
    places = [(panel["title"], panel["gridPos"]) for panel in dashboard["panels"]]
    yield from (title for title, p in places if p["x"] < 0 or p["x"] + p["w"] > 24 or p["h"] < 1)
    for (one, a), (two, b) in combinations(places, 2):
        apart = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        if not (apart or a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]):
            yield f"{one} lies on {two}"


def widths(dashboard: Json) -> Iterator[str]:
    """At 1280 pixels a graph of a quarter of the width is the smallest that can be read."""
    smallest = {"timeseries": 6, "table": 12, "state-timeline": 12, "text": 6, "stat": 3}
    for panel in panels(dashboard):
        if panel["gridPos"]["w"] < smallest[panel["type"]]:
            yield panel["title"]


def identities(dashboard: Json) -> Iterator[str]:
    ids = [panel["id"] for panel in dashboard["panels"]]
    yield from (str(each) for each in ids if ids.count(each) > 1)
    for panel in panels(dashboard):
        refs = [target["refId"] for target in panel.get("targets", [])]
        yield from (f"{panel['title']}: {ref}" for ref in refs if refs.count(ref) > 1)


def links(dashboard: Json) -> Iterator[str]:
    text = json.dumps(dashboard)
    yield from (uid for uid in re.findall(r"/d/([\w-]+)", text) if uid not in TITLES)
    for name in re.findall(r"\$\{runbooks\}(\w+)(?![\w$])", text):
        if name not in ALERT_NAMES:
            yield f"no runbook {name}"
    for panel in panels(dashboard):
        if "${runbooks}ForceGauge${__value.text}" in json.dumps(panel):
            shown = {each["text"] for one in _mappings(panel) for each in one.values()}
            known = {f"ForceGauge{name}" for name in shown} & ALERT_NAMES
            if len(known) != len(ALARMS):
                yield f"{panel['title']}: {sorted(shown)}"
    kept = [each for each in dashboard["links"] if each["includeVars"] and each["keepTime"]]
    if {each["url"] for each in kept} != {f"/d/{uid}" for uid in TITLES} - {
        f"/d/{dashboard['uid']}"
    }:
        yield "links to the other dashboards, with variables and time"


def _mappings(panel: Json) -> list[Json]:
    return [one["options"] for each in _properties(panel, "mappings") for one in each["value"]]


def colors(dashboard: Json) -> Iterator[str]:
    """A response type has one colour, the same as on every other dashboard."""
    for name, used in _type_colors(dashboard).items():
        elsewhere = set().union(*(_type_colors(other).get(name, set()) for other in ALL.values()))
        if len(used | elsewhere) > 1:
            yield f"{name}: {sorted(used | elsewhere)}"
    for panel, target in asked(dashboard):
        if "{{response_type}}" in target.get("legendFormat", ""):
            named = {one["matcher"]["options"] for one in panel["fieldConfig"]["overrides"]}
            yield from (f"{panel['title']}: {name}" for name in set(RESPONSE_TYPES) - named)


def _type_colors(dashboard: Json) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for panel in panels(dashboard):
        for one in panel.get("fieldConfig", {}).get("overrides", []):
            if one["matcher"]["options"] in RESPONSE_TYPES:
                shades = [p["value"]["fixedColor"] for p in one["properties"] if p["id"] == "color"]
                found.setdefault(one["matcher"]["options"], set()).update(shades)
    return found


CHECKS: tuple[Check, ...] = (
    *(data_sources, variables, settings, kinds, scales, descriptions, metrics, labels),
    *(explosions, rates, grid, widths, identities, links, colors),
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", ALL)
def test_dashboards_keep_the_conventions(name: str, check: Check) -> None:
    assert list(check(ALL[name])) == []


def graph(dashboard: Json) -> Json:
    found: Json = next(panel for panel in panels(dashboard) if panel["type"] == "timeseries")
    return found


def query(dashboard: Json) -> Json:
    found: Json = graph(dashboard)["targets"][0]
    return found


def _ask(expr: str) -> Damage:
    return lambda dashboard: query(dashboard).update(expr=expr)


def _change(**values: Any) -> Damage:
    return lambda dashboard: dashboard.update(values)


def _panel(**values: Any) -> Damage:
    return lambda dashboard: graph(dashboard).update(values)


def _field(**values: Any) -> Damage:
    return lambda dashboard: graph(dashboard)["fieldConfig"]["defaults"].update(values)


def _variable(at: int, **values: Any) -> Damage:
    return lambda dashboard: dashboard["templating"]["list"][at].update(values)


def _place(**values: int) -> Damage:
    return lambda dashboard: graph(dashboard)["gridPos"].update(values)


def _text(old: str, new: str) -> Damage:
    def damage(dashboard: Json) -> None:
        changed = json.loads(json.dumps(dashboard).replace(old, new))
        assert changed != dashboard
        dashboard.update(changed)

    return damage


BROKEN: tuple[tuple[Check, Damage], ...] = (
    (data_sources, _panel(datasource={"type": "prometheus", "uid": "prod"})),
    (data_sources, lambda d: query(d).update(datasource={"type": "prometheus", "uid": "prod"})),
    (data_sources, lambda d: query(d).pop("datasource")),
    (data_sources, _variable(1, datasource={"type": "prometheus", "uid": "prod"})),
    (variables, _variable(1, allValue=".+")),
    (variables, _variable(1, name="zone")),
    (variables, _variable(2, includeAll=False)),
    (settings, _change(uid="x" * 41)),
    (settings, _change(title="Run")),
    (settings, _change(editable=True)),
    (settings, _change(timezone="browser")),
    (kinds, _panel(type="piechart")),
    (kinds, lambda d: d["panels"][0].update(collapsed=True)),
    (scales, _field(unit="bananas")),
    (scales, _field(noValue="")),
    (scales, lambda d: graph(d)["fieldConfig"]["defaults"].pop("decimals")),
    (descriptions, _panel(description="")),
    (descriptions, _panel(description="Only words.")),
    (descriptions, _ask("sum(forcegauge_eos_logprob_nats)")),
    (metrics, _ask("sum(forcegauge_squeeze)")),
    (metrics, _variable(1, query="label_values(forcegauge_nothing, cluster)")),
    (labels, _ask('sum(forcegauge_squeeze_nats{response_type="chosen"})')),
    (labels, _ask("sum by (model_name) (forcegauge_squeeze_nats)")),
    (labels, lambda d: query(d).update(legendFormat="{{pod}}")),
    (explosions, _ask("forcegauge_logprob_nats")),
    (explosions, _ask("(forcegauge_logprob_nats)")),
    (explosions, _ask("sum by (observed, updated) (forcegauge_entk_norm)")),
    (rates, _ask("sum(rate(forcegauge_monitor_requests_total[5m]))")),
    (grid, _place(x=20)),
    (grid, _place(y=2)),
    (widths, _place(w=4)),
    (identities, _panel(id=1)),
    (identities, lambda d: graph(d)["targets"].append(query(d))),
    (links, _text("/d/forcegauge-fleet", "/d/forcegauge-flet")),
    (links, _text("${runbooks}ForceGaugeSqueezing", "${runbooks}ForceGaugeSqueezed")),
    (links, _text('"text": "Diverging"', '"text": "Diverges"')),
    (links, lambda d: d["links"][0].update(includeVars=False)),
    (colors, _text('"fixedColor": "#2585cb"', '"fixedColor": "#000000"')),
)


@pytest.mark.parametrize(("check", "damage"), BROKEN)
def test_a_dashboard_that_breaks_a_convention_is_found(check: Check, damage: Damage) -> None:
    broken = copy.deepcopy(ALL["run"])
    damage(broken)
    assert list(check(broken))


def test_every_check_has_a_control() -> None:
    assert {check for check, _ in BROKEN} == set(CHECKS)
