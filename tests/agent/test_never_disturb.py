"""Losses, weights and checkpoints with the agent are those without it, bit for bit."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from forcegauge import ForceGaugeCallback
from forcegauge.record import probes_by_phase, read_record
from forcegauge.scorer import Scorer
from tests import tiny
from tests.agent.ranks.train import digest as of_tensors
from tests.agent.real_steps import arguments

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
    "bf16": False,
    "seed": 3,
    "save_strategy": "steps",
    "save_steps": 3,
    "dataloader_pin_memory": False,
}


def sft(output: Path, *, lora: bool = False, **settings: Any) -> Trainer:
    data = Dataset.from_list([{"prompt": r["prompt"], "completion": r["chosen"]} for r in rows()])
    args = arguments(SFTConfig, output, {**SETTINGS, **settings})
    return SFTTrainer(
        tiny.llama(dropout=0.2),
        args,
        train_dataset=data,
        processing_class=words(),
        peft_config=adapters() if lora else None,
    )


def dpo(output: Path, *, lora: bool = False, **settings: Any) -> Trainer:
    args = arguments(DPOConfig, output, {**SETTINGS, **settings})
    return DPOTrainer(
        tiny.llama(dropout=0.2),
        ref_model=None if lora else tiny.llama(),
        args=args,
        train_dataset=Dataset.from_list(rows()),
        processing_class=words(),
        peft_config=adapters() if lora else None,
    )


def adapters() -> LoraConfig:
    return LoraConfig(r=4, lora_dropout=0.1, target_modules=["q_proj", "v_proj", "up_proj"])


def words() -> Any:
    return tiny.tokenizer(chat=False)


TRAINERS = {"sft": sft, "dpo": dpo}

FACTORS: dict[str, dict[str, Any]] = {
    "lora": {"lora": True},
    "accumulation": {"gradient_accumulation_steps": 2},
    "checkpointing": {"gradient_checkpointing": True},
    "bf16": {"bf16": True},
}

CASES = [
    (kind, names)
    for kind in ("sft", "dpo")
    for count in range(len(FACTORS) + 1)
    for names in itertools.combinations(FACTORS, count)
]


def name_of(part: str | tuple[str, ...]) -> str:
    return part if isinstance(part, str) else "+".join(part)


def make(kind: str, names: tuple[str, ...], output: Path) -> Trainer:
    settings: dict[str, Any] = {}
    for name in names:
        settings |= FACTORS[name]
    return TRAINERS[kind](output, **settings)


Outcome = tuple[Any, dict[str, dict[str, str]]]
"""Digest and losses of a training, and what its checkpoints hold."""

Unwatched = Callable[[str, tuple[str, ...]], tuple[Outcome, Outcome]]


def outcome(
    kind: str, names: tuple[str, ...], output: Path, watcher: ForceGaugeCallback | None = None
) -> Outcome:
    """Of a whole training, or of one that is resumed where ``output`` has checkpoints."""
    half = output / "checkpoint-3"
    resume = str(half) if half.exists() else None
    found = run(make(kind, names, output), watcher, resume)
    return found, {name: saved(output / name) for name in ("checkpoint-3", "checkpoint-6")}


@pytest.fixture(scope="module")
def unwatched(tmp_path_factory: pytest.TempPathFactory) -> Unwatched:
    """A training without the agent, whole and resumed, made once for each combination."""

    @cache
    def train(kind: str, names: tuple[str, ...]) -> tuple[Outcome, Outcome]:
        output = tmp_path_factory.mktemp("unwatched")
        return outcome(kind, names, output), outcome(kind, names, output)

    return train


def callback(directory: Path) -> ForceGaugeCallback:
    return ForceGaugeCallback(
        tiny.probe_set(), run="tiny", every=2, budget=None, port=0, directory=directory
    )


def digest(trainer: Trainer) -> str:
    """Of weights and optimizer state."""
    assert trainer.model is not None
    assert trainer.optimizer is not None
    return of_tensors([trainer.model.state_dict(), trainer.optimizer.state_dict()])


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


def saved(checkpoint: Path) -> dict[str, str]:
    """Hashes of the files of a checkpoint that hold tensors."""
    names = ("*.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth")
    files = sorted(path for name in names for path in checkpoint.glob(name))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize(("kind", "names"), CASES, ids=name_of)
def test_training_is_bit_identical_whole_and_resumed(
    kind: str, names: tuple[str, ...], unwatched: Unwatched, tmp_path: Path
) -> None:
    without, resumed = unwatched(kind, names)
    watched = outcome(kind, names, tmp_path / "b", callback(tmp_path / "gauge"))
    assert watched == without
    assert len(watched[0][1]) == STEPS
    assert len(watched[1]["checkpoint-6"]) == 4
    assert finite_probes(tmp_path / "gauge") >= 3
    watcher = callback(tmp_path / "gauge")
    assert outcome(kind, names, tmp_path / "b", watcher) == resumed
    assert finite_probes(tmp_path / "gauge") >= 3
    first, *_ = probes_by_phase(read_record(tmp_path / "gauge"))[kind]
    assert first["step"] == 0
    assert ("reference_change_chosen_nats" in first["signals"]) == ("lora" in names)
    assert watcher.gauge is not None
    assert not watcher.gauge.failures


@pytest.mark.parametrize("kind", TRAINERS)
@pytest.mark.parametrize("names", [(), ("lora", "checkpointing", "bf16")], ids="+".join)
def test_training_is_bit_identical_when_every_probe_fails(
    kind: str,
    names: tuple[str, ...],
    unwatched: Unwatched,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without, _ = unwatched(kind, names)

    def broken(self: Scorer, model: torch.nn.Module, **_: Any) -> None:
        torch.rand(3)
        raise RuntimeError("no scores today")

    monkeypatch.setattr(Scorer, "score", broken)
    watcher = callback(tmp_path / "gauge")
    assert outcome(kind, names, tmp_path / "b", watcher) == without
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
