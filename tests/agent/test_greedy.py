"""Greedy decoding against a plain loop, and measures of repetition by hand."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from forcegauge.greedy import greedy_decode, leakage, overlap, repetition, stop_tokens


def llama() -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=61,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config)
    model.eval()
    return model


def gpt2() -> PreTrainedModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=61,
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=64,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = GPT2LMHeadModel(config)
    model.eval()
    return model


@torch.no_grad()
def plain(model: PreTrainedModel, prompt: list[int], new_tokens: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(new_tokens):
        tokens.append(int(model(input_ids=torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("build", [llama, gpt2])
def test_prompts_of_different_lengths_decode_as_each_does_alone(build: object) -> None:
    model = build()  # type: ignore[operator]
    prompts = [[5, 6, 7, 8, 9], [10], [11, 12, 13]]
    with torch.no_grad():
        out = greedy_decode(model, prompts, new_tokens=6, stop=frozenset())
    assert out == [plain(model, prompt, 6) for prompt in prompts]


def test_an_output_ends_before_the_first_stop_token() -> None:
    model = llama()
    with torch.no_grad():
        free = greedy_decode(model, [[5, 6, 7]], new_tokens=6, stop=frozenset())[0]
        cut = greedy_decode(model, [[5, 6, 7]], new_tokens=6, stop=frozenset({free[3]}))[0]
    assert cut == free[: free.index(free[3])]


def test_stop_tokens_come_from_settings_and_tokenizer() -> None:
    assert stop_tokens(llama(), 7) == {2, 7}
    assert stop_tokens(llama(), None) == {2}


def test_repetition_counts_ngrams_that_stood_before() -> None:
    assert repetition([[1, 2, 3, 4, 5, 6]]) == 0
    assert repetition([[1] * 8]) == pytest.approx(0.8)
    assert math.isnan(repetition([[1, 2, 3]]))


def test_overlap_is_shared_between_prompts() -> None:
    assert overlap([[1, 2, 3, 4], [1, 2, 3, 4]]) == 1
    assert overlap([[1, 2, 3, 4], [5, 6, 7, 8]]) == 0
    assert math.isnan(overlap([[1, 2, 3, 4]]))


def test_leakage_counts_other_answers_and_not_the_own() -> None:
    outputs = [[1, 2, 3, 4, 5], [9, 9, 9, 9]]
    own = [[1, 2, 3, 4], [7, 7, 7, 7]]
    others = [[2, 3, 4, 5], [1, 2, 3, 4]]
    assert leakage(outputs, own, others) == pytest.approx(0.25)
