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
    made = list(mutants(alert))
    changed_to = {f"Mutant{k}": mutant.change for k, mutant in enumerate(made)}
    changed_to["Original"] = "nothing"
    changed = {f"Mutant{k}": mutant.alert for k, mutant in enumerate(made)}
    left = survivors(tmp_path, changed | {"Original": alert}, CASES[alert.name])
    assert {changed_to[name] for name in left} == {"nothing"}
