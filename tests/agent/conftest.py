"""Small real parts: a byte-level tokenizer and causal language models with random weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

TEMPLATE = (
    "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


def make_tokenizer(**special: str) -> PreTrainedTokenizerFast:
    """One token per byte, and the special tokens that are named."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate([*special.values(), *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte tokens with BOS, EOS and a chat template; pad is EOS, as in many real models."""
    made = make_tokenizer(bos_token="<s>", eos_token="</s>")
    made.pad_token = made.eos_token
    made.chat_template = TEMPLATE
    return made


SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2, "intermediate_size": 64},
    "qwen2": {"num_key_value_heads": 1, "intermediate_size": 64},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "gpt_neox": {"intermediate_size": 64, "rotary_pct": 0.5},
}


@pytest.fixture
def tiny_model() -> Callable[..., PreTrainedModel]:
    """Makes a causal language model of a kind with large random weights, so that errors show."""

    def make(kind: str, **changes: Any) -> PreTrainedModel:
        torch.manual_seed(0)
        shape = {
            "vocab_size": 270,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 256,
            "initializer_range": 0.3,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": 1,
        }
        config = AutoConfig.for_model(kind, **shape | SHAPES.get(kind, {}) | changes)
        made: PreTrainedModel = AutoModelForCausalLM.from_config(config).eval()
        return made

    return make
