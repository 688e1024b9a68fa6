"""The short line of each probe in the training log."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from forcegauge import ForceGaugeCallback
from forcegauge.integrations import telling
from forcegauge.watching.words import probe_line
from tests import tiny

SIGNALS = {
    "chosen_change_nats": -0.12,
    "other_prompt_change_nats": -0.85,
    "squeeze_nats": 0.714,
    "displacement_nats": 0.12,
}


def test_the_line_has_verdict_since_when_what_moved_and_the_cost() -> None:
    line = probe_line(28, "squeezing", 20, SIGNALS, 2.14, ["squeezing"])
    assert line == (
        "forcegauge step 28: squeezing since 20 | chosen -0.12 | other prompts -0.85 | "
        "squeeze 0.71 nats | probe 2.1 s"
    )


def test_what_is_not_defined_is_left_out_of_the_line() -> None:
    assert probe_line(0, "warming", None, {}, None) == "forcegauge step 0: warming"


def test_an_alarm_beside_a_calm_verdict_stands_in_the_line() -> None:
    line = probe_line(4, "learning", 3, {}, None, ["hallucination_pressure", "repeater"])
    assert line.endswith("| on: hallucination_pressure, repeater")


def test_a_foreign_verdict_is_shown_as_text() -> None:
    assert "\x1b" not in probe_line(1, "\x1b[31mwell\u202e", None, {}, None)


def train(output: Path, **options: Any) -> None:
    rows = [{"prompt": "what of ", "completion": word} for word in tiny.WORDS]
    args = SFTConfig(
        output_dir=str(output),
        max_steps=3,
        per_device_train_batch_size=2,
        use_cpu=True,
        bf16=False,
        dataloader_pin_memory=False,
        report_to="none",
        save_strategy="no",
    )
    trainer = SFTTrainer(
        tiny.llama(),
        args,
        train_dataset=Dataset.from_list(rows),
        processing_class=tiny.tokenizer(chat=False),
    )
    trainer.add_callback(
        ForceGaugeCallback(tiny.probe_set(), run="tiny", every=2, budget=None, port=0, **options)
    )
    trainer.train()


def told(text: str) -> list[str]:
    return [line for line in text.splitlines() if "forcegauge step" in line]


def test_every_probe_is_a_line_of_the_logger(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "forcegauge"):
        train(tmp_path)
    lines = told(caplog.text)
    assert [line.partition("forcegauge step ")[2][0] for line in lines] == ["0", "1", "2", "3"]
    assert all("learning" in line or "warming" in line for line in lines)


def test_one_switch_keeps_the_log_quiet(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "forcegauge"):
        train(tmp_path, log=False)
    assert told(caplog.text) == []


@pytest.fixture
def no_logging(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that has not set up logging, as most scripts; pytest has."""
    monkeypatch.setattr(telling, "logger", logging.Logger("forcegauge"))


@pytest.mark.usefixtures("no_logging")
def test_without_any_logging_the_line_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    telling.say("forcegauge step 1: learning")
    assert capsys.readouterr().out == "forcegauge step 1: learning\n"


@pytest.mark.usefixtures("no_logging")
def test_a_progress_bar_is_not_torn(capsys: pytest.CaptureFixture[str]) -> None:
    from tqdm import tqdm  # type: ignore[import-untyped]

    with tqdm(total=2, ascii=True) as bar:
        bar.update()
        telling.say("forcegauge step 1: learning")
        bar.update()
    out = capsys.readouterr()
    assert out.out == "forcegauge step 1: learning\n"
    assert "forcegauge" not in out.err
