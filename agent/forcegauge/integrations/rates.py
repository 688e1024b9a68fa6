"""The learning rate that an optimizer steps with."""

from __future__ import annotations

from typing import Any


def learning_rate(optimizer: Any) -> float | None:
    """That of the first group of parameters; None for one that is a tensor: reading it may wait
    for the device."""
    groups = getattr(optimizer, "param_groups", None) or [{}]
    rate = groups[0].get("lr")
    return float(rate) if isinstance(rate, int | float) else None


def first_rate(optimizer: Any) -> float | None:
    """The learning rate that a schedule started from, before its warm-up."""
    groups = getattr(optimizer, "param_groups", None) or [{}]
    rate = groups[0].get("initial_lr", groups[0].get("lr"))
    return float(rate) if isinstance(rate, int | float) else None
