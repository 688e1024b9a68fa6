"""Forces read off real training steps of TRL: equal to the closed forms, and of no effect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, TrainingArguments

from forcegauge.capture import Capture
from forcegauge.losses import (
    Pairs,
    Rollouts,
    kto_weights,
    nll_weights,
    pair_weights,
    policy_weights,
)
from tests import tiny
from tests.agent.real_steps import (
    BETA,
    SETTINGS,
    STEPS,
    Batch,
    Watcher,
    assert_forces,
    chosen_logps,
    digest,
    expected,
    hooks,
    logits_of,
    sharp,
    summed,
    train,
    trainer,
    whole,
)


def test_forces_of_sft_steps_are_the_closed_form(tmp_path: Path) -> None:
    made = trainer("sft", tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    found, seen = train(made, Capture(every=1))
    parts = []
    for model, batch, items in seen:
        ids, mask = batch["input_ids"], batch["attention_mask"]
        weight = nll_weights(batch["labels"][:, 1:] != -100, items=float(items)).double()
        parts.append(expected(logits_of(model, ids, mask), ids, weight))
    for step, values in enumerate(found):
        assert_forces(values, summed(parts[2 * step : 2 * step + 2]))
    assert len(found) == STEPS


def dpo_weights(losses: list[str], model: PreTrainedModel, batch: Batch) -> Tensor:
    ids, mask = batch["input_ids"], batch["completion_mask"][:, 1:].double()
    logps, reference = (
        chosen_logps(logits_of(m, ids, batch["attention_mask"]), ids) for m in (model, tiny.llama())
    )
    chosen, rejected = ((logps - reference) * mask).sum(-1).chunk(2)
    up, down = mask.sum(-1).chunk(2)
    weight = torch.zeros_like(mask)
    for loss in losses:
        if loss == "sft":
            part = nll_weights(mask).double() * 0
            part[: len(up)] = nll_weights(mask[: len(up)], scale=0.3)
        else:
            pairs = Pairs(chosen, rejected, up, down, beta=BETA)
            part = torch.cat(pair_weights(loss, pairs)).unsqueeze(-1) * mask
        weight += part
    return weight


@pytest.mark.parametrize(
    "losses",
    [["sigmoid"], ["hinge"], ["ipo"], ["sppo_hard"], ["nca_pair"], ["sigmoid", "sft"]],
    ids="+".join,
)
def test_forces_of_dpo_steps_are_the_closed_form(losses: list[str], tmp_path: Path) -> None:
    more: dict[str, Any] = {"loss_weights": [1.0, 0.3]} if len(losses) > 1 else {}
    made = trainer("dpo", tmp_path, loss_type=losses, **more)
    found, seen = train(made, Capture(every=1, pairs=True))
    for values, (model, parts, _) in zip(found, seen, strict=True):
        batch = whole(parts)
        ids, mask = batch["input_ids"], batch["attention_mask"]
        weight = dpo_weights(losses, model, batch)
        assert_forces(values, expected(logits_of(model, ids, mask), ids, weight))


def test_accumulated_dpo_passes_sum_to_the_optimizer_steps_force(tmp_path: Path) -> None:
    made = trainer("dpo", tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    found, seen = train(made, Capture(every=1))
    parts = []
    for model, given, _ in seen:
        batch = whole(given)
        ids, mask = batch["input_ids"], batch["attention_mask"]
        weight = dpo_weights(["sigmoid"], model, batch) / 2
        parts.append(expected(logits_of(model, ids, mask), ids, weight))
    for step, values in enumerate(found):
        assert_forces(values, summed(parts[2 * step : 2 * step + 2]))


def test_forces_of_kto_steps_are_the_closed_form(tmp_path: Path) -> None:
    made = trainer("kto", tmp_path, desirable_weight=1.2)
    found, seen = train(made, Capture(every=1))
    reference = tiny.llama()
    for values, (model, batch, _) in zip(found, seen, strict=True):
        sides: dict[str, Tensor] = {}
        for name in ("", "KL_"):
            ids, mask = batch[f"{name}input_ids"], batch[f"{name}attention_mask"]
            trained = batch[f"{name}completion_mask"][:, 1:]
            both = [chosen_logps(logits_of(m, ids, mask), ids) for m in (model, reference)]
            sides[name] = ((both[0] - both[1]) * trained).sum(-1)
        kl = float(sides["KL_"].mean().clamp(min=0))
        label = torch.as_tensor(batch["label"])
        weight = kto_weights(sides[""], label, beta=BETA, kl=kl, desirable_weight=1.2)
        ids = batch["input_ids"]
        trained = batch["completion_mask"][:, 1:].double()
        logits = logits_of(model, ids, batch["attention_mask"])
        assert_forces(values, expected(logits, ids, weight.unsqueeze(-1) * trained))


def grpo_weights(model: PreTrainedModel, batch: Batch, ids: Tensor, mask: Tensor) -> Tensor:
    length = batch["completion_ids"].shape[1]
    logps = chosen_logps(logits_of(model, ids, mask), ids)[:, -length:]
    old, reference = batch.get("old_per_token_logps"), batch["ref_per_token_logps"].double()
    rollouts = Rollouts(
        logprob=logps,
        old=logps if old is None else old.double(),
        reference=reference,
        advantage=batch["advantages"].double(),
        mask=batch["completion_mask"].double(),
        beta=BETA,
        corrected=True,
    )
    return nn.functional.pad(policy_weights("grpo", rollouts), (ids.shape[1] - 1 - length, 0))


def test_forces_of_grpo_steps_are_the_closed_form(tmp_path: Path) -> None:
    made = trainer("grpo", tmp_path, loss_type="grpo", num_iterations=2, max_steps=4)
    found, seen = train(made, Capture(every=1))
    for values, (model, batch, _) in zip(found, seen, strict=True):
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
        weight = grpo_weights(model, batch, ids, mask)
        assert_forces(values, expected(logits_of(model, ids, mask), ids, weight, mask))
    assert any(values and values["force_down_norm"] > 0 for values in found)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("sft", {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}),
        ("sft", {"bf16": True}),
        ("dpo", {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}),
        ("dpo", {"gradient_checkpointing": True, "use_weighting": True}),
        ("kto", {}),
        ("grpo", {"num_iterations": 2}),
    ],
)
def test_training_is_bit_identical_with_the_capture_on(
    kind: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    digests = set()
    for every in (None, 1, 2):
        made = trainer(kind, tmp_path, dropout=0.2, **settings)
        if every is not None:
            capture = Capture(every=every)
            watcher = Watcher(capture)
            made.add_callback(watcher)
            assert made.model is not None
            capture.attach(made.model)
        made.train()
        if every is not None:
            assert capture.error is None
            assert watcher.found[0] is not None
        digests.add(digest(made))
    assert len(digests) == 1


def test_an_entropy_bonus_is_said_to_be_left_out(tmp_path: Path) -> None:
    capture = Capture(every=1)
    train(trainer("grpo", tmp_path, entropy_coef=0.1, max_steps=1), capture)
    assert capture.not_covered == {"entropy bonus"}
    plain = Capture(every=1)
    train(trainer("grpo", tmp_path, max_steps=1), plain)
    assert plain.not_covered == set()


def test_a_label_smoothed_trainer_is_read_at_its_logits(tmp_path: Path) -> None:
    data = [{"input_ids": i, "labels": i} for i in torch.randint(3, 30, (4, 9)).tolist()]
    settings = {k: v for k, v in SETTINGS.items() if k != "activation_checkpointing"}
    shares = {}
    for smoothing in (0.0, 0.1):
        arguments = TrainingArguments(
            output_dir=str(tmp_path),
            label_smoothing_factor=smoothing,
            **settings | {"gradient_checkpointing": False},
        )
        made = Trainer(sharp(), arguments, train_dataset=Dataset.from_list(data))
        found, seen = train(made, Capture(every=1))
        assert found[0] is not None
        shares[smoothing] = found[0]["force_uncovered_ratio"]
        if smoothing == 0:
            ids = seen[0][1]["input_ids"]
            weight = nll_weights(torch.ones(ids.shape[0], ids.shape[1] - 1)).double()
            logits = logits_of(seen[0][0], ids, torch.ones_like(ids))
            assert_forces(found[0], expected(logits, ids, weight))
    assert shares[0.0] < 1e-5
    assert shares[0.1] > 0.01


def test_a_temperature_that_was_not_told_ends_the_capture_and_not_the_training(
    tmp_path: Path,
) -> None:
    made = trainer("grpo", tmp_path, max_steps=1, temperature=0.3)
    model: Any = made.model
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20)
    capture = Capture().attach(model)
    made.train()
    assert made.state.global_step == 1
    assert capture.error is not None
    assert "temperature" in capture.error
    assert hooks(model) == 0
