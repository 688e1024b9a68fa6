"""The example Alertmanager configuration: valid, routes as it says, and its messages read well."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

import dashboards
from forcegauge_monitor.alerts import ALERTS
from tests.servers import require

pytestmark = pytest.mark.slow

FOLDER = Path(dashboards.__file__).parent / "alertmanager"
CONFIG = FOLDER / "alertmanager.yml"


def amtool(*arguments: str) -> str:
    done = subprocess.run(
        [require("amtool"), *arguments], cwd=FOLDER, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def receivers(**labels: str) -> list[str]:
    told = [f"{name}={value}" for name, value in labels.items()]
    routes = amtool("config", "routes", "test", f"--config.file={CONFIG}", *told)
    return routes.strip().split(",")


def alert(status: str, **labels: str) -> dict[str, Any]:
    known = {"alertname": "ForceGaugeSqueezing", "severity": "warning", "run": "demo", **labels}
    told = {
        "summary": "A run is squeezing.",
        "description": "demo at step 36: +0.89 nats, above 0.50. Run SFT on both answers first.",
        "dashboard_url": "http://grafana/d/forcegauge-run?var-cluster=c1&var-run=demo",
        "runbook_url": f"http://monitor/runbooks/{known['alertname']}",
    }
    times = {"startsAt": "2026-11-21T14:00:00Z", "endsAt": "2026-11-21T14:30:00Z"}
    return {"status": status, "labels": known, "annotations": told, **times}


def rendered(name: str, folder: Path, *alerts: dict[str, Any]) -> str:
    statuses = {row["status"] for row in alerts}
    status = "firing" if "firing" in statuses else "resolved"
    data: dict[str, Any] = {"status": status, "alerts": alerts}
    data |= {"commonLabels": {"run": "demo", "cluster": "c1", "namespace": "ml"}}
    file = folder / "data.json"
    file.write_text(json.dumps(data))
    return amtool(
        "template", "render", "--template.glob=forcegauge.tmpl", f"--template.data={file}",
        f'--template.text={{{{ template "forcegauge.{name}" . }}}}',
    )  # fmt: skip


def config() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    return found


def test_the_configuration_is_valid() -> None:
    assert "SUCCESS" in amtool("check-config", str(CONFIG))


def test_a_configuration_that_is_not_is_refused(tmp_path: Path) -> None:
    broken = CONFIG.read_text(encoding="utf-8").replace("receiver: slack", "receiver: nobody")
    (tmp_path / "broken.yml").write_text(broken)
    with pytest.raises(AssertionError, match="nobody"):
        amtool("check-config", str(tmp_path / "broken.yml"))


@pytest.mark.parametrize("row", ALERTS, ids=lambda row: row.name)
def test_every_alert_goes_where_its_severity_says(row: Any) -> None:
    expected = {"critical": ["pagerduty", "slack"], "warning": ["slack"], "info": ["webhook"]}
    found = receivers(alertname=row.name, severity=row.severity, run="demo")
    assert found == expected[row.severity]


def test_an_alert_of_others_wakes_nobody() -> None:
    assert receivers(alertname="SomethingElse", severity="critical") == ["webhook"]


def test_what_happens_to_one_run_is_one_message() -> None:
    assert config()["route"]["group_by"] == ["cluster", "namespace", "run"]


def test_a_collapse_silences_every_other_alarm_of_the_run() -> None:
    first = config()["inhibit_rules"][0]
    assert first["source_matchers"] == ['alertname = "ForceGaugeCollapsed"']
    assert first["equal"] == ["cluster", "namespace", "run"]
    (pattern,) = re.findall(r'"(.+)"', first["target_matchers"][0])
    silenced = {row.name for row in ALERTS if re.fullmatch(pattern, row.name)}
    assert silenced == {row.name for row in ALERTS if row.alarm}


def test_inhibitions_name_alerts_that_exist() -> None:
    for rule in config()["inhibit_rules"]:
        for matcher in (*rule["source_matchers"], *rule["target_matchers"]):
            (pattern,) = re.findall(r'^alertname =~? "(.+)"$', matcher)
            count = max(1, pattern.count("|") + 1)
            assert sum(bool(re.fullmatch(pattern, row.name)) for row in ALERTS) == count, pattern


def test_no_secret_stands_in_the_file() -> None:
    keys = re.findall(
        r"^\s*-?\s*(\w*(?:key|token|password|api_url|credentials)\w*):", CONFIG.read_text(), re.M
    )
    assert keys
    assert all(key.endswith("_file") for key in keys)


def test_the_title_tells_how_many_which_and_of_what_run(tmp_path: Path) -> None:
    spike = alert("firing", alertname="ForceGaugeArgmaxMassSpike")
    firing = rendered("title", tmp_path, alert("firing"), spike)
    assert firing == (
        "[2 firing] ForceGaugeSqueezing, ForceGaugeArgmaxMassSpike: run demo on c1/ml"
    )
    over = rendered("title", tmp_path, alert("resolved"))
    assert over == "[resolved] ForceGaugeSqueezing: run demo on c1/ml"


@pytest.mark.parametrize("template", ["text", "slack"])
def test_a_firing_message_has_numbers_advice_and_links(template: str, tmp_path: Path) -> None:
    told = alert("firing")["annotations"]
    message = rendered(template, tmp_path, alert("firing"), alert("resolved", run="other"))
    assert all(text in message for text in told.values())
    assert "14:00:00" in message
    assert "is over since 2026-11-21 14:30:00" in message


@pytest.mark.parametrize("template", ["text", "slack"])
def test_a_resolved_message_says_when_it_ended(template: str, tmp_path: Path) -> None:
    message = rendered(template, tmp_path, alert("resolved"))
    assert "ForceGaugeSqueezing" in message
    assert "is over since 2026-11-21 14:30:00 UTC" in message
    assert "var-run=demo" in message
    assert "0.89" not in message


def test_links_are_those_of_the_first_alert_that_fires(tmp_path: Path) -> None:
    rows = (alert("resolved", alertname="ForceGaugeRepeater"), alert("firing"))
    assert rendered("runbook", tmp_path, *rows) == "http://monitor/runbooks/ForceGaugeSqueezing"
    assert rendered("dashboard", tmp_path, *rows).endswith("var-cluster=c1&var-run=demo")
