"""The monitor's client: what it tells, what it survives, and that the training never waits."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from forcegauge import client as module
from forcegauge.client import Client, monitor_client, reachable_address
from forcegauge.errors import InputError
from forcegauge.gauge import ForceGauge
from tests import tiny
from tests.servers import free_port, wait_for

FACTS = {"run": "tiny", "record_id": "one"}
Answer = tuple[int, dict[str, Any]]


class Monitor(ThreadingHTTPServer):
    """Keeps what it is told; ``answer`` may refuse."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.tokens: list[str] = []
        self.answer: Callable[[str, dict[str, Any]], Answer | None] = lambda path, body: None
        super().__init__(("127.0.0.1", port), Told)
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def bodies(self, end: str) -> list[dict[str, Any]]:
        return [body for path, body in self.told if path.endswith(end)]

    def events(self, kind: str) -> list[dict[str, Any]]:
        found = [event for body in self.bodies("/heartbeat") for event in body["events"]]
        return [event for event in found if event["kind"] == kind]

    def stop(self) -> None:
        self.shutdown()
        self.server_close()


class Told(BaseHTTPRequestHandler):
    server: Monitor

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.tokens.append(self.headers["Authorization"] or "")
        refused = self.server.answer(self.path, body)
        if refused is None:
            self.server.told.append((self.path, body))
        accepted = {"accepted": [event["id"] for event in body.get("events", ())]}
        status, told = refused or (200, accepted)
        data = json.dumps(told).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Location", "/elsewhere")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.02)
    monkeypatch.setattr(module, "LONGEST_RETRY_SECONDS", 0.05)
    # what another file's run of the same name left untold would be told here
    monkeypatch.setattr(module, "_JOINED", {})
    for name in ("MONITOR", "TOKEN", "TOKEN_FILE", "ADDRESS"):
        monkeypatch.delenv(f"FORCEGAUGE_{name}", raising=False)


@pytest.fixture
def monitor() -> Iterator[Monitor]:
    server = Monitor()
    yield server
    server.stop()


def joined(url: str, run: str = "tiny", record_id: str = "one") -> Client:
    found = Client(url)
    found.join(
        FACTS | {"run": run, "record_id": record_id}, lambda: {"step": 3, "verdict": "learning"}
    )
    return found


def checkpoint(told: Client, step: int) -> None:
    told.note("checkpoint", step, {"path": f"/runs/checkpoint-{step}", "healthy": True})


def test_it_registers_then_heartbeats_then_tells_the_end(monitor: Monitor) -> None:
    told = joined(monitor.url)
    wait_for(lambda: len(monitor.bodies("/heartbeat")) >= 3)
    told.close("finished")
    assert monitor.told[0][0] == "/api/v1/runs"
    assert monitor.told[0][1].items() >= FACTS.items()
    assert monitor.bodies("/runs/tiny/heartbeat")[0] == {
        "record_id": "one",
        "step": 3,
        "verdict": "learning",
        "events": [],
    }
    assert monitor.told[-1] == (
        "/api/v1/runs/tiny/end",
        {"record_id": "one", "reason": "finished"},
    )


def test_each_event_is_told_once_with_an_id_of_its_own(monitor: Monitor) -> None:
    told = joined(monitor.url)
    for step in range(250):
        checkpoint(told, step)
    told.close("finished")
    found = monitor.events("checkpoint")
    assert [event["step"] for event in found] == list(range(250))
    assert len({event["id"] for event in found}) == 250
    assert found[7]["path"] == "/runs/checkpoint-7"
    assert max(len(body["events"]) for body in monitor.bodies("/heartbeat")) <= 100


def test_what_is_not_accepted_is_told_again(monitor: Monitor) -> None:
    answers: list[Answer] = [(200, {"accepted": []}), (500, {})]
    monitor.answer = lambda path, body: (
        answers.pop() if answers and path.endswith("/heartbeat") and body["events"] else None
    )
    told = joined(monitor.url)
    checkpoint(told, 1)
    wait_for(lambda: monitor.events("checkpoint"))
    told.close("finished")
    assert not answers
    assert [event["step"] for event in monitor.events("checkpoint")] == [1]


def test_without_the_monitor_nothing_waits_and_it_catches_up_when_it_comes() -> None:
    port = free_port()
    start = time.monotonic()
    told = joined(f"http://127.0.0.1:{port}")
    for step in range(3):
        checkpoint(told, step)
    assert time.monotonic() - start < 0.5
    time.sleep(0.1)
    late = Monitor(port)
    wait_for(lambda: len(late.events("checkpoint")) == 3)
    told.close("finished")
    late.stop()
    assert late.told[0][0] == "/api/v1/runs"
    assert late.bodies("/end")


def test_a_monitor_that_forgot_the_run_is_told_it_again(monitor: Monitor) -> None:
    forgot = [(404, {"title": "no such run"})]
    monitor.answer = lambda path, body: (
        forgot.pop() if forgot and path.endswith("/heartbeat") else None
    )
    told = joined(monitor.url)
    wait_for(lambda: len(monitor.bodies("/heartbeat")) >= 2)
    told.close("finished")
    assert len(monitor.bodies("/api/v1/runs")) == 2


def test_only_so_many_events_are_kept_and_the_newest_of_them() -> None:
    told = Client("http://127.0.0.1:1")
    for step in range(module.KEPT_EVENTS + 5):
        checkpoint(told, step)
    kept = [event["step"] for event in told._events.values()]
    assert kept == list(range(5, module.KEPT_EVENTS + 5))


def test_events_that_the_monitor_cannot_read_do_not_silence_the_run(monitor: Monitor) -> None:
    monitor.answer = lambda path, body: (
        (422, {"detail": "no step"})
        if any(e["step"] == 1 for e in body.get("events", ()))
        else None
    )
    told = joined(monitor.url)
    checkpoint(told, 1)
    wait_for(lambda: not told._events)
    checkpoint(told, 2)
    wait_for(lambda: monitor.events("checkpoint"))
    told.close("finished")
    assert [event["step"] for event in monitor.events("checkpoint")] == [2]


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "the token is missing or wrong"),
        (409, "another run of this name is alive"),
        (302, "HTTP 302"),
    ],
)
def test_a_refusal_is_said_once_and_does_not_end_the_trying(
    monitor: Monitor, caplog: pytest.LogCaptureFixture, status: int, said: str
) -> None:
    asked: list[str] = []

    def refuse(path: str, body: object) -> Answer | None:
        asked.append(path)
        return (status, {"detail": "because"}) if len(asked) <= 4 else None

    monitor.answer = refuse
    told = joined(monitor.url)
    wait_for(lambda: monitor.bodies("/heartbeat"))
    told.close("finished")
    assert caplog.text.count(said) == 1
    assert "because" in caplog.text
    assert set(asked[:4]) == {"/api/v1/runs"}


def test_the_token_goes_along_and_is_read_anew_from_its_file(
    monitor: Monitor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "token"
    file.write_text("first\n")
    monkeypatch.setenv("FORCEGAUGE_TOKEN_FILE", str(file))
    told = joined(monitor.url)
    wait_for(lambda: "Bearer first" in monitor.tokens)
    file.write_text("second\n")
    wait_for(lambda: "Bearer second" in monitor.tokens)
    told.close("finished")


@pytest.mark.parametrize("token", ["se\ncret-one", "sécret-one"])
def test_a_token_that_is_none_is_never_logged(
    monitor: Monitor, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    monkeypatch.setenv("FORCEGAUGE_TOKEN", token)
    told = joined(monitor.url)
    told.close("finished")
    told._leave()
    assert "the token holds characters" in caplog.text
    assert "cret-one" not in caplog.text
    assert not monitor.tokens


def test_the_token_does_not_follow_a_redirect(
    monitor: Monitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCEGAUGE_TOKEN", "secret")
    asked: list[str] = []

    def elsewhere(path: str, body: object) -> Answer:
        asked.append(path)
        return 307, {}

    monitor.answer = elsewhere
    told = joined(monitor.url)
    wait_for(lambda: len(asked) > 2)
    told._leave()
    assert set(asked) == {"/api/v1/runs"}


def test_a_monitor_that_never_answers_holds_up_the_end_for_two_seconds_at_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "CLOSING_SECONDS", 0.2)
    silent, release = Monitor(), threading.Event()

    def wait(path: str, body: object) -> None:
        release.wait(30)

    silent.answer = wait
    told = joined(silent.url)
    start = time.monotonic()
    told.close("finished")
    assert 0.1 < time.monotonic() - start < 1.0
    release.set()
    wait_for(lambda: silent.bodies("/end"))
    silent.stop()


def test_a_newer_client_of_the_run_takes_over_what_was_not_told(monitor: Monitor) -> None:
    older = joined("http://127.0.0.1:1")
    checkpoint(older, 1)
    older._reason, older._closing = "finished", True
    newer = joined(monitor.url)
    wait_for(lambda: monitor.events("checkpoint"))
    assert older._thread is not None
    older._thread.join(5)
    assert not older._thread.is_alive()
    newer.close("stopped")
    assert [body["reason"] for body in monitor.bodies("/end")] == ["stopped"]


def test_what_another_record_of_the_run_left_untold_is_not_told_as_this_ones(
    monitor: Monitor,
) -> None:
    older = joined("http://127.0.0.1:1")
    checkpoint(older, 1)
    newer = joined(monitor.url, record_id="two")
    checkpoint(newer, 2)
    newer.close("finished")
    assert [event["step"] for event in monitor.events("checkpoint")] == [2]
    assert older._thread is not None
    older._thread.join(5)
    assert not older._thread.is_alive()


def test_pythons_random_numbers_are_left_alone() -> None:
    random.seed(3)
    before = random.getstate()
    told = joined("http://127.0.0.1:1")
    time.sleep(0.2)
    told._leave()
    assert random.getstate() == before


def in_child(told: Client) -> None:
    checkpoint(told, 2)
    told.close("error")


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_tells_nothing_and_the_parent_goes_on(monitor: Monitor) -> None:
    told = joined(monitor.url)
    child = multiprocessing.get_context("fork").Process(target=in_child, args=(told,))
    child.start()
    child.join(30)
    assert child.exitcode == 0
    checkpoint(told, 3)
    told.close("finished")
    assert [event["step"] for event in monitor.events("checkpoint")] == [3]
    assert [body["reason"] for body in monitor.bodies("/end")] == ["finished"]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("monitor:8790", "no monitor's URL"),
        ("ftp://monitor", "no monitor's URL"),
        ("http://monitor:port", "no monitor's URL"),
        ("http://user:secret@monitor", "FORCEGAUGE_TOKEN"),
        ("http://monitor/?token=secret", "FORCEGAUGE_TOKEN"),
    ],
)
def test_a_url_that_is_none_or_holds_a_secret_is_refused_without_repeating_it(
    url: str, said: str
) -> None:
    with pytest.raises(InputError, match="monitor") as refused:
        Client(url)
    assert said in str(refused.value)
    assert "secret" not in str(refused.value)


def test_the_monitor_comes_from_the_environment_and_is_nobody_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert monitor_client(None) is None
    monkeypatch.setenv("FORCEGAUGE_MONITOR", "https://monitor.example/forcegauge/")
    found = monitor_client(None)
    assert found is not None
    assert found._base == "https://monitor.example/forcegauge/api/v1"


@pytest.mark.parametrize(
    ("told", "bind", "address"),
    [
        ("", "127.0.0.1", "127.0.0.1:9790"),
        ("10.0.0.7", "0.0.0.0", "10.0.0.7:9790"),
        ("node7", "0.0.0.0", "node7:9790"),
        ("node7:80", "0.0.0.0", "node7:80"),
        ("fd00::7", "::", "[fd00::7]:9790"),
        ("[fd00::7]:80", "::", "[fd00::7]:80"),
    ],
)
def test_addresses(monkeypatch: pytest.MonkeyPatch, told: str, bind: str, address: str) -> None:
    monkeypatch.setenv("FORCEGAUGE_ADDRESS", told)
    assert reachable_address(bind, 9790) == address


def test_an_endpoint_on_all_addresses_is_named_by_its_host() -> None:
    assert reachable_address("0.0.0.0", 9790) == f"{os.uname().nodename}:9790"


def watched(directory: Path, url: str, **options: object) -> ForceGauge:
    settings: dict[str, Any] = {
        "run": "tiny",
        "directory": directory,
        "every": 1,
        "budget": None,
        "port": 0,
        "monitor": url,
        **options,
    }
    return ForceGauge(tiny.probe_set(2), tiny.tokenizer(), **settings)


def test_a_gauge_tells_its_phase_verdicts_alarms_and_checkpoints(
    monitor: Monitor, tmp_path: Path
) -> None:
    train = tmp_path / "train.jsonl"
    with watched(tmp_path, monitor.url, loss="dpo", beta=0.2, train=train) as gauge:
        for step in range(3):
            gauge.step(tiny.llama(), step, loss=float("inf"))
        gauge.saved(tmp_path / "checkpoint-2", 2)
    facts = monitor.told[0][1]
    assert facts["run"] == "tiny"
    assert facts["address"] == f"127.0.0.1:{gauge.port}"
    assert (facts["loss"], facts["beta"]) == ("dpo", 0.2)
    assert (facts["probes"], facts["train"]) == (str(tmp_path / "probes.jsonl"), str(train))
    assert facts["probe_hash"] == tiny.probe_set(2).hash
    beats = monitor.bodies("/heartbeat")
    assert (beats[-1]["step"], beats[-1]["verdict"]) == (2, "diverging")
    assert "losses that are not finite" in beats[-1]["evidence"]
    assert [event["text"] for event in monitor.events("phase")] == ["train"]
    assert [event["text"].split(".")[0] for event in monitor.events("verdict")] == [
        "warming",
        "diverging",
    ]
    assert monitor.events("alarm")[0]["text"].startswith("diverging is on. Since step")
    (saved,) = monitor.events("checkpoint")
    assert (saved["path"], saved["text"]) == (str(tmp_path / "checkpoint-2"), "an alarm is on")
    assert monitor.bodies("/end")[0]["reason"] == "finished"


@pytest.mark.parametrize(
    ("loss", "told"),
    [("dpo:ipo", "ipo"), ("dpo:sigmoid+sft", "sigmoid"), ("sft", "sft"), ("my loss", None)],
)
def test_the_loss_is_told_as_snapshots_name_it(
    monitor: Monitor, tmp_path: Path, loss: str, told: str | None
) -> None:
    with watched(tmp_path, monitor.url, loss=loss) as gauge:
        gauge.step(tiny.llama(), 0)
    assert monitor.told[0][1]["loss"] == told


def test_training_is_the_same_to_the_bit_with_a_monitor_that_is_not_there(tmp_path: Path) -> None:
    def trained(url: str, directory: Path) -> torch.Tensor:
        model = tiny.llama(dropout=0.2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        tokens = torch.tensor([tiny.tokenizer()("what of tea is hot?")["input_ids"]])
        with watched(directory, url) as gauge:
            for step in range(5):
                model(input_ids=tokens, labels=tokens).loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                gauge.step(model, step)
        return torch.cat([weight.flatten() for weight in model.parameters()])

    away = trained("http://127.0.0.1:1", tmp_path / "away")
    assert away.equal(trained("", tmp_path / "none"))


LEFT_ALONE = """
import sys, time
from pathlib import Path
from tests import tiny
from tests.agent.test_client import watched
watched(Path(sys.argv[1]), sys.argv[2]).step(tiny.llama(), 0)
print("probed", flush=True)
{after}
"""


@pytest.mark.parametrize(
    ("after", "reason"), [("time.sleep(60)", "signal"), ("sys.exit()", "stopped")]
)
def test_the_end_of_a_process_is_told(
    monitor: Monitor, tmp_path: Path, after: str, reason: str
) -> None:
    program = LEFT_ALONE.format(after=after)
    command = [sys.executable, "-c", program, str(tmp_path), monitor.url]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "probed\n"
        if reason == "signal":
            process.terminate()
        process.communicate(timeout=60)
    finally:
        process.kill()
    assert [body["reason"] for body in monitor.bodies("/end")] == [reason]
