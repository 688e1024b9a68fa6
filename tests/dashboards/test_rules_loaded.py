"""The rule file in real Prometheus, the oldest and the newest that is supported."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from dashboards.generate import ROOT
from forcegauge.alarms import ALARMS
from forcegauge_monitor.alerts import alert_name
from tests.dashboards.promtool.running import checked
from tests.dashboards.promtool.said import SAID
from tests.servers import VERSIONS, Prometheus, fetch, prometheus, served, wait_for

pytestmark = pytest.mark.slow

RULES = ROOT / "rules" / "forcegauge.rules.yaml"
OF_ALARMS = {alert_name(row) for row in ALARMS}


def test_promtool_finds_nothing_wrong_with_the_rule_file() -> None:
    assert checked(RULES) == ""


@pytest.mark.parametrize("version", VERSIONS)
def test_rules_are_evaluated_without_error_and_tell_their_numbers(
    version: str, tmp_path: Path
) -> None:
    with (
        served(_exposed(_page())) as url,
        prometheus(tmp_path, [url.removeprefix("http://")], rules=[RULES], version=version) as it,
    ):
        firing = wait_for(lambda: _firing(it))
        assert {row["labels"]["cluster"] for row in firing} == {"c1"}
        told = {row["labels"]["alertname"]: row["annotations"]["description"] for row in firing}
        assert {name: text for name, text in told.items() if name in OF_ALARMS} == {
            name: SAID[name][2] for name in OF_ALARMS
        }
        wait_for(lambda: {rule["health"] for rule in _rules(it)} == {"ok"})
        assert [rule["lastError"] for rule in _rules(it) if rule.get("lastError")] == []


def _rules(server: Prometheus) -> list[dict[str, Any]]:
    return [rule for group in server.rule_groups() for rule in group["rules"]]


def _firing(server: Prometheus) -> list[dict[str, Any]]:
    """The firing alerts, once all alarms are among them."""
    rows = json.loads(fetch(f"{server.url}/api/v1/alerts")[1])["data"]["alerts"]
    firing = [row for row in rows if row["state"] == "firing"]
    return firing if {row["labels"]["alertname"] for row in firing} >= OF_ALARMS else []


def _page() -> str:
    """What an agent shows with every alarm on, beside a healthy run of the same name."""
    series = [pair for name in sorted(OF_ALARMS) for pair in SAID[name][0].series.items()]
    sick = {_without_target(name): values.partition("x")[0] for name, values in series}
    well = {name.replace("c1", "c2"): "0" if "streak{" in name else n for name, n in sick.items()}
    return "".join(f"{name} {value}\n" for name, value in {**sick, **well}.items())


def _without_target(series: str) -> str:
    return re.sub(r'(job|instance)="[^"]*",?', "", series)


def _exposed(page: str) -> Callable[..., Awaitable[None]]:
    """An application that answers with this page."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"text/plain; version=0.0.4")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": page.encode()})

    return app
