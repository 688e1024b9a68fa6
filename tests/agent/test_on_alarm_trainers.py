"""transformers' Trainer and Lightning's save and stop when an alarm asks them to."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from forcegauge import ForceGaugeCallback
from forcegauge.integrations import transformers as for_transformers
from forcegauge.record import Line, read_record
from tests import tiny
from tests.agent import test_lightning as lit
from tests.agent.test_trackers import trainer

pytestmark = lit.pytestmark


def lines(directory: Path, kind: str) -> list[Line]:
    return [line for line in read_record(directory) if line["kind"] == kind]


def train(tmp_path: Path, on_alarm: str, **settings: Any) -> Any:
    made = trainer(tmp_path / "out", report_to="none", **settings)
    watcher = ForceGaugeCallback(
        tiny.probe_set(), run="tiny", every=1, budget=None, port=0, on_alarm=on_alarm
    )
    made.add_callback(watcher)
    made.train()
    return made


@pytest.fixture
def sick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(for_transformers, "last_loss", lambda state: math.inf)


def test_transformers_saves_when_asked(tmp_path: Path, sick: None) -> None:
    made = train(tmp_path, "checkpoint", save_strategy="no")
    assert made.state.global_step == 5
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-2"]
    (saved,) = lines(tmp_path / "out" / "forcegauge", "checkpoint")
    assert (saved["step"], saved["healthy"]) == (2, False)


def test_transformers_stops_when_asked(
    tmp_path: Path, sick: None, caplog: pytest.LogCaptureFixture
) -> None:
    made = train(tmp_path, "stop", save_strategy="steps", save_steps=1)
    assert made.state.global_step == 2
    assert lines(tmp_path / "out" / "forcegauge", "end")[-1]["reason"] == "stopped"
    assert "asked to stop: diverging since step 1. No checkpoint is free of alarms" in caplog.text


def broken() -> lit.Tuned:
    module = lit.Tuned()
    for weight in module.net.parameters():
        torch.nn.init.constant_(weight, torch.nan)
    return module


def test_lightning_saves_when_asked_beside_its_own_checkpoints(tmp_path: Path) -> None:
    keeper = ModelCheckpoint(tmp_path / "kept", every_n_train_steps=100)
    watcher = lit.callback(tmp_path / "gauge", every=1, on_alarm="checkpoint")
    lit.fit(tmp_path, watcher, keeper, module=broken(), steps=4)
    (saved,) = lines(tmp_path / "gauge", "checkpoint")
    assert saved["path"] == str(tmp_path / "kept" / "alarm-step=2.ckpt")
    assert torch.load(saved["path"], weights_only=True)["global_step"] == 2


def test_lightning_stops_when_asked(tmp_path: Path) -> None:
    watcher = lit.callback(tmp_path / "gauge", every=1, on_alarm="stop")
    lit.fit(tmp_path, watcher, module=broken())
    assert watcher.gauge is not None
    assert lines(tmp_path / "gauge", "probe")[-1]["step"] == 2
    assert lines(tmp_path / "gauge", "end")[-1]["reason"] == "stopped"
