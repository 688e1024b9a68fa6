"""How each pair is measured: against autograd of the head, plain loops and real training steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import forcegauge
from forcegauge import pairs as measured
from forcegauge.errors import InputError
from forcegauge.head import Head
from forcegauge.pairs import (
    PairMeter,
    PairValues,
    TokenPair,
    ches,
    encode_pair,
    entanglement,
    head_gram,
    unfit,
    weights_hash,
)
from forcegauge.pairs_input import Pair, read_pairs

Make = Callable[..., PreTrainedModel]

PROMPT = (5, 9, 12, 40, 77)
PLAIN = TokenPair(PROMPT, (30, 31, 32, 33, 200, 7), (60, 61, 31, 90))
COPY = TokenPair(PROMPT, (30, 31, 32, 33, 200, 7), (30, 31, 32, 33, 200, 8))
SHORT = TokenPair((3,), (30, 31), (30, 31, 99, 100, 101))

KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "gpt_neox": {},
    "phi": {"intermediate_size": 64},
    "cohere": {"logit_scale": 0.25, "intermediate_size": 64, "tie_word_embeddings": False},
    "granite": {"logits_scaling": 4.0, "intermediate_size": 64, "num_key_value_heads": 2},
    "gemma2": {
        "final_logit_softcapping": 2.0,
        "head_dim": 8,
        "intermediate_size": 64,
        "num_key_value_heads": 2,
        "tie_word_embeddings": False,
    },
}
"""Heads: plain, plain, with a bias, scaled up or down, soft-capped."""


def measure(model: PreTrainedModel, *pairs: TokenPair) -> list[PairValues]:
    return list(PairMeter(model, pairs).measure(pairs))


def logprob(model: PreTrainedModel, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
    """Summed log-prob of an answer, the plainest way."""
    logits: Tensor = model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).sum()


def head_gradient(model: PreTrainedModel, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
    """Gradient of the summed log-prob with respect to the parameters of an untied head."""
    weights = tuple(model.get_output_embeddings().parameters())
    gradients = torch.autograd.grad(logprob(model, prompt, answer), weights)
    return torch.cat([gradient.flatten() for gradient in gradients])


def assert_products(values: PairValues, up: Tensor, down: Tensor) -> None:
    """The values are those of these gradients of chosen and rejected."""
    norm, inner = up @ up, up @ down
    expected = {
        "entanglement": inner / norm,
        "predicted_chosen_change": norm - inner,
        "predicted_rejected_change": inner - down @ down,
        "chosen_gradient_norm": up.norm(),
        "rejected_gradient_norm": down.norm(),
    }
    for name, value in expected.items():
        assert getattr(values, name) == pytest.approx(float(value), rel=1e-4), name


@pytest.mark.parametrize("kind", KINDS)
def test_entanglement_is_the_inner_product_of_head_gradients(kind: str, tiny_model: Make) -> None:
    model = tiny_model(kind, **KINDS[kind])
    assert model.get_output_embeddings().weight is not model.get_input_embeddings().weight
    found = measure(model, PLAIN, SHORT)
    model.double()
    for pair, values in zip((PLAIN, SHORT), found, strict=True):
        up = head_gradient(model, pair.prompt, pair.chosen)
        assert_products(values, up, head_gradient(model, pair.prompt, pair.rejected))


def test_of_a_tied_matrix_only_its_use_as_the_head_counts(tiny_model: Make) -> None:
    model = tiny_model("llama", tie_word_embeddings=True)
    weight = model.get_output_embeddings().weight.detach().clone().requires_grad_()

    def gradient(answer: tuple[int, ...]) -> Tensor:
        ids = torch.tensor([[*PROMPT, *answer]])
        states = model(ids, output_hidden_states=True).hidden_states[-1].detach()
        logits = states[0, len(PROMPT) - 1 : -1] @ weight.T
        found = logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).sum()
        flat: Tensor = torch.autograd.grad(found, weight)[0].flatten()
        return flat

    assert_products(measure(model, PLAIN)[0], gradient(PLAIN.chosen), gradient(PLAIN.rejected))


def test_long_pairs_are_measured_in_blocks(
    tiny_model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama")
    whole = measure(model, PLAIN)[0]
    monkeypatch.setattr(measured, "ROWS", 3)
    assert vars(measure(model, PLAIN)[0]) == pytest.approx(vars(whole), rel=1e-5)


def test_the_residual_of_a_certain_token_is_not_lost() -> None:
    linear = torch.nn.Linear(1, 3, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[20.0], [2.0], [0.0]]))
        gram, _ = head_gram(Head(linear, 1.0, None), torch.ones(1, 1), torch.tensor([0]))
    others = torch.tensor([-18.0, -20.0], dtype=torch.float64).exp()
    expected = others.square().sum() + others.sum().square()
    assert float(gram) == pytest.approx(float(expected), rel=1e-4, abs=0)


def test_a_small_step_of_dpo_on_the_head_does_what_is_predicted(tiny_model: Make) -> None:
    model, rate, beta = tiny_model("llama").double(), 1e-6, 0.1
    values = measure(model, PLAIN)[0]
    answers = PLAIN.chosen, PLAIN.rejected
    before = [logprob(model, PROMPT, answer) for answer in answers]
    margin = before[0] - before[1]
    loss = -torch.nn.functional.logsigmoid(beta * (margin - margin.detach()))
    weight = model.get_output_embeddings().weight
    (gradient,) = torch.autograd.grad(loss, weight)
    with torch.no_grad():
        weight -= rate * gradient
        changes = [logprob(model, PROMPT, y) - b for y, b in zip(answers, before, strict=True)]
    unit = rate * beta / 2
    assert float(changes[0]) / unit == pytest.approx(values.predicted_chosen_change, rel=1e-3)
    assert float(changes[1]) / unit == pytest.approx(values.predicted_rejected_change, rel=1e-3)


def test_ches_is_what_a_plain_loop_gives(tiny_model: Make) -> None:
    model = tiny_model("llama")
    sums = []
    for answer in (PLAIN.chosen, PLAIN.rejected):
        total = torch.zeros(32)
        for length in range(len(answer)):
            ids = torch.tensor([[*PROMPT, *answer[:length]]])
            total += model(ids, output_hidden_states=True).hidden_states[-1][0, -1].detach()
        sums.append(total / len(answer))
    expected = sum(float(a * b) for a, b in zip(*sums, strict=True)) - float(sums[0] @ sums[0])
    assert measure(model, PLAIN)[0].ches == pytest.approx(expected, rel=1e-4)


def test_ches_is_computed_in_float32() -> None:
    hidden = torch.full((2000, 4), 0.1, dtype=torch.bfloat16)
    hidden[1000:] *= 2
    value = float(hidden[0, 0])
    assert ches(hidden, 1000) == pytest.approx(4 * value**2, rel=1e-5)


def test_what_a_shared_prefix_pulls_up_and_pushes_down_again_is_no_force(tiny_model: Make) -> None:
    model = tiny_model("llama")
    prefix, tail = (30, 31, 32, 33), (60, 61, 62)
    parted = measure(model, TokenPair(PROMPT, (*prefix, 7), (*prefix, *tail)))[0]
    moved = measure(model, TokenPair((*PROMPT, *prefix), (7,), tail))[0]
    assert parted.shared_prefix_tokens == 4
    assert parted.squeeze_law_nats == pytest.approx(moved.squeeze_law_nats, rel=1e-5)
    assert parted.squeeze_law_ratio == pytest.approx(moved.squeeze_law_ratio, rel=1e-5)


def test_the_squeeze_law_is_summed_over_the_tokens_that_are_pushed_down(tiny_model: Make) -> None:
    model = tiny_model("llama")
    logits = model(torch.tensor([[*PROMPT, *PLAIN.rejected]])).logits[0, len(PROMPT) - 1 : -1]
    pi = logits.softmax(-1).detach()
    mass = pi.gather(1, torch.tensor(PLAIN.rejected)[:, None])[:, 0]
    drain = (pi.square().sum(1) - mass).clamp(min=0)
    # the first token has the same context in both answers: pulls and pushes there are one force
    drain[0] = (pi[0, PLAIN.chosen[0]] - mass[0]).clamp(min=0)
    found = measure(model, PLAIN)[0]
    assert found.squeeze_law_nats == pytest.approx(float(drain.sum()), rel=1e-4)
    assert found.squeeze_law_ratio == pytest.approx(float(drain.sum()) / 4, rel=1e-4)


def test_a_rejected_answer_that_chosen_goes_on_from_pushes_nothing_down(tiny_model: Make) -> None:
    found = measure(tiny_model("llama"), TokenPair(PROMPT, (30, 31, 32), (30, 31)))[0]
    assert found.squeeze_law_nats == 0
    assert found.squeeze_law_ratio != found.squeeze_law_ratio
    assert found.predicted_chosen_change != 0


def test_rounding_on_a_shared_prefix_does_not_drown_the_prediction() -> None:
    chosen = torch.tensor([[1000.0, 0, 0], [0, 0.01, 0]])
    rejected = torch.tensor([[1000.001, 0, 0], [0, 0, 0.02]])
    rows = torch.cat([chosen, rejected])
    found = entanglement(rows @ rows.T, 2, 1)
    assert found["predicted_chosen_change"] == pytest.approx(1e-4, rel=1e-5)
    assert found["predicted_rejected_change"] == pytest.approx(-4e-4, rel=1e-5)


def test_answers_with_the_same_tokens_are_predicted_not_to_move() -> None:
    gram = torch.rand(4, 4)
    found = entanglement(gram, 2, 2)
    assert (found["entanglement"], found["predicted_chosen_change"]) == (1.0, 0.0)


def test_a_rejected_gradient_along_and_longer_than_chosens_displaces_it() -> None:
    gradients = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]])
    found = [
        entanglement(rows @ rows.T, 1, 0)["entanglement"]
        for rows in (gradients[[0, other]] for other in (1, 2, 3))
    ]
    assert found == [2.0, 0.0, -1.0]


def test_a_near_copy_is_more_entangled_than_another_answer(tiny_model: Make) -> None:
    copy, plain = measure(tiny_model("llama"), COPY, PLAIN)
    assert copy.entanglement > plain.entanglement


def test_log_probs_and_lengths_are_those_of_the_answers(tiny_model: Make) -> None:
    model = tiny_model("llama")
    found = measure(model, PLAIN)[0]
    chosen, rejected = (logprob(model, PROMPT, y).item() for y in (PLAIN.chosen, PLAIN.rejected))
    assert found.chosen_logprob_sum == pytest.approx(chosen, rel=1e-5)
    assert found.rejected_logprob_mean == pytest.approx(rejected / 4, rel=1e-5)
    assert found.preference_margin_nats == pytest.approx(chosen / 6 - rejected / 4, rel=1e-4)
    assert (found.prompt_tokens, found.chosen_tokens, found.rejected_tokens) == (5, 6, 4)


@pytest.mark.parametrize("way", ["shared", "padded", "single"])
def test_a_pair_has_the_same_values_in_any_company(way: Any, tiny_model: Make) -> None:
    model = tiny_model("llama")
    meter = PairMeter(model, [PLAIN])
    alone = vars(*meter.measure([PLAIN]))
    meter.way = way
    assert vars([*meter.measure([SHORT, PLAIN, COPY])][1]) == pytest.approx(alone, rel=1e-4)


def test_the_forward_computes_the_head_for_one_row_and_leaves_no_hook(tiny_model: Make) -> None:
    model = tiny_model("llama")
    meter = PairMeter(model, [PLAIN])
    shapes = []
    head = model.get_output_embeddings()
    handle = head.register_forward_hook(lambda m, args, out: shapes.append(out.shape[-2]))
    list(meter.measure([PLAIN, SHORT]))
    handle.remove()
    assert shapes == [1]
    assert not head._forward_pre_hooks
    assert not head._forward_hooks


def test_a_model_whose_head_cannot_be_read_is_an_input_error(tiny_model: Make) -> None:
    model = tiny_model("llama")
    forward = model.forward

    def doubled(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        output.logits = output.logits * 2
        return output

    model.forward = doubled
    with pytest.raises(InputError, match="logits in a way of its own"):
        PairMeter(model, [PLAIN])


def test_truncation_keeps_a_prompts_end_and_a_responses_start(tokenizer: Any) -> None:
    pair = Pair("line-1", 0, "abcdef", {"chosen": "ghijkl", "rejected": "mn"})
    found = encode_pair(tokenizer, pair, max_prompt_tokens=2, max_response_tokens=3)
    texts = [tokenizer.decode(ids) for ids in (found.prompt, found.chosen, found.rejected)]
    assert texts == ["ef", "ghi", "mn"]
    assert encode_pair(tokenizer, pair).chosen == tuple(tokenizer("ghijkl")["input_ids"])


def test_what_the_model_cannot_take_is_told(tiny_model: Make) -> None:
    model = tiny_model("llama", max_position_embeddings=8)
    assert unfit(PLAIN, model) == "over 8 tokens, the model's context"
    assert unfit(TokenPair(PROMPT, (1, 2, 3), (1,)), model) == ""
    assert unfit(TokenPair(PROMPT, (), (1,)), model) == "a response has no tokens"
    with pytest.raises(InputError, match="token 270 and the model knows 270 tokens"):
        unfit(TokenPair(PROMPT, (270,), (1,)), model)


def test_trained_weights_have_another_hash(tiny_model: Make) -> None:
    model = tiny_model("llama")
    before = weights_hash(model)
    assert weights_hash(tiny_model("llama")) == before
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(1.001)
    assert weights_hash(model) != before


def ranks(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).argsort().argsort().double()


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    return float(torch.corrcoef(torch.stack([ranks(one), ranks(other)]))[0, 1])


def change_of_chosen(model: PreTrainedModel, pair: TokenPair, rate: float) -> float:
    """Change of log pi(chosen) by one step of SGD along DPO's first gradient, per unit of rate;
    the weights are as before afterwards."""
    model.zero_grad()
    chosen = logprob(model, pair.prompt, pair.chosen)
    (chosen - logprob(model, pair.prompt, pair.rejected)).backward()
    kept = [weight.detach().clone() for weight in model.parameters()]
    with torch.no_grad():
        for weight in model.parameters():
            assert weight.grad is not None
            weight.add_(weight.grad, alpha=rate)
        change = logprob(model, pair.prompt, pair.chosen) - chosen
        for weight, before in zip(model.parameters(), kept, strict=True):
            weight.copy_(before)
    return float(change) / rate


def of_every_likeness(tokenizer: Any, count: int) -> list[TokenPair]:
    """The demo's chosen answers against its rejected ones, against rephrases of themselves and
    against copies with one other word."""
    source = Path(forcegauge.__file__).parent / "demo" / "pairs.jsonl"
    rows = read_pairs(str(source)).pairs[:count]
    rephrased = [
        replace(row, responses={**row.responses, "rejected": row.responses["chosen_rephrase"]})
        for row in rows
    ]
    pairs = [encode_pair(tokenizer, row, max_response_tokens=16) for row in (*rows, *rephrased)]
    return pairs + [_with_another_word(pair) for pair in pairs[:count]]


def _with_another_word(pair: TokenPair) -> TokenPair:
    middle = len(pair.chosen) // 2
    copy = (*pair.chosen[:middle], pair.rejected[0], *pair.chosen[middle + 1 :])
    return replace(pair, rejected=copy)


@pytest.mark.slow
def test_the_head_predicts_what_a_step_through_the_whole_model_does(smollm2: Path) -> None:
    from forcegauge.loading import load_model, load_tokenizer

    # On a busy machine two threads wait for each other: 20 times slower than one.
    torch.set_num_threads(1)
    model, tokenizer = load_model(str(smollm2)), load_tokenizer(str(smollm2))
    pairs = of_every_likeness(tokenizer, 4)
    found = measure(model, *pairs)
    actual = [change_of_chosen(model, pair, 1e-7) for pair in pairs]
    assert spearman([values.predicted_chosen_change for values in found], actual) > 0.6
    assert spearman([values.entanglement for values in found], actual) < -0.5
