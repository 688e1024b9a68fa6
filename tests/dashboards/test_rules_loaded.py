"""The rule file in real Prometheus, the oldest and the newest that is supported."""

from __future__ import annotations

from pathlib import Path

import pytest

from dashboards.generate import ROOT
from tests.dashboards.promtool.running import checked
from tests.servers import VERSIONS, prometheus, wait_for

pytestmark = pytest.mark.slow

RULES = ROOT / "rules" / "forcegauge.rules.yaml"


def test_promtool_finds_nothing_wrong_with_the_rule_file() -> None:
    assert checked(RULES) == ""


@pytest.mark.parametrize("version", VERSIONS)
def test_every_rule_is_evaluated_without_an_error(version: str, tmp_path: Path) -> None:
    with prometheus(tmp_path, rules=[RULES], version=version) as server:
        told = server.query("prometheus_build_info") or wait_for(lambda: server.query("vector(1)"))
        assert told

        def evaluated() -> list[str]:
            rules = [rule for group in server.rule_groups() for rule in group["rules"]]
            return [rule["health"] for rule in rules if rule["health"] != "unknown"]

        wait_for(lambda: len(evaluated()) == RULES.read_text().count("expr:"))
        errors = [rule.get("lastError") for g in server.rule_groups() for rule in g["rules"]]
        assert set(evaluated()) == {"ok"}
        assert not any(errors)
