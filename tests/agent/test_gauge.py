"""The gauge: when it probes, what it leaves behind, and that it neither raises nor disturbs."""

from __future__ import annotations

import json
import logging
import math
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import torch
from transformers import PreTrainedModel

from forcegauge.errors import InputError
from forcegauge.gauge import ForceGauge
from forcegauge.probes import ProbeSet
from forcegauge.record import probes_by_phase, read_record, read_scores
from forcegauge.scorer import Scorer
from tests import tiny


def gauge(directory: Path, **options: object) -> ForceGauge:
    settings: dict[str, object] = {
        "run": "tiny",
        "directory": directory,
        "every": 4,
        "budget": None,
        "port": 0,
        **options,
    }
    return ForceGauge(tiny.probe_set(), tiny.tokenizer(), **settings)  # type: ignore[arg-type]


def train(
    model: PreTrainedModel, watched: ForceGauge | None, first: int, last: int
) -> PreTrainedModel:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    tokens = torch.tensor([tiny.tokenizer()("what of tea is hot? tea is hot")["input_ids"]])
    for step in range(first, last + 1):
        if watched is not None and step == first:
            watched.step(model, step - 1)
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if watched is not None:
            watched.step(model, step, loss=loss.item())
    return model


def steps(directory: Path, phase: str = "train") -> list[int]:
    return [line["step"] for line in probes_by_phase(read_record(directory))[phase]]


def kinds(directory: Path) -> list[str]:
    return [line["kind"] for line in read_record(directory)]


def test_probes_stand_at_the_baseline_early_and_then_every_n_steps(tmp_path: Path) -> None:
    with gauge(tmp_path) as watched:
        train(tiny.llama(), watched, 1, 13)
    assert steps(tmp_path) == [0, 1, 2, 4, 8, 12]
    assert kinds(tmp_path)[-1] == "end"


def test_finish_probes_the_last_state_once(tmp_path: Path) -> None:
    with gauge(tmp_path) as watched:
        model = train(tiny.llama(), watched, 1, 5)
        watched.finish(model, 5)
        watched.finish(model, 5)
    assert steps(tmp_path) == [0, 1, 2, 4, 5]


def test_recorded_scores_are_those_of_the_model_at_that_step(tmp_path: Path) -> None:
    model = tiny.llama().eval()
    with gauge(tmp_path) as watched:
        watched.step(model, 0)
    fresh = Scorer(tiny.probe_set(), tiny.tokenizer()).score(model)
    line = probes_by_phase(read_record(tmp_path))["train"][0]
    mean = float(fresh.column("logprob_mean", "rejected").mean())
    assert line["scores"]["rejected"]["logprob_mean"]["mean"] == pytest.approx(mean, abs=1e-5)
    kept = read_scores(tmp_path / "scores" / "0.safetensors")
    assert kept.column("logprob_mean", "chosen") == pytest.approx(
        fresh.column("logprob_mean", "chosen"), abs=1e-5
    )


def test_the_baseline_models_own_greedy_output_becomes_a_response_type(tmp_path: Path) -> None:
    with gauge(tmp_path) as watched:
        watched.step(tiny.llama(), 0)
    assert "greedy" in probes_by_phase(read_record(tmp_path))["train"][0]["scores"]
    rows = [json.loads(row) for row in (tmp_path / "greedy.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [probe.id for probe in tiny.probe_set().probes]
    assert ProbeSet.load(tmp_path / "probes.jsonl").hash == tiny.probe_set().hash


def test_without_texts_nothing_that_is_written_holds_a_prompt_or_a_response(tmp_path: Path) -> None:
    with gauge(tmp_path, texts=False) as watched:
        train(tiny.llama(), watched, 1, 4)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.name for path in written} >= {"record.jsonl", "0.safetensors"}
    assert not list(tmp_path.glob("**/tokens/*.safetensors"))
    for path in written:
        assert b"what of" not in path.read_bytes()
        assert b"tea is hot" not in path.read_bytes()


def test_metrics_are_served_and_outlive_the_gauge(tmp_path: Path) -> None:
    with gauge(tmp_path) as watched:
        train(tiny.llama(), watched, 1, 6)
    page = urlopen(f"http://127.0.0.1:{watched.port}/metrics").read().decode()
    assert 'forcegauge_train_step{run="tiny"} 6.0' in page
    assert 'forcegauge_probe_step{run="tiny"} 4.0' in page
    assert 'forcegauge_run_active{run="tiny"} 0.0' in page
    assert 'forcegauge_logprob_change_nats{response_type="chosen",run="tiny"}' in page


def test_a_second_phase_counts_steps_on_and_takes_its_own_baseline(tmp_path: Path) -> None:
    with gauge(tmp_path, phase="sft", loss="sft") as first:
        model = train(tiny.llama(), first, 1, 8)
    with gauge(tmp_path, phase="dpo", loss="dpo") as second:
        train(model, second, 1, 4)
    assert steps(tmp_path, "sft") == [0, 1, 2, 4, 8]
    assert steps(tmp_path, "dpo") == [8, 9, 10, 12]
    started = probes_by_phase(read_record(tmp_path))["dpo"][0]
    assert started["signals"]["chosen_change_nats"] == 0


def test_a_resumed_phase_keeps_its_baseline_and_its_detectors(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    with gauge(whole) as watched:
        train(tiny.llama(), watched, 1, 12)
        expected = watched.judgement
    with gauge(parts) as before:
        model = train(tiny.llama(), before, 1, 6)
    with gauge(parts) as after:
        train(model, after, 7, 12)
        found = after.judgement
    assert steps(parts) == steps(whole) == [0, 1, 2, 4, 8, 12]
    last_whole, last_parts = (
        probes_by_phase(read_record(d))["train"][-1]["signals"] for d in (whole, parts)
    )
    assert last_parts == pytest.approx(last_whole, abs=1e-5)
    assert found is not None
    assert expected is not None
    assert (found.verdict, found.since_step) == (expected.verdict, expected.since_step)


def test_a_resumed_run_serves_its_last_probe_until_the_next(tmp_path: Path) -> None:
    with gauge(tmp_path) as before:
        model = train(tiny.llama(), before, 1, 8)
    with gauge(tmp_path) as after:
        after.step(model, 9)
        page = urlopen(f"http://127.0.0.1:{after.port}/metrics").read().decode()
    assert 'forcegauge_train_step{run="tiny"} 9.0' in page
    assert 'forcegauge_probe_step{run="tiny"} 8.0' in page
    assert 'forcegauge_run_state{run="tiny",state="learning"} 1.0' in page


def test_a_run_that_is_closed_without_a_reason_has_no_end(tmp_path: Path) -> None:
    watched = gauge(tmp_path)
    watched.step(tiny.llama(), 0)
    watched.close(None)
    assert "end" not in kinds(tmp_path)
    page = urlopen(f"http://127.0.0.1:{watched.port}/metrics").read().decode()
    assert 'forcegauge_run_active{run="tiny"} 1.0' in page


def test_a_resume_from_an_older_step_takes_back_the_steps_after_it(tmp_path: Path) -> None:
    with gauge(tmp_path) as before:
        model = train(tiny.llama(), before, 1, 9)
    with gauge(tmp_path, every=3) as after:
        train(model, after, 6, 6)
    assert steps(tmp_path) == [0, 1, 2, 4, 6]


def test_another_probe_set_on_resume_is_said_and_starts_a_phase_of_its_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with gauge(tmp_path) as before:
        model = train(tiny.llama(), before, 1, 4)
    other = ForceGauge(
        tiny.probe_set(3), tiny.tokenizer(), run="tiny", directory=tmp_path, port=0, budget=None
    )
    with other, caplog.at_level(logging.WARNING):
        train(model, other, 5, 6)
    assert "probe set has changed" in caplog.text
    assert list(probes_by_phase(read_record(tmp_path))) == ["train", "train.2"]


def test_an_error_while_scoring_is_counted_logged_once_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no scores today")

    monkeypatch.setattr(Scorer, "score", broken)
    with gauge(tmp_path) as watched:
        train(tiny.llama(), watched, 1, 8)
    assert watched.failures == {"scoring": 5}
    assert caplog.text.count("scoring failed, training goes on: no scores today") == 1
    errors = [line for line in read_record(tmp_path) if line["kind"] == "error"]
    assert len(errors) == 5
    assert errors[0]["reason"] == "scoring"
    page = urlopen(f"http://127.0.0.1:{watched.port}/metrics").read().decode()
    assert 'forcegauge_probe_failures_total{reason="scoring",run="tiny"} 5.0' in page


def test_a_probe_that_failed_is_tried_again_and_the_baseline_taken_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = Scorer.score, []

    def broken_once(self: Scorer, model: PreTrainedModel, **how: Any) -> object:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("just this once")
        return real(self, model, **how)

    monkeypatch.setattr(Scorer, "score", broken_once)
    with gauge(tmp_path) as watched:
        train(tiny.llama(), watched, 1, 4)
    assert steps(tmp_path) == [1, 2, 3]


def test_a_busy_port_is_logged_and_the_record_is_written_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with gauge(tmp_path / "a") as first:
        first.step(tiny.llama(), 0)
    with gauge(tmp_path / "b", port=first.port, bind="127.0.0.2") as second:
        second.step(tiny.llama(), 0)
    assert second.port == first.port
    with gauge(tmp_path / "c", port=first.port, bind="0.0.0.0") as third:
        third.step(tiny.llama(), 0)
    assert third.port is None
    assert third.failures == {"exporter": 1}
    assert "in use by" in caplog.text
    assert steps(tmp_path / "c") == [0]


def test_without_an_endpoint_the_record_is_written_all_the_same(tmp_path: Path) -> None:
    with gauge(tmp_path, bind="none") as watched:
        watched.step(tiny.llama(), 0)
    assert watched.port is None
    assert not watched.failures
    assert steps(tmp_path) == [0]


def test_a_record_that_cannot_be_written_does_not_stop_metrics(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with gauge(tmp_path / "file" / "run") as watched:
        train(tiny.llama(), watched, 1, 4)
    assert watched.failures["record"] > 0
    page = urlopen(f"http://127.0.0.1:{watched.port}/metrics").read().decode()
    assert 'forcegauge_probe_step{run="tiny"} 4.0' in page


def test_a_loss_that_is_not_finite_is_diverging(tmp_path: Path) -> None:
    model = tiny.llama()
    with gauge(tmp_path, every=1) as watched:
        for step in range(3):
            watched.step(model, step, loss=math.nan)
    assert watched.judgement is not None
    assert watched.judgement.verdict == "diverging"
    verdicts = [line["verdict"] for line in read_record(tmp_path) if line["kind"] == "verdict"]
    assert verdicts == ["warming", "diverging"]


def test_on_alarm_is_called_when_an_alarm_goes_on_and_may_fail(tmp_path: Path) -> None:
    calls = []

    def complain(judgement: object) -> None:
        calls.append(judgement)
        raise ValueError("pager is down")

    with gauge(tmp_path, every=1, on_alarm=complain) as watched:
        for step in range(4):
            watched.step(tiny.llama(), step, loss=math.inf)
    assert len(calls) == 1
    assert watched.failures["other"] == 1


def test_checkpoints_are_recorded_healthy_or_not(tmp_path: Path) -> None:
    model = tiny.llama()
    with gauge(tmp_path, every=1) as watched:
        watched.step(model, 0)
        watched.saved("good", 0)
        for step in range(1, 4):
            watched.step(model, step, loss=math.inf)
        watched.saved("bad", 3)
    saved = [line for line in read_record(tmp_path) if line["kind"] == "checkpoint"]
    assert [(line["path"], line["healthy"]) for line in saved] == [("good", True), ("bad", False)]


def test_disabled_by_the_environment_it_does_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCEGAUGE_DISABLED", "1")
    with gauge(tmp_path / "run") as watched:
        assert watched.step(tiny.llama(), 0) is None
    assert not (tmp_path / "run").exists()


def test_run_directory_and_port_come_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCEGAUGE_RUN", "from-env")
    monkeypatch.setenv("FORCEGAUGE_DIR", str(tmp_path))
    monkeypatch.setenv("FORCEGAUGE_PORT", "0")
    with ForceGauge(tiny.probe_set(), tiny.tokenizer()) as watched:
        watched.step(tiny.llama(), 0)
    assert watched.run == "from-env"
    assert read_record(tmp_path)[0]["run"] == "from-env"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"run": "no spaces"}, "run"),
        ({"every": 0}, "every"),
        ({"phase": "a/b"}, "run"),
    ],
)
def test_bad_arguments_are_refused_before_training(
    tmp_path: Path, options: dict[str, object], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        gauge(tmp_path, **options)


def test_a_port_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCEGAUGE_PORT", "none")
    with pytest.raises(InputError, match="FORCEGAUGE_PORT"):
        ForceGauge(tiny.probe_set(), tiny.tokenizer(), run="tiny")


class OneValue:
    """A loss whose reading is counted, as a tensor on a device would wait for it."""

    def __init__(self, value: float) -> None:
        self.value, self.read = value, 0

    def __float__(self) -> float:
        self.read += 1
        return self.value


def test_a_loss_is_read_at_probes_only(tmp_path: Path) -> None:
    model, losses = tiny.llama(), [OneValue(1.0) for _ in range(8)]
    with gauge(tmp_path) as watched:
        for step, loss in enumerate(losses):
            watched.step(model, step, loss=loss)
    assert [loss.read for loss in losses] == [1, 1, 1, 0, 1, 0, 0, 0]


def test_a_loss_may_be_a_tensor_and_one_of_many_values_costs_no_probe(tmp_path: Path) -> None:
    model = tiny.llama()
    with gauge(tmp_path) as watched:
        watched.step(model, 0, loss=torch.tensor(math.nan))
        watched.step(model, 1, loss=torch.ones(2))
    assert watched.failures == {"other": 1}
    lines = probes_by_phase(read_record(tmp_path))["train"]
    assert [line["signals"].get("loss_nonfinite_ratio") for line in lines] == [1.0, None]


def test_samples_of_a_loop_of_ones_own_are_read_at_the_next_probe(tmp_path: Path) -> None:
    model = tiny.llama()
    with gauge(tmp_path) as watched:
        watched.step(model, 0)
        watched.observe_samples([[(5, 6), (5, 6)], [(5, 6), (7, 8)]], ended=[[True] * 2] * 2)
        watched.step(model, 1)
        watched.observe_samples([[(5, 6, 7, 8)], [(5, 6, 7, 8)]])
        watched.step(model, 2)
    lines = probes_by_phase(read_record(tmp_path))["train"]
    assert lines[1]["signals"]["sample_agreement_ratio"] == 0.5
    assert lines[1]["signals"]["sample_ended_ratio"] == 1.0
    assert lines[2]["signals"]["sample_length_drift_ratio"] == 1.0
    assert "sample_agreement_ratio" not in lines[2]["signals"]
    page = urlopen(f"http://127.0.0.1:{watched.port}/metrics").read().decode()
    assert 'forcegauge_sample_length_tokens{run="tiny"} 4.0' in page


def test_length_drift_goes_on_from_the_first_length_after_a_resume(tmp_path: Path) -> None:
    model = tiny.llama()
    for first, tokens in ((0, (5, 6)), (1, (5, 6, 7, 8, 9, 10))):
        with gauge(tmp_path, every=1) as watched:
            watched.step(model, first)
            watched.observe_samples([[tokens]])
            watched.step(model, first + 1)
    last = probes_by_phase(read_record(tmp_path))["train"][-1]
    assert last["signals"]["sample_length_drift_ratio"] == 2.0


def test_samples_of_no_shape_are_counted_and_cost_no_probe(tmp_path: Path) -> None:
    with gauge(tmp_path) as watched:
        watched.observe_samples([[(5, 6)]], ended=[[True, False]])
        watched.step(tiny.llama(), 0)
    assert watched.failures == {"other": 1}
    assert steps(tmp_path) == [0]


def test_the_mass_of_the_candidates_is_recorded_and_served(tmp_path: Path) -> None:
    with gauge(tmp_path) as watched:
        train(tiny.llama(), watched, 1, 2)
    kept = [read_scores(tmp_path / "scores" / f"{step}.safetensors") for step in (0, 2)]
    start, end = (float(one.column("top_mass", "chosen").mean()) for one in kept)
    signals = probes_by_phase(read_record(tmp_path))["train"][-1]["signals"]
    assert signals["top_mass_chosen_ratio"] == pytest.approx(end, abs=1e-6)
    assert signals["top_mass_change_chosen_ratio"] == pytest.approx(end - start, abs=1e-6)
    page = urlopen(f"http://127.0.0.1:{watched.port}/metrics").read().decode()
    assert 'forcegauge_top_mass_ratio{response_type="greedy",run="tiny"}' in page


def test_a_runs_own_threshold_is_used_recorded_and_served(tmp_path: Path) -> None:
    with gauge(tmp_path, thresholds={"squeezing": 0.8}, loss="dpo") as watched:
        watched.step(tiny.llama(), 0)
        judged = watched.step(tiny.llama(), 1)
    assert judged is not None
    assert judged.alarms["squeezing"].threshold == 0.8
    assert judged.alarms["diverging"].threshold == 0.5
    assert read_record(tmp_path)[0]["settings"]["thresholds"] == {"squeezing": 0.8}
    page = urlopen(f"http://127.0.0.1:{watched.port}/metrics").read().decode()
    assert 'forcegauge_alarm_threshold{alarm="squeezing",run="tiny"} 0.8' in page


def test_a_resumed_run_replays_its_probes_with_its_own_thresholds(tmp_path: Path) -> None:
    model, found = tiny.llama(), []
    for part in range(2):
        with gauge(tmp_path, every=1, thresholds={"repeater": 1e-9}) as watched:
            for step in range(3 * part, 3 * part + 3):
                judged = watched.step(model, step)
                assert judged is not None
                found.append(judged.alarms["repeater"].threshold)
    assert set(found) == {1e-9}


@pytest.mark.parametrize(
    ("thresholds", "said"),
    [
        ({"squeezed": 1.0}, "'squeezed' is no alarm. The alarms are squeezing, diverging"),
        ({"eos_loss": 3.0}, "Give a negative number; the default is -3"),
        ({"squeezing": 0.0}, "Give a positive number; the default is 0.5"),
        ({"squeezing": math.nan}, "nan is no size of squeeze_excess_nats"),
    ],
)
def test_thresholds_that_mean_nothing_are_refused(
    tmp_path: Path, thresholds: dict[str, float], said: str
) -> None:
    with pytest.raises(InputError, match="thresholds") as refused:
        gauge(tmp_path, thresholds=thresholds)
    assert said in str(refused.value)


LOOP = """
import sys, time, signal
from pathlib import Path
from tests import tiny
from tests.agent.test_gauge import gauge
{before}
with gauge(Path(sys.argv[1])) as watched:
    watched.step(tiny.llama(), 0)
    print("probed", flush=True)
    time.sleep(60)
"""


def code_after(sent: int, program: str, *arguments: str) -> int:
    """The exit status of a Python program that gets this signal once it prints a line."""
    command = [sys.executable, "-c", program, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "probed\n"
        process.send_signal(sent)
        process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode


@pytest.mark.parametrize(
    ("sent", "before", "codes", "reason"),
    [
        (signal.SIGTERM, "", (-signal.SIGTERM,), "signal"),
        # Python's own status after an interrupt depends on what other code runs at its exit
        (
            signal.SIGINT,
            "signal.signal(signal.SIGINT, signal.default_int_handler)",
            (1, -signal.SIGINT),
            "signal",
        ),
        (signal.SIGTERM, "signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))", (3,), "stopped"),
    ],
    ids=["terminated", "interrupted", "terminated with a handler of its own"],
)
def test_a_signal_ends_the_record_and_the_process_as_before(
    tmp_path: Path, sent: int, before: str, codes: tuple[int, ...], reason: str
) -> None:
    assert code_after(sent, LOOP.format(before=before), str(tmp_path)) in codes
    ends = [line for line in read_record(tmp_path) if line["kind"] == "end"]
    assert [line["reason"] for line in ends] == [reason]


FORKED = """
import os, sys
from pathlib import Path
from tests import tiny
from tests.agent.test_gauge import gauge, kinds
watched = gauge(Path(sys.argv[1]))
watched.step(tiny.llama(), 0)
child = os.fork()
if child:
    os.waitpid(child, 0)
    print(kinds(Path(sys.argv[1])).count("end"))
"""


def test_a_forked_child_that_exits_is_no_end_of_the_run(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FORKED, str(tmp_path)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "0\n"
    assert kinds(tmp_path)[-1] == "end"


def test_a_closed_gauge_leaves_sigterm_as_it_was(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with gauge(tmp_path) as watched:
        watched.step(tiny.llama(), 0)
        assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) == before
