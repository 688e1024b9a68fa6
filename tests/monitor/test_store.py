from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from forcegauge_monitor.connection import connect
from forcegauge_monitor.records import Event, Run, Watch
from forcegauge_monitor.scripts import KEPT_EVENTS, PREFIX
from forcegauge_monitor.store import Store, TakenError, UnknownRunError
from tests.monitor.storing import RUN, Clock, running, snapshot, state

BEAT = {"step": 7, "verdict": "squeezing", "since_step": 3, "evidence": "it falls"}


def keys(url: str) -> set[str]:
    client = connect(url)
    try:
        return {str(key).removeprefix(PREFIX) for key in client.keys("*")}
    finally:
        client.close()


def test_a_run_is_created_once(store: Store) -> None:
    assert [store.register(RUN), store.register(RUN)] == ["created", "same"]


def test_a_name_belongs_to_the_record_that_lives(store: Store) -> None:
    store.register(RUN)
    with pytest.raises(TakenError):
        store.register(replace(RUN, record_id="second"))
    with pytest.raises(TakenError):
        store.heartbeat("a", "second", BEAT)


def test_a_stale_name_can_be_taken_and_begins_anew(timed: Store, clock: Clock) -> None:
    timed.register(RUN)
    timed.heartbeat("a", "first", BEAT, [Event("e", "alarm", 1, 1.0)])
    timed.ask(snapshot("old"))
    clock.now += 61
    assert timed.register(replace(RUN, record_id="second")) == "created"
    found = timed.run("a")
    assert found is not None
    assert (found.record_id, found.step, found.verdict) == ("second", 0, "warming")
    assert timed.events("a") == []
    assert timed.snapshots("a") == []


def test_an_unknown_run_cannot_tell_anything(store: Store) -> None:
    with pytest.raises(UnknownRunError):
        store.heartbeat("a", "first", BEAT)
    with pytest.raises(UnknownRunError):
        store.end("a", "first", "finished")
    assert store.run("a") is None


def test_a_run_shows_its_last_heartbeat(timed: Store, clock: Clock) -> None:
    timed.register(RUN)
    clock.now += 15
    timed.heartbeat("a", "first", BEAT)
    found = timed.run("a")
    assert found == replace(
        RUN, created=1000.0, seen=1015.0, step=7, verdict="squeezing", since_step=3,
        evidence="it falls",
    )  # fmt: skip


def test_an_event_told_twice_counts_once(store: Store) -> None:
    store.register(RUN)
    events = [Event("1", "alarm", 1, 1.0, "on"), Event("2", "phase", 2, 2.0)]
    assert store.heartbeat("a", "first", BEAT, events[:1]) == ["1"]
    assert store.heartbeat("a", "first", BEAT, events) == ["1", "2"]
    assert store.events("a") == events


def test_only_the_last_events_are_kept(store: Store) -> None:
    store.register(RUN)
    for first in range(0, KEPT_EVENTS + 100, 100):
        told = [Event(str(first + i), "alarm", first + i, 1.0) for i in range(100)]
        store.heartbeat("a", "first", BEAT, told)
    kept = [event.step for event in store.events("a")]
    assert kept == list(range(100, KEPT_EVENTS + 100))


def test_a_live_run_is_a_target_with_its_labels(store: Store) -> None:
    store.register(RUN)
    store.register(Run("silent", "x"))
    assert store.targets() == ['{"targets": ["host:9790"], "labels": {"cluster": "c"}}']


def test_a_stale_run_leaves_the_targets_and_comes_back(timed: Store, clock: Clock) -> None:
    timed.register(RUN)
    clock.now += 61
    assert timed.targets() == []
    assert (timed.run("a") or RUN).state == "stale"
    timed.heartbeat("a", "first", BEAT)
    assert len(timed.targets()) == 1
    assert (timed.run("a") or RUN).state == "active"


def test_reaping_names_those_that_became_stale_once(timed: Store, clock: Clock) -> None:
    timed.register(RUN)
    clock.now += 61
    assert [timed.reap(), timed.reap()] == [["a"], []]


def test_a_run_that_ended_leaves_the_targets_and_keeps_its_verdict(store: Store) -> None:
    store.register(RUN)
    store.heartbeat("a", "first", BEAT)
    store.end("a", "first", "finished")
    found = store.run("a")
    assert found is not None
    assert (found.state, found.reason, found.verdict) == ("ended", "finished", "squeezing")
    assert store.targets() == []
    assert store.overview().verdicts == {"a": "squeezing"}


def test_a_late_heartbeat_does_not_revive_a_run_that_ended(store: Store) -> None:
    store.register(RUN)
    store.end("a", "first", "finished")
    store.heartbeat("a", "first", BEAT)
    assert store.targets() == []


def test_a_run_that_ended_goes_on_when_it_registers_again(store: Store) -> None:
    store.register(RUN)
    store.end("a", "first", "finished")
    assert store.register(RUN) == "same"
    assert (store.run("a") or RUN).state == "active"


def test_runs_are_listed_the_newest_first_by_pages(timed: Store, clock: Clock) -> None:
    for name in "abc":
        timed.register(Run(name, "x"))
        clock.now += 1
    found, total = timed.runs(1, 2)
    assert ([run.run for run in found], total) == (["b", "a"], 3)


def test_a_run_that_is_forgotten_leaves_no_key(
    timed: Store, clock: Clock, shared_redis: str
) -> None:
    timed.register(RUN)
    timed.heartbeat("a", "first", BEAT, [Event("e", "alarm", 1, 1.0)])
    timed.watch(Watch("a", "/f", "/p"))
    for step in (1, 2, 3, 4):
        timed.ask(snapshot(f"k{step}", step))
    timed.begin("a", "k4", "w")
    timed.finish("a", "k4", "/s", {"entk_alignment_ratio": 1.0})
    timed.ask(snapshot("k5", 5))
    timed.begin("a", "k5", "w")
    timed.fail("a", "k5", "no memory")
    timed.ask(snapshot("k6", 6))
    clock.now += 10 * 86400
    assert timed.expire(clock.now, 86400) == ["a"]
    assert keys(shared_redis) == set()


def test_a_run_at_work_is_not_forgotten(timed: Store, clock: Clock) -> None:
    running(timed)
    assert timed.expire(clock.now + 10 * 86400, 86400) == []
    assert state(timed, "one") == "running"


def test_a_worker_that_says_nothing_is_gone(timed: Store, clock: Clock) -> None:
    timed.worker_alive("w", "cpu", busy=True)
    assert [(each.name, each.busy) for each in timed.workers()] == [("w", True)]
    clock.now += 61
    assert timed.workers() == []


def test_a_run_has_one_watched_folder(store: Store) -> None:
    store.watch(Watch("a", "/f", "/p"))
    store.watch(Watch("a", "/g", "/p"))
    assert store.watches() == [Watch("a", "/g", "/p")]
    assert [store.unwatch("a"), store.unwatch("a")] == [True, False]


def test_threads_share_a_store(store: Store) -> None:
    store.register(RUN)

    def beats(thread: int) -> None:
        for number in range(50):
            event = Event(f"{thread}-{number}", "alarm", number, 1.0)
            store.heartbeat("a", "first", BEAT, [event])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(beats, range(4)))
    assert len(store.events("a")) == 200


def test_no_command_scans_the_keys() -> None:
    folder = Path(__file__).parents[2] / "monitor" / "forcegauge_monitor"
    source = "".join((folder / name).read_text() for name in ("store.py", "scripts.py"))
    for command in ("'KEYS'", "'SCAN'", '.keys("', ".scan(", ".scan_iter("):
        assert command not in source
