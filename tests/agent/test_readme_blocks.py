"""Every block of the agent's page that attaches a gauge runs as printed, with tiny models."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from click.testing import CliRunner
from datasets import Dataset
from transformers import PreTrainedModel

from forcegauge import ForceGauge, arrivals
from forcegauge.cli import cli
from forcegauge.record import Line, read_record
from tests import tiny

PAGE = (Path(__file__).parents[2] / "agent" / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
SETTINGS: dict[str, Any] = {
    "max_steps": 2,
    "per_device_train_batch_size": 4,
    "use_cpu": True,
    "report_to": [],
    "disable_tqdm": True,
    "save_strategy": "no",
    "dataloader_pin_memory": False,
}

pytestmark = [
    # Lightning 2.6 still uses torch's old name of a leaf
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    # TRL says of what is experimental that it is
    pytest.mark.filterwarnings("ignore:You are importing from 'trl.experimental'"),
]


@pytest.fixture(autouse=True)
def _workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FORCEGAUGE_PORT", "0")
    tiny.probe_set().save("probes.jsonl")


def model() -> PreTrainedModel:
    """Saved, because some of TRL's trainers load their reference from where a model came from."""
    made = tiny.llama()
    made.save_pretrained("start")
    made.config._name_or_path = "start"
    return made


def batches() -> list[dict[str, torch.Tensor]]:
    ids = torch.tensor([tiny.tokenizer()("what of tea?")["input_ids"]])
    return [{"input_ids": ids, "labels": ids}] * 3


def of_trainer() -> dict[str, Any]:
    from transformers import TrainingArguments

    rows = [{name: row[0] for name, row in batch.items()} for batch in batches()]
    return {"args": TrainingArguments("out", **SETTINGS), "rows": rows}


def of_trl(module: str, kind: str) -> dict[str, Any]:
    sampling = {"num_generations": 4, "max_completion_length": 8}
    more = sampling if kind in ("GRPO", "RLOO") else {}
    config = getattr(__import__(module, fromlist=[kind]), f"{kind}Config")
    answered = [
        {"prompt": f"what of {word}? ", "completion": word, "label": index % 2 == 0}
        for index, word in enumerate(tiny.WORDS)
    ]
    if kind == "SFT":
        answered = [{k: v for k, v in row.items() if k != "label"} for row in answered]
    pairs = [
        {"prompt": f"what of {word}? ", "chosen": word, "rejected": tiny.WORDS[index - 1] + "!"}
        for index, word in enumerate(tiny.WORDS)
    ]
    return {
        "args": config("out", bf16=False, **SETTINGS, **more),
        "rows": Dataset.from_list(answered),
        "pairs": Dataset.from_list(pairs),
        "prompts": Dataset.from_list([{"prompt": row["prompt"]} for row in pairs]),
        "reward": lambda completions, **_: [float(len(text)) for text in completions],
        "tokenizer": tiny.tokenizer(chat=False),
    }


class Module(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = tiny.llama()

    def training_step(self, batch: dict[str, torch.Tensor], index: int) -> torch.Tensor:
        loss: torch.Tensor = self.model(**batch).loss
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def of_lightning() -> dict[str, Any]:
    loader: Any = torch.utils.data.DataLoader(batches(), batch_size=None)  # type: ignore[arg-type]
    return {"module": Module(), "loader": loader}


def of_loop() -> dict[str, Any]:
    net = model()
    return {
        "model": net,
        "loader": batches(),
        "optimizer": torch.optim.SGD(net.parameters(), lr=0.1),
        "token_logps": token_logps,
        "my_loss": lambda logps: -logps.mean(),
    }


def token_logps(
    net: PreTrainedModel, batch: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    labels = batch["labels"][:, 1:]
    logits = net(input_ids=batch["input_ids"]).logits[:, :-1]
    return logits.log_softmax(-1).gather(2, labels[..., None])[..., 0], labels


def of_alarms() -> dict[str, Any]:
    net = model()
    gauge = ForceGauge("probes.jsonl", tiny.tokenizer(), run="my-run", on_alarm="checkpoint")
    gauge.step(net, 0)
    return {
        "model": net,
        "gauge": gauge,
        "loader": batches(),
        "train_on": lambda net, batch: None,
        "save": lambda net, path: net.save_pretrained(path),
    }


PREPARED: dict[str, Callable[[], dict[str, Any]]] = {
    "from transformers import Trainer": of_trainer,
    "SFTTrainer": lambda: of_trl("trl", "SFT"),
    "DPOTrainer": lambda: of_trl("trl", "DPO"),
    "KTOTrainer": lambda: of_trl("trl", "KTO"),
    "ORPOTrainer": lambda: of_trl("trl.experimental.orpo", "ORPO"),
    "CPOTrainer": lambda: of_trl("trl.experimental.cpo", "CPO"),
    "GRPOTrainer": lambda: of_trl("trl", "GRPO"),
    "RLOOTrainer": lambda: of_trl("trl", "RLOO"),
    "pl.Trainer": of_lightning,
    "Accelerator": of_loop,
    "token_logps": of_loop,
    "gauge.should_save": of_alarms,
}
"""What a block takes for granted, by a word that stands in no other block."""


def record() -> list[Line]:
    (found,) = Path().rglob("record.jsonl")
    return read_record(found)


def test_every_block_is_run() -> None:
    marks = [[mark for mark in PREPARED if mark in block] for block in BLOCKS]
    assert sorted(marks) == sorted([mark] for mark in PREPARED)


@pytest.mark.parametrize("mark", PREPARED)
def test_a_block_runs_as_printed(mark: str) -> None:
    (block,) = (block for block in BLOCKS if mark in block)
    names = {"model": model(), "tokenizer": tiny.tokenizer(), **PREPARED[mark]()}
    exec(compile(block, "README.md", "exec"), names)
    if mark == "gauge.should_save":
        names["gauge"].close()
    lines = record()
    assert [line["step"] for line in lines if line["kind"] == "probe"][:3] == [0, 1, 2]
    assert lines[-1]["kind"] == "end"
    assert not [line for line in lines if line["kind"] == "error"]
    if mark == "token_logps":
        assert "forces" in {line["kind"] for line in lines}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals, "QUIET_SECONDS", 0.0)


def test_the_command_for_checkpoints_does_what_the_page_says(quick: None) -> None:
    for folder in ("MODEL", "CHECKPOINTS/checkpoint-5"):
        model().save_pretrained(folder)
        tiny.tokenizer().save_pretrained(folder)
    (line,) = re.findall(r"^forcegauge (score --model .*--run-dir .*)$", PAGE, re.M)
    done = CliRunner().invoke(cli, shlex.split(line), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert [row["step"] for row in record() if row["kind"] == "probe"] == [0, 5]


def test_the_launchers_line_starts_a_script(tmp_path: Path) -> None:
    (line,) = re.findall(r"^FORCEGAUGE_PROBES=probes.jsonl python (-m .*)$", PAGE, re.M)
    (tmp_path / "train.py").write_text("import sys; print('ran', sys.argv[1:])")
    env = {**os.environ, "FORCEGAUGE_PROBES": "probes.jsonl"}
    command = [sys.executable, *shlex.split(line)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "ran ['--epochs', '1']\n"
