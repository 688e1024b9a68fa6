"""`forcegauge monitor rules`: what people type and what they get."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from forcegauge.errors import InputError, RunError
from forcegauge_monitor.cli import monitor


def call(*arguments: str) -> Result:
    arguments = ("rules", *arguments)
    return CliRunner().invoke(monitor, arguments, catch_exceptions=False, standalone_mode=False)


def test_a_rule_file_is_printed() -> None:
    rules = yaml.safe_load(call().output)
    assert [group["name"] for group in rules["groups"]][1] == "forcegauge.runs"
    assert "http://localhost:8790/runbooks/ForceGaugeSqueezing" in call().output


def test_links_can_lead_elsewhere() -> None:
    text = call("--runbooks", "https://wiki/books", "--grafana", "https://g").output
    assert "https://wiki/books/ForceGaugeSqueezing" in text
    assert "https://g/d/forcegauge-run" in text
    assert "localhost" not in text


def test_a_prometheusrule_has_the_namespace_and_labels_that_are_asked_for() -> None:
    given = ("--namespace", "watch", "--label", "release=stack", "--label", "a=b=c")
    made = yaml.safe_load(call("--format", "operator", *given).output)
    assert made["kind"] == "PrometheusRule"
    labels = {"release": "stack", "a": "b=c"}
    assert made["metadata"] == {"name": "forcegauge", "namespace": "watch", "labels": labels}


def test_grafanas_rules_ask_the_data_source_that_is_named() -> None:
    made = yaml.safe_load(call("--format", "grafana", "--datasource", "mimir").output)
    asked = {
        query["datasourceUid"] for rule in made["groups"][0]["rules"] for query in rule["data"]
    }
    assert asked == {"mimir", "__expr__"}


def test_rules_go_into_a_file(tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    assert call("-o", str(file)).output == ""
    assert file.read_text() == call().output


def test_a_file_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot be written"):
        call("-o", str(tmp_path / "none" / "rules.yaml"))


@pytest.mark.parametrize(
    "given", [("--namespace", "n"), ("--label", "a=b"), ("--datasource", "d")], ids=lambda g: g[0]
)
def test_an_option_of_another_format_is_refused(given: tuple[str, str]) -> None:
    with pytest.raises(InputError, match="only"):
        call(*given)


def test_a_label_without_a_value_is_refused() -> None:
    with pytest.raises(InputError, match="NAME=VALUE"):
        call("--format", "operator", "--label", "release")


def test_help_and_rules_need_neither_torch_nor_a_server() -> None:
    code = (
        "import sys\n"
        "from forcegauge_monitor.commands.rules import rules\n"
        "light = 'yaml' not in sys.modules\n"
        "rules(['-o', '/dev/null'], standalone_mode=False)\n"
        "sys.exit(not light or any(m in sys.modules for m in ('torch', 'redis', 'fastapi')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
