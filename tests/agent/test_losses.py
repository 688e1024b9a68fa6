"""The closed forms against autograd of the losses as TRL 1.16 computes them.

DPO's, KTO's, GRPO's and RLOO's own `_compute_loss` runs here on a stand-in for the trainer, and
CPO's and ORPO's own loss functions; PPO, DPOP and the paper's IPO, which TRL 1.16 does not have in
this form, are written out plainly.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from forcegauge.errors import InputError
from forcegauge.losses import (
    PAIR_LOSSES,
    Pairs,
    Rollouts,
    kto_weights,
    nll_weights,
    pair_weights,
    policy_weights,
)

PAIRS, TOKENS, BETA = 6, 9, 0.4
LENGTHS = torch.tensor([3, 5, 8, 2, 6, 4, 7, 4, 1, 8, 3, 5])


def mask_of(lengths: Tensor, tokens: int = TOKENS) -> Tensor:
    return (torch.arange(tokens) < lengths.unsqueeze(-1)).double()


def log_probs(rows: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return -scale * torch.rand(rows, TOKENS, dtype=torch.float64, generator=generator)


def force_of(loss: Callable[[Tensor], Tensor], logps: Tensor) -> Tensor:
    """w = -dL/dlog pi(y_t) by autograd."""
    free = logps.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(free), free)
    return -gradient


def trl_class(name: str, module: str = "trl") -> Any:
    return getattr(import_module(module), name)


def same(x: Any) -> Any:
    return x


def trainer(**settings: Any) -> SimpleNamespace:
    """What TRL's `_compute_loss` methods read off their trainer."""
    accelerator = SimpleNamespace(
        device=torch.device("cpu"),
        gather=same,
        gather_for_metrics=same,
        reduce=lambda x, reduction: x,
        num_processes=1,
    )
    return SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=accelerator,
        aux_loss_enabled=False,
        precompute_ref_logps=True,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
        **settings,
    )


def model_giving(logps: Tensor) -> Callable[..., Any]:
    return lambda **_: trl_class("FusedCausalLMOutput", "trl.trainer.utils")(
        log_probs=logps,
        entropy=torch.zeros_like(logps),
        mean_logits=torch.zeros_like(logps),
        is_top1=logps > 0,
    )


def completions(lengths: Tensor) -> dict[str, Tensor]:
    """A batch of a one-token prompt and completions, as TRL's collators lay it out."""
    mask = F.pad(mask_of(lengths), (1, 0)).long()
    prompt = F.pad(mask[:, 1:], (1, 0), value=1)
    return {"input_ids": prompt, "attention_mask": prompt, "completion_mask": mask}


def dpo_loss(types: list[str], weights: list[float], smoothing: float) -> Any:
    reference = log_probs(2 * PAIRS, seed=1).mul(mask_of(LENGTHS)).sum(-1)
    chosen, rejected = reference.chunk(2)
    inputs = completions(LENGTHS) | {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
    this = trainer(
        beta=BETA,
        loss_types=types,
        loss_weights=weights,
        label_smoothing=smoothing,
        f_divergence_type="reverse_kl",
        ld_alpha=None,
        use_weighting=False,
    )
    return lambda logps: trl_class("DPOTrainer")._compute_loss(
        this, model_giving(logps * mask_of(LENGTHS)), inputs, False
    )


def pairs_of(logps: Tensor, reference: Tensor | float, **settings: Any) -> Pairs:
    chosen, rejected = ((logps - reference) * mask_of(LENGTHS)).sum(-1).chunk(2)
    lengths = LENGTHS.double().chunk(2)
    return Pairs(chosen, rejected, lengths[0], lengths[1], beta=BETA, **settings)


def spread(weights: tuple[Tensor, Tensor]) -> Tensor:
    """The weights of the pairs on every token of their responses, [2 * pairs, tokens]."""
    return torch.cat(weights).unsqueeze(-1) * mask_of(LENGTHS)


@pytest.mark.parametrize("scale", [0.3, 3.0])
@pytest.mark.parametrize(
    ("loss", "smoothing"),
    [
        ("sigmoid", 0.0),
        ("robust", 0.1),
        ("sigmoid_norm", 0.0),
        ("hinge", 0.0),
        ("ipo", 0.0),
        ("sppo_hard", 0.0),
        ("nca_pair", 0.0),
        ("bco_pair", 0.0),
        ("apo_zero", 0.0),
        ("apo_down", 0.0),
        ("exo_pair", 0.05),
    ],
)
def test_pair_losses_are_those_of_the_dpo_trainer(
    loss: str, smoothing: float, scale: float
) -> None:
    logps, reference = log_probs(2 * PAIRS, scale=scale), log_probs(2 * PAIRS, seed=1)
    wanted = force_of(dpo_loss([loss], [1.0], smoothing), logps)
    pairs = pairs_of(logps, reference, label_smoothing=smoothing)
    torch.testing.assert_close(spread(pair_weights(loss, pairs)), wanted, rtol=1e-6, atol=1e-9)


def test_rpo_is_dpo_with_the_dpo_trainers_token_mean_nll_on_the_chosen() -> None:
    logps, reference = log_probs(2 * PAIRS), log_probs(2 * PAIRS, seed=1)
    wanted = force_of(dpo_loss(["sigmoid", "sft"], [1.0, 0.7], 0.0), logps)
    weights = spread(pair_weights("sigmoid", pairs_of(logps, reference)))
    weights[:PAIRS] += nll_weights(mask_of(LENGTHS)[:PAIRS], scale=0.7)
    torch.testing.assert_close(weights, wanted, rtol=1e-6, atol=1e-9)


def cpo_loss(loss: str, smoothing: float, alpha: float) -> Callable[[Tensor], Tensor]:
    this = trainer(beta=BETA, alpha=0.0, loss_type=loss, simpo_gamma=0.5, label_smoothing=smoothing)
    lengths = LENGTHS if loss == "simpo" else torch.ones(2 * PAIRS)

    def total(logps: Tensor) -> Tensor:
        masked = logps * mask_of(LENGTHS)
        pairs = (masked.sum(-1) / lengths).chunk(2)
        nll = -masked[:PAIRS].sum() / mask_of(LENGTHS)[:PAIRS].sum()
        losses: Tensor = trl_class("CPOTrainer", "trl.experimental.cpo").cpo_loss(this, *pairs)[0]
        return losses.mean() + alpha * nll

    return total


@pytest.mark.parametrize(("loss", "smoothing"), [("sigmoid", 0.2), ("hinge", 0.0), ("simpo", 0.1)])
def test_losses_without_reference_are_those_of_the_cpo_trainer(loss: str, smoothing: float) -> None:
    logps = log_probs(2 * PAIRS)
    wanted = force_of(cpo_loss(loss, smoothing, alpha=0.3), logps)
    weights = spread(pair_weights(loss, pairs_of(logps, 0.0, label_smoothing=smoothing)))
    weights[:PAIRS] += nll_weights(mask_of(LENGTHS)[:PAIRS], scale=0.3)
    torch.testing.assert_close(weights, wanted, rtol=1e-6, atol=1e-9)


def test_orpo_is_that_of_the_orpo_trainer() -> None:
    logps = log_probs(2 * PAIRS)

    def loss(free: Tensor) -> Tensor:
        means = ((free * mask_of(LENGTHS)).sum(-1) / LENGTHS).chunk(2)
        losses: Tensor = trl_class("ORPOTrainer", "trl.experimental.orpo").odds_ratio_loss(
            trainer(beta=BETA), *means
        )[0]
        return -losses.mean()

    weights = spread(pair_weights("orpo", pairs_of(logps, 0.0)))
    # the trainer itself goes down to float32 there
    torch.testing.assert_close(weights, force_of(loss, logps), rtol=1e-5, atol=1e-8)


def dpop(chosen: Tensor, rejected: Tensor) -> Tensor:
    inner = chosen - rejected - 50.0 * (-chosen).clamp(min=0)
    return -F.logsigmoid(BETA * inner)


def ipo_of_the_paper(chosen: Tensor, rejected: Tensor) -> Tensor:
    return (chosen - rejected - 1 / (2 * BETA)).square()


@pytest.mark.parametrize(("loss", "written"), [("dpop", dpop), ("ipo_sum", ipo_of_the_paper)])
def test_losses_that_trl_lacks_are_those_of_their_papers(
    loss: str, written: Callable[[Tensor, Tensor], Tensor]
) -> None:
    logps, reference = log_probs(2 * PAIRS, scale=0.1), log_probs(2 * PAIRS, seed=1, scale=0.1)

    def total(free: Tensor) -> Tensor:
        ratios = ((free - reference) * mask_of(LENGTHS)).sum(-1)
        return written(*ratios.chunk(2)).mean()

    weights = spread(pair_weights(loss, pairs_of(logps, reference)))
    torch.testing.assert_close(weights, force_of(total, logps), rtol=1e-6, atol=1e-9)


def test_every_pair_loss_of_the_table_is_checked_above() -> None:
    checked = {"sigmoid", "robust", "sigmoid_norm", "hinge", "ipo", "sppo_hard", "nca_pair"}
    checked |= {"bco_pair", "apo_zero", "apo_down", "exo_pair", "simpo", "orpo", "dpop", "ipo_sum"}
    assert set(PAIR_LOSSES) == checked


def test_ipo_turns_round_beyond_its_target_and_sppo_pushes_down_at_the_start() -> None:
    one = torch.ones(1, dtype=torch.float64)
    beyond = pair_weights("ipo_sum", Pairs(20 * one, 0 * one, one, one, beta=BETA))
    assert beyond[0] < 0 < beyond[1]
    start = pair_weights("sppo_hard", Pairs(0 * one, 0 * one, one, one, beta=BETA))
    assert start[1] == -1 / BETA


@pytest.mark.parametrize("loss", ["kto", "apo_zero_unpaired"])
def test_kto_is_that_of_the_kto_trainer(loss: str) -> None:
    logps, reference = log_probs(PAIRS), log_probs(PAIRS, seed=1).mul(mask_of(LENGTHS[:PAIRS]))
    mask, kl = mask_of(LENGTHS[:PAIRS]), loss == "kto"
    desirable = torch.tensor([True, False, True, True, False, False])
    reached = torch.full((PAIRS,), 0.6, dtype=torch.float64)
    inputs = completions(LENGTHS[:PAIRS]) | {"label": desirable, "ref_logps": reference.sum(-1)}
    inputs["ref_KL_logps"] = torch.zeros(PAIRS, dtype=torch.float64)
    this = trainer(
        beta=BETA,
        loss_type=loss,
        calculate_KL=kl,
        desirable_weight=1.3,
        undesirable_weight=0.8,
        _compute_kl_logps=lambda model, batch: reached if kl else None,
    )

    def total(free: Tensor) -> Tensor:
        out: Tensor = trl_class("KTOTrainer")._compute_loss(
            this, model_giving(free * mask), inputs, False
        )
        return out

    ratio = ((logps * mask) - reference).sum(-1)
    weights = kto_weights(
        ratio,
        desirable,
        beta=BETA,
        kl=0.6 if kl else 0.0,
        desirable_weight=1.3,
        undesirable_weight=0.8,
    )
    wanted = force_of(total, logps)
    torch.testing.assert_close(weights.unsqueeze(-1) * mask, wanted, rtol=1e-6, atol=1e-9)


def rollouts(
    beta: float = 0.0, items: float | None = None, high: float = 0.28, *, corrected: bool = False
) -> Rollouts:
    rows = 8
    advantage = torch.tensor([1.0, -1.0, 0.5, -2.0, 1.5, -0.5, 0.0, 1.0], dtype=torch.float64)
    return Rollouts(
        logprob=log_probs(rows),
        old=log_probs(rows, seed=1),
        reference=log_probs(rows, seed=2),
        advantage=advantage,
        mask=mask_of(LENGTHS[:rows]),
        high=high,
        beta=beta,
        corrected=corrected,
        max_tokens=12,
        items=items,
    )


def grpo_loss(batch: Rollouts, kind: str, level: str, logps: Tensor) -> Tensor:
    shape = batch.mask.shape
    this = trainer(
        _get_per_token_logps_and_entropies=lambda *_, **__: (logps, torch.zeros(shape), None),
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level=level,
        beta=batch.beta,
        loss_type=kind,
        epsilon_low=batch.low,
        epsilon_high=batch.high,
        use_vllm=False,
        current_gradient_accumulation_steps=1,
        max_completion_length=batch.max_tokens,
        _entropy_bonus_enabled=False,
        args=SimpleNamespace(
            delta=None, use_bias_correction_kl=batch.corrected, steps_per_generation=1
        ),
    )
    loss: Tensor = trl_class("GRPOTrainer")._compute_loss(this, None, trl_inputs(batch))
    return loss


def trl_inputs(batch: Rollouts) -> dict[str, Tensor]:
    ones = torch.ones(len(batch.mask), 1, dtype=torch.long)
    return {
        "prompt_ids": ones,
        "prompt_mask": ones,
        "completion_ids": batch.mask.long(),
        "completion_mask": batch.mask,
        "advantages": batch.advantage,
        "old_per_token_logps": batch.old,
        "ref_per_token_logps": batch.reference,
        "old_logps": (batch.old * batch.mask).sum(-1),
        "num_items_in_batch": torch.tensor(batch.items or float(batch.mask.sum())),
    }


@pytest.mark.parametrize(("beta", "corrected"), [(0.0, False), (0.1, False), (0.1, True)])
@pytest.mark.parametrize(
    ("loss", "kind", "level"),
    [
        ("grpo", "grpo", "token"),
        ("bnpo", "bnpo", "token"),
        ("dr_grpo", "dr_grpo", "token"),
        ("dapo", "dapo", "token"),
        ("cispo", "cispo", "token"),
        ("gspo", "grpo", "sequence"),
    ],
)
def test_policy_losses_are_those_of_the_grpo_trainer(
    loss: str, kind: str, level: str, beta: float, corrected: bool
) -> None:
    high = 1.1 if loss == "cispo" else 0.28
    batch = rollouts(beta, items=90.0, high=high, corrected=corrected)
    wanted = force_of(lambda free: grpo_loss(batch, kind, level, free), batch.logprob)
    torch.testing.assert_close(policy_weights(loss, batch), wanted, rtol=1e-6, atol=1e-9)


def test_rloo_is_that_of_the_rloo_trainer() -> None:
    batch = rollouts()

    def loss(free: Tensor) -> Tensor:
        this = trainer(
            _get_per_token_logps_and_entropies=lambda *_, **__: (free, 0 * free, None),
            epsilon_low=batch.low,
            epsilon_high=batch.high,
        )
        out: Tensor = trl_class("RLOOTrainer")._compute_loss(this, None, trl_inputs(batch))
        return out

    wanted = force_of(loss, batch.logprob)
    assert (wanted == 0).any()
    torch.testing.assert_close(policy_weights("rloo", batch), wanted, rtol=1e-6, atol=1e-9)


def test_ppo_is_the_clipped_token_mean() -> None:
    batch = rollouts()

    def loss(free: Tensor) -> Tensor:
        ratio, advantage = (free - batch.old).exp(), batch.advantage.unsqueeze(-1)
        clipped = ratio.clamp(1 - batch.low, 1 + batch.high)
        token = torch.min(ratio * advantage, clipped * advantage)
        return -(token * batch.mask).sum() / batch.mask.sum()

    wanted = force_of(loss, batch.logprob)
    torch.testing.assert_close(policy_weights("ppo", batch), wanted, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("loss", ["sigmoid", "hinge", "ipo", "sppo_hard", "nca_pair", "apo_down"])
def test_weight_times_residual_is_the_slope_of_the_loss_at_the_logits(loss: str) -> None:
    """Finite differences of TRL's loss on a toy softmax, along random directions."""
    generator = torch.Generator().manual_seed(3)
    shape = (2 * PAIRS, TOKENS, 5)
    logits = torch.randn(shape, dtype=torch.float64, generator=generator)
    labels = torch.randint(0, 5, (*shape[:2], 1), generator=generator)
    reference, total = log_probs(2 * PAIRS, seed=1), dpo_loss([loss], [1.0], 0.0)

    def token_logps(z: Tensor) -> Tensor:
        return z.log_softmax(-1).gather(-1, labels).squeeze(-1)

    weights = spread(pair_weights(loss, pairs_of(token_logps(logits), reference)))
    residual = logits.softmax(-1) - torch.zeros(shape).double().scatter(-1, labels, 1.0)
    for _ in range(3):
        step = 1e-5 * torch.randn(shape, dtype=torch.float64, generator=generator)
        rise = (total(token_logps(logits + step)) - total(token_logps(logits - step))) / 2
        slope = (weights.unsqueeze(-1) * residual * step).sum()
        torch.testing.assert_close(slope, rise, rtol=1e-5, atol=1e-12)


def test_an_unknown_loss_is_named_with_the_known_ones() -> None:
    one = torch.ones(1)
    with pytest.raises(InputError, match=r"no closed form for the loss 'aot'.*sppo_hard"):
        pair_weights("aot", Pairs(one, one, one, one))
    with pytest.raises(InputError, match=r"'sapo'.*dr_grpo"):
        policy_weights("sapo", rollouts())
