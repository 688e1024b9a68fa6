"""Leaves a model and the process's random numbers as they were found, also after an exception."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients inside; afterwards everything as before.

    Restored: the ``training`` flag of every module on its own (frozen parts may be in evaluation
    mode), random states of torch (CPU and the model's accelerator), numpy and python. `no_grad`
    and not `inference_mode`: inference tensors break FSDP.
    """
    flags = [(module, module.training) for module in model.modules()]
    with same_randomness(model):
        try:
            for module, _ in flags:
                # not .eval(): models may override train() with side effects
                module.training = False
            with torch.no_grad():
                yield
        finally:
            for module, training in flags:
                module.training = training


@contextmanager
def same_randomness(model: nn.Module) -> Iterator[None]:
    """Random states of torch (CPU and the model's accelerator), numpy and python as before."""
    states = _random_states(model)
    try:
        yield
    finally:
        _restore(states)


def _random_states(model: nn.Module) -> dict[str, Any]:
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": {device: torch.cuda.get_rng_state(device) for device in devices},
    }


def _restore(states: dict[str, Any]) -> None:
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    for device, state in states["cuda"].items():
        torch.cuda.set_rng_state(state, device)
