"""Leaves a model and the process's random numbers as they were found, also after an exception."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
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

    The caller's autocast is off inside: scores are the same in and out of it. What the model's own
    forward does stays (Accelerate puts autocast there). Compiled models run as they were written:
    every shape of a probe's would compile anew, and use up what the training may compile.
    """
    flags = [(module, module.training) for module in model.modules()]
    with same_randomness(model), _no_autocast(model), torch.compiler.set_stance("force_eager"):
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
def _no_autocast(model: nn.Module) -> Iterator[None]:
    kinds = {"cpu", *(p.device.type for p in model.parameters())}
    with ExitStack() as stack:
        for kind in kinds:
            if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False, cache_enabled=False))
        yield


@contextmanager
def evaluation_weights(optimizer: Any) -> Iterator[None]:
    """The weights that a schedule-free optimizer would be judged by; others stay as they are.

    Such optimizers (Defazio et al. 2024, arXiv 2405.15682) train one sequence of weights and are
    used with another, their average. Their own way back differs from the start in the last bits,
    so a copy is kept in the host's memory and put back. Nothing happens where the optimizer is in
    its evaluation mode already.
    """
    inner = innermost(optimizer)
    if not any(_train_modes(inner)):
        yield
        return
    weights = [p for group in inner.param_groups for p in group["params"]]
    with torch.no_grad():
        kept = [p.detach().to("cpu", copy=True) for p in weights]
        try:
            inner.eval()
            yield
        finally:
            inner.train()
            for weight, copy in zip(weights, kept, strict=True):
                weight.copy_(copy)


def is_schedule_free(optimizer: Any) -> bool:
    """Whether an optimizer has weights for training and others for use."""
    return bool(_train_modes(innermost(optimizer)))


def _train_modes(optimizer: Any) -> list[bool]:
    """Whether each part of the optimizer is set to train; empty for one without modes."""
    if not callable(getattr(optimizer, "eval", None)):
        return []
    parts = [vars(optimizer), *optimizer.param_groups]
    return [bool(part["train_mode"]) for part in parts if "train_mode" in part]


def innermost(optimizer: Any) -> Any:
    """The optimizer inside wrappers such as Accelerate's."""
    while (inner := getattr(optimizer, "optimizer", None)) is not None:
        optimizer = inner
    return optimizer


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
