"""A model and the random numbers come back as they were, also after an exception."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

from forcegauge.isolation import undisturbed


def model() -> nn.Sequential:
    made = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5), nn.Sequential(nn.Dropout(0.1)))
    made.train()
    made[2].eval()
    return made


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def use_up_randomness(broken: bool) -> None:
    draws()
    if broken:
        raise ValueError("scoring failed")


def test_inside_everything_is_in_evaluation_mode_without_gradients() -> None:
    made = model()
    with undisturbed(made):
        assert not any(module.training for module in made.modules())
        assert not torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize("broken", [False, True])
def test_flags_come_back_module_by_module(broken: bool) -> None:
    made = model()
    try:
        with undisturbed(made):
            use_up_randomness(broken)
    except ValueError:
        assert broken
    assert [module.training for module in made.modules()] == [True, True, True, False, False]
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("broken", [False, True])
def test_random_numbers_go_on_as_if_nothing_had_been_drawn(broken: bool) -> None:
    made = model()
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    expected = draws()
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    try:
        with undisturbed(made):
            use_up_randomness(broken)
    except ValueError:
        assert broken
    assert draws() == expected
