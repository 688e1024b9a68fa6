"""Events become annotations, each once: a real Redis, and a Grafana that comes and goes."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from celery import Celery

from forcegauge_monitor.annotations import Annotator, annotation
from forcegauge_monitor.chores import add_chores
from forcegauge_monitor.records import Event
from forcegauge_monitor.scripts import KEPT_EVENTS
from forcegauge_monitor.settings import Settings
from forcegauge_monitor.store import Store
from tests.monitor.fleet import fleet
from tests.monitor.grafana_double import TOKEN, Double
from tests.monitor.grafana_served import grafana_double
from tests.monitor.storing import RUN
from tests.monitor.test_store import keys
from tests.servers import wait_for

PLACE = "forcegauge_monitor.annotations"
BEAT = {"step": 7, "verdict": "squeezing", "since_step": 3, "evidence": ""}
EVENTS = [
    Event("a", "phase", 0, 1000.0, "dpo"),
    Event("b", "alarm", 120, 1060.25, "squeezing is on. The index is 0.7 > 0.5 nats."),
    Event("c", "verdict", 120, 1060.25, "squeezing. The index is 0.7 nats."),
    Event("d", "checkpoint", 150, 1090.0, "an alarm is on", "/out/checkpoint-150"),
]


@pytest.fixture
def double() -> Iterator[tuple[Double, str]]:
    with grafana_double() as (made, url):
        yield made, url


@pytest.fixture
def there(double: tuple[Double, str]) -> Double:
    return double[0]


@pytest.fixture
def settings(double: tuple[Double, str]) -> Settings:
    return Settings(grafana_url=double[1], grafana_token=TOKEN)


@pytest.fixture
def annotator(settings: Settings, store: Store) -> Annotator:
    store.register(RUN)
    return Annotator(settings, store)


def many(number: int, start: int = 0) -> list[Event]:
    return [Event(f"{n}", "alarm", n, 1000.0 + n, f"n {n}") for n in range(start, start + number)]


def steps(there: Double) -> list[int]:
    return [int(each["text"].partition("step ")[2].partition(":")[0]) for each in there.annotations]


def test_every_kind_of_event_becomes_an_annotation(
    store: Store, annotator: Annotator, there: Double
) -> None:
    store.heartbeat("a", "first", BEAT, EVENTS)
    annotator.annotate()
    assert [(each["time"], each["tags"][2], each["text"]) for each in there.annotations] == [
        (1000000, "forcegauge-phase", "a, step 0: phase dpo begins"),
        (
            1060250,
            "forcegauge-alarm",
            "a, step 120: squeezing is on. The index is 0.7 &gt; 0.5 nats.",
        ),
        (1060250, "forcegauge-verdict", "a, step 120: squeezing. The index is 0.7 nats."),
        (1090000, "forcegauge-checkpoint", "a, step 150: checkpoint-150, an alarm is on"),
    ]
    assert {tuple(each["tags"][:2]) for each in there.annotations} == {
        ("forcegauge", "forcegauge-run:a")
    }


def test_text_is_not_read_as_html() -> None:
    told = annotation("a", Event("e", "alarm", 1, 1.0, "<img src=x onerror=alert(1)>"))
    assert "<" not in told["text"]


def test_what_was_told_is_not_told_again(store: Store, annotator: Annotator, there: Double) -> None:
    store.heartbeat("a", "first", BEAT, EVENTS)
    annotator.annotate()
    there.asked.clear()
    store.heartbeat("a", "first", BEAT, EVENTS)
    annotator.annotate()
    assert (len(there.annotations), there.asked) == (len(EVENTS), [])


def test_what_comes_later_is_told_then(store: Store, annotator: Annotator, there: Double) -> None:
    for start in (0, 3, 6):
        store.heartbeat("a", "first", BEAT, many(3, start))
        annotator.annotate()
    assert steps(there) == list(range(9))


@pytest.mark.parametrize("fault", [503, 401, 429, "drop", "page"])
def test_while_grafana_is_away_events_wait_and_then_all_are_told_once(
    store: Store,
    annotator: Annotator,
    there: Double,
    fault: int | str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store.heartbeat("a", "first", BEAT, many(3))
    there.faults = ["pass", "pass", fault, fault, fault]
    for _ in range(3):
        annotator.annotate()
    store.heartbeat("a", "first", BEAT, many(3, start=3))
    annotator.annotate()
    annotator.annotate()
    assert steps(there) == list(range(6))
    assert len(store.events("a")) == 6
    assert 1 <= caplog.text.count("no annotations") <= 2
    assert TOKEN not in caplog.text


def test_a_lost_answer_does_not_make_two_of_one(
    store: Store, annotator: Annotator, there: Double
) -> None:
    store.heartbeat("a", "first", BEAT, many(5))
    for number in range(1, 6):
        there.faults = [*["pass"] * number, "lose"]
        annotator.annotate()
    annotator.annotate()
    assert steps(there) == list(range(5))


def test_a_beat_that_dies_between_telling_and_its_count_does_not_tell_twice(
    store: Store, annotator: Annotator, there: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.heartbeat("a", "first", BEAT, many(4))
    with monkeypatch.context() as patch:
        patch.setattr(store, "annotated", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            annotator.annotate()
    assert steps(there) == [0]
    annotator.annotate()
    assert steps(there) == list(range(4))


def test_two_events_of_the_same_time_and_text_are_two(
    store: Store, annotator: Annotator, there: Double
) -> None:
    store.heartbeat("a", "first", BEAT, [replace(EVENTS[1], id=key) for key in "xy"])
    annotator.annotate()
    assert len(there.annotations) == 2


def test_one_that_grafana_never_takes_is_left_out_and_said(
    store: Store, annotator: Annotator, there: Double, caplog: pytest.LogCaptureFixture
) -> None:
    store.heartbeat("a", "first", BEAT, many(3))
    there.faults = ["pass", 400]
    annotator.annotate()
    assert steps(there) == [1, 2]
    assert "an event is left out" in caplog.text


def test_a_round_tells_so_many_and_the_next_ones_the_rest(
    store: Store, annotator: Annotator, there: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{PLACE}.ROUND_EVENTS", 4)
    store.register(replace(RUN, run="b"))
    store.heartbeat("a", "first", BEAT, many(6))
    store.heartbeat("b", "first", BEAT, many(6, start=6))
    for told in (4, 8, 12):
        annotator.annotate()
        assert steps(there) == list(range(told))


def test_a_round_ends_in_time_however_slow_grafana_is(
    store: Store, annotator: Annotator, there: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{PLACE}.ROUND_SECONDS", -1.0)
    store.heartbeat("a", "first", BEAT, many(3))
    annotator.annotate()
    assert there.annotations == []
    monkeypatch.setattr(f"{PLACE}.ROUND_SECONDS", 60.0)
    annotator.annotate()
    assert steps(there) == [0, 1, 2]


def test_of_very_many_the_last_that_the_store_keeps_are_told(
    store: Store, annotator: Annotator, there: Double
) -> None:
    store.heartbeat("a", "first", BEAT, many(2))
    annotator.annotate()
    store.heartbeat("a", "first", BEAT, many(KEPT_EVENTS + 50, start=2))
    for _ in range(5):
        annotator.annotate()
    assert steps(there) == [0, 1, *range(52, KEPT_EVENTS + 52)]
    assert store.unannotated(9) == []


def test_of_two_beats_one_tells(store: Store, annotator: Annotator, there: Double) -> None:
    store.heartbeat("a", "first", BEAT, many(3))
    with store.alone("annotating", 60) as mine:
        assert mine
        annotator.annotate()
        assert there.annotations == []
    annotator.annotate()
    assert steps(there) == [0, 1, 2]


def test_a_run_of_the_same_name_begins_anew(
    store: Store, annotator: Annotator, there: Double
) -> None:
    store.heartbeat("a", "first", BEAT, many(3))
    [waiting] = store.unannotated(9)
    store.forget("a")
    store.register(replace(RUN, record_id="second"))
    store.heartbeat("a", "second", BEAT, many(2, start=3))
    # what a beat still had in its hands does not count for the new one
    store.annotated("a", waiting.record_id, 3)
    annotator.annotate()
    assert steps(there) == [3, 4]


def test_retention_forgets_what_was_told_and_what_was_not(
    store: Store, annotator: Annotator, shared_redis: str
) -> None:
    store.register(replace(RUN, run="b"))
    store.heartbeat("a", "first", BEAT, many(3))
    annotator.annotate()
    store.heartbeat("b", "first", BEAT, many(3))
    assert {"noted", "annotated", "unannotated"} <= keys(shared_redis)
    assert set(store.expire(time.time() + 100, 50)) == {"a", "b"}
    assert keys(shared_redis) == set()


def test_beat_annotates_where_a_grafana_is_named_and_only_there(
    store: Store, settings: Settings
) -> None:
    for chosen, expected in ((settings, True), (Settings(), False)):
        app = Celery(set_as_current=False)
        add_chores(app, chosen, store)
        assert ("annotate" in app.conf.beat_schedule) is expected


def test_the_chores_of_an_application_are_no_other_ones(store: Store, settings: Settings) -> None:
    annotating, other = Celery(set_as_current=False), Celery(set_as_current=False)
    add_chores(annotating, settings, store)
    add_chores(other, Settings(), store)
    assert "forcegauge.annotate" in annotating.tasks
    assert "forcegauge.annotate" not in other.tasks


def test_a_missing_token_is_said_and_stops_nothing(
    store: Store, double: tuple[Double, str], caplog: pytest.LogCaptureFixture
) -> None:
    store.register(RUN)
    store.heartbeat("a", "first", BEAT, many(1))
    caplog.set_level(logging.WARNING)
    lost = Annotator(Settings(grafana_url=double[1]), store)
    for _ in range(3):
        lost.annotate()
    assert caplog.text.count("Grafana's token is missing") == 1


@pytest.mark.slow
def test_a_real_beat_tells_all_once_though_grafana_fails_and_the_beat_is_killed(
    double: tuple[Double, str], tmp_path: Path
) -> None:
    there, url = double
    file = tmp_path / "token"
    file.write_text(TOKEN)
    there.faults = [503, "pass", "lose"]
    with fleet(
        tmp_path / "fleet", workers=0, grafana_url=url, grafana_token_file=str(file)
    ) as running:
        running.insist("POST", "/runs", {"run": "a", "record_id": "first"})
        beat = {**BEAT, "record_id": "first", "events": [asdict(each) for each in many(8)]}
        running.insist("POST", "/runs/a/heartbeat", beat)
        wait_for(lambda: steps(there))
        running.kill("beat")
        running.revive()
        wait_for(lambda: not running.store.unannotated(9))
    assert steps(there) == list(range(8))
