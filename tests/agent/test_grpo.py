"""What the callback reads off TRL's GRPO: the completions it trains on, without touching it."""

from __future__ import annotations

import hashlib
import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import Trainer

from forcegauge import ForceGaugeCallback
from forcegauge.record import probes_by_phase, read_record
from tests import tiny

STEPS = 4
GENERATIONS = 4
EOS = 2

Batches = list[list[tuple[str, tuple[int, ...]]]]


class Reward:
    """Counts vowels, and keeps what was sampled: a list of (prompt, token ids) per generation."""

    __name__ = "vowels"

    def __init__(self) -> None:
        self.sampled: Batches = []

    def __call__(
        self, prompts: list[str], completions: list[str], completion_ids: Any, **_: Any
    ) -> list[float]:
        self.sampled.append(list(zip(prompts, map(tuple, completion_ids), strict=True)))
        return [float(sum(letter in "aeiou" for letter in text)) for text in completions]


def grpo(output: Path, reward: Reward, *, sharpness: float = 1.0, **settings: Any) -> Trainer:
    module = importlib.import_module("trl.trainer.grpo_trainer")
    model = tiny.llama(dropout=0.2)
    with torch.no_grad():
        model.get_output_embeddings().weight *= sharpness
    model.config._name_or_path = str(output / "model")  # from where GRPO loads its reference
    model.save_pretrained(output / "model")
    arguments = module.GRPOConfig(
        output_dir=str(output / "out"),
        **{
            "max_steps": STEPS,
            "per_device_train_batch_size": 8,
            "num_generations": GENERATIONS,
            "max_completion_length": 5,
            "learning_rate": 1e-2,
            "beta": 0.1,
            "logging_steps": 1,
            "report_to": [],
            "disable_tqdm": True,
            "use_cpu": True,
            "seed": 3,
            "save_strategy": "no",
            "dataloader_pin_memory": False,
            **settings,
        },
    )
    made: Trainer = module.GRPOTrainer(
        model=model,
        args=arguments,
        reward_funcs=reward,
        train_dataset=Dataset.from_dict({"prompt": [f"what of {w}? " for w in tiny.WORDS]}),
        processing_class=tiny.tokenizer(chat=False),
    )
    return made


def watch(made: Trainer, directory: Path) -> ForceGaugeCallback:
    watcher = ForceGaugeCallback(
        tiny.probe_set(), run="tiny", every=2, budget=None, port=0, directory=directory
    )
    made.add_callback(watcher)
    return watcher


def digest(made: Trainer) -> str:
    assert made.model is not None
    found = hashlib.sha256()
    for tensor in made.model.state_dict().values():
        found.update(tensor.detach().contiguous().numpy().tobytes())
    return found.hexdigest()


def readings(directory: Path) -> dict[int, dict[str, float]]:
    """Signals of samples by step."""
    lines = probes_by_phase(read_record(directory))["grpo"]
    return {
        line["step"]: {k: v for k, v in line["signals"].items() if k.startswith("sample_")}
        for line in lines
    }


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_iterations": 2},
        {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4},
        {"mask_truncated_completions": True},
    ],
    ids=["plain", "iterations", "accumulation", "masked"],
)
def test_training_is_bit_identical(settings: dict[str, Any], tmp_path: Path) -> None:
    found = []
    for watched in (False, True):
        reward = Reward()
        made = grpo(tmp_path, reward, **settings)
        if watched:
            watcher = watch(made, tmp_path / "gauge")
        made.train()
        found.append((digest(made), reward.sampled))
    assert found[0] == found[1]
    assert watcher.gauge is not None
    assert not watcher.gauge.failures
    assert "sample_length_tokens" in readings(tmp_path / "gauge")[1]


@pytest.mark.parametrize("accumulated", [1, 2])
def test_signals_are_those_of_the_completions_that_were_rewarded(
    accumulated: int, tmp_path: Path
) -> None:
    reward = Reward()
    size = 8 // accumulated
    # peaked enough that all samples of some prompts are the same
    made = grpo(
        tmp_path,
        reward,
        sharpness=400.0,
        gradient_accumulation_steps=accumulated,
        per_device_train_batch_size=size,
    )
    watch(made, tmp_path / "gauge")
    made.train()
    found = readings(tmp_path / "gauge")
    assert list(found) == [0, 1, 2, 4]
    assert found[0] == {}
    agreed = 0
    for step, first in ((1, 0), (2, 1), (4, 2)):
        rows = [row for batch in reward.sampled[first:step] for row in batch]
        ids = [tokens for _, tokens in rows]
        groups = [ids[i : i + GENERATIONS] for i in range(0, len(ids), GENERATIONS)]
        same = [all(one == group[0] for one in group) for group in groups]
        length = sum(map(len, ids)) / len(ids)
        ended = sum(tokens[-1] == EOS for tokens in ids) / len(ids)
        agreed += sum(same)
        assert found[step]["sample_agreement_ratio"] == pytest.approx(sum(same) / len(same))
        assert found[step]["sample_length_tokens"] == pytest.approx(length)
        assert found[step]["sample_ended_ratio"] == pytest.approx(ended)
        start = found[1]["sample_length_tokens"]
        assert found[step]["sample_length_drift_ratio"] == pytest.approx(length / start - 1)
    assert agreed > 0


def test_samples_that_were_cut_off_and_masked_count_as_not_ended(tmp_path: Path) -> None:
    reward = Reward()
    made = grpo(tmp_path, reward, mask_truncated_completions=True, max_steps=1)
    watch(made, tmp_path / "gauge")
    made.train()
    ids = [tokens for _, tokens in reward.sampled[0]]
    ended = [tokens[-1] == EOS for tokens in ids]
    assert 0 < sum(ended) < len(ended)
    found = readings(tmp_path / "gauge")[1]
    assert found["sample_ended_ratio"] == pytest.approx(sum(ended) / len(ended))
    kept = [len(tokens) for tokens in ids if tokens[-1] == EOS]
    assert found["sample_length_tokens"] == pytest.approx(sum(kept) / len(kept))


def test_the_push_of_grpo_is_split_by_the_sign_of_the_advantage(tmp_path: Path) -> None:
    made = grpo(tmp_path, Reward(), beta=0.0)
    watch(made, tmp_path / "gauge")
    made.train()
    lines = [line for line in read_record(tmp_path / "gauge") if line["kind"] == "forces"]
    assert lines
    assert all(line["force_up_norm"] > 0 and line["force_down_norm"] > 0 for line in lines)
