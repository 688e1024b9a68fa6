"""After a crash or a preemption baseline, schedule, detectors and record go on, also elsewhere."""

from __future__ import annotations

import json
import logging
import math
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from forcegauge import ForceGaugeCallback, carried
from forcegauge.integrations.transformers import STATE
from forcegauge.record import Line, probes_by_phase, read_record
from tests import tiny
from tests.agent import test_lightning as lit
from tests.agent.test_gauge import code_after, gauge, kinds, steps, train
from tests.agent.test_trackers import trainer

pytestmark = [
    *lit.pytestmark,
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]


def probes(directory: Path, phase: str = "train") -> list[Line]:
    return probes_by_phase(read_record(directory))[phase]


def test_a_state_goes_on_in_another_directory_as_if_nothing_had_happened(tmp_path: Path) -> None:
    with gauge(tmp_path / "whole") as watched:
        train(tiny.llama(), watched, 1, 12)
    with gauge(tmp_path / "a") as before:
        model = train(tiny.llama(), before, 1, 6)
        state = json.loads(json.dumps(before.state_dict()))
    shutil.rmtree(tmp_path / "a")
    with gauge(tmp_path / "b") as after:
        after.load_state_dict(state)
        train(model, after, 7, 12)
    whole, parts = probes(tmp_path / "whole"), probes(tmp_path / "b")
    assert [line["step"] for line in parts] == [line["step"] for line in whole]
    assert parts[-1]["signals"] == pytest.approx(whole[-1]["signals"], abs=1e-5)
    assert parts[-1]["verdict"] == whole[-1]["verdict"]
    assert "greedy" in parts[-1]["scores"]
    first, second = (line for line in read_record(tmp_path / "b") if line["kind"] == "run")
    assert first["record_id"] == second["record_id"]
    assert second["resumed_from"] == 6


def test_a_state_holds_no_prompt_and_without_texts_no_output_either(tmp_path: Path) -> None:
    for texts in (True, False):
        place = tmp_path / str(texts)
        with gauge(place, texts=texts) as watched:
            watched.step(tiny.llama(), 0)
            files = watched.state_dict()["files"]
        data = b"".join(map(carried._bytes, files.values()))
        assert b"what of" not in data
        assert (carried.GREEDY_NAME in files) == texts


def test_a_directory_with_a_record_goes_first(tmp_path: Path) -> None:
    with gauge(tmp_path / "a") as before:
        model = train(tiny.llama(), before, 1, 2)
        state = before.state_dict()
        train(model, before, 3, 4)
    with gauge(tmp_path / "a") as after:
        after.load_state_dict(state)
        after.step(model, 4)
    assert steps(tmp_path / "a") == [0, 1, 2, 4]


def test_a_state_of_another_run_is_left_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with gauge(tmp_path / "a", run="other") as before:
        before.step(tiny.llama(), 0)
        state = before.state_dict()
    with gauge(tmp_path / "b") as after:
        after.load_state_dict(state)
        after.step(tiny.llama(), 5)
    assert steps(tmp_path / "b") == [5]
    assert "the checkpoint is of run other: tiny has its own baseline" in caplog.text


@pytest.mark.parametrize("state", [{"run": "tiny"}, {"run": "tiny", "files": {"a": "?"}}, {"x": 1}])
def test_a_state_that_is_none_is_counted_and_a_new_baseline_taken(
    state: dict[str, Any], tmp_path: Path
) -> None:
    with gauge(tmp_path) as watched:
        watched.load_state_dict(state)
        watched.step(tiny.llama(), 5)
    assert watched.failures == {"record": 1}
    assert steps(tmp_path) == [5]


def test_a_record_too_large_to_travel_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(carried, "LARGEST", 100)
    with gauge(tmp_path) as watched:
        watched.step(tiny.llama(), 0)
        assert watched.state_dict() == {}
    assert f"keep {tmp_path}" in caplog.text


def test_another_probe_set_gets_a_baseline_of_its_own_elsewhere_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with gauge(tmp_path / "a") as before:
        before.step(tiny.llama(), 0)
        state = before.state_dict()
    after = gauge(tmp_path / "b")
    after._journal.probe_set = tiny.probe_set(3)
    with after, caplog.at_level(logging.WARNING):
        after.load_state_dict(state)
        after.step(tiny.llama(), 5)
    assert "probe set has changed" in caplog.text
    assert list(probes_by_phase(read_record(tmp_path / "b"))) == ["train", "train.2"]


def test_detectors_know_only_what_lies_before_the_step_that_a_resume_goes_on_from(
    tmp_path: Path,
) -> None:
    model = tiny.llama()
    with gauge(tmp_path, every=1) as before:
        for step in range(6):
            before.step(model, step, loss=math.inf if step > 2 else 1.0)
    assert before.judgement is not None
    assert before.judgement.verdict == "diverging"
    with gauge(tmp_path, every=1) as after:
        after.step(model, 3, loss=1.0)
        assert after.judgement is not None
        # one probe with a bad loss is known, those at 4 and 5 are of weights that are gone
        assert after.judgement.alarms["diverging"].streak == 1
        after.step(model, 4, loss=1.0)
    assert after.judgement is not None
    assert after.judgement.healthy
    assert steps(tmp_path) == [0, 1, 2, 3, 4]
    assert "alarm" not in kinds(tmp_path)


KILLED = """
import sys, time
from pathlib import Path
import torch
from forcegauge.scorer import Scorer
from tests import tiny
torch.set_num_threads(1)
from tests.agent.test_gauge import gauge, train
real, looked = Scorer.score, []
def slow(self, model, **known):
    looked.append(1)
    if len(looked) == 4:
        print("probed", flush=True)
        for _ in range(600):
            time.sleep(0.1)
    return real(self, model, **known)
Scorer.score = slow
with gauge(Path(sys.argv[1])) as watched:
    train(tiny.llama(), watched, 1, 8)
"""


def test_a_run_that_is_preempted_in_the_middle_of_a_probe_goes_on(tmp_path: Path) -> None:
    assert code_after(signal.SIGTERM, KILLED, str(tmp_path)) == -signal.SIGTERM
    assert steps(tmp_path) == [0, 1, 2]
    assert [row["reason"] for row in read_record(tmp_path) if row["kind"] == "end"] == ["signal"]
    with gauge(tmp_path) as watched:
        train(tiny.llama(), watched, 3, 8)
    assert steps(tmp_path) == [0, 1, 2, 4, 8]
    assert read_record(tmp_path)[-1]["reason"] == "finished"


def sft(output: Path, *, watched: bool = True, **settings: Any) -> Any:
    made = trainer(output, report_to="none", save_steps=2, **settings)
    if watched:
        made.add_callback(
            ForceGaugeCallback(tiny.probe_set(), run="tiny", every=2, budget=None, port=0)
        )
    return made


def test_transformers_goes_on_in_another_output_directory(tmp_path: Path) -> None:
    sft(tmp_path / "a").train()
    saved = shutil.move(tmp_path / "a" / "checkpoint-4", tmp_path / "checkpoint-4")
    shutil.rmtree(tmp_path / "a")
    sft(tmp_path / "b").train(resume_from_checkpoint=str(saved))
    found = probes(tmp_path / "b" / "forcegauge", "sft")
    assert [line["step"] for line in found] == [0, 1, 2, 4, 5]


@pytest.mark.parametrize("restored", [False, True])
def test_transformers_goes_on_from_a_checkpoint_of_before_the_callback(
    restored: bool, tmp_path: Path
) -> None:
    sft(tmp_path / "a", watched=False).train()
    made = sft(tmp_path / "b", restore_callback_states_from_checkpoint=restored)
    made.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    assert made.state.global_step == 5
    state = json.loads((tmp_path / "b" / "checkpoint-4" / "trainer_state.json").read_text())
    assert state["stateful_callbacks"][STATE]["run"] == "tiny"


def test_transformers_may_restore_callbacks_from_a_checkpoint(tmp_path: Path) -> None:
    sft(tmp_path / "a").train()
    made = sft(tmp_path / "a", restore_callback_states_from_checkpoint=True)
    made.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-4"))
    found = probes(tmp_path / "a" / "forcegauge", "sft")
    assert [line["step"] for line in found] == [0, 1, 2, 4, 5]


def test_lightning_goes_on_in_another_directory(tmp_path: Path) -> None:
    first, second = (ModelCheckpoint(tmp_path / "kept", every_n_train_steps=12) for _ in range(2))
    lit.fit(tmp_path, lit.callback(tmp_path / "a"), first)
    shutil.rmtree(tmp_path / "a")
    saved = Path(first.best_model_path)
    lit.fit(tmp_path, lit.callback(tmp_path / "b"), second, resume=saved, steps=16)
    assert steps(tmp_path / "b") == [0, 1, 2, 4, 8, 12, 16]


def test_accelerate_saves_and_loads_a_gauge_with_its_checkpoints(tmp_path: Path) -> None:
    model, accelerate = tiny.llama(), pytest.importorskip("accelerate")
    with gauge(tmp_path / "a") as before:
        train(model, before, 1, 4)
        first = accelerate.Accelerator(cpu=True)
        first.register_for_checkpointing(before)
        first.save_state(str(tmp_path / "saved"))
    with gauge(tmp_path / "b") as after:
        second = accelerate.Accelerator(cpu=True)
        second.register_for_checkpointing(after)
        second.load_state(str(tmp_path / "saved"))
        train(model, after, 5, 8)
    assert steps(tmp_path / "b") == [0, 1, 2, 4, 8]


def test_a_state_is_small_and_loads_without_pickles(tmp_path: Path) -> None:
    with gauge(tmp_path, every=1) as watched:
        train(tiny.llama(), watched, 1, 6)
        torch.save(watched.state_dict(), tmp_path / "state.pt")
    assert torch.load(tmp_path / "state.pt", weights_only=True)["run"] == "tiny"
    assert (tmp_path / "state.pt").stat().st_size < (tmp_path / "record.jsonl").stat().st_size
