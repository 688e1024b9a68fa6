from __future__ import annotations

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from forcegauge.catalogue import METRICS
from forcegauge.cli import cli
from forcegauge.commands.metrics import NOTATION
from forcegauge.probes import RESPONSE_TYPES


def _run(*arguments: str, columns: int = 80) -> str:
    done = CliRunner(env={"COLUMNS": str(columns)}).invoke(cli, ["metrics", *arguments])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_the_table_fits_the_terminal(columns: int) -> None:
    lines = _run(columns=columns).splitlines()
    assert max(map(len, lines)) <= min(columns, 100)


def test_the_table_holds_every_metric_with_labels_unit_meaning_and_formula() -> None:
    words = " ".join(_run().split())
    assert NOTATION in words
    for row in METRICS:
        labels = "{" + ", ".join(row.labels) + "}" if row.labels else ""
        unit = f", {row.unit}" if row.unit else ""
        expected = f"{row.name}{labels} {row.kind}{unit} {row.meaning} = {row.formula}"
        assert expected in words


def test_markdown_is_one_table_whose_rows_have_equal_cells() -> None:
    notation, blank, *rows = _run("--format", "markdown").splitlines()
    assert (notation, blank) == (NOTATION, "")
    assert len(rows) == len(METRICS) + 2
    assert {row.replace("\\|", "").count("|") for row in rows} == {7}
    assert all(f"`{row.name}`" in text for row, text in zip(METRICS, rows[2:], strict=True))


def test_json_holds_the_catalogue_and_its_label_values() -> None:
    found = json.loads(_run("--format", "json"))
    assert [row["name"] for row in found["metrics"]] == [row.name for row in METRICS]
    state = next(r for r in found["metrics"] if r["name"] == "forcegauge_run_state")
    assert state["labels"] == ["run", "state"]
    assert state["kind"] == "gauge"
    assert found["label_values"]["response_type"] == list(RESPONSE_TYPES)


def test_an_unknown_format_is_a_usage_error() -> None:
    assert CliRunner().invoke(cli, ["metrics", "--format", "xml"]).exit_code == 2


def test_neither_torch_nor_transformers_is_imported() -> None:
    script = (
        "import sys; from forcegauge.commands import metrics; from forcegauge import exporter; "
        "print(sorted({'torch', 'transformers'} & sys.modules.keys()))"
    )
    command = [sys.executable, "-c", script]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"
