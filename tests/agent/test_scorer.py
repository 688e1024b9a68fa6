"""Scoring against an independent plain computation."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from forcegauge.errors import InputError
from forcegauge.probes import Probe, ProbeSet
from forcegauge.scorer import Scorer
from forcegauge.scores import STATISTICS, TOKEN_STATISTICS

Make = Callable[..., PreTrainedModel]

WORDS = "the gauge reads a force where mass flows to one token and away from others".split()  # noqa: SIM905
PROBES = ProbeSet(
    tuple(
        Probe(
            f"p{n}",
            " ".join(WORDS[n : n + 2 + n]),
            {
                "chosen": " ".join(WORDS[: n + 1]),
                "rejected": " ".join(WORDS[-3:]) * (n + 1),
                "unrelated": "x",
            },
        )
        for n in range(5)
    )
)


def plain_logprobs(
    model: nn.Module, tokenizer: Any, probe_set: ProbeSet, eos: bool = False, side: str = "right"
) -> dict[tuple[str, str], list[float]]:
    """The plain way: one padded batch per type, log_softmax of all logits in float32, gather."""
    found = {}
    for name in probe_set.types:
        probes = [probe for probe in probe_set.probes if name in probe.responses]
        pairs = []
        for probe in probes:
            prompt = tokenizer(probe.prompt)["input_ids"] or [tokenizer.bos_token_id]
            response = tokenizer(probe.responses[name], add_special_tokens=False)["input_ids"]
            pairs.append((prompt, response + [tokenizer.eos_token_id] * eos))
        width = max(len(prompt) + len(response) for prompt, response in pairs)
        ids = torch.full((len(pairs), width), tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        starts = []
        for row, (prompt, response) in enumerate(pairs):
            tokens = torch.tensor(prompt + response)
            start = 0 if side == "right" else width - len(tokens)
            ids[row, start : start + len(tokens)] = tokens
            mask[row, start : start + len(tokens)] = 1
            starts.append(start)
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        with torch.no_grad():
            output = model(input_ids=ids, attention_mask=mask, position_ids=positions)
        log_probs = output.logits.float().log_softmax(-1)
        for row, (probe, (prompt, response)) in enumerate(zip(probes, pairs, strict=True)):
            first = starts[row] + len(prompt) - 1
            at = log_probs[row, first : first + len(response)]
            found[probe.id, name] = at.gather(1, torch.tensor(response)[:, None])[:, 0].tolist()
    return found


def scored_logprobs(scorer: Scorer, model: nn.Module) -> dict[tuple[str, str], list[float]]:
    tokens = (scores := scorer.score(model)).per_token
    found: dict[tuple[str, str], list[float]] = {}
    for probe, place, value in zip(
        tokens.probe, tokens.type, tokens.values["logprob"], strict=True
    ):
        found.setdefault((scores.ids[probe], scores.types[place]), []).append(float(value))
    return found


def assert_same(
    found: dict[tuple[str, str], list[float]], wanted: dict[tuple[str, str], list[float]]
) -> None:
    assert found.keys() == wanted.keys()
    for key, values in wanted.items():
        np.testing.assert_allclose(found[key], values, rtol=0, atol=1e-4, err_msg=str(key))


KINDS = [
    ("llama", {}),
    ("llama", {"tie_word_embeddings": True}),
    ("qwen2", {}),
    ("qwen2", {"tie_word_embeddings": True}),
    ("gpt2", {}),
    ("gpt2", {"tie_word_embeddings": False}),
    ("gpt_neox", {}),
]


@pytest.mark.parametrize(("kind", "changes"), KINDS)
@pytest.mark.parametrize("side", ["right", "left"])
def test_log_probs_are_those_of_the_plain_way(
    kind: str, changes: dict[str, Any], side: str, tiny_model: Make, tokenizer: Any
) -> None:
    model = tiny_model(kind, **changes)
    found = scored_logprobs(Scorer(PROBES, tokenizer, append_eos=True), model)
    assert_same(found, plain_logprobs(model, tokenizer, PROBES, eos=True, side=side))


def test_the_fast_reading_of_logits_is_used(tiny_model: Make, tokenizer: Any) -> None:
    for kind in ("llama", "gpt2", "gpt_neox", "qwen2"):
        scorer = Scorer(PROBES, tokenizer)
        scorer.score(tiny_model(kind))
        assert scorer.reading == "head"


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("gemma2", {"final_logit_softcapping": 3.0, "head_dim": 8, "num_key_value_heads": 1}),
        ("cohere", {"logit_scale": 0.25}),
        ("granite", {"logits_scaling": 3.0}),
    ],
)
def test_scaled_and_soft_capped_logits_are_read_in_the_head(
    kind: str, changes: dict[str, Any], tiny_model: Make, tokenizer: Any
) -> None:
    model = tiny_model(kind, **changes)
    scorer = Scorer(PROBES, tokenizer)
    assert_same(scored_logprobs(scorer, model), plain_logprobs(model, tokenizer, PROBES))
    assert scorer.reading == "head"


def test_an_unknown_change_to_the_logits_falls_back_on_the_models_own(
    tiny_model: Make, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama")
    original = model.forward

    def capped(*args: Any, **kwargs: Any) -> Any:
        output = original(*args, **kwargs)
        output.logits = 30 * torch.tanh(output.logits / 30)
        return output

    monkeypatch.setattr(model, "forward", capped)
    scorer = Scorer(PROBES, tokenizer)
    assert_same(scored_logprobs(scorer, model), plain_logprobs(model, tokenizer, PROBES))
    assert scorer.reading == "rows"


def test_a_model_without_a_named_head_is_read_the_slow_way(
    tiny_model: Make, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    model = tiny_model("llama")
    monkeypatch.setattr(model, "get_output_embeddings", lambda: None)
    scorer = Scorer(PROBES, tokenizer)
    with caplog.at_level(logging.WARNING):
        assert_same(scored_logprobs(scorer, model), plain_logprobs(model, tokenizer, PROBES))
    assert scorer.reading == "logits"
    assert "right but slow" in caplog.text


@pytest.mark.parametrize("budget", [1, 40, 100_000])
def test_the_token_budget_changes_nothing(budget: int, tiny_model: Make, tokenizer: Any) -> None:
    model = tiny_model("llama")
    found = scored_logprobs(Scorer(PROBES, tokenizer, token_budget=budget), model)
    assert_same(found, plain_logprobs(model, tokenizer, PROBES))


def test_the_order_of_probes_changes_nothing(tiny_model: Make, tokenizer: Any) -> None:
    model = tiny_model("gpt2")
    turned = ProbeSet(tuple(reversed(PROBES.probes)))
    assert_same(
        scored_logprobs(Scorer(turned, tokenizer), model),
        scored_logprobs(Scorer(PROBES, tokenizer), model),
    )


def test_the_tokenizers_padding_side_changes_nothing(
    tiny_model: Make, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = tiny_model("llama")
    before = scored_logprobs(Scorer(PROBES, tokenizer), model)
    tokenizer.padding_side = "left"
    assert scored_logprobs(Scorer(PROBES, tokenizer), model) == before


@pytest.mark.parametrize("convert", [nn.Module.float, nn.Module.bfloat16])
def test_the_same_weights_in_the_same_layout_give_the_same_bits(
    convert: Callable[[nn.Module], nn.Module], tiny_model: Make, tokenizer: Any
) -> None:
    scorer = Scorer(PROBES, tokenizer)
    first, again = (scorer.score(convert(tiny_model("llama"))) for _ in range(2))
    fresh = Scorer(PROBES, tokenizer).score(convert(tiny_model("llama")))
    for name in STATISTICS:
        for other in (again, fresh):
            np.testing.assert_array_equal(first.values[name], other.values[name], err_msg=name)


lengths = st.integers(1, 30)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    shape=st.lists(
        st.tuples(st.integers(0, 40), st.lists(lengths, min_size=1, max_size=4)),
        min_size=1,
        max_size=4,
    ),
    budget=st.integers(1, 300),
)
def test_any_lengths_are_those_of_the_plain_way(
    shape: list[tuple[int, list[int]]], budget: int, tiny_model: Make, tokenizer: Any
) -> None:
    text = " ".join(WORDS * 2)
    names = ("chosen", "rejected", "other_prompt", "shuffled")
    probe_set = ProbeSet(
        tuple(
            Probe(
                f"{n}",
                text[n : n + prompt],
                {k: text[v:][:v] for k, v in zip(names[: len(many)], many, strict=True)},
            )
            for n, (prompt, many) in enumerate(shape)
        )
    )
    model = tiny_model("llama")
    found = scored_logprobs(Scorer(probe_set, tokenizer, token_budget=budget), model)
    assert_same(found, plain_logprobs(model, tokenizer, probe_set))


def test_every_statistic_is_there(tiny_model: Make, tokenizer: Any) -> None:
    scores = Scorer(PROBES, tokenizer, append_eos=True).score(tiny_model("llama"))
    assert tuple(scores.values) == STATISTICS
    assert all(np.isfinite(scores.values[name]).all() for name in STATISTICS)
    assert tuple(scores.per_token.values) == TOKEN_STATISTICS


def test_statistics_of_a_response_are_means_over_its_tokens(
    tiny_model: Make, tokenizer: Any
) -> None:
    scores = Scorer(PROBES, tokenizer).score(tiny_model("llama"))
    tokens = scores.per_token
    mine = (tokens.probe == 3) & (tokens.type == 1)
    long = tokens.values["logprob"][mine].astype(np.float64)
    values = {name: scores.values[name][3, 1] for name in STATISTICS}
    assert values["tokens"] == len(long) > 8
    assert values["logprob_sum"] == pytest.approx(long.sum())
    assert values["logprob_mean"] == pytest.approx(long.mean())
    assert values["logprob_prefix"] == pytest.approx(long[:8].mean())
    assert values["entropy"] == pytest.approx(tokens.values["entropy"][mine].mean(), rel=1e-6)
    masses = values["mass_target"] + values["mass_argmax"] + values["mass_rest"]
    assert masses == pytest.approx(1.0)


def test_a_short_response_is_its_own_prefix(tiny_model: Make, tokenizer: Any) -> None:
    scores = Scorer(PROBES, tokenizer).score(tiny_model("llama"))
    np.testing.assert_allclose(
        scores.column("logprob_prefix", "unrelated"), scores.column("logprob_mean", "unrelated")
    )


def test_the_eos_log_prob_is_that_of_the_last_token(tiny_model: Make, tokenizer: Any) -> None:
    scorer = Scorer(PROBES, tokenizer, append_eos=True, max_response_tokens=6)
    scores = scorer.score(tiny_model("llama"))
    tokens = scores.per_token
    last = tokens.values["logprob"][(tokens.probe == 0) & (tokens.type == 0)][-1]
    assert scores.column("eos_logprob", "chosen")[0] == pytest.approx(last)
    assert np.isnan(scores.column("eos_logprob", "rejected")).all(), "cut off before the EOS"


def test_without_an_appended_eos_its_log_prob_is_absent(tiny_model: Make, tokenizer: Any) -> None:
    scores = Scorer(PROBES, tokenizer).score(tiny_model("llama"))
    assert np.isnan(scores.values["eos_logprob"]).all()


def test_an_absent_response_is_nan(tiny_model: Make, tokenizer: Any) -> None:
    probes = (Probe("a", "q", {"chosen": "x"}), Probe("b", "q", {"chosen": "y", "rejected": "z"}))
    scores = Scorer(ProbeSet(probes), tokenizer).score(tiny_model("llama"))
    assert np.isnan(scores.column("logprob_sum", "rejected")).tolist() == [True, False]


def test_a_probe_beyond_the_context_is_named_with_a_fix(tiny_model: Make, tokenizer: Any) -> None:
    probe_set = ProbeSet((Probe("long", "q" * 300, {"chosen": "x"}),))
    with pytest.raises(InputError, match=r"'long', chosen: .* 301 tokens .* 256.*max-prompt-tok"):
        Scorer(probe_set, tokenizer).score(tiny_model("llama"))


def test_truncation_makes_a_long_probe_fit(tiny_model: Make, tokenizer: Any) -> None:
    probe_set = ProbeSet((Probe("long", "q" * 300, {"chosen": "x"}),))
    scores = Scorer(probe_set, tokenizer, max_prompt_tokens=255).score(tiny_model("llama"))
    assert np.isfinite(scores.values["logprob_sum"]).all()


def test_another_models_tokenizer_is_an_input_error(tiny_model: Make, tokenizer: Any) -> None:
    with pytest.raises(InputError, match="the model knows 50 tokens"):
        Scorer(PROBES, tokenizer).score(tiny_model("llama", vocab_size=50))


def test_layout_noise_in_float32_is_small_and_by_type(tiny_model: Make, tokenizer: Any) -> None:
    noise = Scorer(PROBES, tokenizer).noise(tiny_model("llama"))
    assert set(noise) == set(PROBES.types)
    assert 0 < max(noise.values()) < 1e-5


def test_layout_noise_of_shorter_floats_is_larger(tiny_model: Make, tokenizer: Any) -> None:
    model, scorer = tiny_model("llama"), Scorer(PROBES, tokenizer)
    fine = scorer.noise(model)
    coarse = Scorer(PROBES, tokenizer).noise(model.bfloat16())
    assert max(coarse.values()) > 10 * max(fine.values())


def test_progress_counts_every_response_token(tiny_model: Make, tokenizer: Any) -> None:
    counts: list[int] = []
    scorer = Scorer(PROBES, tokenizer, token_budget=100)
    scorer.score(tiny_model("llama"), advance=counts.append)
    assert len(counts) > 1
    assert sum(counts) == scorer.tokens


def test_some_probes_score_as_they_do_among_all(tiny_model: Make, tokenizer: Any) -> None:
    model, scorer = tiny_model("llama"), Scorer(PROBES, tokenizer)
    whole, some = scorer.score(model), scorer.score(model, probes=[3, 1])
    for name in STATISTICS:
        np.testing.assert_allclose(
            some.values[name][[1, 3]], whole.values[name][[1, 3]], rtol=1e-4, atol=1e-4
        )
        assert np.isnan(some.values[name][[0, 2, 4]]).all()
    assert set(some.per_token.probe) == {1, 3}
    assert some.ids == whole.ids


@pytest.mark.parametrize("probes", [[], [5], [-1]])
def test_probes_that_are_none_are_refused(
    probes: list[int], tiny_model: Make, tokenizer: Any
) -> None:
    with pytest.raises(IndexError, match="no probes of 5"):
        Scorer(PROBES, tokenizer).score(tiny_model("llama"), probes=probes)


def hooks(model: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules())


def test_the_model_is_left_as_it_was(tiny_model: Make, tokenizer: Any) -> None:
    model = tiny_model("llama").train()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    Scorer(PROBES, tokenizer).score(model)
    assert hooks(model) == 0
    assert all(part.training for part in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_no_hook_is_left_when_a_forward_fails(tiny_model: Make, tokenizer: Any) -> None:
    model, scorer = tiny_model("llama"), Scorer(PROBES, tokenizer)
    scorer.score(model)

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    handle = model.model.layers[1].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        scorer.score(model)
    handle.remove()
    assert hooks(model) == 0


class Wrapper(nn.Module):
    """What DDP is to a model: a module with the model inside and a forward that passes on."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.calls = 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return self.module(*args, **kwargs)


def test_a_wrapped_model_is_called_through_its_wrapper(tiny_model: Make, tokenizer: Any) -> None:
    model = tiny_model("llama")
    wrapper = Wrapper(model)
    found = scored_logprobs(Scorer(PROBES, tokenizer), wrapper)
    assert_same(found, plain_logprobs(model, tokenizer, PROBES))
    assert wrapper.calls > 0


def test_an_empty_probe_set_is_an_input_error(tokenizer: Any) -> None:
    with pytest.raises(InputError, match="the probe set is empty"):
        Scorer(ProbeSet(()), tokenizer)


@pytest.mark.slow
def test_a_real_models_log_probs_are_those_of_the_plain_way(smollm2: Path) -> None:
    from forcegauge.loading import load_model, load_tokenizer

    model, tokenizer = load_model(str(smollm2)), load_tokenizer(str(smollm2))
    scorer = Scorer(PROBES, tokenizer, append_eos=True)
    found = scored_logprobs(scorer, model)
    assert_same(found, plain_logprobs(model, tokenizer, PROBES, eos=True, side="left"))
    assert (scorer.way, scorer.reading) == ("shared", "head")
