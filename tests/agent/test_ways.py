"""Ways to run a pass: equal to single sequences on many architectures, or not used."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel

from forcegauge import head as heads
from forcegauge import ways
from forcegauge.attention import NAME, AttentionError, attending, shared_row
from forcegauge.encoding import TokenSequence
from forcegauge.layout import shared_batches
from forcegauge.ways import Way
from tests.agent.shapes import EVERY_WAY, few, make_sequences, shapes

Make = Callable[..., PreTrainedModel]

GQA = {"num_key_value_heads": 2, "intermediate_size": 64}
MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 32, **GQA}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}

ARCHITECTURES: dict[str, tuple[Way, str, dict[str, Any]]] = {
    "grouped queries": ("shared", "llama", GQA),
    "one key head": ("shared", "llama", GQA | {"num_key_value_heads": 1}),
    "tied head": ("shared", "llama", GQA | {"tie_word_embeddings": True}),
    "biases": ("shared", "qwen2", GQA),
    "normed queries": ("shared", "qwen3", GQA | {"head_dim": 16}),
    "learned positions": ("shared", "gpt2", GPT),
    "scaled by layer": ("shared", "gpt2", GPT | {"scale_attn_by_inverse_layer_idx": True}),
    "offset positions": ("shared", "opt", {"ffn_dim": 64, "word_embed_proj_dim": 32}),
    "partial rotary": ("shared", "gpt_neox", {"intermediate_size": 64, "rotary_pct": 0.5}),
    "parallel layers": ("shared", "phi", {"intermediate_size": 64}),
    "soft-capped": (
        "shared",
        "gemma2",
        GQA | {"head_dim": 8, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    ),
    "scaled logits": ("shared", "cohere", GQA | {"logit_scale": 0.25}),
    "divided logits": ("shared", "granite", GQA | {"logits_scaling": 3.0}),
    "latent attention": (
        "shared",
        "deepseek_v3",
        {
            "intermediate_size": 64,
            "moe_intermediate_size": 32,
            "n_routed_experts": 4,
            "n_group": 1,
            "topk_group": 1,
            "num_experts_per_tok": 2,
            "kv_lora_rank": 16,
            "q_lora_rank": 16,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
            "first_k_dense_replace": 1,
        },
    ),
    "experts": ("shared", "mixtral", GQA | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "shared expert": (
        "shared",
        "qwen2_moe",
        MOE | {"num_experts": 4, "shared_expert_intermediate_size": 32},
    ),
    "wide window": ("shared", "mistral", GQA | {"sliding_window": 200}),
    "narrow window": ("shared", "mistral", GQA | {"sliding_window": 16}),
    "some windows": ("shared", "gemma3_text", GQA | {"head_dim": 8, "sliding_window": 16}),
    "chunks": (
        "cached",
        "llama4_text",
        GQA
        | {
            "num_local_experts": 2,
            "head_dim": 8,
            "intermediate_size_mlp": 64,
            "attention_chunk_size": 16,
        },
    ),
    "attention sinks": (
        "shared",
        "gpt_oss",
        GQA
        | {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "head_dim": 8,
            "sliding_window": 16,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
    ),
    "ALiBi": ("cached", "bloom", {"n_layer": 2, "n_head": 4}),
    "ALiBi, another": (
        "cached",
        "mpt",
        {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 256},
    ),
    "its own attention": (
        "cached",
        "gpt_neo",
        {
            "attention_types": [[["global", "local"], 1]],
            "num_layers": 2,
            "num_heads": 4,
            "window_size": 8,
        },
    ),
    "hybrid": (
        "cached",
        "falcon_h1",
        GQA
        | {
            "mamba_d_ssm": 32,
            "mamba_n_heads": 4,
            "mamba_d_head": 8,
            "mamba_d_state": 8,
            "mamba_n_groups": 1,
            "mamba_chunk_size": 8,
        },
    ),
    "state space": (
        "cached",
        "mamba2",
        {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 8},
    ),
    "state space without continuation": ("padded", "mamba", {"state_size": 8}),
}


MIXED = make_sequences([(30, [12, 1, 25, 7]), (1, [5, 5]), (9, [1, 1]), (17, [3, 40])])


def plain(model: PreTrainedModel, sequences: Sequence[TokenSequence]) -> Tensor:
    """Log-probs of all response tokens, one sequence at a time."""
    found = []
    for item in sequences:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*item.prompt, *item.response]])).logits[0]
        log_probs = logits.float().log_softmax(-1)[len(item.prompt) - 1 : -1]
        found.append(log_probs.gather(1, torch.tensor(item.response)[:, None])[:, 0])
    return torch.cat(found)


def scored(
    model: PreTrainedModel,
    sequences: Sequence[TokenSequence],
    way: Way,
    reading: heads.Reading = "head",
    budget: int = 100,
) -> Tensor:
    found = torch.full((sum(len(item.response) for item in sequences),), torch.nan)
    with torch.no_grad():
        for batch in ways.batches(way, sequences, budget):
            statistics = ways.run(model, heads.head_of(model), batch, reading)
            found[torch.from_numpy(batch.slots)] = statistics["logprob"]
    return found


def assert_near(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_chosen_way_is_equal_to_single_sequences(name: str, tiny_model: Make) -> None:
    way, kind, changes = ARCHITECTURES[name]
    model = tiny_model(kind, **changes)
    with torch.no_grad():
        choice = ways.choose(model, MIXED, 100)
    assert choice.way == way
    assert_near(scored(model, MIXED, choice.way, choice.reading), plain(model, MIXED))


@pytest.mark.parametrize("reading", ["head", "rows", "logits"])
@pytest.mark.parametrize("way", EVERY_WAY)
def test_every_way_and_reading_is_equal_to_single_sequences(
    way: Way, reading: heads.Reading, tiny_model: Make
) -> None:
    model = tiny_model("llama")
    assert_near(scored(model, MIXED, way, reading), plain(model, MIXED))


@few
@given(
    shape=shapes(),
    budget=st.integers(1, 400),
    seed=st.integers(0, 99),
)
def test_any_lengths_packing_and_budget_are_equal_to_single_sequences(
    shape: list[tuple[int, list[int]]], budget: int, seed: int, tiny_model: Make
) -> None:
    sequences = make_sequences(shape, seed)
    for kind in ("llama", "gpt2"):
        model = tiny_model(kind)
        wanted = plain(model, sequences)
        for way in EVERY_WAY[:2]:
            assert_near(scored(model, sequences, way, budget=budget), wanted)


@few
@given(probes=st.permutations(range(4)), budget=st.integers(1, 250))
def test_any_packing_order_gives_each_response_its_own_numbers(
    probes: list[int], budget: int, tiny_model: Make
) -> None:
    model, sizes = tiny_model("llama"), [len(item.response) for item in MIXED]
    alone = dict(zip(MIXED, plain(model, MIXED).split(sizes), strict=True))
    turned = [item for probe in probes for item in reversed(MIXED) if item.probe == probe]
    for way in EVERY_WAY:
        found = scored(model, turned, way, budget=budget)
        assert_near(found, torch.cat([alone[item] for item in turned]))


def test_very_long_prompts_and_responses_are_equal_to_single_sequences(tiny_model: Make) -> None:
    sequences = make_sequences([(1500, [1, 700, 40]), (3, [900, 2])])
    for changes in ({}, {"num_key_value_heads": 1}):
        model = tiny_model("llama", max_position_embeddings=4096, **changes)
        wanted = plain(model, sequences)
        for way in EVERY_WAY[:2]:
            assert_near(scored(model, sequences, way, budget=1000), wanted)


def test_equal_responses_score_equal(tiny_model: Make) -> None:
    prompt, response = tuple(range(5, 25)), tuple(range(30, 45))
    twins = [TokenSequence(0, place, prompt, response) for place in range(5)]
    for way in EVERY_WAY:
        first, *others = scored(tiny_model("gpt2"), twins, way, budget=300).view(5, -1)
        for other in others:
            torch.testing.assert_close(other, first, rtol=0, atol=1e-5)


def test_a_response_sees_nothing_of_its_neighbours(tiny_model: Make) -> None:
    model = tiny_model("llama")
    (alone,) = [item for item in MIXED if (item.probe, item.type) == (3, 1)]
    others = [TokenSequence(i.probe, i.type, i.prompt, (5,) * len(i.response)) for i in MIXED]
    others[-1] = alone
    found = scored(model, others, "shared", budget=10_000)[-len(alone.response) :]
    assert_near(found, scored(model, [alone], "shared"))


def test_a_model_that_autocasts_is_scored_the_fast_way(
    tiny_model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama")
    autocast = torch.autocast("cpu", dtype=torch.bfloat16)
    monkeypatch.setattr(model, "forward", autocast(model.forward))
    with torch.no_grad():
        choice = ways.choose(model, MIXED, 100)
    assert (choice.way, choice.reading) == ("shared", "head")


def test_bfloat16_weights_are_scored_the_fast_way(tiny_model: Make) -> None:
    model = tiny_model("llama").bfloat16()
    with torch.no_grad():
        choice = ways.choose(model, MIXED, 100)
    assert (choice.way, choice.reading) == ("shared", "head")


def test_what_was_chosen_is_said(tiny_model: Make, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), torch.no_grad():
        ways.choose(tiny_model("llama"), MIXED, 100)
        ways.choose(tiny_model("mamba", state_size=8), MIXED, 100)
    said = [record for record in caplog.records if "scoring runs by way" in record.message]
    assert [record.levelno for record in said] == [logging.INFO, logging.WARNING]
    assert "'padded'" in said[1].message


def test_a_model_that_padding_changes_is_scored_one_sequence_at_a_time(
    tiny_model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("bloom", n_layer=2, n_head=4)
    original = model.forward

    def leaky(input_ids: Tensor, attention_mask: Tensor, **kwargs: Any) -> Any:
        output = original(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        output.logits = output.logits * (1 + 0.1 * input_ids.shape[0])
        output.past_key_values = None
        return output

    monkeypatch.setattr(model, "forward", leaky)
    with torch.no_grad():
        choice = ways.choose(model, MIXED, 1000)
    assert choice.way == "single"


def settings_of(model: PreTrainedModel) -> list[str]:
    configs: list[Any] = [part.config for part in model.modules() if hasattr(part, "config")]
    return [config._attn_implementation for config in configs]


def test_the_attention_setting_is_put_back(tiny_model: Make) -> None:
    model = tiny_model("llama")
    before = settings_of(model)
    (batch,) = shared_batches(MIXED, 10_000)
    seen = []

    def fail() -> None:
        with attending(model, shared_row(batch.blocks, torch.device("cpu"))):
            seen.extend(settings_of(model))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert set(seen) == {NAME}
    assert settings_of(model) == before


def test_the_attention_setting_of_the_user_is_put_back(tiny_model: Make) -> None:
    model = tiny_model("llama")
    model.set_attn_implementation("eager")
    scored(model, MIXED, "shared")
    assert set(settings_of(model)) == {"eager"}


def test_attention_outside_a_pass_is_refused(tiny_model: Make) -> None:
    model = tiny_model("llama")
    model.set_attn_implementation(NAME)
    with pytest.raises(AttentionError, match="not called by a scoring pass"):
        model(input_ids=torch.tensor([[3, 4]]))


def test_attention_dropout_is_refused(tiny_model: Make) -> None:
    model = tiny_model("llama", attention_dropout=0.1).train()
    with pytest.raises(AttentionError, match="dropout"):
        scored(model, MIXED, "shared")


def test_running_out_of_memory_is_not_taken_for_another_way(
    tiny_model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama")

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(ways, "attending", full)
    with pytest.raises(torch.OutOfMemoryError), torch.no_grad():
        ways.choose(model, MIXED, 100)


def test_many_responses_of_other_lengths_make_no_large_masks(tiny_model: Make) -> None:
    sequences = make_sequences([(20, [200, *[3] * 11])])
    (batch,) = shared_batches(sequences, 10_000)
    row = shared_row(batch.blocks, torch.device("cpu"))
    assert sorted(group.width for group in row.responses) == [2, 199]
