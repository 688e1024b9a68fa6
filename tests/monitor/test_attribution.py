"""Attribution equals the inner products of autograd's per-sample gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from forcegauge.encoding import TokenSequence
from forcegauge_monitor.entk.attribution import (
    attribute,
    direction,
    disagreeing,
    rows_that_split,
    token_products,
)
from forcegauge_monitor.entk.rows import make_batches
from tests.monitor import tinies

KINDS = ("llama", "qwen2", "gpt2", "gpt_neox", "qwen3_moe")


def directions_of(net: nn.Module) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """Two response types of four probes each: stacked for the engine, and the plain way."""
    names = [name for name, p in net.named_parameters() if p.requires_grad]
    made, plain = [], []
    for seed in (10, 11):
        probes = tinies.sequences(4, seed=seed)
        ones = [torch.full((len(item.response),), 0.25) for item in probes]
        made.append(direction(net, names, make_batches(probes, 3), ones))
        parts = [tinies.gradient(net, item, one) for item, one in zip(probes, ones, strict=True)]
        plain.append({n: torch.stack([part[n] for part in parts]).sum(0) for n in names})
    return {name: torch.stack([each[name] for each in made]) for name in names}, plain


def expected(
    net: nn.Module,
    samples: Sequence[TokenSequence],
    weights: Sequence[Tensor],
    plain: Sequence[dict[str, Tensor]],
) -> Tensor:
    found = [
        [tinies.dot(each, tinies.gradient(net, item, weight)) for each in plain]
        for item, weight in zip(samples, weights, strict=True)
    ]
    return torch.tensor(found, dtype=torch.float64)


def assert_exact(net: nn.Module, rows: int = 4) -> None:
    samples = tinies.sequences(7, seed=3)
    weights = tinies.weights(samples)
    stacked, plain = directions_of(net)
    found = attribute(net, make_batches(samples, rows), weights, stacked)
    wanted = expected(net, samples, weights, plain)
    assert float(wanted.abs().min()) > 0
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [False, True])
def test_attribution_equals_products_of_per_sample_gradients(kind: str, tied: bool) -> None:
    assert_exact(tinies.model(kind, tie_word_embeddings=tied))


def with_lora(net: PreTrainedModel, **settings: Any) -> nn.Module:
    """Adapters on every linear layer, away from their start at zero."""
    every = "all-linear" if net.config.model_type != "qwen3_moe" else ["q_proj", "o_proj"]
    transposed = net.config.model_type == "gpt2"
    config = LoraConfig(target_modules=every, r=3, fan_in_fan_out=transposed, **settings)
    made = get_peft_model(net, config)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.3 * torch.randn_like(parameter))
    return made.eval()


@pytest.mark.parametrize("kind", KINDS)
def test_with_adapters_only_their_weights_count(kind: str) -> None:
    net = with_lora(tinies.model(kind))
    assert_exact(net)


def test_adapters_beside_trained_embeddings_and_biases() -> None:
    net = with_lora(tinies.model("gpt2"), bias="all", modules_to_save=["wte"])
    assert_exact(net)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_checkpointing_changes_nothing(kind: str, reentrant: bool) -> None:
    off: dict[str, Any] = {
        "attention_dropout": 0.0,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    }
    net = tinies.model(kind, **off)
    net.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert_exact(net.train())


def test_frozen_layers_are_left_out() -> None:
    net = tinies.model("llama")
    for name, parameter in net.named_parameters():
        parameter.requires_grad_("layers.1" in name)
    assert_exact(net)


def test_flags_and_gradients_of_the_model_are_left_as_they_were() -> None:
    net = tinies.model("qwen2")
    net.lm_head.weight.requires_grad_(False)
    before = [parameter.requires_grad for parameter in net.parameters()]
    assert_exact(net)
    assert [parameter.requires_grad for parameter in net.parameters()] == before
    assert all(parameter.grad is None for parameter in net.parameters())
    assert not any(module._forward_hooks for module in net.modules())


@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
def test_products_of_single_tokens_add_up_to_their_rows() -> None:
    net = tinies.model("qwen2", tie_word_embeddings=True)
    samples = tinies.sequences(3, seed=3)
    weights = tinies.weights(samples)
    stacked, plain = directions_of(net)
    [batch] = make_batches(samples, 3)
    by_token = token_products(net, batch, weights, stacked)
    for scores, place in zip(by_token, batch.places, strict=True):
        item, weight = samples[place], weights[place]
        for token in range(len(item.response)):
            alone = torch.zeros_like(weight)
            alone[token] = weight[token]
            wanted = [tinies.dot(each, tinies.gradient(net, item, alone)) for each in plain]
            torch.testing.assert_close(
                scores[token], torch.tensor(wanted).double(), rtol=1e-4, atol=1e-5
            )


def test_parameters_used_past_their_module_are_found() -> None:
    class Sidestep(nn.Module):
        """Adds to each logit something of the second layer's weights, without calling it."""

        def __init__(self, net: PreTrainedModel) -> None:
            super().__init__()
            self.net = net

        def forward(self, **inputs: Any) -> Any:
            found = self.net(**inputs)
            weight = self.net.model.layers[1].mlp.down_proj.weight
            found.logits = found.logits * (1 + weight.square().sum())
            return found

    net = Sidestep(tinies.model("llama"))
    samples = tinies.sequences(4, seed=3)
    stacked, _ = directions_of(net)
    found = disagreeing(net, make_batches(samples, 4)[0], tinies.weights(samples), stacked)
    assert found == ["net.model.layers.1.mlp.down_proj.weight"]


def test_a_model_that_mixes_rows_is_not_split() -> None:
    class Mixing(nn.Module):
        def __init__(self, net: PreTrainedModel) -> None:
            super().__init__()
            self.net = net
            self.shift = nn.Embedding(64, tinies.VOCABULARY)

        def forward(self, **inputs: Any) -> Any:
            found = self.net(**inputs)
            found.logits = found.logits + self.shift(torch.tensor([[3]]))
            return found

    net = Mixing(tinies.model("llama"))
    samples = tinies.sequences(4, seed=3)
    weights = tinies.weights(samples)
    stacked, _ = directions_of(net)
    assert not rows_that_split(net, make_batches(samples, 4)[0], weights, stacked)
    assert rows_that_split(net, make_batches(samples, 1)[0], weights, stacked)
    assert_exact(net, rows=1)
