from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from forcegauge_monitor.alerts import ALERTS
from forcegauge_monitor.store import Store
from tests.monitor.asking import RUNS, Api, api, is_problem
from tests.servers import redis_server


@pytest.fixture
def it(store: Store, tmp_path: Path) -> Iterator[Api]:
    with api(store, tmp_path) as made:
        yield made


def event(key: str, kind: str = "alarm", step: int = 5, **more: Any) -> dict[str, Any]:
    return {"id": key, "kind": kind, "step": step, "time": 1.5, **more}


def test_a_run_registers_once(it: Api) -> None:
    assert it.register().status_code == 201
    assert it.register().json() == {"run": "a", "state": "same"}
    assert it.register().status_code == 200


def test_another_live_record_is_a_conflict(it: Api) -> None:
    it.register()
    assert is_problem(it.register(record_id="second"), 409)
    assert is_problem(it.beat(record_id="second"), 409)


def test_a_run_is_shown_with_its_last_verdict_and_events(it: Api) -> None:
    it.register(cluster="c1", model="m")
    told = event("1", text="squeezing is on")
    facts: dict[str, Any] = {
        "step": 9,
        "verdict": "squeezing",
        "since_step": 4,
        "evidence": "it falls",
    }
    assert it.beat(**facts, events=[told]).json() == {"accepted": ["1"]}
    page = it.client.get(f"{RUNS}/a").json()
    assert {name: page["run"][name] for name in facts} == facts
    assert page["run"]["state"] == "active"
    assert page["events"] == [{**told, "path": ""}]


def test_what_a_later_agent_tells_besides_is_left_out(it: Api) -> None:
    assert it.register(colour="red").status_code == 201
    assert it.beat(colour="red", events=[event("1", colour="red")]).status_code == 200


def test_a_run_ends(it: Api) -> None:
    it.register()
    body = {"record_id": "first", "reason": "finished"}
    assert it.client.post(f"{RUNS}/a/end", json=body).status_code == 204
    assert it.client.get(f"{RUNS}/a").json()["run"]["state"] == "ended"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/a"),
        ("GET", "/a/snapshots"),
        ("GET", "/a/snapshots/1"),
        ("DELETE", "/a/snapshots/1"),
        ("POST", "/a/heartbeat"),
        ("POST", "/a/end"),
        ("POST", "/a/snapshots"),
    ],
)
def test_an_unknown_run_is_not_found(it: Api, method: str, path: str) -> None:
    body = {"record_id": "x", "reason": "finished", "checkpoint": "/c/checkpoint-1"}
    if path.endswith("snapshots"):
        body = {"checkpoint": "/c/checkpoint-1"}
    told = body if method == "POST" else None
    assert is_problem(it.client.request(method, f"{RUNS}{path}", json=told), 404)


def test_runs_are_listed_by_pages(it: Api) -> None:
    for name in "abc":
        it.register(name)
    answer = it.client.get(RUNS, params={"offset": 1, "limit": 1}).json()
    assert ([run["run"] for run in answer["runs"]], answer["total"]) == (["b"], 3)


# snapshots


def test_a_snapshot_is_asked_for_and_handed_to_the_workers(it: Api) -> None:
    it.register()
    answer = it.ask(5)
    assert answer.status_code == 202
    (sent,) = it.submitted
    assert sent.id == answer.json()["id"]
    assert (sent.step, sent.loss, sent.beta, sent.state) == (5, "dpo", 0.1, "queued")
    assert sent.train == str(it.folder / "train.jsonl")


def test_the_same_snapshot_is_handed_over_once(it: Api) -> None:
    it.register()
    assert it.ask(5).json()["id"] == it.ask(5).json()["id"]
    assert len(it.submitted) == 1


def test_a_snapshot_shows_its_progress_and_then_its_numbers(it: Api) -> None:
    it.register()
    key = it.ask(5).json()["id"]
    it.store.begin("a", key, "w")
    it.store.progress("a", key, 2, 8)
    running = it.client.get(f"{RUNS}/a/snapshots/{key}").json()
    assert (running["state"], running["pieces_done"], running["pieces_total"]) == ("running", 2, 8)
    it.store.finish("a", key, "/s", {"entk_alignment_ratio": 0.5})
    done = it.client.get(f"{RUNS}/a/snapshots/{key}").json()
    assert (done["state"], done["metrics"]) == ("done", {"entk_alignment_ratio": 0.5})
    (listed,) = it.client.get(f"{RUNS}/a/snapshots").json()["snapshots"]
    assert (listed["id"], listed["metrics"]) == (key, {})


def test_failed_snapshots_are_listed_and_queued_again(it: Api) -> None:
    it.register()
    key = it.ask().json()["id"]
    place = f"{RUNS}/a/snapshots/{key}/requeue"
    assert is_problem(it.client.post(place), 409)
    it.store.fail("a", key, "the disk is full")
    found = it.client.get("/api/v1/snapshots", params={"state": "failed"}).json()["snapshots"]
    assert [(each["run"], each["id"], each["reason"]) for each in found] == [
        ("a", key, "the disk is full")
    ]
    answer = it.client.post(place)
    assert (answer.status_code, answer.json()) == (202, {"id": key, "state": "queued"})
    assert [each.id for each in it.submitted] == [key, key]
    assert it.client.get("/api/v1/snapshots").json() == {"snapshots": []}
    assert is_problem(it.client.post(f"{RUNS}/a/snapshots/none/requeue"), 404)


def test_a_snapshot_is_cancelled(it: Api) -> None:
    it.register()
    key = it.ask(5).json()["id"]
    assert it.client.delete(f"{RUNS}/a/snapshots/{key}").json()["state"] == "cancelled"


@pytest.mark.parametrize("field", ["checkpoint", "probes", "train"])
@pytest.mark.parametrize("path", ["/etc/checkpoint-1", "{folder}/../checkpoint-1", "s3://b/c"])
def test_a_path_beside_the_roots_is_refused(it: Api, field: str, path: str) -> None:
    it.register()
    answer = it.ask(**{"step": 5, field: path.format(folder=it.folder)})
    assert is_problem(answer, 422)
    assert answer.json()["detail"].startswith(f"{field}: lies under no allowed root")
    assert it.submitted == []


def test_a_checkpoint_without_a_step_needs_one(it: Api) -> None:
    it.register()
    last = str(it.folder / "last")
    assert is_problem(it.ask(checkpoint=last), 422)
    assert it.ask(checkpoint=last, step=7).status_code == 202


def test_what_neither_request_nor_run_told_is_named(it: Api) -> None:
    it.register(train=None)
    answer = it.ask()
    assert is_problem(answer, 422)
    assert answer.json()["detail"].startswith("train: is needed")


def test_a_misspelt_field_of_a_snapshot_is_refused(it: Api) -> None:
    it.register()
    assert is_problem(it.ask(betta=0.1), 422)


def test_announced_checkpoints_start_snapshots_as_far_apart_as_set(
    store: Store, tmp_path: Path
) -> None:
    with api(store, tmp_path, snapshot_every=100) as it:
        it.register()
        for step in (50, 100, 149, 150, 320):
            path = str(tmp_path / f"checkpoint-{step}")
            it.beat(events=[event(f"e{step}", "checkpoint", step, path=path)])
        assert [each.step for each in it.submitted] == [50, 150, 320]


def test_a_checkpoint_told_twice_starts_one_snapshot(store: Store, tmp_path: Path) -> None:
    with api(store, tmp_path, snapshot_every=1) as it:
        it.register()
        told = event("e", "checkpoint", 5, path=str(tmp_path / "checkpoint-5"))
        assert it.beat(events=[told]).json() == it.beat(events=[told]).json()
        assert len(it.submitted) == 1


def test_a_checkpoint_that_may_not_be_read_starts_none_and_is_accepted(
    store: Store, tmp_path: Path
) -> None:
    with api(store, tmp_path, snapshot_every=1) as it:
        it.register()
        told = event("e", "checkpoint", 5, path="/etc/checkpoint-5")
        assert it.beat(events=[told]).json() == {"accepted": ["e"]}
        assert it.submitted == []


def test_checkpoints_start_nothing_unless_told(it: Api) -> None:
    it.register()
    it.beat(events=[event("e", "checkpoint", 5, path=str(it.folder / "checkpoint-5"))])
    assert it.submitted == []


# what is wrong


@pytest.mark.parametrize(
    "name", ["../etc", "", "a/b", "-a", "a" * 64, "a b", "a\n", "\N{GREEK SMALL LETTER ALPHA}"]
)
def test_a_name_that_cannot_be_a_runs_is_refused(it: Api, name: str) -> None:
    assert is_problem(it.register(name), 422)


@pytest.mark.parametrize(
    "facts",
    [
        {"address": "evil/path"},
        {"address": "user@host:1"},
        {"cluster": 'c",x="'},
        {"beta": -1},
        {"beta": "NaN"},
        {"record_id": "r" * 65},
        {"probe_hash": "no hash"},
    ],
)
def test_a_fact_out_of_its_bounds_is_refused(it: Api, facts: dict[str, Any]) -> None:
    assert is_problem(it.register(**facts), 422)


@pytest.mark.parametrize(
    "facts", [{"verdict": "fine"}, {"step": -1}, {"step": 10**20}, {"events": [event("e", "x")]}]
)
def test_a_heartbeat_out_of_its_bounds_is_refused(it: Api, facts: dict[str, Any]) -> None:
    it.register()
    assert is_problem(it.beat(**facts), 422)


@pytest.mark.parametrize(
    "body", [b"{", b"[]", b"\xff", b'{"run": "\\ud800"}', b"[" * 100_000, b"NaN", b""]
)
def test_what_is_no_request_is_refused(it: Api, body: bytes) -> None:
    answer = it.client.post(RUNS, content=body, headers={"Content-Type": "application/json"})
    assert is_problem(answer, answer.status_code)
    assert answer.status_code in (400, 422)


def test_a_form_of_another_page_is_refused(it: Api) -> None:
    body = b'{"run": "a", "record_id": "first"}'
    answer = it.client.post(RUNS, content=body, headers={"Content-Type": "text/plain"})
    assert is_problem(answer, 422)


def test_ten_megabytes_are_refused_however_they_are_told(it: Api) -> None:
    assert is_problem(it.client.post(RUNS, content=b"x" * 10_000_000), 413)
    parts = (b"x" * 100_000 for _ in range(100))
    assert is_problem(it.client.post(RUNS, content=parts), 413)


def test_an_unknown_page_and_a_wrong_method_are_problems(it: Api) -> None:
    assert is_problem(it.client.get("/none"), 404)
    assert is_problem(it.client.put(RUNS), 405)


def test_a_wrong_value_is_not_repeated_in_the_answer(it: Api) -> None:
    assert "hunter2" not in it.register(beta="hunter2").text


def test_without_redis_it_says_so_and_stays_healthy(tmp_path: Path) -> None:
    with redis_server(tmp_path, "--requirepass", "hunter2") as url:
        store = Store(url.replace("unix://", "unix://:hunter2@"))
        store.ping()
    with api(store, tmp_path) as it:
        for answer in (it.register(), it.beat(), it.ask(), it.client.get(RUNS)):
            assert is_problem(answer, 503)
            assert answer.headers["retry-after"]
        assert is_problem(it.client.get("/readyz"), 503)
        assert is_problem(it.client.get("/sd/targets"), 503)
        assert it.client.get("/healthz").status_code == 200
        metrics = it.client.get("/metrics")
        assert metrics.status_code == 200
        assert "forcegauge_monitor_store_up{} 0.0" in metrics.text


def test_a_redis_that_can_write_no_more_is_told_as_away(tmp_path: Path) -> None:
    with redis_server(tmp_path, "--maxmemory", "1mb") as url, api(Store(url), tmp_path) as it:
        answers = [it.register(f"r{n}", model="m" * 1000) for n in range(600)]
    assert is_problem(answers[-1], 503)
    assert {answer.status_code for answer in answers} == {201, 503}


def test_an_error_of_our_own_is_a_problem_without_its_text(
    it: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("hunter2")

    monkeypatch.setattr(it.store, "runs", broken)
    answer = it.client.get(RUNS)
    assert is_problem(answer, 500)
    assert "hunter2" not in answer.text


# pages


def test_every_alert_has_a_runbook(it: Api) -> None:
    for row in ALERTS:
        answer = it.client.get(f"/runbooks/{row.name}")
        assert answer.headers["content-type"].startswith("text/markdown")
        assert answer.text.startswith(f"# {row.name}\n")
    assert is_problem(it.client.get("/runbooks/ForceGaugeNone"), 404)


def test_a_browser_gets_a_runbook_as_a_page_without_scripts(it: Api) -> None:
    seen = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    answer = it.client.get("/runbooks/ForceGaugeSqueezing", headers=seen)
    assert answer.headers["content-type"].startswith("text/html")
    assert "<h1>ForceGaugeSqueezing</h1>" in answer.text
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    assert answer.headers["vary"] == "Accept"


def test_links_between_runbooks_lead_there_from_the_monitor_too(it: Api) -> None:
    page, plain = (it.client.get(f"/runbooks/ForceGaugeSqueezing{end}") for end in (".md", ""))
    assert page.text == plain.text


def test_runbooks_are_listed(it: Api) -> None:
    answer = it.client.get("/runbooks", headers={"Accept": "text/html"})
    assert answer.url.path == "/runbooks/"
    for row in ALERTS:
        assert f'<a href="{row.name}">{row.name}</a> ({row.severity})' in answer.text


def test_ready_needs_redis_and_health_does_not(it: Api) -> None:
    assert it.client.get("/readyz").json() == {"status": "ready"}
    assert it.client.get("/healthz").json() == {"status": "ok"}
