"""An alarm asks the trainer to save or to stop, once, on every rank, and says where to go back."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import pytest

from forcegauge import alerting
from forcegauge.alerting import Alerts
from forcegauge.detectors import AlarmState, Judgement
from forcegauge.errors import InputError
from forcegauge.failures import Guard
from forcegauge.record import read_record
from tests import tiny
from tests.agent.test_gauge import gauge


def judged(verdict: str, *alarms: str) -> Judgement:
    states = {name: AlarmState(name, 1.0, 0.5, 3, 3, since_step=4) for name in alarms}
    return Judgement(verdict, 4, "", "", states, tuple(states.values()))


def alerts(on_alarm: Any) -> Alerts:
    return Alerts(on_alarm, Guard(lambda kind, step, facts: None))


def asked(made: Alerts, judgement: Judgement, directory: Path) -> tuple[bool, bool]:
    made.tell(judgement, 8, directory)
    made.agree()
    return made.should_save, made.should_stop


@pytest.mark.parametrize("verdict", ["squeezing", "diverging", "collapsed"])
def test_a_sick_verdict_asks_for_what_is_wanted(verdict: str, tmp_path: Path) -> None:
    sick = judged(verdict, "diverging")
    assert asked(alerts("log"), sick, tmp_path) == (False, False)
    assert asked(alerts("checkpoint"), sick, tmp_path) == (True, False)
    assert asked(alerts("stop"), sick, tmp_path) == (False, True)


def test_alarms_that_only_inform_ask_for_nothing(tmp_path: Path) -> None:
    informed = judged("learning", "hallucination_pressure", "displacement")
    assert asked(alerts("stop"), informed, tmp_path) == (False, False)


def test_a_verdict_that_stays_asks_once_and_a_worse_one_again(tmp_path: Path) -> None:
    made = alerts("checkpoint")
    found = []
    for verdict in ("squeezing", "squeezing", "collapsed", "collapsed"):
        made.should_save = False
        found.append(asked(made, judged(verdict), tmp_path)[0])
    assert found == [True, False, True, False]


def test_what_an_earlier_process_was_told_is_not_asked_again(tmp_path: Path) -> None:
    made = alerts("stop")
    made.known(judged("squeezing"))
    assert asked(made, judged("squeezing"), tmp_path) == (False, False)


def test_a_function_decides_by_what_it_returns(tmp_path: Path) -> None:
    made = alerts(lambda judgement: "stop" if "squeezing" in judgement.alarms else None)
    assert asked(made, judged("learning", "displacement"), tmp_path) == (False, False)
    assert asked(made, judged("squeezing", "squeezing"), tmp_path) == (False, True)


def test_a_function_that_returns_something_else_is_an_error_that_is_counted(
    tmp_path: Path,
) -> None:
    guard = Guard(lambda kind, step, facts: None)
    made = Alerts(lambda judgement: "halt", guard)
    assert asked(made, judged("squeezing", "squeezing"), tmp_path) == (False, False)
    assert guard.counts == {"other": 1}


@pytest.mark.parametrize("word", ["halt", None, 3])
def test_a_word_that_is_none_is_refused_with_the_right_ones(word: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"on_alarm: .* Use log, checkpoint, stop or a function"):
        gauge(tmp_path, on_alarm=word)


def test_every_rank_takes_the_first_ones_decision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = alerts("stop")
    monkeypatch.setattr(alerting, "agreed", lambda mine: (False, True))
    made.agree()
    assert made.should_stop


def test_a_loop_is_asked_to_save_at_that_step_only(tmp_path: Path) -> None:
    model = tiny.llama()
    with gauge(tmp_path, every=1, on_alarm="checkpoint") as watched:
        wanted = []
        for step in range(5):
            watched.step(model, step, loss=math.inf)
            wanted.append(watched.should_save)
    assert wanted == [False, False, True, False, False]
    assert read_record(tmp_path)[-1]["reason"] == "finished"


def test_a_loop_is_asked_to_stop_told_where_to_go_back_and_its_end_is_stopped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, step = tiny.llama(), 0
    with gauge(tmp_path, every=1, on_alarm="stop") as watched:
        watched.step(model, 0)
        watched.saved("checkpoint-0", 0)
        while not watched.should_stop:
            step += 1
            watched.step(model, step, loss=math.inf)
            watched.saved(f"checkpoint-{step}", step)
    assert step == 2
    assert "asked to stop: diverging since step 1" in caplog.text
    assert "The last healthy checkpoint is checkpoint-0, of step 0." in caplog.text
    assert read_record(tmp_path)[-1]["reason"] == "stopped"


def test_without_a_record_the_trainer_is_asked_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = alerts("stop")
    assert asked(made, judged("diverging", "diverging"), tmp_path / "none") == (False, True)
    assert "The record cannot say which checkpoint was healthy" in caplog.text


def test_nothing_saved_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), gauge(tmp_path, on_alarm="stop", every=1) as watched:
        for step in range(3):
            watched.step(tiny.llama(), step, loss=math.inf)
    assert "No checkpoint has been saved yet" in caplog.text
