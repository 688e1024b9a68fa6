"""The five dashboards: what Grafana takes, and what a person must find on them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from runpy import run_module
from typing import Any

import pytest
from jsonschema import Draft7Validator

from dashboards import generate
from dashboards.advice import ADVICE
from dashboards.frame import RUNBOOKS, TITLES, written
from dashboards.generate import DASHBOARDS
from dashboards.looks import TYPE_COLORS, VERDICT_COLORS, verdict_map
from dashboards.panels import about
from dashboards.promql import ONE_RUN, known, series
from forcegauge.alarms import ALARMS, VERDICTS
from forcegauge.probes import RESPONSE_TYPES
from forcegauge_monitor.alerts import alert_name

Json = dict[str, Any]

ALL: dict[str, Json] = {made.__name__: json.loads(written(made())) for made in DASHBOARDS}


@pytest.fixture(scope="module")
def schema() -> Draft7Validator:
    folder = os.environ.get("FORCEGAUGE_TEST_SCHEMAS")
    if folder is None:
        pytest.skip("set FORCEGAUGE_TEST_SCHEMAS to a folder with grafana-dashboard.schema.json")
    text = (Path(folder) / "grafana-dashboard.schema.json").read_text(encoding="utf-8")
    return Draft7Validator(json.loads(text))


@pytest.mark.parametrize("name", ALL)
def test_grafana_takes_the_dashboard(schema: Draft7Validator, name: str) -> None:
    assert [error.message for error in schema.iter_errors(ALL[name])] == []


@pytest.mark.parametrize(
    "broken",
    [
        {"schemaVersion": "forty-two"},
        {"editable": "no"},
        {"panels": [{"title": "a panel of no type"}]},
        {"panels": [{"type": "stat", "gridPos": {"x": "left"}}]},
        {"links": [{"title": "a link to nowhere"}]},
        {"templating": {"list": [{"name": "run", "type": "guess"}]}},
    ],
)
def test_grafana_does_not_take_a_broken_one(schema: Draft7Validator, broken: Json) -> None:
    assert not schema.is_valid({**ALL["run"], **broken})


def panel(name: str, title: str) -> Json:
    found: Json = next(each for each in ALL[name]["panels"] if each["title"].startswith(title))
    return found


def columns(of: Json) -> list[str]:
    """Titles of a table's columns from left to right."""
    organize = next(each for each in of["transformations"] if each["id"] == "organize")["options"]
    order = sorted(organize["indexByName"], key=organize["indexByName"].get)
    return [organize["renameByName"].get(each, each) for each in order]


def queries(of: Json) -> str:
    return "\n".join(target["expr"] for target in of["targets"])


def test_the_uids_are_those_that_links_and_alerts_point_to() -> None:
    assert [each["uid"] for each in ALL.values()] == list(TITLES)


def test_the_fleet_says_of_each_run_how_it_is_since_when_and_what_is_worst() -> None:
    table = panel("fleet", "All runs")
    wanted = {
        "run",
        "verdict",
        "since",
        "sick since step",
        "worst alarm",
        "squeeze, nats",
        "last probe",
    }
    assert wanted <= set(columns(table))
    assert table["options"]["sortBy"] == [{"displayName": "verdict", "desc": True}]


def test_the_fleet_knows_runs_whose_process_is_gone_from_the_monitor() -> None:
    verdict, since, *_ = panel("fleet", "All runs")["targets"]
    assert "or on (run) max by (run) (forcegauge_monitor_run_state" in verdict["expr"]
    assert "forcegauge_monitor_run_state" in since["expr"]


def test_a_row_of_the_fleet_opens_that_run_with_place_and_time_kept() -> None:
    overrides = panel("fleet", "All runs")["fieldConfig"]["overrides"]
    run = next(each for each in overrides if each["matcher"]["options"] == "run")
    (link,) = next(each["value"] for each in run["properties"] if each["id"] == "links")
    assert link["url"].startswith("/d/forcegauge-run?${__url_time_range}&${datasource:queryparam}")
    assert link["url"].endswith("&var-run=${__value.raw}")


def test_the_first_lines_of_a_run_answer_whether_since_when_and_what_to_do() -> None:
    first = [each["title"] for each in ALL["run"]["panels"] if each["gridPos"]["y"] <= 5]
    assert first[:3] == ["Is it sick, since which step, what to do?", "Verdict", "Sick since step"]
    assert first[-1] == "What to do"


def test_every_verdict_has_its_word_and_colour_and_says_what_to_do() -> None:
    mapping = panel("run", "Verdict")["fieldConfig"]["defaults"]["mappings"][0]["options"]
    shown = {code: (each["text"], each["color"]) for code, each in mapping.items()}
    assert shown == {str(code): (v, VERDICT_COLORS[v]) for code, v in enumerate(VERDICTS)}
    assert len(set(VERDICT_COLORS.values())) == len(VERDICTS)
    assert all(f"**{verdict}**" in ADVICE for verdict in VERDICTS)
    assert "${runbooks}ForceGaugeCollapsed" in ADVICE


def test_the_table_of_alarms_shows_streak_against_needed_and_what_is_on_first() -> None:
    table = panel("run", "Alarms")
    assert columns(table) == ["alarm", "on", "held, probes", "needed", "value", "threshold"]
    assert [each["displayName"] for each in table["options"]["sortBy"]] == ["on", "held, probes"]


@pytest.mark.parametrize("row", ALARMS, ids=lambda row: row.name)
def test_each_alarm_is_drawn_against_its_threshold_with_its_runbook(row: Any) -> None:
    found = panel("run", row.name.replace("_", " ").capitalize() + " (alarm")
    value, threshold = found["targets"]
    assert series("alarm_value", ONE_RUN, alarm=row.name) in value["expr"]
    assert threshold["legendFormat"] == "threshold"
    assert row.meaning in found["description"]
    assert found["links"][0]["url"] == "${runbooks}" + alert_name(row)


@pytest.mark.parametrize(
    "name",
    [
        *("logprob_change_nats", "argmax_mass_change_ratio", "mass_ratio", "squeeze_nats"),
        *("preference_margin_nats", "squeezed_ratio", "hallucination_pressure_nats", "force_norm"),
        *("valley_force_ratio", "entropy_nats", "greedy_repetition_ratio", "eos_logprob_nats"),
        *("train_step", "probe_step"),
    ],
)
def test_the_run_shows_the_papers_figure_and_every_signal_over_time(name: str) -> None:
    graphs = [each for each in ALL["run"]["panels"] if each["type"] == "timeseries"]
    assert any(known(name).name in queries(each) for each in graphs)


def test_events_of_the_run_stand_in_its_figures() -> None:
    notes = ALL["run"]["annotations"]["list"]
    posted = [each["target"]["tags"] for each in notes if each["datasource"]["type"] == "grafana"]
    kinds = ("alarm", "verdict", "checkpoint", "phase")
    assert posted == [["forcegauge", "forcegauge-run:${run}", f"forcegauge-{k}"] for k in kinds]
    assert not any(each["target"]["matchAny"] for each in notes if "target" in each)


def test_snapshots_set_prediction_beside_measurement() -> None:
    table = panel("snapshots", "Last snapshot")
    titles = ["response type", "predicted", "measured", "measured − predicted"]
    assert columns(table) == titles


def test_a_matrix_keeps_the_order_of_the_response_types() -> None:
    table = panel("snapshots", "How strongly")
    grouping = table["transformations"][0]
    assert grouping["id"] == "groupingToMatrix"
    assert [each for each in columns(table) if each in RESPONSE_TYPES] == list(RESPONSE_TYPES)


def test_several_runs_can_be_compared_and_one_is_looked_at() -> None:
    chosen = {
        name: [each for each in found["templating"]["list"] if each["name"] == "run"]
        for name, found in ALL.items()
    }
    assert chosen["compare"][0]["multi"]
    assert not chosen["run"][0].get("multi")
    assert chosen["fleet"] == chosen["operations"] == []


def test_the_runbooks_are_the_monitors_unless_told_otherwise() -> None:
    for found in ALL.values():
        base = found["templating"]["list"][-1]
        assert (base["name"], base["query"]) == ("runbooks", RUNBOOKS)


def test_colours_are_halfway_between_the_reports_two_and_greedy_follows_the_theme() -> None:
    assert TYPE_COLORS["chosen"] == "#2585cb"
    assert TYPE_COLORS["greedy"] == "text"
    assert len({TYPE_COLORS[name] for name in RESPONSE_TYPES}) == len(RESPONSE_TYPES)


def test_a_description_has_meaning_and_formula_of_the_catalogue() -> None:
    text = about("Higher is worse.", "squeeze_nats", "entk_norm")
    for name in ("squeeze_nats", "entk_norm"):
        assert (
            f"- `{known(name).name}`: {known(name).meaning} Formula: `{known(name).formula}`"
            in text
        )


def test_all_runbooks_are_one_click_away() -> None:
    for found in ALL.values():
        assert (found["links"][-1]["title"], found["links"][-1]["url"]) == (
            "Runbooks",
            "${runbooks}",
        )


def test_generating_writes_what_is_stale_and_its_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stale = tmp_path / "grafana" / "run.json"
    monkeypatch.setattr(generate, "generated", lambda: {stale: "new"})
    run_module("dashboards", run_name="__main__")
    run_module("dashboards", run_name="__main__")
    assert stale.read_text(encoding="utf-8") == "new"


def test_a_metric_that_no_catalogue_has_is_refused() -> None:
    with pytest.raises(KeyError):
        series("squeezing_nats", "")


def test_a_selector_without_scope_or_labels_is_the_bare_name() -> None:
    assert series("squeeze_nats", "") == "forcegauge_squeeze_nats"
    assert verdict_map().options["0"].text == "warming"
