"""The record tells how a run was trained, so that a comparison can tell what differed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import LoraConfig, get_peft_model
from torch import nn

from forcegauge import ForceGaugeCallback
from forcegauge.arguments import model_facts
from forcegauge.compare import compare
from forcegauge.record import read_record
from tests import tiny
from tests.agent import test_lightning as lit
from tests.agent.test_gauge import gauge
from tests.agent.test_trackers import trainer

pytestmark = lit.pytestmark


def settings(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_record(directory)[0]["settings"]
    return found


def train(directory: Path, *, told: dict[str, Any] | None = None, **arguments: Any) -> Path:
    made = trainer(directory / "out", report_to="none", **arguments)
    watcher = ForceGaugeCallback(
        tiny.probe_set(), run="tiny", budget=None, port=0, directory=directory, settings=told
    )
    made.add_callback(watcher)
    made.train()
    return directory


def test_transformers_settings_are_the_trainers(tmp_path: Path) -> None:
    found = settings(train(tmp_path, learning_rate=3e-4, gradient_accumulation_steps=2))
    expected = {
        "learning_rate": 3e-4,
        "lr_scheduler": "linear",
        "batch_size": 4,
        "max_steps": 5,
        "dtype": "float32",
        "trained": "all weights",
    }
    assert {name: found[name] for name in expected} == expected


def test_what_the_user_tells_goes_first_but_never_before_what_is_so(tmp_path: Path) -> None:
    found = settings(train(tmp_path, told={"learning_rate": 1.0, "data": "v2", "every": 7}))
    assert (found["learning_rate"], found["data"], found["every"]) == (1.0, "v2", 50)


def test_a_comparison_tells_what_differed_without_reading_it_off_the_forces(
    tmp_path: Path,
) -> None:
    one = train(tmp_path / "one", learning_rate=1e-3)
    other = train(tmp_path / "other", learning_rate=1e-4, gradient_accumulation_steps=2)
    found = compare([one, other])
    assert found.differing == ("learning_rate", "batch_size")
    assert [entry.settings["learning_rate"] for entry in found.entries] == ["0.0001", "0.001"]
    assert not [note for note in found.notes if "forces" in note]


def test_lightnings_settings_are_the_trainers(tmp_path: Path) -> None:
    lit.fit(tmp_path, lit.callback(tmp_path / "gauge"), steps=2, accumulate_grad_batches=2)
    found = settings(tmp_path / "gauge")
    expected = {"learning_rate": 1e-2, "batch_size": 4, "max_steps": 2, "precision": "32-true"}
    assert {name: found[name] for name in expected} == expected


def test_a_loop_tells_its_own(tmp_path: Path) -> None:
    with gauge(tmp_path, settings={"learning_rate": 2e-5}) as watched:
        watched.step(tiny.llama(), 0)
    assert settings(tmp_path)["learning_rate"] == 2e-5


def test_adapters_and_frozen_weights_are_told() -> None:
    model: Any = tiny.llama()
    model.lm_head.requires_grad_(False)
    assert model_facts(model)["trained"] == "some weights"
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"], r=2))
    assert model_facts(adapted)["trained"] == "lora of rank 2"
    assert model_facts(nn.Identity()) == {}
