"""One line for Lightning: ``Trainer(callbacks=[ForceGaugeCallback(...)])``."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import nn

from forcegauge.alerting import OnAlarm
from forcegauge.errors import InputError
from forcegauge.gauge import ForceGauge
from forcegauge.integrations.facts import of_lightning
from forcegauge.integrations.rates import learning_rate
from forcegauge.integrations.telling import Teller
from forcegauge.loading import load_tokenizer
from forcegauge.probes import ProbeSet

logger = logging.getLogger("forcegauge")

FOLDER = "forcegauge"


class ForceGaugeCallback(pl.Callback):
    """Watches a training with Lightning's ``Trainer``.

        Trainer(callbacks=[ForceGaugeCallback("probes.jsonl", tokenizer, run="my-run", every=50)])

    ``model`` names the attribute of the LightningModule that holds the Hugging Face model.
    ``options`` are `ForceGauge`'s: ``phase``, ``loss``, ``budget``, ... The directory is
    ``DEFAULT_ROOT_DIR/forcegauge`` unless named. Steps are the trainer's ``global_step``. A
    checkpoint of `ModelCheckpoint` is noted when its path is new: ``last.ckpt`` is not. Each probe
    is a line in the training log (``log=False``: none), and goes to the trainer's loggers under
    ``forcegauge/`` (``trackers=False``: to none).
    """

    def __init__(
        self,
        probes: str | Path | ProbeSet,
        tokenizer: Any,
        run: str | None = None,
        *,
        model: str = "model",
        every: int = 50,
        directory: str | Path | None = None,
        on_alarm: OnAlarm = "log",
        log: bool = True,
        trackers: bool = True,
        **options: Any,
    ) -> None:
        # read here and not in the trainer, so that a bad probe file is told before the model loads
        self._probes = probes if isinstance(probes, ProbeSet) else ProbeSet.load(probes)
        self._tokenizer, self._name, self._directory = tokenizer, model, directory
        self._options = {**options, "run": run, "every": every, "on_alarm": on_alarm}
        self._settings = dict(self._options.pop("settings", None) or {})
        self._carried: dict[str, Any] = {}
        self._log, self._trackers = log, trackers
        self._teller: Teller | None = None
        self._saved: set[str] = set()
        self._step = 0
        self._rate: float | None = None
        self.gauge: ForceGauge | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the baseline, or go on from it after a resume.

        Raises `InputError` where the module has no such model.
        """
        model = self._model(pl_module)
        directory = (
            self._directory
            or os.environ.get("FORCEGAUGE_DIR")
            or Path(trainer.default_root_dir) / FOLDER
        )
        settings = {**of_lightning(trainer), **self._settings}
        self.gauge = ForceGauge(
            self._probes,
            self._tokenizer,
            directory=directory,
            settings=settings,
            optimizer=next(iter(trainer.optimizers), None),
            **self._options,
        )
        self.gauge.load_state_dict(self._carried)
        self._teller = Teller(self.gauge, log=self._log)
        self._step, self._saved = trainer.global_step, checkpoints(trainer)
        self.gauge.step(model, self._step)
        self._tell(trainer)
        self.gauge.attach(model)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note what was saved since the last batch: Lightning saves after all other callbacks."""
        self._note_checkpoints(trainer)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any
    ) -> None:
        """Note the learning rate, which is the next step's when the batch ends."""
        self._rate = learning_rate(optimizer)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Probe when it is due; a batch that only accumulates gradients is no step."""
        if self.gauge is not None and trainer.global_step != self._step:
            self._step = trainer.global_step
            # left a tensor: a float would wait for the device at every step
            loss = outputs.get("loss") if isinstance(outputs, Mapping) else None
            model = self._model(pl_module)
            self.gauge.step(model, self._step, loss=loss, learning_rate=self._rate)
            self._tell(trainer)
            self._ask(trainer, self.gauge)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Probe the last state and end the record; the endpoint stays."""
        self._note_checkpoints(trainer)
        if self.gauge is not None:
            self.gauge.finish(self._model(pl_module), trainer.global_step)
            self._tell(trainer)
            self.gauge.close("stopped" if trainer.should_stop else "finished")

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """End the record and say why."""
        told = isinstance(exception, KeyboardInterrupt | SIGTERMException)
        if self.gauge is not None:
            self.gauge.close("signal" if told else "error")

    def state_dict(self) -> dict[str, Any]:
        """The run, for a resume that does not find its directory."""
        return self.gauge.state_dict() if self.gauge is not None else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the run from a checkpoint; its directory goes first."""
        self._carried = state_dict

    def _ask(self, trainer: pl.Trainer, gauge: ForceGauge) -> None:
        if gauge.should_save:
            path = _folder(trainer) / f"alarm-step={trainer.global_step}.ckpt"
            with gauge.guard("other", trainer.global_step):
                trainer.save_checkpoint(path)
                gauge.saved(path, trainer.global_step)
        trainer.should_stop = trainer.should_stop or gauge.should_stop

    def _tell(self, trainer: pl.Trainer) -> None:
        if self._teller is not None and trainer.is_global_zero:
            send = partial(_send, trainer) if self._trackers else None
            self._teller.tell(trainer.lightning_module, trainer.global_step, send)

    def _model(self, pl_module: pl.LightningModule) -> nn.Module:
        found = getattr(pl_module, self._name, None)
        if isinstance(found, nn.Module):
            return found
        names = ", ".join(name for name, _ in pl_module.named_children()) or "none"
        raise InputError(
            f"{type(pl_module).__name__} has no module '{self._name}'",
            field="model",
            fix=f"Name the attribute that holds the Hugging Face model (modules: {names})",
        )

    def _note_checkpoints(self, trainer: pl.Trainer) -> None:
        if self.gauge is not None:
            found = checkpoints(trainer)
            for path in sorted(found - self._saved):
                self.gauge.saved(path, trainer.global_step)
            self._saved = found


class Attached(ForceGaugeCallback):
    """For a script that knows nothing of it, see `forcegauge.attach`: the environment names the
    probes, model and tokenizer are found, and a script's own callback goes first."""

    def __init__(self) -> None:
        super().__init__(os.environ["FORCEGAUGE_PROBES"], None)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the baseline, unless somebody else does or nothing fits."""
        everyone: list[Any] = getattr(trainer, "callbacks", [])
        others = [each for each in everyone if each is not self]
        if any(isinstance(each, ForceGaugeCallback) for each in others):
            return
        try:
            self._name = language_model(pl_module)
            self._tokenizer = tokenizer_of(trainer, pl_module, self._model(pl_module))
            super().on_train_start(trainer, pl_module)
        except InputError as error:
            logger.error("not attached, training goes on: %s", error)


def language_model(module: pl.LightningModule) -> str:
    """The name of the Hugging Face model in a module, one that is trained before a frozen one;
    ``model`` where there is none."""
    children = list(module.named_children())
    found = [(n, child) for n, child in children if hasattr(child, "get_output_embeddings")]
    trained = [n for n, child in found if any(p.requires_grad for p in child.parameters())]
    return next(iter([*trained, *(n for n, _ in found)]), "model")


def tokenizer_of(trainer: pl.Trainer, module: pl.LightningModule, model: nn.Module) -> Any:
    """The ``tokenizer`` of the module or its data module, or else that of the model's name; raises
    `InputError` where there is none."""
    data = getattr(trainer, "datamodule", None)
    found = getattr(module, "tokenizer", None) or getattr(data, "tokenizer", None)
    if found is None and (name := getattr(getattr(model, "config", None), "_name_or_path", "")):
        found = load_tokenizer(name)
    if found is None:
        fix = "Name it `tokenizer` in the module or the data module"
        raise InputError("no tokenizer could be found", field="tokenizer", fix=fix)
    return found


TAKING_TEXT = (CSVLogger, WandbLogger)
"""Loggers that take a word where others take numbers alone."""


def _send(trainer: pl.Trainer, numbers: dict[str, float], verdict: str) -> None:
    for each in trainer.loggers:
        told: dict[str, Any] = dict(numbers)
        if isinstance(each, TAKING_TEXT):
            told["forcegauge/verdict_text"] = verdict
        each.log_metrics(told, step=trainer.global_step)


def _folder(trainer: pl.Trainer) -> Path:
    """Where `ModelCheckpoint` saves, or else the trainer."""
    keepers = [one for one in trainer.checkpoint_callbacks if isinstance(one, ModelCheckpoint)]
    named = next((one.dirpath for one in keepers if one.dirpath), None)
    return Path(named or Path(trainer.default_root_dir) / "checkpoints")


def checkpoints(trainer: pl.Trainer) -> set[str]:
    """Paths that `ModelCheckpoint` callbacks keep now; ``last.ckpt`` is not among them."""
    keepers = [one for one in trainer.checkpoint_callbacks if isinstance(one, ModelCheckpoint)]
    paths = {path for one in keepers for path in (one.best_model_path, *one.best_k_models)}
    return paths - {""}
