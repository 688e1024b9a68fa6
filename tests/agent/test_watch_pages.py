"""Watching by an agent's metrics and through a monitor, and what is said when neither answers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from forcegauge.client import call
from forcegauge.errors import InputError, RunError
from forcegauge.exporter import Endpoint, RunState, build_snapshot
from forcegauge.probes import UNTRAINED_NATURAL
from forcegauge.record import Line
from forcegauge.watching import scraping
from forcegauge.watching.following import Follower
from forcegauge.watching.monitored import Monitored, is_monitor
from forcegauge.watching.scraping import Agent, by_run
from forcegauge.watching.view import Series, View, judgements, record_view
from forcegauge_monitor.api import create_app
from forcegauge_monitor.auth import new_token
from forcegauge_monitor.settings import Settings
from forcegauge_monitor.store import open_store
from tests.servers import free_port, redis_server, served
from tests.synthetic_run import two_phase_run


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[View, list[RunState]]:
    """The last view of a record, and what its agent served at each probe of that phase."""
    *_, course = Follower(two_phase_run(tmp_path_factory.mktemp("run"))).read()
    probes = course.probes.lines()
    judged = judgements(probes, course.run)
    states = [_state(probe, probes[0], each) for probe, each in zip(probes, judged, strict=True)]
    return record_view(course), states


def _state(probe: Line, baseline: Line, judged: Any) -> RunState:
    return RunState(
        "demo",
        "dpo",
        model="SmolLM2-135M-Instruct",
        verdict=judged.verdict,
        since_step=judged.since_step,
        train_step=probe["step"] + 1,
        probe_step=probe["step"],
        probe_timestamp=probe["time"],
        probe_duration=0.8,
        overhead_ratio=0.01,
        scores=probe["scores"],
        baseline=baseline["scores"],
        signals=probe["signals"],
        forces={"force_up_norm": 2.0, "force_down_norm": 3.0},
        alarms=judged.alarms,
    )


@pytest.fixture
def endpoint() -> Endpoint:
    return Endpoint("127.0.0.1", 0)


def at(endpoint: Endpoint) -> str:
    return f"http://127.0.0.1:{endpoint.port}"


def publish(endpoint: Endpoint, state: RunState) -> None:
    endpoint.publish(build_snapshot(state))


def looked(source: Agent | Monitored) -> View:
    *_, view = source.views()
    return view


def close(one: Series, other: Series) -> None:
    assert list(one.steps) == list(other.steps)
    assert list(one.values) == pytest.approx(list(other.values), abs=1e-6)


def test_an_agents_metrics_make_the_view_of_its_record(
    recorded: tuple[View, list[RunState]], endpoint: Endpoint
) -> None:
    view, states = recorded
    publish(endpoint, states[0])
    agent = Agent(at(endpoint), None)
    for state in states[1:]:
        publish(endpoint, state)
        seen = looked(agent)
    assert (seen.name, seen.phase, seen.model) == ("demo", "dpo", "SmolLM2-135M-Instruct")
    assert (seen.verdict, seen.advice, seen.step) == ("squeezing", view.advice, 44)
    assert seen.evidence.startswith("squeezing: squeeze beyond sharpening +2.30 nats, limit +0.50")
    assert list(seen.changes) == list(view.changes)
    for name, series in seen.changes.items():
        close(series, view.changes[name])
    for name in ("squeeze_nats", "untrained_change_nats", "argmax_gain_nats"):
        close(seen.signals[name], view.signals[name])
    assert seen.signals["force_down_norm"].last == 3.0
    assert [(a.name, a.streak, a.on) for a in seen.alarms] == [
        (a.name, a.streak, a.on) for a in view.alarms
    ]
    assert (seen.train_step, seen.next_step, seen.overhead) == (45, 48, 0.01)


def test_since_when_is_known_also_where_the_watching_began_later(
    recorded: tuple[View, list[RunState]], endpoint: Endpoint
) -> None:
    view, states = recorded
    publish(endpoint, states[-1])
    seen = looked(Agent(at(endpoint), None))
    assert seen.since == view.since
    assert f"squeezing since {view.since}" in seen.lines[-1][1]


def test_an_agent_that_goes_is_shown_as_it_was_and_found_again(
    recorded: tuple[View, list[RunState]],
    endpoint: Endpoint,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, states = recorded
    publish(endpoint, states[3])
    agent = Agent(at(endpoint), None)
    with monkeypatch.context() as gone:

        def nobody(url: str) -> str:
            raise RunError("nothing answers")

        gone.setattr(scraping, "fetch", nobody)
        seen = looked(agent)
    assert seen.step == 23
    assert "does not answer since" in seen.notes[0]
    publish(endpoint, states[4])
    assert (looked(agent).step, looked(agent).notes) == (24, [])


def test_an_agent_that_begins_anew_from_an_earlier_step_replaces_what_was_later(
    recorded: tuple[View, list[RunState]], endpoint: Endpoint
) -> None:
    _, states = recorded
    publish(endpoint, states[0])
    agent = Agent(at(endpoint), None)
    for state in (*states[1:9], states[5]):
        publish(endpoint, state)
        seen = looked(agent)
    assert [step for step, _ in seen.lines] == [20, 21, 22, 23, 24, 26]


def test_the_history_of_scrapes_is_bounded(
    recorded: tuple[View, list[RunState]], endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scraping, "KEPT", 16)
    state = recorded[1][-1]
    publish(endpoint, state)
    agent = Agent(at(endpoint), None)
    for step in range(100):
        publish(endpoint, replace(state, probe_step=100 + step))
        seen = looked(agent)
    assert len(seen.lines) <= 17
    assert [step for step, _ in seen.lines[-2:]] == [198, 199]
    assert seen.lines[0][0] == 44


def test_a_run_that_has_ended_says_so(
    recorded: tuple[View, list[RunState]], endpoint: Endpoint
) -> None:
    publish(endpoint, replace(recorded[1][-1], active=False))
    assert looked(Agent(at(endpoint), None)).ended is not None


def test_of_several_runs_one_is_to_be_named(
    recorded: tuple[View, list[RunState]], endpoint: Endpoint
) -> None:
    state = recorded[1][-1]
    publish(endpoint, replace(state, run="one"))
    publish(endpoint, replace(state, run="two"))
    with pytest.raises(InputError, match=r"has several runs\. Name one of: one, two"):
        Agent(at(endpoint), None)
    with pytest.raises(InputError, match=r"has no run 'three'\. Name one of: one, two"):
        Agent(at(endpoint), "three")
    assert looked(Agent(f"{at(endpoint)}/metrics", "two")).name == "two"


def test_an_agent_before_its_run_is_told(endpoint: Endpoint) -> None:
    with pytest.raises(InputError, match="serves no metrics of a run"):
        Agent(at(endpoint), None)


def test_nobody_who_answers_is_one_line() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(RunError, match=r"nothing answers at .* refused"):
        is_monitor(url)


def test_a_page_that_is_no_metrics_is_told() -> None:
    with pytest.raises(RunError, match="neither an agent nor a monitor"):
        by_run("<html><body>hello {</body></html>")


@pytest.mark.parametrize("url", ["ftp://host", "http://", "http://user:secret@host", "file:///etc"])
def test_what_is_no_url_of_a_service_is_refused(url: str) -> None:
    with pytest.raises(InputError):
        is_monitor(url)


@contextmanager
def monitor(folder: Path, **settings: Any) -> Iterator[str]:
    with redis_server(folder) as url:
        chosen = Settings(redis_url=url, storage=str(folder), **settings)
        store = open_store(chosen)
        try:
            with served(create_app(chosen, store, lambda _: None)) as api:
                yield api
        finally:
            store.close()


def register(api: str, address: str = "", **beat: Any) -> None:
    call("POST", f"{api}/api/v1/runs", {"run": "demo", "record_id": "r", "address": address})
    facts = {"record_id": "r", "step": 44, "verdict": "squeezing", "since_step": 26}
    body = {**facts, "evidence": "Since step 26: it falls.", "events": [], **beat}
    call("POST", f"{api}/api/v1/runs/demo/heartbeat", body)


def saved(step: int, text: str = "healthy") -> dict[str, Any]:
    facts = {"id": str(step), "kind": "checkpoint", "time": 1.0}
    return {**facts, "step": step, "text": text, "path": f"/out/checkpoint-{step}"}


@pytest.mark.slow
def test_a_monitor_tells_of_a_run_and_where_its_metrics_are(
    tmp_path: Path, recorded: tuple[View, list[RunState]], endpoint: Endpoint
) -> None:
    publish(endpoint, recorded[1][-1])
    with monitor(tmp_path) as api:
        assert is_monitor(api)
        assert not is_monitor(at(endpoint))
        events = [saved(20), saved(30), saved(40, "an alarm is on")]
        register(api, f"127.0.0.1:{endpoint.port}", events=events)
        seen = looked(Monitored(api, "demo"))
        assert (seen.verdict, seen.since) == ("squeezing", 26)
        assert seen.evidence == "Since step 26: it falls."
        assert seen.checkpoint.endswith("/out/checkpoint-20, of step 20.")
        assert seen.changes["rejected"].last == pytest.approx(-6.96, abs=0.01)
        assert seen.notes == []


@pytest.mark.slow
def test_without_its_agent_the_monitors_word_is_shown(tmp_path: Path) -> None:
    with monitor(tmp_path) as api:
        register(api, f"127.0.0.1:{free_port()}")
        source = Monitored(api, "demo")
        seen = looked(source)
        assert (seen.verdict, seen.since, seen.step) == ("squeezing", 26, 44)
        assert "out of reach" in seen.notes[0]
        assert seen.advice.startswith("Stop before the chosen answers fall too.")
        call("POST", f"{api}/api/v1/runs/demo/end", {"record_id": "r", "reason": "stopped"})
        assert looked(source).ended == "stopped"
    assert "no monitor answers" in looked(source).notes[0]


@pytest.mark.slow
def test_a_run_that_the_monitor_does_not_know_names_those_it_does(tmp_path: Path) -> None:
    with monitor(tmp_path) as api:
        with pytest.raises(InputError, match="It knows no run yet"):
            Monitored(api, None)
        register(api)
        with pytest.raises(InputError, match=r"knows no run 'other'\. Name one of: demo"):
            Monitored(api, "other")
        with pytest.raises(InputError, match=r"many runs\. Name one of: demo"):
            Monitored(api, None)


@pytest.mark.slow
def test_the_token_is_the_clients_and_a_wrong_one_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, line = new_token("write")
    with monitor(tmp_path, tokens=[line]) as api:
        with pytest.raises(InputError, match=r"token is missing or wrong \(FORCEGAUGE_TOKEN"):
            Monitored(api, "demo")
        (tmp_path / "token").write_text(f"{token}\n")
        monkeypatch.setenv("FORCEGAUGE_TOKEN_FILE", str(tmp_path / "token"))
        register(api)
        assert looked(Monitored(api, "demo")).verdict == "squeezing"


def test_untrained_types_are_those_of_the_squeeze_index(
    recorded: tuple[View, list[RunState]],
) -> None:
    view, _ = recorded
    values = [view.changes[name].last for name in UNTRAINED_NATURAL]
    mean = sum(value for value in values if value is not None) / len(values)
    assert view.signals["untrained_change_nats"].last == pytest.approx(mean, abs=1e-6)
