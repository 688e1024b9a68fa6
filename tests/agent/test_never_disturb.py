"""Losses, weights and checkpoints with the agent are those without it, bit for bit."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import torch
from datasets import Dataset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from forcegauge import ForceGaugeCallback
from forcegauge.record import probes_by_phase, read_record
from forcegauge.scorer import Scorer
from tests import tiny

STEPS = 6


class Losses(TrainerCallback):
    """Keeps every logged loss."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        logs = kwargs["logs"]
        if "loss" in logs:
            self.seen.append(float(logs["loss"]))


def rows() -> list[dict[str, str]]:
    return [
        {"prompt": f"what of {word}? ", "chosen": word, "rejected": tiny.WORDS[i - 1] + "!"}
        for i, word in enumerate(tiny.WORDS)
    ]


SETTINGS: dict[str, Any] = {
    "max_steps": STEPS,
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "report_to": [],
    "disable_tqdm": True,
    "use_cpu": True,
    "seed": 3,
    "save_strategy": "steps",
    "save_steps": 3,
    "dataloader_pin_memory": False,
    "gradient_checkpointing": None,
    "activation_checkpointing": False,
}


def sft(output: Path, **settings: Any) -> Trainer:
    data = Dataset.from_list([{"prompt": r["prompt"], "completion": r["chosen"]} for r in rows()])
    args = SFTConfig(output_dir=str(output), **{**SETTINGS, **settings})
    return SFTTrainer(tiny.llama(dropout=0.2), args, train_dataset=data, processing_class=words())


def dpo(output: Path, **settings: Any) -> Trainer:
    args = DPOConfig(output_dir=str(output), **{**SETTINGS, **settings})
    return DPOTrainer(
        tiny.llama(dropout=0.2),
        ref_model=tiny.llama(),
        args=args,
        train_dataset=Dataset.from_list(rows()),
        processing_class=words(),
    )


def words() -> Any:
    return tiny.tokenizer(chat=False)


TRAINERS = {"sft": sft, "dpo": dpo}


def callback(directory: Path) -> ForceGaugeCallback:
    return ForceGaugeCallback(
        tiny.probe_set(), run="tiny", every=2, budget=None, port=0, directory=directory
    )


def digest(trainer: Trainer) -> str:
    """Of weights and optimizer state."""
    found = hashlib.sha256()
    assert trainer.model is not None
    assert trainer.optimizer is not None
    for tensor in tensors([trainer.model.state_dict(), trainer.optimizer.state_dict()]):
        found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def tensors(tree: Any) -> Iterator[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, dict):
        for value in tree.values():
            yield from tensors(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from tensors(value)


def run(trainer: Trainer, watcher: ForceGaugeCallback | None, resume: str | None = None) -> Any:
    losses = Losses()
    trainer.add_callback(losses)
    if watcher is not None:
        trainer.add_callback(watcher)
    trainer.train(resume_from_checkpoint=resume)
    return digest(trainer), losses.seen


def finite_probes(directory: Path) -> int:
    lines = [row for rows in probes_by_phase(read_record(directory)).values() for row in rows[1:]]
    return sum("chosen_change_nats" in line["signals"] for line in lines)


@pytest.mark.parametrize("kind", TRAINERS)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"gradient_accumulation_steps": 2},
        {"activation_checkpointing": True},
        {"bf16": True},
    ],
    ids=["plain", "accumulation", "checkpointing", "bf16"],
)
def test_training_is_bit_identical(kind: str, settings: dict[str, Any], tmp_path: Path) -> None:
    without = run(TRAINERS[kind](tmp_path / "a", **settings), None)
    watched = run(TRAINERS[kind](tmp_path / "b", **settings), callback(tmp_path / "gauge"))
    assert watched == without
    assert len(watched[1]) == STEPS
    assert finite_probes(tmp_path / "gauge") >= 3


@pytest.mark.parametrize("kind", TRAINERS)
def test_a_resumed_training_is_bit_identical(kind: str, tmp_path: Path) -> None:
    without = run(TRAINERS[kind](tmp_path / "a"), None)
    run(TRAINERS[kind](tmp_path / "b"), callback(tmp_path / "gauge"))
    resumed = run(
        TRAINERS[kind](tmp_path / "b"),
        callback(tmp_path / "gauge"),
        str(tmp_path / "b" / "checkpoint-3"),
    )
    assert resumed[0] == without[0]
    assert finite_probes(tmp_path / "gauge") >= 3
    first, *_ = probes_by_phase(read_record(tmp_path / "gauge"))[kind]
    assert first["step"] == 0


@pytest.mark.parametrize("kind", TRAINERS)
def test_saved_checkpoints_hold_the_same_tensors(kind: str, tmp_path: Path) -> None:
    run(TRAINERS[kind](tmp_path / "a"), None)
    run(TRAINERS[kind](tmp_path / "b"), callback(tmp_path / "gauge"))
    for name in ("model.safetensors", "optimizer.pt", "rng_state.pth"):
        one, other = (
            hashlib.sha256((tmp_path / run / "checkpoint-6" / name).read_bytes()).hexdigest()
            for run in "ab"
        )
        assert one == other, name


@pytest.mark.parametrize("kind", TRAINERS)
def test_training_is_bit_identical_when_every_probe_fails(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = run(TRAINERS[kind](tmp_path / "a"), None)

    def broken(self: Scorer, model: torch.nn.Module) -> None:
        torch.rand(3)
        raise RuntimeError("no scores today")

    monkeypatch.setattr(Scorer, "score", broken)
    watcher = callback(tmp_path / "gauge")
    assert run(TRAINERS[kind](tmp_path / "b"), watcher) == without
    assert watcher.gauge is not None
    assert watcher.gauge.failures["scoring"] >= 3


def test_phase_loss_and_end_are_taken_from_the_trainer(tmp_path: Path) -> None:
    run(dpo(tmp_path / "out", loss_type=["ipo"]), None)
    watcher = ForceGaugeCallback(tiny.probe_set(), run="tiny", every=2, port=0)
    run(dpo(tmp_path / "out", loss_type=["ipo"]), watcher)
    lines = read_record(tmp_path / "out" / "forcegauge")
    assert lines[0]["phase"] == "dpo"
    assert lines[0]["settings"]["loss"] == "dpo:ipo"
    assert lines[0]["settings"]["beta"] == pytest.approx(0.1)
    assert lines[-1]["kind"] == "end"
    assert lines[-1]["reason"] == "finished"
    assert [line["path"] for line in lines if line["kind"] == "checkpoint"] == [
        str(tmp_path / "out" / f"checkpoint-{step}") for step in (3, 6)
    ]


def test_probes_know_the_tokens_that_the_trainer_counts(tmp_path: Path) -> None:
    run(sft(tmp_path / "out", include_num_input_tokens_seen="all"), callback(tmp_path / "gauge"))
    probes = probes_by_phase(read_record(tmp_path / "gauge"))["sft"]
    seen = [probe["tokens_seen"] for probe in probes]
    assert seen[0] == 0
    assert all(later > earlier for earlier, later in itertools.pairwise(seen))
    run(sft(tmp_path / "plain"), callback(tmp_path / "other"))
    assert "tokens_seen" not in probes_by_phase(read_record(tmp_path / "other"))["sft"][0]


@pytest.mark.parametrize("kind", TRAINERS)
def test_forces_are_read_while_training_and_only_dpo_pushes_down(kind: str, tmp_path: Path) -> None:
    watcher = callback(tmp_path / "gauge")
    run(TRAINERS[kind](tmp_path / "out"), watcher)
    lines = [line for line in read_record(tmp_path / "gauge") if line["kind"] == "forces"]
    assert len(lines) >= 3
    for line in lines:
        assert line["force_up_norm"] > 0
        assert 0 < line["force_up_step_norm"] < 0.1 * line["force_up_norm"]
        assert (line["force_down_norm"] > 0) == (kind == "dpo")
    assert watcher.gauge is not None
    page = urlopen(f"http://127.0.0.1:{watcher.gauge.port}/metrics").read().decode()
    assert 'forcegauge_force_norm{direction="up",run="tiny"}' in page
    assert watcher.gauge.failures["forces"] == 0
