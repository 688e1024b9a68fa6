"""Lightning's callback: when it probes, that it disturbs nothing, resumes, and how it ends."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor
from torch.utils.data import DataLoader

from forcegauge.errors import InputError
from forcegauge.gauge import ForceGauge
from forcegauge.integrations.lightning import ForceGaugeCallback
from forcegauge.record import Line, probes_by_phase, read_record
from forcegauge.scorer import Scorer
from tests import tiny

pytestmark = [
    # Lightning 2.6 still uses torch's old name of a leaf
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
]

BATCHES = 12
"""In an epoch."""


class Tuned(pl.LightningModule):
    """Finetunes the tiny model under the name ``net``."""

    def __init__(self, error: BaseException | None = None) -> None:
        super().__init__()
        self.net = tiny.llama(dropout=0.2)
        self.error = error
        self.losses: list[float] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        if self.error is not None and batch_idx == 3:
            raise self.error
        loss: Tensor = self.net(input_ids=batch, labels=batch).loss
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def data() -> DataLoader[Any]:
    words = tiny.tokenizer()
    rows = [words(f"what of {word}?"[:14])["input_ids"] for word in tiny.WORDS]
    return DataLoader(torch.tensor(rows * 4), batch_size=2, shuffle=True)  # type: ignore[arg-type]


def callback(directory: Path | None, **options: Any) -> ForceGaugeCallback:
    settings = {"run": "tiny", "model": "net", "every": 4, "budget": None, "port": 0, **options}
    return ForceGaugeCallback(tiny.probe_set(), tiny.tokenizer(), directory=directory, **settings)


def fit(
    root: Path,
    *callbacks: Callback,
    module: Tuned | None = None,
    resume: Path | None = None,
    steps: int = BATCHES,
    **settings: Any,
) -> Tuned:
    pl.seed_everything(3, verbose=False)
    module = module or Tuned()
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        callbacks=list(callbacks),
        default_root_dir=root,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(one, ModelCheckpoint) for one in callbacks),
        **settings,
    )
    trainer.fit(module, data(), ckpt_path=resume)
    return module


def same(one: Tuned, other: Tuned) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return one.losses == other.losses and all(ours[k].equal(theirs[k]) for k in theirs)


def probes(directory: Path) -> list[Line]:
    return probes_by_phase(read_record(directory))["train"]


def end(directory: Path) -> str:
    last = read_record(directory)[-1]
    assert last["kind"] == "end"
    return str(last["reason"])


def test_probes_stand_at_the_baseline_early_every_n_steps_and_at_the_end(tmp_path: Path) -> None:
    fit(tmp_path, callback(tmp_path / "gauge"), steps=10)
    lines = probes(tmp_path / "gauge")
    assert [line["step"] for line in lines] == [0, 1, 2, 4, 8, 10]
    assert all("chosen_change_nats" in line["signals"] for line in lines[1:])
    assert end(tmp_path / "gauge") == "finished"


def test_steps_are_the_optimizers_when_gradients_are_accumulated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, told = ForceGauge.step, []

    def telling(self: ForceGauge, model: Any, number: int, **known: Any) -> Any:
        told.append(number)
        return step(self, model, number, **known)

    monkeypatch.setattr(ForceGauge, "step", telling)
    fit(tmp_path, callback(tmp_path / "gauge"), steps=4, accumulate_grad_batches=3)
    assert told == [0, 1, 2, 3, 4]
    assert [line["step"] for line in probes(tmp_path / "gauge")] == [0, 1, 2, 4]


@pytest.mark.parametrize("accumulated", [1, 2])
def test_training_is_bit_identical(accumulated: int, tmp_path: Path) -> None:
    steps, watcher = BATCHES // accumulated, callback(tmp_path / "gauge", every=1)
    without = fit(tmp_path, steps=steps, accumulate_grad_batches=accumulated)
    watched = fit(tmp_path, watcher, steps=steps, accumulate_grad_batches=accumulated)
    assert same(watched, without)
    assert len(probes(tmp_path / "gauge")) == steps + 1


def test_an_error_in_scoring_neither_stops_nor_changes_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = fit(tmp_path)

    def broken(self: Scorer, model: torch.nn.Module) -> None:
        torch.rand(3)
        raise RuntimeError("no scores today")

    monkeypatch.setattr(Scorer, "score", broken)
    watcher = callback(tmp_path / "gauge")
    assert same(fit(tmp_path, watcher), without)
    assert watcher.gauge is not None
    assert watcher.gauge.failures["scoring"] >= 3


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning")
@pytest.mark.filterwarnings(
    "ignore:Be aware that when using `ckpt_path`, callbacks used:UserWarning"
)
def test_a_resume_keeps_the_baseline_and_is_bit_identical(tmp_path: Path) -> None:
    gauge = tmp_path / "gauge"

    def keeper() -> ModelCheckpoint:
        return ModelCheckpoint(tmp_path / "kept", every_n_train_steps=BATCHES)

    first = keeper()
    fit(tmp_path, callback(gauge), first)
    saved = Path(first.best_model_path)
    without = fit(tmp_path, keeper(), resume=saved, steps=20)
    watched = fit(tmp_path, callback(gauge), keeper(), resume=saved, steps=20)
    assert same(watched, without)
    assert [line["step"] for line in probes(gauge)] == [0, 1, 2, 4, 8, 12, 16, 20]
    opened = [line for line in read_record(gauge) if line["kind"] == "run"]
    assert [line["resumed_from"] for line in opened] == [None, BATCHES]
    # what the resume brought back is no new checkpoint
    assert [line["step"] for line in read_record(gauge) if line["kind"] == "checkpoint"] == [
        BATCHES
    ]


def test_checkpoints_are_noted_at_their_step(tmp_path: Path) -> None:
    keeper = ModelCheckpoint(tmp_path / "kept", every_n_train_steps=3, save_last=True)
    fit(tmp_path, callback(tmp_path / "gauge"), keeper, steps=6)
    lines = [row for row in read_record(tmp_path / "gauge") if row["kind"] == "checkpoint"]
    assert [(line["step"], Path(line["path"]).name) for line in lines] == [
        (3, "epoch=0-step=3.ckpt"),
        (6, "epoch=0-step=6.ckpt"),
    ]
    assert all(line["healthy"] for line in lines)


@pytest.mark.parametrize(
    ("error", "raised", "reason"),
    [
        (ValueError("no"), ValueError, "error"),
        (KeyboardInterrupt(), SystemExit, "signal"),
        (SIGTERMException(), SIGTERMException, "signal"),
    ],
    ids=["error", "interrupt", "sigterm"],
)
def test_the_record_says_what_ended_the_training(
    error: BaseException, raised: type[BaseException], reason: str, tmp_path: Path
) -> None:
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(raised):
        fit(tmp_path, callback(None), module=Tuned(error))
    signal.signal(signal.SIGINT, handler)  # Lightning switches it off after an interrupt
    assert end(tmp_path / "forcegauge") == reason


def test_a_loss_that_is_not_finite_is_noticed(tmp_path: Path) -> None:
    module = Tuned()
    for weight in module.net.parameters():
        torch.nn.init.constant_(weight, torch.nan)
    fit(tmp_path, callback(tmp_path / "gauge"), module=module, steps=1)
    assert probes(tmp_path / "gauge")[-1]["signals"]["loss_nonfinite_ratio"] == 1.0


def test_forces_are_read_while_training(tmp_path: Path) -> None:
    watcher = callback(tmp_path / "gauge")
    fit(tmp_path, watcher, steps=4)
    lines = [line for line in read_record(tmp_path / "gauge") if line["kind"] == "forces"]
    assert lines
    assert all(line["force_up_norm"] > 0 == line["force_down_norm"] for line in lines)
    assert all(0 < line["force_up_step_norm"] < 0.1 * line["force_up_norm"] for line in lines)


def test_a_module_without_the_named_model_is_told_before_training(tmp_path: Path) -> None:
    module = Tuned()
    with pytest.raises(InputError, match=r"Tuned has no module 'model'.*modules: net"):
        fit(tmp_path, callback(tmp_path / "gauge", model="model"), module=module)
    assert module.losses == []


def test_a_bad_probe_file_is_told_when_the_callback_is_made(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.jsonl"):
        ForceGaugeCallback(tmp_path / "none.jsonl", tiny.tokenizer())
