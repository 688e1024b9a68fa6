"""A model and the random numbers come back as they were, also after an exception."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from forcegauge.failures import Guard
from forcegauge.isolation import undisturbed
from forcegauge.prober import Limits, Prober
from forcegauge.scorer import Scorer
from tests import tiny


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


def test_the_callers_autocast_is_off_inside_and_on_again_after() -> None:
    made = model()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with undisturbed(made):
            assert not torch.is_autocast_enabled("cpu")
            assert made(torch.ones(1, 2)).dtype == torch.float32
        assert torch.is_autocast_enabled("cpu")
        assert torch.get_autocast_dtype("cpu") == torch.bfloat16
        assert made(torch.ones(1, 2)).dtype == torch.bfloat16


def test_a_pass_inside_autocast_leaves_the_gradients_of_the_training() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = model()
        with undisturbed(made):
            made(torch.ones(1, 2))
        made(torch.ones(1, 2)).sum().backward()
    assert all(weight.grad is not None for weight in made.parameters())


def backends() -> list[object]:
    return [
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.deterministic,
        torch.backends.cudnn.benchmark,
        torch.backends.mkldnn.enabled,
        torch.backends.cuda.flash_sdp_enabled(),
        torch.backends.cuda.math_sdp_enabled(),
        torch.backends.cuda.mem_efficient_sdp_enabled(),
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
    ]


def hooks(made: nn.Module) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_state_dict_hooks")
    return sum(len(getattr(part, kind)) for part in made.modules() for kind in kinds)


def settings(made: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> list[object]:
    config = dict(vars(made.config))
    weights = [(weight.requires_grad, weight._version) for weight in made.parameters()]
    checkpointing = [getattr(part, "gradient_checkpointing", None) for part in made.modules()]
    sides = [tokenizer.padding_side, tokenizer.truncation_side, tokenizer.chat_template]
    return [config, weights, checkpointing, sides, hooks(made), backends()]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_look_leaves_every_setting_as_it_was(checkpointing: bool, side: str) -> None:
    made, tokenizer = tiny.llama().train(), tiny.tokenizer()
    tokenizer.padding_side = side
    if checkpointing:
        made.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
    before = settings(made, tokenizer)
    guard = Guard(lambda *line: pytest.fail(str(line)))
    prober = Prober(tiny.probe_set(), tokenizer, Limits(), True, guard)
    prober.look(made, 0, noise=True)
    assert settings(made, tokenizer) == before
    assert all(part.training for part in made.modules())


def test_a_model_is_left_as_it_was_when_its_head_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    made, tokenizer = tiny.llama().train(), tiny.tokenizer()
    before = settings(made, tokenizer)
    scorer = Scorer(tiny.probe_set(), tokenizer)
    monkeypatch.setattr(made.lm_head, "forward", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), undisturbed(made):
        scorer.score(made)
    monkeypatch.undo()
    assert settings(made, tokenizer) == before


def test_checkpointing_does_not_run_inside_a_look(monkeypatch: pytest.MonkeyPatch) -> None:
    made = tiny.llama().train()
    made.gradient_checkpointing_enable({"use_reentrant": False})
    plain = Scorer(tiny.probe_set(), tiny.tokenizer()).score(tiny.llama().eval())
    for part in made.modules():
        if hasattr(part, "_gradient_checkpointing_func"):
            monkeypatch.setattr(part, "_gradient_checkpointing_func", lambda *_, **__: 1 / 0)
    with undisturbed(made):
        found = Scorer(tiny.probe_set(), tiny.tokenizer()).score(made)
    np.testing.assert_array_equal(found.values["logprob_sum"], plain.values["logprob_sum"])
