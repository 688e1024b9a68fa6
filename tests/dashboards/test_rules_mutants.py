"""No number, duration, comparison or set operation of a rule can change unnoticed."""

from __future__ import annotations

from pathlib import Path

import pytest

from forcegauge_monitor.alert import Alert
from forcegauge_monitor.alerts import ALERTS
from tests.dashboards.promtool.mutants import mutants
from tests.dashboards.promtool.running import survivors
from tests.dashboards.promtool.said import CASES

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_the_cases_tell_every_changed_rule_from_the_right_one(alert: Alert, tmp_path: Path) -> None:
    changed = {f"Mutant{k}": mutant for k, mutant in enumerate(mutants(alert))}
    alerts = {name: mutant.alert for name, mutant in changed.items()}
    left = survivors(tmp_path, alerts, CASES[alert.name])
    assert [changed[name].change for name in left] == []


def test_a_changed_rule_that_does_the_same_is_noticed_here(tmp_path: Path) -> None:
    alert = ALERTS[0]
    assert survivors(tmp_path, {"Same": alert}, CASES[alert.name][:2]) == {"Same"}
