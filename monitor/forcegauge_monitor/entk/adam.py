"""What Adam makes of a gradient, from the optimizer state that lies in a checkpoint.

A sample's gradient g moves the weights by -eta (1 - beta1) / (1 - beta1^t) g / (sqrt(v^) + eps):
its marginal effect through the first moment, with v^ as the state has it (design section 7.1).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from forcegauge_monitor.entk.state import NoStateError, read_state


def preconditioner(
    folder: str | Path, model: nn.Module, names: Sequence[str] | None = None
) -> dict[str, Tensor]:
    """(1 - beta1) / (1 - beta1^t) / (sqrt(v^) + eps) by parameter name, float32 on the CPU.

    Of ``names`` only, where given.

    The state is matched to the trainable parameters by name where it has names, else in the order
    in which transformers' Trainer hands them to the optimizer. Raises `NoStateError` with the
    reason where there is no such state.
    """
    asked = None if names is None else set(names)
    saved = read_state(folder, lambda name: asked is None or plain(name) in asked)
    return from_state(saved, model, names)


def from_state(
    saved: Mapping[str, Any], model: nn.Module, names: Sequence[str] | None = None
) -> dict[str, Tensor]:
    """`preconditioner` from an optimizer's `state_dict`."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    groups = [group for group in saved["param_groups"] if group["params"]]
    for order in _orders(groups, model, parameters):
        matched = dict(_matched(saved["state"], groups, order))
        if matched.keys() == parameters.keys() and all(
            matched[name][0].get("exp_avg_sq", torch.empty(0)).shape == parameter.shape
            for name, parameter in parameters.items()
        ):
            return {name: _scale(*matched[name]) for name in names or parameters}
    raise NoStateError("the optimizer state does not fit the parameters, or is not Adam's")


def _orders(
    groups: Sequence[Mapping[str, Any]], model: nn.Module, parameters: Mapping[str, Tensor]
) -> Iterator[list[list[str]]]:
    keys = [list(group["params"]) for group in groups]
    if all(isinstance(key, str) for group in keys for key in group):
        yield [[plain(key) for key in group] for group in keys]
        return
    if all("param_names" in group for group in groups):
        yield [[plain(name) for name in group["param_names"]] for group in groups]
    yield _as_trainer(model, parameters)
    yield [list(parameters)]


def plain(name: str) -> str:
    """A parameter's name without what wrappers put before it."""
    return name.removeprefix("module.").replace("_fsdp_wrapped_module.", "")


def _as_trainer(model: nn.Module, parameters: Mapping[str, Tensor]) -> list[list[str]]:
    from transformers import Trainer

    # the method does not use the trainer it is called on
    decayed = set(Trainer.get_decay_parameter_names(None, model))  # type: ignore[arg-type]
    groups = [
        [name for name in parameters if name in decayed],
        [name for name in parameters if name not in decayed],
    ]
    return [group for group in groups if group]


def _matched(
    state: Mapping[Any, Any],
    groups: Sequence[Mapping[str, Any]],
    names: Sequence[Sequence[str]],
) -> Iterator[tuple[str, tuple[Mapping[str, Any], Mapping[str, Any]]]]:
    for group, own in zip(groups, names, strict=False):
        for key, name in zip(group["params"], own, strict=False):
            if key in state:
                yield name, (state[key], group)


def _scale(state: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor:
    first, second = group["betas"]
    step = float(state["step"])
    root = (state["exp_avg_sq"].float() / (1 - second**step)).sqrt_()
    scale: Tensor = (1 - first) / (1 - first**step) / root.add_(group["eps"])
    return scale
