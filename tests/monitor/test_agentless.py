"""Checkpoints are scored as the agent would have scored the model at that step."""

from __future__ import annotations

import json
import logging
import os
import pickle
import shutil
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from peft import LoraConfig, get_peft_model
from prometheus_client import generate_latest
from torch import nn
from torch.distributed.checkpoint.state_dict_saver import save as save_shards
from transformers import PreTrainedModel

from forcegauge import arrivals
from forcegauge.agentless import Scored, Scoring, follow, score_new
from forcegauge.arrivals import checkpoints_in, lacks, settled
from forcegauge.checkpoints import load_checkpoint
from forcegauge.errors import InputError
from forcegauge.gauge import ForceGauge
from forcegauge.record import Line, probes_by_phase, read_record
from forcegauge.shard_reader import ShardReader
from forcegauge_monitor.cli import monitor
from forcegauge_monitor.exporter import Requests, make_registry
from forcegauge_monitor.records import Watch
from forcegauge_monitor.scoring import score
from forcegauge_monitor.settings import Settings, load_settings
from forcegauge_monitor.store import Store
from tests import tiny
from tests.servers import fetch, free_port, wait_for


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals, "QUIET_SECONDS", 0.0)


@pytest.fixture
def probes(tmp_path: Path) -> str:
    tiny.probe_set(2).save(tmp_path / "probes.jsonl")
    return str(tmp_path / "probes.jsonl")


def save(model: nn.Module, path: Path, **settings: Any) -> Path:
    model.save_pretrained(path, **settings)  # type: ignore[operator]
    tiny.tokenizer().save_pretrained(path)
    return path


def moved(seed: int) -> PreTrainedModel:
    """The tiny model, its weights a little elsewhere."""
    model = tiny.llama()
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.01 * torch.randn_like(weight))
    return model


def scoring(folder: Path, probes: str, **settings: Any) -> Scoring:
    return Scoring(folder=str(folder), probes=probes, run="tiny", **settings)


def lines(folder: Path, phase: str = "train") -> list[Line]:
    return probes_by_phase(read_record(folder / "forcegauge")).get(phase, [])


def steps(folder: Path) -> list[int]:
    return [line["step"] for line in lines(folder)]


def watched_training(folder: Path, probes: str) -> ForceGauge:
    """Unlearns with an agent, and saves a checkpoint at each of its probes."""
    model = tiny.llama()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    tokens = torch.tensor([tiny.tokenizer()("what of tea is hot? tea is hot")["input_ids"]])
    gauge = ForceGauge(
        probes,
        tiny.tokenizer(),
        run="tiny",
        directory=folder / "agent",
        every=2,
        budget=None,
        port=0,
        loss="dpo",
    )
    with gauge:
        gauge.step(save_at(model, folder, 0), 0)
        for step in range(1, 7):
            (-model(input_ids=tokens, labels=tokens).loss).backward()
            optimizer.step()
            optimizer.zero_grad()
            gauge.step(save_at(model, folder, step), step)
    return gauge


def save_at(model: PreTrainedModel, folder: Path, step: int) -> PreTrainedModel:
    if step in (0, 1, 2, 4, 6):
        save(model, folder / ("start" if step == 0 else f"checkpoint-{step}"))
    return model


def test_record_metrics_verdict_and_alarms_are_the_agents(tmp_path: Path, probes: str) -> None:
    agent = watched_training(tmp_path, probes)
    told: list[Scored] = []
    done = score_new(
        scoring(tmp_path, probes, baseline=str(tmp_path / "start"), gauge={"loss": "dpo"}),
        told.append,
    )
    assert done == [1, 2, 4, 6]
    expected = probes_by_phase(read_record(tmp_path / "agent"))["train"]
    assert steps(tmp_path) == [line["step"] for line in expected]
    for line, its in zip(lines(tmp_path), expected, strict=True):
        assert line["signals"] == pytest.approx(its["signals"], abs=1e-5)
        assert line["verdict"] == its["verdict"]
        for name, row in its["scores"].items():
            for statistic, values in row.items():
                assert line["scores"][name][statistic] == pytest.approx(values, abs=1e-5)
    assert agent.judgement is not None
    assert not agent.judgement.healthy
    assert told[-1].judgement.changed == agent.judgement.changed
    assert told[-1].judgement.evidence == agent.judgement.evidence
    served = {(row.metric.name, row.labels) for row in agent.snapshot.samples}
    mine = {(name, labels) for name, labels, _ in told[-1].samples}
    # which model it is that is trained has another name
    assert {name for name, _ in served ^ mine} == {"forcegauge_run_info"}


def test_a_later_call_goes_on_and_scores_nothing_twice(tmp_path: Path, probes: str) -> None:
    run = scoring(tmp_path, probes)
    for step in (10, 20):
        save(moved(step), tmp_path / f"checkpoint-{step}")
    assert score_new(run) == [10, 20]
    assert score_new(run) == []
    for step in (30, 40):
        save(moved(step), tmp_path / f"checkpoint-{step}")
    assert score_new(run) == [30, 40]
    assert steps(tmp_path) == [10, 20, 30, 40]
    assert "end" not in [line["kind"] for line in read_record(tmp_path / "forcegauge")]
    parts, whole = lines(tmp_path)[-1], tmp_path / "whole"
    score_new(scoring(tmp_path, probes, directory=str(whole)))
    last = probes_by_phase(read_record(whole))["train"][-1]
    assert parts["signals"] == pytest.approx(last["signals"], abs=1e-6)
    assert parts["verdict"] == last["verdict"] == "learning"


def test_the_first_checkpoint_is_the_baseline_where_none_is_named_and_that_is_said(
    tmp_path: Path, probes: str, caplog: pytest.LogCaptureFixture
) -> None:
    save(moved(1), tmp_path / "checkpoint-5")
    assert score_new(scoring(tmp_path, probes)) == [5]
    assert lines(tmp_path)[0]["signals"]["chosen_change_nats"] == 0
    assert "no baseline is named" in caplog.text


def test_checkpoints_are_noted_in_the_record(tmp_path: Path, probes: str) -> None:
    path = save(moved(1), tmp_path / "checkpoint-5")
    score_new(scoring(tmp_path, probes))
    saved = [row for row in read_record(tmp_path / "forcegauge") if row["kind"] == "checkpoint"]
    assert [(row["step"], row["path"]) for row in saved] == [(5, str(path))]


def test_a_phase_goes_on_after_another_with_steps_of_its_own(tmp_path: Path, probes: str) -> None:
    for name in ("sft", "dpo"):
        for step in (5, 10):
            save(moved(step), tmp_path / name / f"checkpoint-{step}")
        run = Scoring(
            folder=str(tmp_path / name),
            probes=probes,
            run="tiny",
            directory=str(tmp_path / "forcegauge"),
            gauge={"phase": name},
        )
        assert score_new(run) == [5, 10]
        assert score_new(run) == []
    assert [line["step"] for line in lines(tmp_path, "dpo")] == [15, 20]


def test_an_adapters_base_is_its_baseline(tmp_path: Path, probes: str) -> None:
    base = save(tiny.llama(), tmp_path / "base")
    net = get_peft_model(load_checkpoint(str(base)), LoraConfig(target_modules=["q_proj"], r=2))
    net.peft_config["default"].base_model_name_or_path = str(base)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter))
    net.save_pretrained(str(tmp_path / "checkpoint-3"))
    assert score_new(scoring(tmp_path, probes)) == [3]
    assert steps(tmp_path) == [0, 3]
    assert abs(lines(tmp_path)[1]["signals"]["chosen_change_nats"]) > 1e-3


def sharded_safetensors(model: PreTrainedModel, folder: Path) -> Path:
    return save(model, folder / "checkpoint-1", max_shard_size="20KB")


def dcp_shards(model: PreTrainedModel, folder: Path) -> Path:
    """As accelerate saves a model under FSDP: no settings and no tokenizer beside it."""
    path = folder / "checkpoint-1" / "pytorch_model_fsdp_0"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        save_shards({"model": model.state_dict()}, checkpoint_id=path, no_dist=True)
    (folder / "checkpoint-1" / "scheduler.pt").write_bytes(b"")
    (folder / "checkpoint-1" / "trainer_state.json").write_text("{}")
    return folder / "checkpoint-1"


@pytest.mark.parametrize("shards", [sharded_safetensors, dcp_shards])
def test_shards_are_scored_as_the_whole_model(
    shards: Callable[[PreTrainedModel, Path], Path], tmp_path: Path, probes: str
) -> None:
    start = save(tiny.llama(), tmp_path / "start")
    for kind in ("whole", "shards"):
        (tmp_path / kind).mkdir()
    save(moved(1), tmp_path / "whole" / "checkpoint-1")
    assert lacks(shards(moved(1), tmp_path / "shards")) is None
    for kind in ("whole", "shards"):
        assert score_new(scoring(tmp_path / kind, probes, baseline=str(start))) == [1]
    one, other = (lines(tmp_path / kind)[-1] for kind in ("whole", "shards"))
    assert one["signals"] == pytest.approx(other["signals"], abs=1e-6)


def test_dcp_shards_without_settings_say_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--baseline"):
        load_checkpoint(str(dcp_shards(moved(1), tmp_path)))


def test_dcp_shards_of_another_model_are_told(tmp_path: Path) -> None:
    start = save(tiny.llama(layers=3), tmp_path / "start")
    with pytest.raises(InputError, match="lack 9 of the model's weights"):
        load_checkpoint(str(dcp_shards(tiny.llama(layers=2), tmp_path)), like=str(start))


class Bomb:
    """What a pickle could do."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.made),)


def test_a_pickle_in_the_place_of_dcp_metadata_is_not_run(tmp_path: Path) -> None:
    path = dcp_shards(moved(1), tmp_path)
    (path / "pytorch_model_fsdp_0" / ".metadata").write_bytes(
        pickle.dumps(Bomb(tmp_path / "was here"))
    )
    assert lacks(path) == "pytorch_model_fsdp_0/.metadata"
    start = save(tiny.llama(), tmp_path / "start")
    with pytest.raises(InputError, match="no part of an index"):
        load_checkpoint(str(path), like=str(start))
    assert not (tmp_path / "was here").exists()


def test_an_index_of_python_3_13_is_read(tmp_path: Path) -> None:
    path = dcp_shards(moved(1), tmp_path) / "pytorch_model_fsdp_0"
    index = pickle.dumps(ShardReader(path).index, protocol=3)
    newer = index.replace(b"cpathlib\n", b"cpathlib._local\n")
    assert b"cpathlib._local\nPosixPath\n" in newer
    (path / ".metadata").write_bytes(newer)
    assert ShardReader(path).index == pickle.loads(index)


def test_deepspeeds_files_need_deepspeed_and_its_script_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint-1"
    (path / "global_step1").mkdir(parents=True)
    assert lacks(path) == "latest"
    (path / "latest").write_text("global_step1")
    (path / "global_step1" / "mp_rank_00_model_states.pt").write_bytes(b"")
    (path / "zero_to_fp32.py").write_text("raise SystemExit('run')")
    assert lacks(path) is None
    start = save(tiny.llama(), tmp_path / "start")
    with pytest.raises(InputError, match="Install deepspeed"):
        load_checkpoint(str(path), like=str(start))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("shards", "harm", "lacking"),
    [
        (False, lambda path: cut(path / "model.safetensors"), "model.safetensors"),
        (False, lambda path: (path / "config.json").write_text('{"model'), "config.json"),
        (False, lambda path: (path / "training_args.bin").touch(), "trainer_state.json"),
        (True, lambda path: min(path.glob("*-of-*")).unlink(), "model-00001-of-0000"),
        (True, lambda path: cut(max(path.glob("*-of-*"))), "model-0000"),
    ],
    ids=["torn weights", "torn settings", "trainer still writes", "missing shard", "torn shard"],
)
def test_half_written_checkpoints_are_left_alone_until_they_are_whole(
    tmp_path: Path, shards: bool, harm: Callable[[Path], object], lacking: str
) -> None:
    whole = save(moved(1), tmp_path / "whole", **({"max_shard_size": "20KB"} if shards else {}))
    (whole / "trainer_state.json").write_text("{}")
    path = shutil.copytree(whole, tmp_path / "checkpoint-1")
    (path / "trainer_state.json").unlink()
    harm(path)
    assert (lacks(path) or "").startswith(lacking)
    assert settled(checkpoints_in(tmp_path)) == []
    shutil.copytree(whole, path, dirs_exist_ok=True)
    assert settled(checkpoints_in(tmp_path)) == [(1, path)]


def test_a_folder_without_weights_is_not_whole(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-1").mkdir()
    assert lacks(tmp_path / "checkpoint-1") == "config.json"


def test_a_checkpoint_whose_files_still_change_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        save(moved(step), tmp_path / f"checkpoint-{step}")
    growing = tmp_path / "checkpoint-2" / "optimizer.pt.tmp"
    monkeypatch.setattr("time.sleep", lambda seconds: growing.write_bytes(b"more"))
    assert [step for step, _ in settled(checkpoints_in(tmp_path))] == [1]


def test_a_checkpoint_that_is_deleted_between_two_looks_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(moved(1), tmp_path / "checkpoint-1")
    monkeypatch.setattr("time.sleep", lambda seconds: shutil.rmtree(tmp_path / "checkpoint-1"))
    assert settled(checkpoints_in(tmp_path)) == []


def test_checkpoints_are_found_by_their_names_in_the_order_of_steps(tmp_path: Path) -> None:
    for name in ("checkpoint-100", "checkpoint-20", "step_3", "global_step40", "run-7", "tmp"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-5").write_text("a file")
    assert [step for step, _ in checkpoints_in(tmp_path)] == [3, 20, 40, 100]
    assert checkpoints_in(tmp_path / "none") == []


@pytest.mark.parametrize(
    ("name", "inside"),
    [("global_step_7", "actor/huggingface"), ("global_step7_hf", ""), ("step_7-hf", "")],
    ids=["verl", "OpenRLHF", "NeMo-RL, converted"],
)
def test_a_model_is_found_where_its_trainer_keeps_it(
    name: str, inside: str, tmp_path: Path, probes: str
) -> None:
    save(moved(1), tmp_path / name / inside)
    assert score_new(scoring(tmp_path, probes)) == [7]


def test_one_that_cannot_be_scored_is_said_once_and_the_next_one_is_scored(
    tmp_path: Path, probes: str, caplog: pytest.LogCaptureFixture
) -> None:
    save(moved(1), tmp_path / "checkpoint-1")
    bad = save(moved(2), tmp_path / "checkpoint-2")
    (bad / "config.json").write_text('{"model_type": "none"}')
    save(moved(3), tmp_path / "checkpoint-3")
    with caplog.at_level(logging.WARNING):
        assert score_new(scoring(tmp_path, probes)) == [1, 3]
    assert caplog.text.count("checkpoint-2 could not be scored") == 1
    assert steps(tmp_path) == [1, 3]


def test_a_failing_pass_is_no_score_and_is_tried_again(
    tmp_path: Path, probes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from forcegauge.scorer import Scorer

    real = Scorer.score

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no scores today")

    save(moved(1), tmp_path / "checkpoint-1")
    monkeypatch.setattr(Scorer, "score", broken)
    assert score_new(scoring(tmp_path, probes)) == []
    monkeypatch.setattr(Scorer, "score", real)
    assert score_new(scoring(tmp_path, probes)) == [1]


def page(port: int) -> str:
    return fetch(f"http://127.0.0.1:{port}/metrics")[1]


def test_following_serves_metrics_and_after_a_restart_what_was_known(
    tmp_path: Path, probes: str
) -> None:
    save(moved(1), tmp_path / "checkpoint-1")
    for step in (1, 2):
        port, stopped = free_port(), threading.Event()
        run = scoring(tmp_path, probes, gauge={"port": port})
        thread = threading.Thread(target=follow, args=(run, stopped), kwargs={"seconds": 0.05})
        thread.start()
        try:
            wait_for(lambda port=port: 'probe_step{run="tiny"} 1.0' in page(port))  # type: ignore[misc]
            save(moved(2), tmp_path / f"checkpoint-{step + 1}") if step == 2 else None
            wait_for(lambda step=step: steps(tmp_path)[-1] == {1: 1, 2: 3}[step])  # type: ignore[misc]
        finally:
            stopped.set()
            thread.join(30)
        assert 'run_active{run="tiny"} 0.0' in page(port)
    ends = [row for row in read_record(tmp_path / "forcegauge") if row["kind"] == "end"]
    assert [row["reason"] for row in ends] == ["stopped", "stopped"]


def test_the_command_scores_once_and_says_what_it_found(tmp_path: Path, probes: str) -> None:
    save(moved(1), tmp_path / "checkpoint-1")
    words = ["watch", str(tmp_path), "--probes", probes, "--run", "tiny", "--once"]
    found = CliRunner().invoke(monitor, words, catch_exceptions=False)
    assert "checkpoint-1: warming. Too few probes" in found.output
    assert "1 new checkpoints scored" in found.output
    again = CliRunner().invoke(monitor, words, catch_exceptions=False)
    assert "0 new checkpoints scored" in again.output


def test_the_command_leaves_a_folder_to_the_workers_and_takes_it_back(
    tmp_path: Path, probes: str, store: Store, shared_redis: str
) -> None:
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps({"redis_url": shared_redis, "roots": [str(tmp_path)]}))
    options = ["--settings", str(settings)]
    words = [str(tmp_path), "--probes", probes, "--run", "tiny", "--loss", "dpo", *options]
    assert "watch" in CliRunner().invoke(monitor, ["watch", *words], catch_exceptions=False).output
    (known,) = store.watches()
    assert (known.run, known.folder, known.probes) == ("tiny", str(tmp_path), probes)
    save(moved(1), tmp_path / "checkpoint-1")
    score(load_settings(settings), store, lambda snapshot: None, known)
    run = store.run("tiny")
    assert run is not None
    assert (run.verdict, run.step, run.loss) == ("warming", 1, "dpo")
    shown = generate_latest(make_registry(store, Requests())).decode()
    assert 'forcegauge_probe_step{run="tiny"} 1.0' in shown
    CliRunner().invoke(monitor, ["unwatch", "tiny", *options], catch_exceptions=False)
    assert store.watches() == []
    with pytest.raises(InputError, match="no folder is watched"):
        CliRunner().invoke(monitor, ["unwatch", "tiny", *options], catch_exceptions=False)


def test_a_folder_under_no_allowed_root_is_not_watched(tmp_path: Path, probes: str) -> None:
    words = ["watch", "/etc", "--probes", probes, "--run", "tiny"]
    with pytest.raises(InputError, match="folder: lies under no allowed root"):
        CliRunner().invoke(monitor, words, catch_exceptions=False)


@pytest.mark.parametrize("wrong", ["folder", "probes", "directory", "baseline", "checkpoint"])
def test_a_worker_opens_nothing_outside_the_allowed_roots(
    tmp_path: Path, probes: str, store: Store, caplog: pytest.LogCaptureFixture, wrong: str
) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    save(moved(1), outside / "checkpoint-1")
    for folder in (inside, outside):
        folder.mkdir(exist_ok=True)
        shutil.copy(probes, folder / "probes.jsonl")
    (inside / "checkpoint-1").symlink_to(outside / "checkpoint-1")
    if wrong != "checkpoint":
        save(moved(2), inside / "checkpoint-2")
        (inside / "checkpoint-1").unlink()
    known: dict[str, Any] = {"folder": str(inside), "probes": str(inside / "probes.jsonl")}
    places = {"probes": outside / "probes.jsonl", "baseline": outside / "checkpoint-1"}
    known |= {} if wrong == "checkpoint" else {wrong: str(places.get(wrong, outside))}
    named = [name for name in ("directory", "baseline") if name in known]
    more: dict[str, Any] = {name: known.pop(name) for name in named}
    settings = Settings(storage=str(tmp_path / "storage"), roots=(str(inside),))
    said: set[str] = set()
    for _ in range(2):
        score(settings, store, lambda snapshot: None, Watch("tiny", **known, settings=more), said)
    assert store.run("tiny") is None
    assert caplog.text.count("lies under no allowed root") == 1
    assert not (outside / "forcegauge").exists()


def test_a_worker_says_once_for_each_reason_why_a_checkpoint_is_not_scored(
    tmp_path: Path, probes: str, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    bad = save(moved(1), tmp_path / "checkpoint-1")
    whole, said = (bad / "config.json").read_text(), set[str]()
    settings = Settings(storage=str(tmp_path / "storage"), roots=(str(tmp_path),))
    for text in ('{"model_type": "none"}', '{"model_type": "other"}'):
        (bad / "config.json").write_text(text)
        for _ in range(2):
            score(settings, store, lambda one: None, Watch("tiny", str(tmp_path), probes), said)
    assert caplog.text.count("could not be scored") == 2
    (bad / "config.json").write_text(whole)
    score(settings, store, lambda one: None, Watch("tiny", str(tmp_path), probes), said)
    assert store.run("tiny") is not None


def test_a_bad_probe_file_is_told_before_any_checkpoint_is_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        score_new(scoring(tmp_path, str(tmp_path / "none.jsonl")))
