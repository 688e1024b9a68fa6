"""One line for transformers' Trainer and TRL's trainers: ``trainer.add_callback(...)``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from forcegauge.detectors import Judgement
from forcegauge.gauge import ForceGauge
from forcegauge.integrations.rates import learning_rate
from forcegauge.probes import ProbeSet

FOLDER = "forcegauge"
PAIR_KINDS = ("dpo", "cpo", "orpo")
"""Trainers that put the chosen answers in a batch's first half and the rejected in the second."""
SAMPLING_KINDS = ("grpo", "rloo")
"""Trainers that divide logits by the temperature at which they sample."""


class ForceGaugeCallback(TrainerCallback):
    """Watches a training with transformers' ``Trainer`` or one of TRL's.

        trainer.add_callback(ForceGaugeCallback(probes="probes.jsonl", run="my-run", every=50))

    ``options`` are `ForceGauge`'s. The directory is ``OUTPUT_DIR/forcegauge`` unless named, the
    phase and the loss are the trainer's kind: ``sft``, ``dpo``, ...
    """

    def __init__(
        self,
        probes: str | Path | ProbeSet,
        run: str | None = None,
        *,
        every: int = 50,
        directory: str | Path | None = None,
        phase: str | None = None,
        loss: str | None = None,
        on_alarm: Callable[[Judgement], None] | None = None,
        **options: Any,
    ) -> None:
        # read here and not in the trainer, so that a bad probe file is told before the model loads
        self._probes = probes if isinstance(probes, ProbeSet) else ProbeSet.load(probes)
        self._options = {**options, "run": run, "every": every, "on_alarm": on_alarm}
        self._directory, self._phase, self._loss = directory, phase, loss
        self._rate: float | None = None
        self.gauge: ForceGauge | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Take the baseline, or go on from it after a resume."""
        kind = trainer_kind(args)
        tokenizer = kwargs.get("processing_class")
        self.gauge = ForceGauge(
            self._probes,
            getattr(tokenizer, "tokenizer", tokenizer),
            directory=self._directory or _folder(args),
            phase=self._phase or kind or "train",
            loss=self._loss or trainer_loss(args, kind),
            beta=getattr(args, "beta", None),
            **self._options,
        )
        self.gauge.step(kwargs["model"], state.global_step)
        sampled = kind in SAMPLING_KINDS
        self.gauge.attach(
            kwargs["model"],
            pairs=kind in PAIR_KINDS,
            temperature=getattr(args, "temperature", 1.0) if sampled else 1.0,
            samples=sampled,
        )

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Note the learning rate, which is the next step's when the step ends."""
        self._rate = learning_rate(kwargs.get("optimizer"))

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Probe when it is due."""
        if self.gauge is not None:
            told = {"loss": last_loss(state), "learning_rate": self._rate}
            self.gauge.step(kwargs["model"], state.global_step, **told)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note the checkpoint, healthy or not."""
        if self.gauge is not None:
            path = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
            self.gauge.saved(path, state.global_step)

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Probe the last state and end the record; the endpoint stays."""
        if self.gauge is not None:
            self.gauge.finish(kwargs["model"], state.global_step)
            self.gauge.close("finished" if state.global_step >= state.max_steps else "stopped")


def trainer_kind(args: TrainingArguments) -> str | None:
    """``sft`` for TRL's SFTConfig, ``dpo`` for DPOConfig, ...; None for transformers' own."""
    name = type(args).__name__
    return name.removesuffix("Config").lower() if name.endswith("Config") else None


def trainer_loss(args: TrainingArguments, kind: str | None) -> str | None:
    """The loss that the trainer's settings name, or else the trainer's kind."""
    named = getattr(args, "loss_type", None)
    if kind in (None, "sft") or named is None:
        return kind
    return f"{kind}:{'+'.join(named) if isinstance(named, list) else named}"


def last_loss(state: TrainerState) -> float | None:
    """The last logged training loss."""
    for row in reversed(state.log_history):
        if "loss" in row:
            return float(row["loss"])
    return None


def _folder(args: TrainingArguments) -> Path | None:
    return Path(str(args.output_dir)) / FOLDER if args.output_dir else None
