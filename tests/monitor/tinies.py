"""Tiny causal language models of several architectures, token sequences and plain gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from forcegauge.encoding import TokenSequence

VOCABULARY = 40

SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2, "intermediate_size": 24},
    "qwen2": {"num_key_value_heads": 1, "intermediate_size": 24},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "gpt_neox": {"intermediate_size": 24, "rotary_pct": 0.5},
    "qwen3_moe": {
        "num_key_value_heads": 2,
        "head_dim": 4,
        "intermediate_size": 24,
        "moe_intermediate_size": 8,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "decoder_sparse_step": 1,
    },
}


def model(kind: str, *, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A model of 16 dimensions with large random weights everywhere, so that errors show."""
    torch.manual_seed(seed)
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }
    config = AutoConfig.for_model(kind, **shape | SHAPES[kind] | changes)
    made: PreTrainedModel = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def sequences(count: int, *, seed: int = 0) -> list[TokenSequence]:
    """Prompts and responses of random tokens and lengths, the pad token among them."""
    draw = torch.Generator().manual_seed(seed)

    def tokens(low: int, high: int) -> tuple[int, ...]:
        size = int(torch.randint(low, high, (1,), generator=draw))
        return tuple(torch.randint(0, VOCABULARY, (size,), generator=draw).tolist())

    return [TokenSequence(i, 0, tokens(2, 6), tokens(2, 7)) for i in range(count)]


def logprobs(net: nn.Module, item: TokenSequence) -> Tensor:
    """log pi of each response token, the plain way: one sequence, all logits."""
    ids = torch.tensor([[*item.prompt, *item.response]])
    logits = net(input_ids=ids).logits[0].float().log_softmax(-1)
    places = torch.arange(len(item.response)) + len(item.prompt) - 1
    found: Tensor = logits[places, torch.tensor(item.response)]
    return found


def gradient(net: nn.Module, item: TokenSequence, weight: Tensor) -> dict[str, Tensor]:
    """Autograd's gradient of sum_t w_t log pi(y_t) for one sequence, every trainable parameter."""
    named = {name: p for name, p in net.named_parameters() if p.requires_grad}
    (weight * logprobs(net, item)).sum().backward()
    found = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in named.items()}
    net.zero_grad(set_to_none=True)
    return found


def dot(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Inner product over all parameters."""
    return sum(float((one[name].double() * other[name].double()).sum()) for name in one)


def weights(items: Sequence[TokenSequence], *, seed: int = 1) -> list[Tensor]:
    """A random weight of either sign for each response token."""
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(len(item.response), generator=draw) for item in items]
