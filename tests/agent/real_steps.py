"""Real steps of TRL's trainers with tiny models, and the forces that they should have."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, TrainerCallback

from forcegauge.capture import Capture
from forcegauge.forces import VALLEY_MASS
from tests import tiny

BETA = 0.5
STEPS = 3
SETTINGS: dict[str, Any] = {
    "max_steps": STEPS,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-2,
    "report_to": [],
    "disable_tqdm": True,
    "use_cpu": True,
    "bf16": False,
    "seed": 3,
    "save_strategy": "no",
    "dataloader_pin_memory": False,
}
ANSWERS = (
    ("tea is hot", "tea is cold!"),
    ("cats nap", "cats bark"),
    ("the sun sets", "the sun is blue!"),
    ("rain falls", "snow falls"),
)


def trl(name: str, place: str = "trl") -> Any:
    return getattr(import_module(place), name)


def rows(kind: str) -> Dataset:
    pairs = [{"prompt": f"what of {up}? ", "chosen": up, "rejected": down} for up, down in ANSWERS]
    if kind == "dpo":
        return Dataset.from_list(pairs)
    prompts = [pair["prompt"] for pair in pairs]
    answers = [ANSWERS[i][i % 2] for i in range(len(ANSWERS))]
    return Dataset.from_dict(
        {"prompt": prompts, "completion": answers, "label": [True, False, True, False]}
        if kind == "kto"
        else {"prompt": prompts, "completion": answers}
        if kind == "sft"
        else {"prompt": prompts}
    )


def vowels(completions: list[str], **_: Any) -> list[float]:
    return [float(sum(letter in "aeiou" for letter in text)) for text in completions]


def arguments(config: Any, output: Path, settings: dict[str, Any]) -> Any:
    """Settings under the names that this version of the trainer has for them."""
    # older transformers leave the precision of the last trainer behind here
    os.environ.pop("ACCELERATE_MIXED_PRECISION", None)
    known = {field.name for field in fields(config)}
    on = bool(settings.pop("gradient_checkpointing", False))
    if "activation_checkpointing" in known:
        settings |= {"activation_checkpointing": on, "gradient_checkpointing": None}
    else:
        settings |= {"gradient_checkpointing": on}
    return config(output_dir=str(output), **settings)


def trainer(kind: str, output: Path, *, dropout: float = 0.0, **settings: Any) -> Trainer:
    name = {"sft": "SFT", "dpo": "DPO", "kto": "KTO", "grpo": "GRPO"}[kind]
    if kind == "grpo":
        settings = {"num_generations": 4, "max_completion_length": 6} | settings
    if kind != "sft":
        settings = {"beta": BETA} | settings
    args = arguments(trl(f"{name}Config"), output, SETTINGS | settings)
    extra: dict[str, Any] = {"ref_model": tiny.llama()} if kind in ("dpo", "kto") else {}
    if kind == "grpo":
        extra["reward_funcs"] = vowels
    model = tiny.llama(dropout=dropout)
    model.config._name_or_path = str(output / "model")  # from where GRPO loads its reference
    model.save_pretrained(output / "model")
    made: Trainer = trl(f"{name}Trainer")(
        model=model,
        args=args,
        train_dataset=rows(kind),
        processing_class=tiny.tokenizer(chat=False),
        **extra,
    )
    return made


class Watcher(TrainerCallback):
    """Calls the capture after each optimizer step, as the gauge does."""

    def __init__(self, capture: Capture) -> None:
        self.capture = capture
        self.found: list[dict[str, float] | None] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.capture.step()
        self.found.append(self.capture.take())


Batch = dict[str, Any]


def whole(batch: Batch) -> Batch:
    """DPO's batch with prompt and answer in one row; up to TRL 0.29 they come apart."""
    if "input_ids" in batch:
        return batch
    rows = []
    for side in ("chosen", "rejected"):
        for i, mask in enumerate(batch[f"{side}_attention_mask"]):
            prompt = batch["prompt_input_ids"][i][batch["prompt_attention_mask"][i].bool()]
            rows.append((prompt, batch[f"{side}_input_ids"][i][mask.bool()]))
    parts = {
        "input_ids": [torch.cat(row) for row in rows],
        "attention_mask": [torch.ones(len(a) + len(b)).long() for a, b in rows],
        "completion_mask": [torch.cat([a * 0, b * 0 + 1]) for a, b in rows],
    }
    return {k: torch.nn.utils.rnn.pad_sequence(v, batch_first=True) for k, v in parts.items()}


def train(
    made: Trainer, capture: Capture
) -> tuple[list[dict[str, float] | None], list[tuple[PreTrainedModel, Batch, Any]]]:
    """Forces of every step, and of every backward pass its model, batch and number of items."""
    seen: list[tuple[PreTrainedModel, Batch, Any]] = []
    inner: Callable[..., Any] = made.compute_loss

    def spy(model: Any, inputs: Batch, *args: Any, **kwargs: Any) -> Any:
        copy = tiny.llama()
        copy.load_state_dict(model.state_dict())
        kept = {k: v.clone() if isinstance(v, Tensor) else v for k, v in inputs.items()}
        seen.append((copy, kept, kwargs.get("num_items_in_batch")))
        return inner(model, inputs, *args, **kwargs)

    made.compute_loss = spy  # type: ignore[method-assign]
    watcher = Watcher(capture)
    made.add_callback(watcher)
    assert made.model is not None
    with capture.attach(made.model):
        made.train()
    assert capture.error is None
    return watcher.found, seen


def logits_of(model: PreTrainedModel, ids: Tensor, mask: Tensor) -> Tensor:
    """Logits that predict ids[:, 1:], in float64."""
    with torch.no_grad():
        found: Tensor = model(input_ids=ids, attention_mask=mask).logits[:, :-1].double()
    return found


def chosen_logps(logits: Tensor, ids: Tensor) -> Tensor:
    return logits.log_softmax(-1).gather(-1, ids[:, 1:].unsqueeze(-1)).squeeze(-1)


def expected(
    logits: Tensor, ids: Tensor, weight: Tensor, mask: Tensor | None = None
) -> dict[str, float]:
    """The sums from whole gradient vectors, summed over equal contexts; all tensors [rows, t]."""
    real = torch.ones_like(ids) if mask is None else mask
    found = {"up": 0.0, "down": 0.0, "valley": 0.0, "drain": 0.0}
    net: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}
    for row, place in (weight != 0).nonzero().tolist():
        prefix = (*ids[row, : place + 1].tolist(), *real[row, : place + 1].tolist())
        pi = logits[row, place].softmax(-1)
        net.setdefault(prefix, (pi, torch.zeros_like(pi)))[1][ids[row, place + 1]] += weight[
            row, place
        ]
    for pi, pushed in net.values():
        for label in pushed.nonzero().flatten().tolist():
            w, residual = float(pushed[label]), pi.clone()
            residual[label] -= 1
            size = abs(w) * float(residual.norm())
            found["up" if w > 0 else "down"] += size
            found["valley"] += size if w < 0 and pi[label] < VALLEY_MASS else 0.0
        if (pushed < 0).any():
            found["drain"] += max(0.0, -float(pi @ (pushed.sum() * pi - pushed)))
    return found


def summed(parts: list[dict[str, float]]) -> dict[str, float]:
    return {name: sum(part[name] for part in parts) for name in parts[0]}


def assert_forces(found: dict[str, float] | None, wanted: dict[str, float]) -> None:
    assert found is not None
    assert found["force_up_norm"] == pytest.approx(wanted["up"], rel=1e-5, abs=1e-9)
    assert found["force_down_norm"] == pytest.approx(wanted["down"], rel=1e-5, abs=1e-9)
    assert found["squeeze_law_nats"] == pytest.approx(wanted["drain"], rel=1e-4, abs=1e-7)
    if wanted["down"] > 0:
        share = wanted["valley"] / wanted["down"]
        assert found["valley_force_ratio"] == pytest.approx(share, rel=1e-5, abs=1e-9)


def digest(made: Trainer) -> str:
    assert made.model is not None
    total = hashlib.sha256()
    for tensor in made.model.state_dict().values():
        total.update(tensor.detach().contiguous().numpy().tobytes())
    return total.hexdigest()


def hooks(model: nn.Module) -> int:
    return sum(len(part._forward_hooks) for part in model.modules())


def sharp() -> PreTrainedModel:
    """A model whose distributions are far from uniform."""
    model = tiny.llama()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20)
    return model
