"""From a probe to whoever is told: agent, monitor, Prometheus, rules, Alertmanager, webhook."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from forcegauge.client import monitor_client
from forcegauge.exporter import Endpoint, RunState, build_snapshot
from forcegauge.phase import Phase, Probe
from forcegauge.record import Line, open_record, read_record
from tests.e2e.alerting import (
    OF_ALARMS,
    Message,
    Watch,
    alertmanager,
    first,
    settle,
    switched_on,
    told,
    watching,
    webhook,
)
from tests.e2e.conftest import DemoRun
from tests.servers import wait_for
from tests.synthetic_run import DPO_STEPS, scores, write_judgement

pytestmark = pytest.mark.slow

Record = Callable[[str, object], None]
"""pytest's `record_property`."""

EXPECTED = {"squeezing": "ForceGaugeSqueezing", "argmax_mass_spike": "ForceGaugeArgmaxMassSpike"}
HEALTHY_SHARE = 0.25
"""Of the way of the synthetic run that squeezes: nothing alarms so far."""


@dataclass(frozen=True)
class Replay:
    """Two synthetic runs through one chain: their records, and what was heard."""

    squeezed: Sequence[Line]
    healthy: Sequence[Line]
    heard: Sequence[Message]


class Agent:
    """What a gauge is to the outside, for a run without a model."""

    def __init__(self, folder: Path, run: str, share: float, monitor: str) -> None:
        self._record = open_record(folder, run)
        self._endpoint = Endpoint("127.0.0.1", 0)
        self._state = RunState(run, "dpo", "SmolLM2-135M-Instruct", "ab" * 32, "0.1.0")
        self._share = share
        self._endpoint.publish(build_snapshot(self._state))
        client = monitor_client(monitor)
        assert client is not None
        self._client = client
        address = f"127.0.0.1:{self._endpoint.port}"
        facts = {"run": run, "record_id": self._record.record_id, "address": address}
        client.join(facts, self._told)

    def _told(self) -> dict[str, object]:
        return {"step": self._state.probe_step or 0, "verdict": self._state.verdict}

    def train(self) -> Iterator[set[str]]:
        """Probe by probe, the alerts that each of them should raise."""
        phase = Phase(0, scores("dpo", 0.0), {}, pushes_down=True)
        self._show(phase.first({}), baseline=True)
        for step in DPO_STEPS[1:]:
            found = phase.probe(step, scores("dpo", self._share * step / DPO_STEPS[-1]), {})
            self._show(found)
            yield {EXPECTED[row.name] for row in found.judgement.changed if row.on}

    def _show(self, found: Probe, *, baseline: bool = False) -> None:
        write_judgement(self._record, "dpo", found.step, found.judgement, self._state.verdict)
        self._state = replace(
            self._state,
            verdict=found.judgement.verdict,
            since_step=found.judgement.since_step,
            train_step=found.step,
            probe_step=found.step,
            probe_timestamp=time.time(),
            scores=found.summary,
            baseline=found.summary if baseline else self._state.baseline,
            signals=found.signals,
            alarms=found.judgement.alarms,
        )
        self._endpoint.publish(build_snapshot(self._state))

    def end(self) -> None:
        self._endpoint.publish(build_snapshot(replace(self._state, active=False)))
        self._client.close("finished")
        self._record.close()


def scraped(watch: Watch) -> bool:
    return len(watch.prometheus.query("forcegauge_run_active == 1")) == 2


def hear(watch: Watch, run: str, alerts: set[str]) -> None:
    wait_for(lambda: alerts <= told(watch.heard, run))


@pytest.fixture(scope="module")
def replay(tmp_path_factory: pytest.TempPathFactory) -> Replay:
    folder = tmp_path_factory.mktemp("replay")
    with pytest.MonkeyPatch.context() as patch, watching(folder / "watch") as watch:
        patch.setenv("FORCEGAUGE_CLUSTER", "c1")
        patch.setenv("FORCEGAUGE_NAMESPACE", "ml")
        shares = {"squeezed": 1.0, "healthy": HEALTHY_SHARE}
        agents = [Agent(folder / run, run, shares[run], watch.monitor) for run in shares]
        wait_for(lambda: scraped(watch))
        for run, agent in zip(shares, agents, strict=True):
            for raised in agent.train():
                # the next probe would change the numbers of this one's message
                hear(watch, run, raised)
        for agent in agents:
            agent.end()
        wait_for(lambda: not watch.prometheus.query("up{job='forcegauge'}"))
        settle()
        squeezed, healthy = (read_record(folder / run) for run in shares)
        return Replay(squeezed, healthy, tuple(watch.heard))


def arrived(
    lines: Sequence[Line], heard: Sequence[Message], run: str, alarm: str, record: Record
) -> Message:
    """The message of an alarm; its time since the probe's line in the record is reported."""
    line, message = switched_on(lines, alarm), first(heard, run, EXPECTED[alarm])
    seconds = message.time - line["time"]
    record(f"{run}_{alarm}_probe_to_webhook_seconds", round(seconds, 2))
    print(f"\n{run}: {alarm} on at step {line['step']}, heard {seconds:.2f} s later")  # noqa: T201
    return message


def tells_of(message: Message, line: Line) -> None:
    """Run, step and numbers are in the message, and the links lead to this run."""
    text = message.annotations["description"]
    assert text.startswith(f"{line['run']} at step {line['step']}: ")
    found = re.search(r": ([\d.]+)( nats|%), above ([\d.]+)", text)
    assert found is not None, text
    unit = 1.0 if found[2] == " nats" else 100.0
    numbers = [float(number) / unit for number in (found[1], found[3])]
    assert numbers == pytest.approx([line["value"], line["threshold"]], abs=0.006)
    assert f"for {line['streak']} probes running" in text
    assert message.annotations["dashboard_url"].endswith(f"var-run={line['run']}")
    assert message.annotations["runbook_url"].endswith(message.labels["alertname"])


both = pytest.mark.parametrize("alarm", EXPECTED)


@both
def test_an_alarm_reaches_the_webhook_with_run_step_and_numbers(
    replay: Replay, alarm: str, record_property: Record
) -> None:
    message = arrived(replay.squeezed, replay.heard, "squeezed", alarm, record_property)
    tells_of(message, switched_on(replay.squeezed, alarm))
    assert message.labels["cluster"] == "c1"
    assert message.labels["namespace"] == "ml"


def test_a_healthy_run_is_silent_and_the_end_of_a_run_resolves_nothing(replay: Replay) -> None:
    assert not any(line["kind"] == "alarm" for line in replay.healthy)
    assert told(replay.heard, "healthy") == set()
    assert [row for row in replay.heard if row.status == "resolved"] == []


def fire(address: str, alert: str, run: str) -> None:
    labels = {"alertname": alert, "run": run, "severity": "critical"}
    body = json.dumps([{"labels": labels}]).encode()
    head = {"Content-Type": "application/json"}
    urlopen(Request(f"http://{address}/api/v2/alerts", body, head)).close()


def test_a_collapse_silences_the_squeeze_of_its_own_run_alone(tmp_path: Path) -> None:
    heard: list[Message] = []
    with webhook(heard) as hook, alertmanager(tmp_path, hook) as address:
        fire(address, "ForceGaugeCollapsed", "a")
        wait_for(lambda: told(heard, "a"))
        fire(address, "ForceGaugeSqueezing", "a")
        fire(address, "ForceGaugeSqueezing", "b")
        wait_for(lambda: told(heard, "b"))
        settle()
    assert told(heard, "a") == {"ForceGaugeCollapsed"}


@both
def test_the_demo_is_told_of_with_run_step_and_numbers(
    squeezed: DemoRun, alarm: str, record_property: Record
) -> None:
    message = arrived(squeezed.lines, squeezed.heard, "demo", alarm, record_property)
    tells_of(message, switched_on(squeezed.lines, alarm))


def test_the_healthy_demo_alarms_nobody(healthy: DemoRun) -> None:
    # its SFT pulls other prompts' answers up, +1.19 nats: true, and told for information only
    severities = {row.labels["severity"] for row in healthy.heard if row.labels.get("run")}
    assert told(healthy.heard, "demo-healthy") <= {"ForceGaugeHallucinationPressure"}
    assert severities <= {"info"}


def test_of_forcegauge_itself_nothing_is_told(squeezed: DemoRun, healthy: DemoRun) -> None:
    heard = {row.labels["alertname"] for row in (*squeezed.heard, *healthy.heard)}
    assert heard <= OF_ALARMS
