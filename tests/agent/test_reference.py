"""What a PEFT model says without its adapters: scored once, kept, and everything left as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from forcegauge.gauge import ForceGauge
from forcegauge.isolation import undisturbed
from forcegauge.probes import RESPONSE_TYPES
from forcegauge.record import probes_by_phase, read_record
from forcegauge.reference import FILE_NAME, Reference, adapters_off, can_switch, identity
from forcegauge.scorer import Scorer
from forcegauge.scores import Scores
from tests import tiny

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def lora(*, moved: bool = True, **settings: Any) -> PeftModel:
    """A Llama with adapters that change what it says, unless they are not ``moved``."""
    made = get_peft_model(
        tiny.llama(), LoraConfig(r=4, target_modules=["q_proj", "v_proj"], **settings)
    )
    assert isinstance(made, PeftModel)
    for name, weight in made.named_parameters():
        if moved and ("lora_B" in name or "modules_to_save" in name):
            torch.nn.init.normal_(weight, std=0.3)
    return made


def scored(model: torch.nn.Module) -> Scores:
    with undisturbed(model):
        return Scorer(tiny.probe_set(), tiny.tokenizer()).score(model)


def assert_equal(one: Scores, other: Scores) -> None:
    for name, values in one.values.items():
        np.testing.assert_array_equal(other.values[name], values, err_msg=name)


def reference(directory: Path, model: torch.nn.Module, calls: list[int]) -> dict[str, float]:
    scorer = Scorer(tiny.probe_set(), tiny.tokenizer())

    def score() -> Scores:
        calls.append(1)
        return scorer.score(model)

    with undisturbed(model):
        return Reference(directory).changes(model, scorer.score(model), scorer.sequences, score)


@pytest.mark.parametrize("settings", [{}, {"modules_to_save": ["lm_head"]}, {"use_dora": True}])
def test_adapters_off_is_the_base_model(settings: dict[str, Any]) -> None:
    model = lora(**settings)
    policy = scored(model)
    with adapters_off(model):
        found = scored(model)
    assert_equal(scored(tiny.llama()), found)
    assert np.nanmax(np.abs(policy.values["logprob_sum"] - found.values["logprob_sum"])) > 0.1
    assert_equal(policy, scored(model))


def test_the_change_is_the_policy_minus_the_base_model_by_plain_log_softmax(tmp_path: Path) -> None:
    model, tokenizer = lora(), tiny.tokenizer()
    found = reference(tmp_path, model, [])
    probes = tiny.probe_set().probes
    for name in ("chosen", "unseen_prompt"):
        moved = []
        for probe in probes:
            prompt, answer = (
                tokenizer(text, add_special_tokens=False)["input_ids"]
                for text in (probe.prompt, probe.responses[name])
            )
            ids, count = torch.tensor([prompt + answer]), len(answer)
            both = []
            for each in (model.eval(), tiny.llama().eval()):
                with torch.no_grad():
                    logits = each(input_ids=ids).logits[0, -count - 1 : -1]
                both.append(logits.log_softmax(-1).gather(-1, ids[0, -count:, None]).mean())
            moved.append(float(both[0] - both[1]))
        assert found[f"reference_change_{name}_nats"] == pytest.approx(np.mean(moved), abs=1e-5)


def test_the_reference_is_scored_once_and_kept_over_a_resume(tmp_path: Path) -> None:
    calls: list[int] = []
    first = reference(tmp_path, lora(), calls)
    assert reference(tmp_path, lora(), calls) == first
    assert len(calls) == 1


@pytest.mark.parametrize("damage", [bytearray.clear, lambda data: data.__setitem__(7, 255)])
def test_a_damaged_file_is_scored_again(
    damage: Callable[[bytearray], None], tmp_path: Path
) -> None:
    calls: list[int] = []
    first = reference(tmp_path, lora(), calls)
    data = bytearray((tmp_path / FILE_NAME).read_bytes())
    damage(data)
    (tmp_path / FILE_NAME).write_bytes(data)
    assert reference(tmp_path, lora(), calls) == first
    assert len(calls) == 2


def test_other_probes_or_another_base_model_are_another_reference() -> None:
    model = lora()
    few, more = (Scorer(tiny.probe_set(n), tiny.tokenizer()).sequences for n in (3, 4))
    mine = identity(model, few)
    assert identity(lora(moved=False), few) == mine
    assert identity(model, more) != mine
    other = get_peft_model(tiny.llama(seed=1), LoraConfig(r=4, target_modules=["q_proj"]))
    assert identity(other, few) != mine


@pytest.mark.parametrize("broken", [False, True])
def test_adapters_come_back_as_they_were(broken: bool) -> None:
    model = lora(modules_to_save=["lm_head"])
    model.add_adapter("frozen", LoraConfig(r=2, target_modules=["q_proj"]))

    def state() -> list[Any]:
        switches = [vars(part).get("_disable_adapters") for part in model.modules()]
        grads = [weight.requires_grad for weight in model.parameters()]
        return [switches, grads, model.active_adapters, len(model.state_dict())]

    before = state()
    try:
        with adapters_off(model):
            assert broken is False or 1 / 0
    except ZeroDivisionError:
        assert broken
    assert state() == before


class Wrapped(torch.nn.Module):
    """As FSDP1: passes on the attributes of what it wraps."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs)


def test_adapters_are_found_inside_wrappers_that_look_like_what_they_wrap() -> None:
    model = lora()
    inner: Any = model
    for layer in inner.base_model.model.model.layers:
        layer.self_attn.q_proj = Wrapped(layer.self_attn.q_proj)
    with adapters_off(Wrapped(model)):
        found = scored(Wrapped(model))
    np.testing.assert_array_equal(
        found.values["logprob_sum"], scored(tiny.llama()).values["logprob_sum"]
    )
    assert not any("_disable_adapters" in vars(m) for m in model.modules() if type(m) is Wrapped)


def beside(model: PeftModel) -> None:
    next(model.parameters()).requires_grad_()


def merge(model: Any) -> None:
    model.base_model.merge_adapter()


@pytest.mark.parametrize("change", [beside, merge])
def test_no_reference_where_adapters_off_is_not_the_base_model(
    change: Callable[[PeftModel], None], tmp_path: Path
) -> None:
    model = lora()
    assert can_switch(model)
    change(model)
    assert reference(tmp_path, model, []) == {}


def test_a_plain_model_has_no_reference(tmp_path: Path) -> None:
    assert reference(tmp_path, tiny.llama(), []) == {}
    assert not (tmp_path / FILE_NAME).exists()


def run(model: PreTrainedModel | PeftModel, directory: Path, *, steps: int = 3) -> ForceGauge:
    optimizer = torch.optim.SGD([w for w in model.parameters() if w.requires_grad], lr=0.5)
    tokens = torch.tensor([tiny.tokenizer()("what of tea is hot? tea is hot")["input_ids"]])
    options: dict[str, Any] = {"every": 1, "budget": None, "port": 0, "directory": directory}
    with ForceGauge(tiny.probe_set(), tiny.tokenizer(), **options) as gauge:
        gauge.step(model, 0)
        for step in range(1, steps + 1):
            model(input_ids=tokens, labels=tokens).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            gauge.step(model, step)
    return gauge


def test_a_run_exports_how_far_its_adapters_are_from_the_base_model(tmp_path: Path) -> None:
    gauge = run(lora(), tmp_path)
    assert not gauge.failures
    first, *_, last = probes_by_phase(read_record(tmp_path))["train"]
    names = [f"reference_change_{name}_nats" for name in tiny.probe_set().types]
    assert set(names) <= first["signals"].keys() & last["signals"].keys()
    assert any(abs(first["signals"][name]) > 0.01 for name in names)
    change = last["signals"]["chosen_change_nats"]
    moved = [line["signals"]["reference_change_chosen_nats"] for line in (first, last)]
    assert moved[1] - moved[0] == pytest.approx(change, abs=1e-5)
    found = {
        sample.labels[0]: sample.value
        for sample in gauge.snapshot.samples
        if sample.metric.name == "forcegauge_reference_change_nats"
    }
    assert found["chosen"] == pytest.approx(moved[1])
    assert set(found) <= set(RESPONSE_TYPES)


def test_a_fresh_adapter_starts_at_its_reference(tmp_path: Path) -> None:
    run(lora(moved=False), tmp_path, steps=1)
    first, last = probes_by_phase(read_record(tmp_path))["train"]
    assert first["signals"]["reference_change_chosen_nats"] == 0.0
    assert last["signals"]["reference_change_chosen_nats"] != 0.0
    assert last["signals"]["reference_change_chosen_nats"] == pytest.approx(
        last["signals"]["chosen_change_nats"], abs=1e-6
    )


def test_a_merged_model_has_the_scores_of_its_adapters() -> None:
    model = lora()
    with_adapters = scored(model)
    merged = model.merge_and_unload()
    for name, values in scored(merged).values.items():
        np.testing.assert_allclose(with_adapters.values[name], values, atol=1e-4, err_msg=name)
