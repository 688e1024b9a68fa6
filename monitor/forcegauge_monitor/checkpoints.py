"""What a snapshot does with checkpoints: plans with their shape, compares one with another."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from forcegauge.checkpoints import base_of, is_adapter, load_checkpoint
from forcegauge.errors import InputError


def skeleton(name: str) -> nn.Module:
    """The model without its weights (meta device), for planning."""
    from peft import PeftConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    source = base_of(name) if is_adapter(name) else name
    config = AutoConfig.from_pretrained(source)
    with torch.device("meta"):
        model: nn.Module = AutoModelForCausalLM.from_config(config).requires_grad_()
        if is_adapter(name):
            settings = PeftConfig.from_pretrained(name)
            settings.inference_mode = False
            model = get_peft_model(model, settings)
    return model


@contextmanager
def without_adapter(model: nn.Module) -> Iterator[None]:
    """While it lasts, an adapter's model is its base: the reference it was trained against."""
    disable: Any = getattr(model, "disable_adapter", nullcontext)
    with disable():
        yield


def check_same_weights(before: nn.Module, after: nn.Module, name: str) -> None:
    """Raise `InputError` when two checkpoints do not have the same trained weights."""
    known, later = (
        {n: p.shape for n, p in model.named_parameters() if p.requires_grad}
        for model in (before, after)
    )
    if known != later:
        raise InputError(
            "the two checkpoints do not train the same weights",
            fix="give a checkpoint of the same run and phase as --previous",
            file=name,
        )


def weight_step(before: nn.Module, after: str) -> dict[str, Tensor]:
    """What was added to each trained weight from one checkpoint to another, float32 on the CPU.

    Raises `InputError` when the two do not have the same trained weights.
    """
    model = load_checkpoint(after)
    check_same_weights(before, model, after)
    later = dict(model.named_parameters())
    known = {name: p for name, p in before.named_parameters() if p.requires_grad}
    return {name: later[name].detach() - p.detach().cpu().float() for name, p in known.items()}
