"""Forces read off real training steps: equal to the closed forms, and of no effect."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.modeling_outputs import CausalLMOutput

from forcegauge import capture as module
from forcegauge.capture import Capture
from forcegauge.errors import InputError
from forcegauge.forces import VALLEY_MASS, TokenForces, force_sums
from forcegauge.losses import (
    Pairs,
    Rollouts,
    kto_weights,
    nll_weights,
    pair_weights,
    policy_weights,
)
from tests import tiny

BETA = 0.5
STEPS = 3
SETTINGS: dict[str, Any] = {
    "max_steps": STEPS,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-2,
    "report_to": [],
    "disable_tqdm": True,
    "use_cpu": True,
    "bf16": False,
    "seed": 3,
    "save_strategy": "no",
    "dataloader_pin_memory": False,
    "gradient_checkpointing": None,
    "activation_checkpointing": False,
}
ANSWERS = (
    ("tea is hot", "tea is cold!"),
    ("cats nap", "cats bark"),
    ("the sun sets", "the sun is blue!"),
    ("rain falls", "snow falls"),
)


def trl(name: str, place: str = "trl") -> Any:
    return getattr(import_module(place), name)


def rows(kind: str) -> Dataset:
    pairs = [{"prompt": f"what of {up}? ", "chosen": up, "rejected": down} for up, down in ANSWERS]
    if kind == "dpo":
        return Dataset.from_list(pairs)
    prompts = [pair["prompt"] for pair in pairs]
    answers = [ANSWERS[i][i % 2] for i in range(len(ANSWERS))]
    return Dataset.from_dict(
        {"prompt": prompts, "completion": answers, "label": [True, False, True, False]}
        if kind == "kto"
        else {"prompt": prompts, "completion": answers}
        if kind == "sft"
        else {"prompt": prompts}
    )


def vowels(completions: list[str], **_: Any) -> list[float]:
    return [float(sum(letter in "aeiou" for letter in text)) for text in completions]


def trainer(kind: str, output: Path, *, dropout: float = 0.0, **settings: Any) -> Trainer:
    name = {"sft": "SFT", "dpo": "DPO", "kto": "KTO", "grpo": "GRPO"}[kind]
    if kind == "grpo":
        settings = {"num_generations": 4, "max_completion_length": 6} | settings
    if kind != "sft":
        settings = {"beta": BETA} | settings
    arguments = trl(f"{name}Config")(output_dir=str(output), **SETTINGS | settings)
    extra: dict[str, Any] = {"ref_model": tiny.llama()} if kind in ("dpo", "kto") else {}
    if kind == "grpo":
        extra["reward_funcs"] = vowels
    model = tiny.llama(dropout=dropout)
    model.config._name_or_path = str(output / "model")  # from where GRPO loads its reference
    model.save_pretrained(output / "model")
    made: Trainer = trl(f"{name}Trainer")(
        model=model,
        args=arguments,
        train_dataset=rows(kind),
        processing_class=tiny.tokenizer(chat=False),
        **extra,
    )
    return made


class Watcher(TrainerCallback):
    """Calls the capture after each optimizer step, as the gauge does."""

    def __init__(self, capture: Capture) -> None:
        self.capture = capture
        self.found: list[dict[str, float] | None] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.capture.step()
        self.found.append(self.capture.take())


Batch = dict[str, Any]


def train(
    made: Trainer, capture: Capture
) -> tuple[list[dict[str, float] | None], list[tuple[PreTrainedModel, Batch, Any]]]:
    """Forces of every step, and of every backward pass its model, batch and number of items."""
    seen: list[tuple[PreTrainedModel, Batch, Any]] = []
    inner: Callable[..., Any] = made.compute_loss

    def spy(model: Any, inputs: Batch, *args: Any, **kwargs: Any) -> Any:
        copy = tiny.llama()
        copy.load_state_dict(model.state_dict())
        kept = {k: v.clone() if isinstance(v, Tensor) else v for k, v in inputs.items()}
        seen.append((copy, kept, kwargs.get("num_items_in_batch")))
        return inner(model, inputs, *args, **kwargs)

    made.compute_loss = spy  # type: ignore[method-assign]
    watcher = Watcher(capture)
    made.add_callback(watcher)
    assert made.model is not None
    with capture.attach(made.model):
        made.train()
    assert capture.error is None
    return watcher.found, seen


def logits_of(model: PreTrainedModel, ids: Tensor, mask: Tensor) -> Tensor:
    """Logits that predict ids[:, 1:], in float64."""
    with torch.no_grad():
        found: Tensor = model(input_ids=ids, attention_mask=mask).logits[:, :-1].double()
    return found


def chosen_logps(logits: Tensor, ids: Tensor) -> Tensor:
    return logits.log_softmax(-1).gather(-1, ids[:, 1:].unsqueeze(-1)).squeeze(-1)


def expected(
    logits: Tensor, ids: Tensor, weight: Tensor, mask: Tensor | None = None
) -> dict[str, float]:
    """The sums from whole gradient vectors, summed over equal contexts; all tensors [rows, t]."""
    real = torch.ones_like(ids) if mask is None else mask
    found = {"up": 0.0, "down": 0.0, "valley": 0.0, "drain": 0.0}
    net: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}
    for row, place in (weight != 0).nonzero().tolist():
        prefix = (*ids[row, : place + 1].tolist(), *real[row, : place + 1].tolist())
        pi = logits[row, place].softmax(-1)
        net.setdefault(prefix, (pi, torch.zeros_like(pi)))[1][ids[row, place + 1]] += weight[
            row, place
        ]
    for pi, pushed in net.values():
        for label in pushed.nonzero().flatten().tolist():
            w, residual = float(pushed[label]), pi.clone()
            residual[label] -= 1
            size = abs(w) * float(residual.norm())
            found["up" if w > 0 else "down"] += size
            found["valley"] += size if w < 0 and pi[label] < VALLEY_MASS else 0.0
        if (pushed < 0).any():
            found["drain"] += max(0.0, -float(pi @ (pushed.sum() * pi - pushed)))
    return found


def summed(parts: list[dict[str, float]]) -> dict[str, float]:
    return {name: sum(part[name] for part in parts) for name in parts[0]}


def assert_forces(found: dict[str, float] | None, wanted: dict[str, float]) -> None:
    assert found is not None
    assert found["force_up_norm"] == pytest.approx(wanted["up"], rel=1e-5, abs=1e-9)
    assert found["force_down_norm"] == pytest.approx(wanted["down"], rel=1e-5, abs=1e-9)
    assert found["squeeze_law_nats"] == pytest.approx(wanted["drain"], rel=1e-4, abs=1e-7)
    if wanted["down"] > 0:
        share = wanted["valley"] / wanted["down"]
        assert found["valley_force_ratio"] == pytest.approx(share, rel=1e-5, abs=1e-9)


def test_forces_of_sft_steps_are_the_closed_form(tmp_path: Path) -> None:
    made = trainer("sft", tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    found, seen = train(made, Capture(every=1))
    parts = []
    for model, batch, items in seen:
        ids, mask = batch["input_ids"], batch["attention_mask"]
        weight = nll_weights(batch["labels"][:, 1:] != -100, items=float(items)).double()
        parts.append(expected(logits_of(model, ids, mask), ids, weight))
    for step, values in enumerate(found):
        assert_forces(values, summed(parts[2 * step : 2 * step + 2]))
    assert len(found) == STEPS


def dpo_weights(losses: list[str], model: PreTrainedModel, batch: Batch) -> Tensor:
    ids, mask = batch["input_ids"], batch["completion_mask"][:, 1:].double()
    logps, reference = (
        chosen_logps(logits_of(m, ids, batch["attention_mask"]), ids) for m in (model, tiny.llama())
    )
    chosen, rejected = ((logps - reference) * mask).sum(-1).chunk(2)
    up, down = mask.sum(-1).chunk(2)
    weight = torch.zeros_like(mask)
    for loss in losses:
        if loss == "sft":
            part = nll_weights(mask).double() * 0
            part[: len(up)] = nll_weights(mask[: len(up)], scale=0.3)
        else:
            pairs = Pairs(chosen, rejected, up, down, beta=BETA)
            part = torch.cat(pair_weights(loss, pairs)).unsqueeze(-1) * mask
        weight += part
    return weight


@pytest.mark.parametrize(
    "losses",
    [["sigmoid"], ["hinge"], ["ipo"], ["sppo_hard"], ["nca_pair"], ["sigmoid", "sft"]],
    ids="+".join,
)
def test_forces_of_dpo_steps_are_the_closed_form(losses: list[str], tmp_path: Path) -> None:
    more: dict[str, Any] = {"loss_weights": [1.0, 0.3]} if len(losses) > 1 else {}
    made = trainer("dpo", tmp_path, loss_type=losses, **more)
    found, seen = train(made, Capture(every=1, pairs=True))
    for values, (model, batch, _) in zip(found, seen, strict=True):
        ids, mask = batch["input_ids"], batch["attention_mask"]
        weight = dpo_weights(losses, model, batch)
        assert_forces(values, expected(logits_of(model, ids, mask), ids, weight))


def test_accumulated_dpo_passes_sum_to_the_optimizer_steps_force(tmp_path: Path) -> None:
    made = trainer("dpo", tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    found, seen = train(made, Capture(every=1))
    parts = []
    for model, batch, _ in seen:
        ids, mask = batch["input_ids"], batch["attention_mask"]
        weight = dpo_weights(["sigmoid"], model, batch) / 2
        parts.append(expected(logits_of(model, ids, mask), ids, weight))
    for step, values in enumerate(found):
        assert_forces(values, summed(parts[2 * step : 2 * step + 2]))


def test_forces_of_kto_steps_are_the_closed_form(tmp_path: Path) -> None:
    made = trainer("kto", tmp_path, desirable_weight=1.2)
    found, seen = train(made, Capture(every=1))
    reference = tiny.llama()
    for values, (model, batch, _) in zip(found, seen, strict=True):
        sides: dict[str, Tensor] = {}
        for name in ("", "KL_"):
            ids, mask = batch[f"{name}input_ids"], batch[f"{name}attention_mask"]
            trained = batch[f"{name}completion_mask"][:, 1:]
            both = [chosen_logps(logits_of(m, ids, mask), ids) for m in (model, reference)]
            sides[name] = ((both[0] - both[1]) * trained).sum(-1)
        kl = float(sides["KL_"].mean().clamp(min=0))
        label = torch.as_tensor(batch["label"])
        weight = kto_weights(sides[""], label, beta=BETA, kl=kl, desirable_weight=1.2)
        ids = batch["input_ids"]
        trained = batch["completion_mask"][:, 1:].double()
        logits = logits_of(model, ids, batch["attention_mask"])
        assert_forces(values, expected(logits, ids, weight.unsqueeze(-1) * trained))


def grpo_weights(model: PreTrainedModel, batch: Batch, ids: Tensor, mask: Tensor) -> Tensor:
    length = batch["completion_ids"].shape[1]
    logps = chosen_logps(logits_of(model, ids, mask), ids)[:, -length:]
    old, reference = batch.get("old_per_token_logps"), batch["ref_per_token_logps"].double()
    rollouts = Rollouts(
        logprob=logps,
        old=logps if old is None else old.double(),
        reference=reference,
        advantage=batch["advantages"].double(),
        mask=batch["completion_mask"].double(),
        beta=BETA,
        corrected=True,
    )
    return nn.functional.pad(policy_weights("grpo", rollouts), (ids.shape[1] - 1 - length, 0))


def test_forces_of_grpo_steps_are_the_closed_form(tmp_path: Path) -> None:
    made = trainer("grpo", tmp_path, loss_type="grpo", num_iterations=2, max_steps=4)
    found, seen = train(made, Capture(every=1))
    for values, (model, batch, _) in zip(found, seen, strict=True):
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
        weight = grpo_weights(model, batch, ids, mask)
        assert_forces(values, expected(logits_of(model, ids, mask), ids, weight, mask))
    assert any(values and values["force_down_norm"] > 0 for values in found)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("sft", {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}),
        ("sft", {"bf16": True}),
        ("dpo", {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}),
        ("dpo", {"gradient_checkpointing": True, "use_weighting": True}),
        ("kto", {}),
        ("grpo", {"num_iterations": 2}),
    ],
)
def test_training_is_bit_identical_with_the_capture_on(
    kind: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    digests = set()
    for every in (None, 1, 2):
        made = trainer(kind, tmp_path, dropout=0.2, **settings)
        if every is not None:
            capture = Capture(every=every)
            watcher = Watcher(capture)
            made.add_callback(watcher)
            assert made.model is not None
            capture.attach(made.model)
        made.train()
        if every is not None:
            assert capture.error is None
            assert watcher.found[0] is not None
        digests.add(digest(made))
    assert len(digests) == 1


def digest(made: Trainer) -> str:
    assert made.model is not None
    total = hashlib.sha256()
    for tensor in made.model.state_dict().values():
        total.update(tensor.detach().contiguous().numpy().tobytes())
    return total.hexdigest()


def test_an_entropy_bonus_is_said_to_be_left_out(tmp_path: Path) -> None:
    capture = Capture(every=1)
    train(trainer("grpo", tmp_path, entropy_coef=0.1, max_steps=1), capture)
    assert capture.not_covered == {"entropy bonus"}
    plain = Capture(every=1)
    train(trainer("grpo", tmp_path, max_steps=1), plain)
    assert plain.not_covered == set()


def sharp() -> PreTrainedModel:
    """A model whose distributions are far from uniform."""
    model = tiny.llama()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20)
    return model


def test_a_label_smoothed_trainer_is_read_at_its_logits(tmp_path: Path) -> None:
    data = [{"input_ids": i, "labels": i} for i in torch.randint(3, 30, (4, 9)).tolist()]
    settings = {k: v for k, v in SETTINGS.items() if k != "activation_checkpointing"}
    shares = {}
    for smoothing in (0.0, 0.1):
        arguments = TrainingArguments(
            output_dir=str(tmp_path),
            label_smoothing_factor=smoothing,
            **settings | {"gradient_checkpointing": False},
        )
        made = Trainer(sharp(), arguments, train_dataset=Dataset.from_list(data))
        found, seen = train(made, Capture(every=1))
        assert found[0] is not None
        shares[smoothing] = found[0]["force_uncovered_ratio"]
        if smoothing == 0:
            ids = seen[0][1]["input_ids"]
            weight = nll_weights(torch.ones(ids.shape[0], ids.shape[1] - 1)).double()
            logits = logits_of(seen[0][0], ids, torch.ones_like(ids))
            assert_forces(found[0], expected(logits, ids, weight))
    assert shares[0.0] < 1e-5
    assert shares[0.1] > 0.01


IDS = torch.tensor([[4, 5, 6, 7, 8, 2], [4, 5, 6, 9, 3, 2], [4, 5, 6, 7, 9, 9], [4, 5, 6, 9, 7, 2]])
REAL = torch.tensor([[1] * 6, [1] * 6, [1] * 6, [1, 1, 1, 1, 1, 0]])
TRAINED = REAL[:, 1:] * torch.tensor([0, 0, 1, 1, 1])


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


def test_a_temperature_that_was_not_told_ends_the_capture_and_not_the_training(
    tmp_path: Path,
) -> None:
    made = trainer("grpo", tmp_path, max_steps=1, temperature=0.3)
    model: Any = made.model
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20)
    capture = Capture().attach(model)
    made.train()
    assert made.state.global_step == 1
    assert capture.error is not None
    assert "temperature" in capture.error
    assert hooks(model) == 0


def hooks(model: nn.Module) -> int:
    return sum(len(part._forward_hooks) for part in model.modules())


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
