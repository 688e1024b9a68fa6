"""`forcegauge monitor grafana`: what is printed, the exit codes, and what is never printed."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from forcegauge.errors import InputError, RunError
from forcegauge_monitor import grafana_http
from forcegauge_monitor.cli import monitor
from forcegauge_monitor.embedded import forcegauge
from forcegauge_monitor.settings import PREFIX
from tests.monitor.grafana_double import READER, TOKEN, Double
from tests.monitor.grafana_served import grafana_double
from tests.servers import wait_for

ALL = ("--prometheus", "http://prometheus:9090", "--alerts", "--webhook", "https://h/the-path")


def call(*arguments: str, say: str | None = None) -> Result:
    given = ("grafana", *arguments)
    # a command's own exit code is kept, and our errors come through
    return CliRunner().invoke(monitor, given, input=say, catch_exceptions=False)


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Double]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(grafana_http, "PAUSES", ())
    with grafana_double() as (made, url):
        monkeypatch.setenv(f"{PREFIX}GRAFANA_URL", url)
        monkeypatch.setenv(f"{PREFIX}GRAFANA_TOKEN", TOKEN)
        yield made


def test_diff_exits_with_1_while_something_differs_and_with_0_after_apply(double: Double) -> None:
    before = call("diff", *ALL)
    assert (before.exit_code, double.written) == (1, [])
    assert "created  dashboard forcegauge-run\n" in before.output
    made = call("apply", *ALL)
    assert made.exit_code == 0
    assert made.output.replace(" created.", "") in before.output.replace(" to be created.", "")
    after = call("diff", *ALL)
    assert after.exit_code == 0
    assert {line.split()[0] for line in after.output.splitlines()[:-1]} == {"same"}


def test_apply_keeps_what_was_edited_says_so_and_exits_with_1(double: Double) -> None:
    call("apply")
    double.edit("forcegauge-run", by="ada", title="Mine")
    kept = call("apply")
    assert kept.exit_code == 1
    assert (
        "kept     dashboard forcegauge-run: ada changed it in Grafana; --overwrite replaces it\n"
        '    -title: "Mine"\n'
        '    +title: "forcegauge / Run"\n'
    ) in kept.output
    assert kept.output.splitlines()[-1] == "1 kept, 5 same."
    assert call("apply", "--overwrite").exit_code == 0
    assert call("diff").exit_code == 0


def test_remove_asks_and_does_nothing_without_a_yes(double: Double) -> None:
    call("apply", *ALL)
    double.asked.clear()
    refused = call("remove", say="n\n")
    assert (refused.exit_code, double.written) == (1, [])
    assert "of them from http://127.0.0.1" in refused.output
    assert call("remove", "--yes").exit_code == 0
    assert (double.folders, double.rules, double.contacts) == ({}, {}, {})


def test_remove_where_nothing_is_says_so_and_does_not_ask(double: Double) -> None:
    assert call("remove").output == "Nothing of ours is there.\n"


def test_the_token_comes_from_a_file_too(
    double: Double, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    monkeypatch.setenv(f"{PREFIX}GRAFANA_TOKEN", "wrong")
    with pytest.raises(InputError, match="HTTP 401"):
        call("apply")
    assert call("apply", "--token-file", str(file)).exit_code == 0
    monkeypatch.setenv(f"{PREFIX}GRAFANA_TOKEN_FILE", str(file))
    assert call("diff").exit_code == 0


def test_the_links_of_the_alerts_lead_to_this_grafana_and_the_given_runbooks(
    double: Double,
) -> None:
    call("apply", *ALL, "--runbooks", "https://monitor.example/runbooks")
    told = double.rules["forcegauge-squeezing"]["annotations"]
    assert told["runbook_url"] == "https://monitor.example/runbooks/ForceGaugeSqueezing"
    assert told["dashboard_url"].startswith("http://127.0.0.1")
    assert "/grafana/d/forcegauge-run?" in told["dashboard_url"]


@pytest.mark.parametrize("command", ["apply", "diff", "remove"])
@pytest.mark.parametrize(("fault", "error"), [(401, InputError), (503, RunError), (409, RunError)])
def test_what_goes_wrong_is_one_line(
    double: Double, command: str, fault: int, error: type[Exception]
) -> None:
    double.faults = ["pass", fault]
    with pytest.raises(error) as caught:
        call(command)
    assert f"HTTP {fault}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("option", ["--prometheus", "--webhook", "--runbooks", "--url"])
def test_what_is_no_url_is_refused_before_anything_is_written(double: Double, option: str) -> None:
    with pytest.raises(InputError, match="no URL of a server"):
        call("apply", option, "prometheus:9090")
    assert double.written == []


def test_no_secret_is_printed_or_logged(
    double: Double, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(0)
    said = [call(command, *ALL).output for command in ("diff", "apply", "apply")]
    said.append(call("apply", *ALL[:-1], "https://h/another-path").output)
    for token, faults in ((READER, []), ("wrong-token", []), (TOKEN, [500]), (TOKEN, ["drop"])):
        monkeypatch.setenv(f"{PREFIX}GRAFANA_TOKEN", token)
        double.faults = list(faults)
        with pytest.raises((InputError, RunError)) as caught:
            call("apply", "--overwrite", "--prometheus", "http://new:9090")
        said.append(f"{caught.value!r}")
    text = "".join(said) + caplog.text
    for secret in (TOKEN, READER, "wrong-token", "the-path", "another-path"):
        assert secret not in text


@pytest.mark.slow
def test_a_process_killed_in_the_middle_leaves_what_the_next_one_completes(double: Double) -> None:
    for number in (2, 9, 18):
        double.asked.clear()
        double.faults = [*["pass"] * number, "hang"]
        with subprocess.Popen(forcegauge("monitor", "grafana", "apply", *ALL)) as process:
            wait_for(lambda: "hang" not in double.faults)
            process.kill()
        assert call("diff", *ALL).exit_code == 1
    assert call("apply", *ALL).exit_code == 0
    assert call("diff", *ALL).exit_code == 0
