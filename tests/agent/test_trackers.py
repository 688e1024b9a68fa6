"""Signals and the verdict in the trackers that the trainer itself reports to."""

from __future__ import annotations

import csv
import random
import struct
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from datasets import Dataset
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback
from transformers.integrations import integration_utils
from transformers.integrations.integration_utils import TensorBoardCallback
from trl import SFTConfig, SFTTrainer

from forcegauge import ForceGauge, ForceGaugeCallback
from forcegauge.integrations import lightning as for_lightning
from forcegauge.integrations.telling import Teller
from forcegauge.integrations.transformers import trackers_of_the_caller
from forcegauge.record import probes_by_phase, read_record
from tests import tiny

STEPS = 5
PREFIX = "train/forcegauge/"
"""transformers' integrations put their own before ours."""

pytestmark = [
    # Lightning 2.6 still uses torch's old name of a leaf
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
]


class Writer:
    """Where TensorBoard's integration writes."""

    def __init__(self) -> None:
        self.scalars: list[tuple[str, float, int]] = []
        self.texts: list[tuple[str, str, int]] = []
        self.closed = False

    def add_scalar(self, name: str, value: float, step: int) -> None:
        assert not self.closed
        self.scalars.append((name, value, step))

    def add_text(self, name: str, value: str, step: int | None = None) -> None:
        self.texts.append((name, value, step or 0))

    def add_hparams(self, *_: Any, **__: Any) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None:
        self.closed = True

    def named(self, name: str) -> dict[int, float]:
        return {step: value for key, value, step in self.scalars if key == PREFIX + name}


@pytest.fixture
def writer(monkeypatch: pytest.MonkeyPatch) -> Writer:
    """transformers' own TensorBoard integration, which `report_to` makes, with this writer."""
    made = Writer()

    class Wired(TensorBoardCallback):
        def __init__(self) -> None:
            super().__init__(tb_writer=made)  # type: ignore[no-untyped-call]

    monkeypatch.setattr(integration_utils, "is_tensorboard_available", lambda: True)
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "tensorboard", Wired)
    Wired.__name__ = "TensorBoardCallback"
    return made


def trainer(output: Path, **settings: Any) -> Trainer:
    rows = [{"prompt": "what of ", "completion": word} for word in tiny.WORDS]
    args = SFTConfig(
        output_dir=str(output),
        max_steps=STEPS,
        per_device_train_batch_size=2,
        logging_steps=1,
        use_cpu=True,
        bf16=False,
        dataloader_pin_memory=False,
        report_to=settings.pop("report_to", "tensorboard"),
        disable_tqdm=True,
        **settings,
    )
    return SFTTrainer(
        tiny.llama(),
        args,
        train_dataset=Dataset.from_list(rows),
        processing_class=tiny.tokenizer(chat=False),
    )


def gauge(directory: Path, **options: Any) -> ForceGaugeCallback:
    settings = {"run": "tiny", "every": 2, "budget": None, "port": 0, **options}
    return ForceGaugeCallback(tiny.probe_set(), directory=directory, **settings)


def train(output: Path, *callbacks: TrainerCallback, **settings: Any) -> Trainer:
    made = trainer(output / "out", **settings)
    for each in callbacks:
        made.add_callback(each)
    made.train()
    return made


def probed(directory: Path) -> dict[int, Any]:
    lines = probes_by_phase(read_record(directory))
    return {line["step"]: line for rows in lines.values() for line in rows}


def test_every_probe_reaches_the_tracker_of_report_to(tmp_path: Path, writer: Writer) -> None:
    train(tmp_path, gauge(tmp_path / "gauge"))
    recorded = probed(tmp_path / "gauge")
    assert list(recorded) == [0, 1, 2, 4, 5]
    squeeze = {step: line["signals"]["squeeze_nats"] for step, line in recorded.items()}
    assert writer.named("squeeze_nats") == squeeze
    chosen = writer.named("logprob_change_nats/chosen")
    assert chosen[5] == pytest.approx(recorded[5]["signals"]["chosen_change_nats"], abs=1e-6)
    assert writer.named("force_norm/up")[5] > 0


def test_the_verdict_is_a_number_and_a_word_where_the_tracker_takes_one(
    tmp_path: Path, writer: Writer
) -> None:
    train(tmp_path, gauge(tmp_path / "gauge"))
    recorded = probed(tmp_path / "gauge")
    numbers = {"warming": 0, "learning": 1, "squeezing": 2, "diverging": 3, "collapsed": 4}
    said = {step: line["verdict"] for step, line in recorded.items()}
    assert writer.named("verdict") == {step: numbers[word] for step, word in said.items()}
    words = {step: text for name, text, step in writer.texts if name == f"{PREFIX}verdict_text"}
    assert words == said


def test_the_trainers_own_log_and_state_stay_as_they_are(tmp_path: Path, writer: Writer) -> None:
    told: list[Any] = []

    class Listener(TrainerCallback):
        def on_log(self, *_: Any, **known: Any) -> None:
            told.append(known["logs"])

    watched = train(tmp_path, Listener(), gauge(tmp_path / "gauge"))
    assert writer.named("verdict")
    rows = [*told, *watched.state.log_history]
    assert not [key for row in rows for key in row if "forcegauge" in key]


def test_one_switch_keeps_trackers_out(tmp_path: Path, writer: Writer) -> None:
    train(tmp_path, gauge(tmp_path / "gauge", trackers=False))
    assert [name for name, *_ in writer.scalars if "loss" in name]
    assert not [name for name, *_ in writer.scalars if "forcegauge" in name]


def test_nothing_is_told_where_the_trainer_reports_to_nobody(tmp_path: Path) -> None:
    watcher = gauge(tmp_path / "gauge")
    train(tmp_path, watcher, report_to="none")
    assert watcher.gauge is not None
    assert not watcher.gauge.failures
    assert trackers_of_the_caller() == []


def test_a_tracker_that_fails_is_counted_and_the_training_goes_on(
    tmp_path: Path, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = writer.add_scalar

    def full(name: str, value: float, step: int) -> None:
        if "forcegauge" in name:
            raise OSError("disk full")
        whole(name, value, step)

    monkeypatch.setattr(writer, "add_scalar", full)
    watcher = gauge(tmp_path / "gauge")
    done = train(tmp_path, watcher)
    assert done.state.global_step == STEPS
    assert watcher.gauge is not None
    assert watcher.gauge.failures["other"] == 5
    errors = [line for line in read_record(tmp_path / "gauge") if line["kind"] == "error"]
    assert "disk full" in errors[0]["message"]


def test_a_resume_does_not_tell_old_probes_again(tmp_path: Path, writer: Writer) -> None:
    train(tmp_path, gauge(tmp_path / "gauge"), save_steps=2)
    writer.scalars.clear()
    writer.closed = False
    again = trainer(tmp_path / "out", save_steps=2)
    again.add_callback(gauge(tmp_path / "gauge"))
    again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4"))
    assert list(writer.named("squeeze_nats")) == [5]


def test_real_event_files_hold_the_signals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reason = "no TensorBoard: pip install tensorboardX"
    messages = pytest.importorskip("tensorboardX.proto.event_pb2", reason=reason)
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    train(tmp_path, gauge(tmp_path / "gauge"))
    files = list((tmp_path / "events").rglob("*tfevents*"))
    assert len(files) == 1
    found = {}
    for data in events(files[0]):
        event = messages.Event.FromString(data)
        for value in event.summary.value:
            if value.tag == f"{PREFIX}squeeze_nats":
                found[event.step] = value.simple_value
    recorded = probed(tmp_path / "gauge")
    assert list(found) == list(recorded)
    assert found[5] == pytest.approx(recorded[5]["signals"]["squeeze_nats"], rel=1e-6)


def events(path: Path) -> list[bytes]:
    """The records of an event file: length, checksum, data, checksum."""
    data, rows = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        rows.append(data[12 : 12 + length])
        data = data[16 + length :]
    return rows


class Tuned(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = tiny.llama()

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        loss: torch.Tensor = self.model(input_ids=batch, labels=batch).loss
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def fit(root: Path, **options: Any) -> list[dict[str, str]]:
    """Rows that Lightning's own CSV logger wrote."""
    words = tiny.tokenizer()
    rows = [words(f"what of {word}?"[:14])["input_ids"] for word in tiny.WORDS]
    settings = {"run": "tiny", "every": 2, "budget": None, "port": 0, **options}
    watcher = for_lightning.ForceGaugeCallback(
        tiny.probe_set(), words, directory=root / "gauge", **settings
    )
    logger = CSVLogger(root, name="csv", version="")
    pl.Trainer(
        accelerator="cpu",
        max_steps=STEPS,
        log_every_n_steps=1,
        callbacks=[watcher],
        logger=[logger],
        default_root_dir=root,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    ).fit(Tuned(), DataLoader(torch.tensor(rows), batch_size=1))  # type: ignore[arg-type]
    path = Path(logger.log_dir) / "metrics.csv"
    return list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []


def test_lightnings_loggers_get_every_probe(tmp_path: Path) -> None:
    rows = fit(tmp_path)
    recorded = probed(tmp_path / "gauge")
    assert [int(row["step"]) for row in rows] == list(recorded) == [0, 1, 2, 4, 5]
    last = recorded[5]
    assert float(rows[-1]["forcegauge/squeeze_nats"]) == last["signals"]["squeeze_nats"]
    assert rows[-1]["forcegauge/verdict_text"] == last["verdict"]
    assert rows[0]["forcegauge/verdict"] == "0.0"


def test_one_switch_keeps_lightnings_loggers_out(tmp_path: Path) -> None:
    assert fit(tmp_path, trackers=False) == []
    assert len(probed(tmp_path / "gauge")) == 5


def test_a_tracker_that_draws_random_numbers_does_not_change_the_trainings(tmp_path: Path) -> None:
    model, drawn = tiny.llama(), list[float]()

    def send(numbers: dict[str, float], verdict: str) -> None:
        drawn.extend((random.random(), float(torch.rand(()))))

    with ForceGauge(tiny.probe_set(), tiny.tokenizer(), directory=tmp_path, port=0) as gauge:
        gauge.step(model, 0)
        python, torches = random.getstate(), torch.get_rng_state()
        Teller(gauge, log=False).tell(model, 0, send)
    assert len(drawn) == 2
    assert random.getstate() == python
    assert torch.equal(torch.get_rng_state(), torches)
