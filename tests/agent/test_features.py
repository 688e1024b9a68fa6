"""The same scores whatever the training does: its mode, precision, layout, kernels, weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import schedulefree
import torch
from datasets import Dataset
from torch import nn
from transformers import LlavaConfig, LlavaForConditionalGeneration
from trl import SFTConfig, SFTTrainer

from forcegauge import ForceGauge, ForceGaugeCallback
from forcegauge.isolation import evaluation_weights, is_schedule_free, undisturbed
from forcegauge.record import probes_by_phase, read_record, read_scores
from forcegauge.scorer import Scorer
from forcegauge.scores import Scores
from tests import tiny
from tests.agent.real_steps import SETTINGS, arguments, digest

NATS = 1e-4


def scored(model: nn.Module) -> Scores:
    with undisturbed(model):
        return Scorer(tiny.probe_set(), tiny.tokenizer()).score(model)


def assert_same(found: Scores, wanted: Scores, atol: float = NATS) -> None:
    """Over the types of ``wanted``: a run has its greedy outputs besides."""
    count = len(wanted.types)
    for name in ("logprob_mean", "argmax_logprob_mean", "entropy"):
        mine = found.values[name][:, :count]
        np.testing.assert_allclose(mine, wanted.values[name], rtol=0, atol=atol, err_msg=name)


@pytest.fixture(scope="module")
def plain() -> Scores:
    return scored(tiny.llama())


def autocast() -> AbstractContextManager[Any]:
    return torch.autocast("cpu", dtype=torch.bfloat16)


@pytest.mark.parametrize("where", [nullcontext, autocast, torch.no_grad, torch.enable_grad])
def test_scores_do_not_depend_on_the_callers_context(
    where: Callable[[], AbstractContextManager[Any]], plain: Scores
) -> None:
    model = tiny.llama(dropout=0.5).train()
    with where():
        found = scored(model)
    assert_same(found, plain, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_weights_score_near_the_long_ones(dtype: torch.dtype, plain: Scores) -> None:
    model: Any = tiny.llama()
    model.to(dtype)
    before = [weight.clone() for weight in model.parameters()]
    assert_same(scored(model), plain, atol=0.05)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_forward_that_autocasts_by_itself_is_scored_as_it_trains(plain: Scores) -> None:
    model: Any = tiny.llama()
    # what Accelerate does in mixed precision
    model.forward = torch.autocast("cpu", dtype=torch.bfloat16)(model.forward)
    found = scored(model)
    assert_same(found, plain, atol=0.05)
    with autocast():
        assert_same(scored(model), found, atol=0)


def test_a_tied_head_scores_as_one_of_the_same_weights_that_is_not_tied() -> None:
    tied = tiny.llama()
    tied.config.tie_word_embeddings = True
    tied.lm_head.weight = tied.model.embed_tokens.weight
    loose = copy.deepcopy(tied)
    loose.lm_head.weight = nn.Parameter(tied.lm_head.weight.detach().clone())
    assert_same(scored(tied), scored(loose), atol=0)
    assert tied.lm_head.weight is tied.model.embed_tokens.weight


def llava() -> LlavaForConditionalGeneration:
    text = tiny.llama().config
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 8,
        "patch_size": 4,
    }
    torch.manual_seed(0)
    return LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text.to_dict(), image_token_index=3)
    )


def test_the_text_part_of_a_model_that_sees_is_scored_as_alone() -> None:
    whole, alone = llava(), tiny.llama()
    alone.model.load_state_dict(whole.model.language_model.state_dict())
    alone.lm_head.load_state_dict(whole.lm_head.state_dict())
    assert_same(scored(whole.train()), scored(alone))


@pytest.fixture
def liger() -> nn.Module:
    """Liger's forward with its fused loss; its other kernels need a GPU."""
    kernels = pytest.importorskip("liger_kernel.transformers", reason="pip install liger-kernel")
    model = tiny.llama()
    kernels.apply_liger_kernel_to_llama(
        rope=False, rms_norm=False, swiglu=False, fused_linear_cross_entropy=True, model=model
    )
    return model


def test_a_model_patched_by_liger_is_scored_by_its_logits(liger: nn.Module, plain: Scores) -> None:
    assert "liger" in liger.forward.__module__
    assert_same(scored(liger.train()), plain)


def words() -> Any:
    return tiny.tokenizer(chat=False)


def sft(output: Path, **settings: Any) -> SFTTrainer:
    texts = [{"prompt": f"what of {word}? ", "completion": word} for word in tiny.WORDS]
    args = arguments(SFTConfig, output, SETTINGS | {"max_steps": 4} | settings)
    return SFTTrainer(
        tiny.llama(), args, train_dataset=Dataset.from_list(texts), processing_class=words()
    )


def baseline(trainer: SFTTrainer, directory: Path) -> Scores:
    watcher = ForceGaugeCallback(
        tiny.probe_set(), every=1, budget=None, port=0, directory=directory
    )
    trainer.add_callback(watcher)
    trainer.train()
    assert watcher.gauge is not None
    assert not watcher.gauge.failures
    assert len(probes_by_phase(read_record(directory))["sft"]) >= 4
    return read_scores(directory / "scores" / "0.safetensors")


@pytest.mark.parametrize(
    "settings",
    [
        {"packing": True, "max_length": 64},
        {"packing": True, "packing_strategy": "wrapped", "max_length": 64},
        {"padding_free": True, "max_length": None},
        {"gradient_checkpointing": True},
    ],
    ids=lambda settings: "+".join(settings),
)
def test_scores_do_not_depend_on_how_the_trainer_lays_its_batches_out(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    plain = baseline(sft(tmp_path / "plain"), tmp_path / "a")
    assert_same(baseline(sft(tmp_path / "other", **settings), tmp_path / "b"), plain, atol=0)


def schedule_free(kind: str, model: nn.Module) -> Any:
    weights = model.parameters()
    if kind == "wrapped":
        return schedulefree.ScheduleFreeWrapper(torch.optim.SGD(weights, lr=1e-2), momentum=0.9)
    return getattr(schedulefree, f"{kind}ScheduleFree")(weights, lr=1e-2)


def train(kind: str, gauge: ForceGauge | None, model: Any, optimizer: Any) -> list[torch.Tensor]:
    tokens = torch.tensor([words()("what of tea is hot? tea is hot")["input_ids"]])
    optimizer.train()
    for step in range(1, 6):
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if gauge is not None:
            gauge.step(model, step)
    state = [x for each in optimizer.state.values() for x in each.values()]
    found = [*model.parameters(), *(x for x in state if isinstance(x, torch.Tensor))]
    return [x.detach().clone() for x in found]


@pytest.mark.parametrize("kind", ["AdamW", "SGD", "wrapped"])
def test_evaluation_weights_are_scored_and_training_is_bit_identical(
    kind: str, tmp_path: Path
) -> None:
    model = tiny.llama()
    without = train(kind, None, model, schedule_free(kind, model))
    model = tiny.llama()
    optimizer = schedule_free(kind, model)
    options: dict[str, Any] = {"every": 1, "budget": None, "port": 0, "optimizer": optimizer}
    with ForceGauge(tiny.probe_set(), tiny.tokenizer(), directory=tmp_path, **options) as gauge:
        gauge.step(model, 0)
        watched = train(kind, gauge, model, optimizer)
    assert all(torch.equal(a, b) for a, b in zip(without, watched, strict=True))
    assert not gauge.failures
    lines = read_record(tmp_path)
    assert lines[0]["settings"]["weights"] == "evaluation"
    assert len(probes_by_phase(lines)["train"]) == 6
    trained = scored(model)
    optimizer.eval()
    used = scored(model)
    found = read_scores(tmp_path / "scores" / "5.safetensors")
    assert_same(found, used, atol=1e-6)
    assert np.nanmax(np.abs(used.values["logprob_mean"] - trained.values["logprob_mean"])) > NATS


def test_trained_weights_come_back_when_scoring_fails() -> None:
    model = tiny.llama()
    optimizer = schedule_free("AdamW", model)
    train("AdamW", None, model, optimizer)
    before = [weight.clone() for weight in model.parameters()]
    with pytest.raises(RuntimeError, match="no scores"), evaluation_weights(optimizer):
        raise RuntimeError("no scores today")
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(group["train_mode"] for group in optimizer.param_groups)


def test_other_optimizers_are_left_alone() -> None:
    model = tiny.llama()
    optimizer = torch.optim.AdamW(model.parameters())
    assert not is_schedule_free(optimizer)
    assert not is_schedule_free(None)
    with evaluation_weights(optimizer):
        assert [weight._version for weight in model.parameters()] == [
            weight._version for weight in tiny.llama().parameters()
        ]


def test_a_trainer_with_a_schedule_free_optimizer_is_bit_identical(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "optim": "schedule_free_adamw",
        "lr_scheduler_type": "constant",
        "learning_rate": 1e-2,
    }
    without, watched = (sft(tmp_path / name, **settings) for name in "ab")
    without.train()
    baseline(watched, tmp_path / "gauge")
    assert digest(watched) == digest(without)
    assert read_record(tmp_path / "gauge")[0]["settings"]["weights"] == "evaluation"
