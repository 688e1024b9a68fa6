"""Every alert on its cases, in promtool: it fires, stays silent on near misses, and resolves."""

from __future__ import annotations

from pathlib import Path

import pytest

from forcegauge_monitor.alert import Alert
from forcegauge_monitor.alert_texts import Places
from forcegauge_monitor.alerts import ALERTS
from forcegauge_monitor.rules import prometheus
from tests.dashboards.promtool.running import told, tried
from tests.dashboards.promtool.said import CASES, OTHERWISE, SAID, Said

pytestmark = pytest.mark.slow

RULES = {
    rule["alert"]: rule
    for group in prometheus(Places())["groups"]
    for rule in group["rules"]
    if "alert" in rule
}


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_an_alert_fires_when_it_must_and_only_then(alert: Alert, tmp_path: Path) -> None:
    assert tried(tmp_path, alert, CASES[alert.name]) == ""


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_an_alert_tells_the_numbers_and_where_to_look(alert: Alert, tmp_path: Path) -> None:
    assert _wrong(tmp_path, alert, SAID[alert.name]) == ""


@pytest.mark.parametrize("name", OTHERWISE)
def test_an_alert_says_so_where_there_are_no_numbers(name: str, tmp_path: Path) -> None:
    alert = next(alert for alert in ALERTS if alert.name == name)
    assert _wrong(tmp_path, alert, OTHERWISE[name]) == ""


def test_every_alert_is_tried_where_it_fires_resolves_and_is_silent() -> None:
    for alert in ALERTS:
        cases = CASES[alert.name]
        firing = [[bool(found) for found in case.fires.values()] for case in cases]
        assert any(map(any, firing)), alert.name
        assert any(True in found and not found[-1] for found in firing), alert.name
        assert sum(not any(found) for found in firing) >= 1, alert.name


def _wrong(folder: Path, alert: Alert, said: Said) -> str:
    case, labels, description = said
    chosen = "&".join(
        f"var-{name}={labels.get(name, '')}" for name in alert.labels if name != "queue"
    )
    expected = {
        "summary": alert.summary,
        "description": description,
        "runbook_url": f"http://localhost:8790/runbooks/{alert.name}",
        "dashboard_url": f"http://localhost:3000/d/{alert.dashboard}?{chosen}",
    }
    return told(folder, RULES[alert.name], case, labels, expected)
