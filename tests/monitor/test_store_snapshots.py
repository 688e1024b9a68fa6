from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from forcegauge_monitor.store import Store
from tests.monitor.storing import running, snapshot, state
from tests.servers import wait_for


def test_the_same_question_is_asked_once(store: Store) -> None:
    first = store.ask(snapshot("one"))
    assert store.ask(snapshot("two")) == first
    assert [each.id for each in store.snapshots("a")] == ["one"]


@pytest.mark.parametrize("end", ["fail", "cancel"])
def test_a_question_that_got_no_answer_can_be_asked_again(store: Store, end: str) -> None:
    running(store)
    assert store.fail("a", "one", "no") if end == "fail" else store.cancel("a", "one")
    assert store.ask(snapshot("two")).id == "two"


def test_a_question_that_was_answered_is_not_asked_again(store: Store) -> None:
    running(store)
    store.finish("a", "one", "/s", {})
    assert store.ask(snapshot("two")).state == "done"


def test_other_probes_are_another_question(store: Store) -> None:
    store.ask(snapshot("one"))
    assert store.ask(snapshot("two", probes="/q")).id == "two"
    assert state(store, "one") == "queued"


def test_a_later_step_supersedes_what_has_not_begun(store: Store) -> None:
    running(store, "begun", 1)
    store.ask(snapshot("waiting", 2))
    store.ask(snapshot("new", 3))
    assert [state(store, key) for key in ("begun", "waiting", "new")] == [
        "running", "superseded", "queued",
    ]  # fmt: skip
    assert "step 3" in (store.snapshot("a", "waiting") or snapshot("")).reason


def test_an_earlier_step_supersedes_nothing(store: Store) -> None:
    store.ask(snapshot("late", 9))
    store.ask(snapshot("early", 3))
    assert [state(store, key) for key in ("late", "early")] == ["queued", "queued"]


def test_runs_do_not_supersede_each_other(store: Store) -> None:
    store.ask(snapshot("one", 1, run="a"))
    store.ask(snapshot("two", 2, run="b"))
    assert state(store, "one") == "queued"


def test_one_snapshot_of_a_run_runs_at_a_time(store: Store) -> None:
    running(store, "one", 5)
    store.ask(snapshot("two", 6))
    assert not store.begin("a", "two", "other")
    store.finish("a", "one", "/s", {})
    assert store.begin("a", "two", "other")


def test_of_many_workers_one_begins(store: Store) -> None:
    store.ask(snapshot("one"))
    with ThreadPoolExecutor(8) as pool:
        begun = list(pool.map(lambda n: store.begin("a", "one", f"w{n}"), range(8)))
    assert begun.count(True) == 1


def test_a_snapshot_whose_worker_died_is_begun_again_but_no_other(timed: Store) -> None:
    running(timed, "one", 5)
    timed.ask(snapshot("two", 6))
    wait_for(lambda: len(timed.unattended()) == 2, 5)
    assert not timed.begin("a", "two", "other")
    assert timed.begin("a", "one", "other")
    assert (timed.snapshot("a", "one") or snapshot("")).attempts == 2


def test_progress_renews_the_lease_and_is_seen(timed: Store) -> None:
    running(timed)
    for done in range(6):
        time.sleep(0.05)
        assert timed.progress("a", "one", done, 9) == "go"
        assert timed.unattended() == []
    found = timed.snapshot("a", "one")
    assert found is not None
    assert (found.pieces_done, found.pieces_total) == (5, 9)
    assert timed.overview().stages == {("a", "one"): ("cpu", "running", 5, 9)}


def test_a_cancelled_snapshot_tells_its_worker(store: Store) -> None:
    running(store)
    assert store.cancel("a", "one")
    assert store.progress("a", "one", 1, 2) == "cancel"
    assert not store.finish("a", "one", "/s", {})
    assert state(store, "one") == "cancelled"


@pytest.mark.parametrize("again", ["finish", "fail", "cancel"])
def test_what_is_done_stays_done(store: Store, again: str) -> None:
    running(store)
    assert store.finish("a", "one", "/s", {"entk_alignment_ratio": 0.5})
    calls: dict[str, Callable[[], bool]] = {
        "finish": lambda: store.finish("a", "one", "/other", {}),
        "fail": lambda: store.fail("a", "one", "late"),
        "cancel": lambda: store.cancel("a", "one"),
    }
    assert not calls[again]()
    found = store.snapshot("a", "one")
    assert found is not None
    assert (found.state, found.path, found.metrics) == ("done", "/s", {"entk_alignment_ratio": 0.5})
    assert store.overview().counts == {("a", "done"): 1}


def test_a_snapshot_that_has_not_begun_cannot_be_finished(store: Store) -> None:
    store.ask(snapshot("one"))
    assert not store.finish("a", "one", "/s", {})
    assert state(store, "one") == "queued"


def test_of_finish_and_cancel_at_once_one_counts(store: Store) -> None:
    for step in range(20):
        running(store, f"k{step}", step)
        with ThreadPoolExecutor(2) as pool:
            finished = pool.submit(store.finish, "a", f"k{step}", "/s", {})
            cancelled = pool.submit(store.cancel, "a", f"k{step}")
        assert finished.result() != cancelled.result()
    assert sum(store.overview().counts.values()) == 20


def test_the_numbers_of_the_latest_step_are_shown(store: Store) -> None:
    for key, step in (("late", 9), ("early", 3)):
        store.ask(snapshot(key, step))
        assert store.begin("a", key, "w")
        store.finish("a", key, "/s", {"entk_alignment_ratio": step / 10, "history": []})
    assert store.overview().results == {"a": (9, {"entk_alignment_ratio": 0.9})}


def test_a_failed_snapshot_is_in_the_dead_letters_until_it_is_queued_again(store: Store) -> None:
    running(store)
    store.fail("a", "one", "the disk is full")
    assert [(each.id, each.reason) for each in store.dead()] == [("one", "the disk is full")]
    found = store.requeue("a", "one")
    assert found is not None
    assert (found.state, found.reason, found.attempts) == ("queued", "", 0)
    assert store.dead() == []
    assert store.begin("a", "one", "w")


def test_what_is_open_or_done_cannot_be_queued_again(store: Store) -> None:
    running(store)
    assert store.requeue("a", "one") is None
    store.finish("a", "one", "/s", {})
    assert store.requeue("a", "one") is None
    assert store.requeue("a", "none") is None
