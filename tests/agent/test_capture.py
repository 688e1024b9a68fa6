"""Forces read off a loop's own passes: whatever the model returns, and of no effect."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutput

from forcegauge import capture as module
from forcegauge.capture import Capture
from forcegauge.errors import InputError
from forcegauge.forces import TokenForces, force_sums
from forcegauge.losses import Pairs, nll_weights, pair_weights
from tests import tiny
from tests.agent.real_steps import (
    BETA,
    assert_forces,
    chosen_logps,
    expected,
    hooks,
    logits_of,
    trl,
)

IDS = torch.tensor([[4, 5, 6, 7, 8, 2], [4, 5, 6, 9, 3, 2], [4, 5, 6, 7, 9, 9], [4, 5, 6, 9, 7, 2]])
REAL = torch.tensor([[1] * 6, [1] * 6, [1] * 6, [1, 1, 1, 1, 1, 0]])
TRAINED = REAL[:, 1:] * torch.tensor([0, 0, 1, 1, 1])


@pytest.mark.filterwarnings("ignore:You are importing from 'trl.experimental'")
@pytest.mark.parametrize("loss", ["simpo", "orpo"])
def test_an_nll_term_beside_the_log_probs_is_seen_at_the_logits(loss: str) -> None:
    """The loss of TRL's CPO and ORPO trainers on a model that returns logits; one such step."""
    model = tiny.llama()
    capture = Capture(every=1, pairs=True).attach(model)
    lengths = TRAINED.sum(-1).double()
    nll = TRAINED[:2] if loss == "simpo" else REAL[:2, 1:]  # ORPO's covers the prompt
    logits = model(input_ids=IDS, attention_mask=REAL).logits[:, :-1]
    logps = logits.log_softmax(-1).gather(-1, IDS[:, 1:].unsqueeze(-1)).squeeze(-1)
    means = ((logps * TRAINED).sum(-1) / lengths).float().chunk(2)
    place = f"trl.experimental.{'cpo' if loss == 'simpo' else loss}"
    if loss == "simpo":
        this = _Settings(beta=BETA, alpha=0.0, loss_type=loss, simpo_gamma=0.5, label_smoothing=0.0)
        margin = trl("CPOTrainer", place).cpo_loss(this, *means)[0].mean()
    else:
        margin = -trl("ORPOTrainer", place).odds_ratio_loss(_Settings(beta=BETA), *means)[0].mean()
    (margin - (logps[:2] * nll).sum() / nll.sum()).backward()
    capture.step()
    exact = logits_of(model, IDS, REAL)
    chosen, rejected = (chosen_logps(exact, IDS) * TRAINED).sum(-1).chunk(2)
    pairs = Pairs(chosen, rejected, *lengths.chunk(2), beta=BETA)  # type: ignore[misc, arg-type]
    weight = torch.cat(pair_weights(loss, pairs)).unsqueeze(-1) * TRAINED
    weight[:2] += nll_weights(nll)
    assert_forces(capture.take(), expected(exact, IDS, weight))


class _Settings:
    """What TRL's loss functions read off their trainer."""

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)
        self.accelerator = trl("SimpleNamespace", "types")(device=torch.device("cpu"))


def nll(model: nn.Module, **more: Any) -> Tensor:
    labels = IDS.masked_fill(REAL == 0, -100)
    loss: Tensor = model(input_ids=IDS, attention_mask=REAL, labels=labels, **more).loss
    return loss


def once(capture: Capture, loss: Tensor) -> dict[str, float]:
    loss.backward()
    capture.step()
    found = capture.take()
    assert found is not None, capture.error
    return found


class LossOnly(nn.Module):
    """A model with fused cross-entropy: the loss and no logits."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny.llama()

    def forward(self, **inputs: Any) -> Any:
        return CausalLMOutput(loss=self.inner(**inputs).loss)


def test_a_model_that_returns_only_its_loss_has_the_forces_of_one_with_logits() -> None:
    whole, fused = tiny.llama(), LossOnly()
    wanted = once(Capture().attach(whole), nll(whole))
    found = once(Capture().attach(fused), nll(fused))
    del wanted["force_uncovered_ratio"]
    assert found == pytest.approx(wanted, rel=1e-4, abs=1e-7)


class Copied(nn.Module):
    """As Accelerate's mixed precision: the logits that come back are a copy."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny.llama()

    def forward(self, **inputs: Any) -> Any:
        made = self.inner(**inputs)
        return CausalLMOutput(loss=made.loss, logits=made.logits.double())


@pytest.mark.parametrize("items", [None, 7])
def test_where_logits_are_a_copy_forces_are_read_off_the_loss(items: int | None) -> None:
    whole, copied = tiny.llama(), Copied()
    more = {} if items is None else {"num_items_in_batch": items}
    captures = [Capture().attach(model) for model in (whole, copied)]
    for _ in range(2):
        (nll(whole, **more) / 2).backward()
        (nll(copied, **more) / 2).backward()
    for capture in captures:
        capture.step()
    wanted, found = (capture.take() for capture in captures)
    assert wanted is not None
    del wanted["force_uncovered_ratio"]
    assert found == pytest.approx(wanted, rel=1e-4, abs=1e-7)


def test_logits_of_the_last_positions_only_are_matched_to_their_tokens() -> None:
    model = tiny.llama()
    capture = Capture().attach(model)
    logits = model(input_ids=IDS, attention_mask=REAL, logits_to_keep=4).logits[:, :-1]
    logps = logits.log_softmax(-1).gather(-1, IDS[:, -3:].unsqueeze(-1)).squeeze(-1)
    found = once(capture, (logps * TRAINED[:, -3:]).sum())
    assert_forces(found, expected(logits_of(model, IDS, REAL), IDS, -TRAINED.double()))


def test_a_temperature_of_the_trainer_divides_weights_and_logits() -> None:
    model, temperature = tiny.llama(), 0.7
    capture = Capture(temperature=temperature).attach(model)
    logits = model(input_ids=IDS, attention_mask=REAL).logits[:, :-1] / temperature
    logps = logits.log_softmax(-1).gather(-1, IDS[:, 1:].unsqueeze(-1)).squeeze(-1)
    found = once(capture, (logps * TRAINED).sum())
    exact = logits_of(model, IDS, REAL) / temperature
    assert_forces(found, expected(exact, IDS, -TRAINED.double() / temperature))


def test_observed_weights_are_finite_differences_of_the_loss(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[TokenForces] = []

    def spy(forces: TokenForces, trained: int | None) -> dict[str, float]:
        seen.append(forces)
        return force_sums(forces, trained)

    monkeypatch.setattr(module, "force_sums", spy)
    logits = torch.randn(2, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, 7, (2, 5), generator=torch.Generator().manual_seed(1))

    def loss(logps: Tensor) -> Tensor:
        margin = (logps[0] - 0.5 * logps[1]).sum()
        return -nn.functional.logsigmoid(margin) + logps.square().mean()

    logps = logits.log_softmax(-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1).requires_grad_()
    capture = Capture()
    capture.observe(logps, labels, logits=logits)
    once(capture, loss(logps))
    for place in range(logps.numel()):
        step = torch.zeros(logps.numel(), dtype=torch.float64)
        step[place] = 1e-6
        rise = loss(logps.detach() + step.view(2, 5)) - loss(logps.detach() - step.view(2, 5))
        assert float(seen[0].weight[place]) == pytest.approx(-float(rise) / 2e-6, rel=1e-5)


def observed(**what: Tensor) -> dict[str, float]:
    logits = tiny.llama()(input_ids=IDS).logits[:, :-1].detach()
    labels = IDS[:, 1:].masked_fill(TRAINED == 0, -100)
    logps = chosen_logps(logits, IDS).requires_grad_()
    collision = (2 * logits.log_softmax(-1)).logsumexp(-1)
    given = {"logits": logits, "log_sum_sq": collision, "input_ids": IDS[:, :-1]}
    capture = Capture(pairs=True)
    capture.observe(logps, labels, **{k: given[k] for k in what})
    return once(capture, (logps[:2].sum() - logps[2:].sum()))


def test_an_observed_loop_gives_the_same_from_logits_and_from_log_collision() -> None:
    one = torch.ones(1)
    exact = observed(logits=one, input_ids=one)
    assert observed(log_sum_sq=one, input_ids=one) == pytest.approx(exact, rel=1e-4)
    assert observed(logits=one)["force_up_norm"] > exact["force_up_norm"]


def test_without_the_collision_only_what_needs_none_is_measured() -> None:
    found = observed(input_ids=torch.ones(1))
    assert found["force_up_energy"] > 0
    assert not {"force_up_norm", "squeeze_law_nats", "valley_force_ratio"} & set(found)


def test_forces_do_not_depend_on_a_gradient_scaler() -> None:
    model = tiny.llama()
    wanted = once(Capture().attach(model), nll(model))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    other = tiny.llama()
    capture = Capture(scaler=scaler).attach(other)
    found = once(capture, scaler.scale(nll(other)))
    assert found == pytest.approx(wanted, rel=1e-4, abs=1e-6)


def test_every_kth_step_is_looked_at_and_means_are_over_those() -> None:
    model = tiny.llama()
    capture = Capture(every=3).attach(model)
    alone = once(capture, nll(model))["force_up_norm"]
    for _ in range(2):
        nll(model).backward()
        capture.step()
    assert capture.take() is None
    (2 * nll(model)).backward()
    capture.step()
    for _ in range(2):
        nll(model).backward()
        capture.step()
    (4 * nll(model)).backward()
    capture.step()
    found = capture.take()
    assert found is not None
    assert found["force_up_norm"] == pytest.approx(3 * alone, rel=1e-5)


def test_the_forces_of_each_step_are_scaled_by_its_own_learning_rate() -> None:
    model = tiny.llama()
    capture = Capture(every=1).attach(model)
    for rate in (1e-3, 3e-3):
        nll(model).backward()
        capture.step(rate)
    found = capture.take()
    assert found is not None
    assert found["force_up_step_norm"] == pytest.approx(2e-3 * found["force_up_norm"])


def test_passes_without_gradient_are_not_looked_at() -> None:
    model = tiny.llama()
    capture = Capture().attach(model)
    with torch.no_grad():
        nll(model)
    assert once(capture, nll(model))["force_tokens"] == REAL[:, 1:].sum()


def test_nothing_of_a_step_is_kept_alive() -> None:
    model = tiny.llama()
    capture = Capture().attach(model)
    output = model(input_ids=IDS, attention_mask=REAL, labels=IDS)
    dead = weakref.ref(output.logits)
    output.loss.backward()
    del output
    assert dead() is None
    assert capture._hidden is None


def test_hooks_are_gone_after_an_exception_in_the_training() -> None:
    model = tiny.llama()
    before = hooks(model)
    with pytest.raises(IndexError), Capture().attach(model):
        model(input_ids=IDS + 1000)
    assert hooks(model) == before


def failing(*args: Any) -> None:
    raise RuntimeError("out of memory")


def test_a_failure_of_the_capture_leaves_the_gradients_and_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain, model = tiny.llama(), tiny.llama()
    nll(plain).backward()
    monkeypatch.setattr(module, "force_sums", failing)
    capture = Capture().attach(model)
    for _ in range(2):
        model.zero_grad()
        nll(model).backward()
        capture.step()
    for one, other in zip(plain.parameters(), model.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert one.grad.equal(other.grad)
    assert capture.error == "out of memory"
    assert [record.getMessage() for record in caplog.records] == [
        "forces are no longer read: out of memory"
    ]
    assert capture.take() is None


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(InputError, match="every: must be positive, not 0"):
        Capture(every=0)
    with pytest.raises(InputError, match="temperature: must be positive"):
        Capture(temperature=0.0)
