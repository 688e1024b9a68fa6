"""The table of alerts and what is written from it: conventions, and the schemas of others."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from forcegauge.alarms import ALARMS
from forcegauge.catalogue import METRICS
from forcegauge_monitor import catalogue
from forcegauge_monitor.alert_texts import Places
from forcegauge_monitor.alerts import ALERTS, alert_name
from forcegauge_monitor.grafana_rules import provisioned, uid
from forcegauge_monitor.rules import RECORDS, operator, prometheus, written

PLACES = Places("https://books.example/r/", "https://grafana.example")
KNOWN = {row.name for row in (*METRICS, *catalogue.METRICS)}
META = {
    "ForceGaugeProbeStale",
    "ForceGaugeOverheadHigh",
    "ForceGaugeProbeFailing",
    "ForceGaugeAgentDown",
    "ForceGaugeMonitorDown",
    "ForceGaugeBeatMissing",
    "ForceGaugeWorkerMissing",
    "ForceGaugeQueueStuck",
    "ForceGaugeSnapshotsFailing",
    "ForceGaugeStoreDown",
}


def fired() -> Iterator[dict[str, Any]]:
    """The alerting rules of the rule file."""
    for group in prometheus(PLACES)["groups"]:
        yield from (rule for rule in group["rules"] if "alert" in rule)


def in_grafana() -> Iterator[dict[str, Any]]:
    for group in provisioned(PLACES, "prom-1")["groups"]:
        yield from group["rules"]


def test_there_is_an_alert_for_every_alarm_the_collapse_and_forcegauge_itself() -> None:
    wanted = {alert_name(row) for row in ALARMS} | {"ForceGaugeCollapsed"} | META
    assert {alert.name for alert in ALERTS} == wanted
    assert len(ALERTS) == len(wanted)


def test_an_alarm_fires_by_its_streak_alone() -> None:
    for alert in ALERTS:
        if alert.alarm:
            asked = set(re.findall(r"forcegauge_\w+", alert.expr)) - {
                "forcegauge_run_active",
                "forcegauge_run_state",
                "forcegauge_monitor_run_state",
            }
            assert asked == {"forcegauge_alarm_streak", "forcegauge_alarm_streak_needed"}


def test_only_metrics_that_exist_are_asked_for() -> None:
    expressions = [alert.expr for alert in ALERTS] + list(RECORDS.values())
    figures = [figure.metric for alert in ALERTS for figure in alert.figures.values()]
    assert set(re.findall(r"forcegauge_\w+", " ".join([*expressions, *figures]))) <= KNOWN


def test_the_evidence_is_told_in_annotations_and_never_in_labels() -> None:
    for rule in (*fired(), *in_grafana()):
        assert set(rule["labels"]) == {"severity"}
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        told = {"summary", "description", "runbook_url", "dashboard_url"}
        assert set(rule["annotations"]) == told


def test_a_summary_is_one_constant_sentence() -> None:
    for alert in ALERTS:
        assert re.fullmatch(r"[A-Z][^{}.]+\.", alert.summary), alert.name


def test_links_lead_where_they_are_told_to() -> None:
    rule = next(rule for rule in fired() if rule["alert"] == "ForceGaugeRepeater")
    assert rule["annotations"]["runbook_url"] == "https://books.example/r/ForceGaugeRepeater"
    link = rule["annotations"]["dashboard_url"]
    assert link.startswith("https://grafana.example/d/forcegauge-run?var-cluster={{")
    assert "&var-run={{" in link


def test_every_expression_is_the_same_in_all_formats() -> None:
    plain = {rule["alert"]: rule["expr"] for rule in fired()}
    groups = operator(PLACES)["spec"]["groups"]
    assert groups == prometheus(PLACES)["groups"]
    assert {rule["title"]: rule["data"][0]["model"]["expr"] for rule in in_grafana()} == plain


def test_the_prometheusrule_is_what_the_operator_takes() -> None:
    made = operator(PLACES, "monitoring", {"release": "stack"})
    assert made["metadata"] == {
        "name": "forcegauge",
        "namespace": "monitoring",
        "labels": {"release": "stack"},
    }
    # not `validate`: one of the patterns, for a field that we do not use, is Go's alone
    taken = jsonschema.Draft202012Validator(_crd())
    assert [error.message for error in taken.iter_errors(made)] == []
    made["spec"]["groups"][1]["rules"][0]["for"] = "soon"
    assert len(list(taken.iter_errors(made))) == 1


def _crd() -> dict[str, Any]:
    folder = os.environ.get("FORCEGAUGE_TEST_SCHEMAS")
    if not folder:
        pytest.skip("FORCEGAUGE_TEST_SCHEMAS names no folder with crd-prometheusrules.yaml")
    found = yaml.safe_load((Path(folder) / "crd-prometheusrules.yaml").read_text())
    schema: dict[str, Any] = found["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema


def test_grafanas_rules_have_fixed_uids_that_it_takes() -> None:
    uids = [rule["uid"] for rule in in_grafana()]
    assert len(set(uids)) == len(ALERTS)
    assert all(re.fullmatch(r"forcegauge-[a-z-]{1,29}", name) for name in uids)
    assert uid(ALERTS[2]) == "forcegauge-argmax-mass-spike"


def test_grafana_asks_the_named_data_source_and_fires_on_the_alerts_own_series() -> None:
    for rule in in_grafana():
        *queries, condition = rule["data"]
        assert {query["datasourceUid"] for query in queries} == {"prom-1"}
        assert {query["model"]["datasource"]["uid"] for query in queries} == {"prom-1"}
        assert all(query["refId"] == query["model"]["refId"] for query in rule["data"])
        assert rule["condition"] == condition["refId"] == "C"
        assert condition["datasourceUid"] == "__expr__"
        assert condition["model"]["expression"] == queries[0]["refId"] == "A"
        # no series is the usual state of an expression that filters
        assert rule["noDataState"] == "OK"


def test_grafanas_templates_take_numbers_from_queries_of_their_rule() -> None:
    for rule in in_grafana():
        text = rule["annotations"]["description"]
        assert set(re.findall(r"\$values\.(\w+)", text)) <= {q["refId"] for q in rule["data"]}
        assert "query" not in re.findall(r"\| (\w+)", text)


def test_durations_are_the_same_in_grafana() -> None:
    plain = {rule["alert"]: rule for rule in fired()}
    for rule in in_grafana():
        same = plain[rule["title"]]
        assert rule["for"] == same.get("for", "0s")
        assert rule.get("keepFiringFor") == same.get("keep_firing_for")


def test_what_is_written_reads_as_what_was_meant() -> None:
    for rules in (prometheus(PLACES), operator(PLACES), provisioned(PLACES)):
        assert yaml.safe_load(written(rules)) == rules
