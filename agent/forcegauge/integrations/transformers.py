"""One line for transformers' Trainer and TRL's trainers: ``trainer.add_callback(...)``."""

from __future__ import annotations

import inspect
import logging
import os
from functools import partial
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from forcegauge.alerting import OnAlarm
from forcegauge.errors import InputError
from forcegauge.gauge import ForceGauge
from forcegauge.integrations.facts import of_arguments
from forcegauge.integrations.rates import learning_rate
from forcegauge.integrations.telling import Teller
from forcegauge.probes import ProbeSet

logger = logging.getLogger("forcegauge")

FOLDER = "forcegauge"
STATE = "forcegauge"
"""Where the run travels in the trainer's saved state."""
PAIR_KINDS = ("dpo", "cpo", "orpo")
"""Trainers that put the chosen answers in a batch's first half and the rejected in the second."""
SAMPLING_KINDS = ("grpo", "rloo")
"""Trainers that divide logits by the temperature at which they sample."""
TAKING_TEXT = ("TensorBoardCallback", "WandbCallback", "TrackioCallback", "SwanLabCallback")
"""Trackers' callbacks that take a word where others take numbers alone."""


class ForceGaugeCallback(TrainerCallback):
    """Watches a training with transformers' ``Trainer`` or one of TRL's.

        trainer.add_callback(ForceGaugeCallback(probes="probes.jsonl", run="my-run", every=50))

    ``options`` are `ForceGauge`'s. The directory is ``OUTPUT_DIR/forcegauge`` unless named, the
    phase and the loss are the trainer's kind: ``sft``, ``dpo``, ... Each probe is a line in the
    training log (``log=False``: none), and goes to the trackers of the trainer's ``report_to``
    under ``forcegauge/`` (``trackers=False``: to none).
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
        on_alarm: OnAlarm = "log",
        log: bool = True,
        trackers: bool = True,
        **options: Any,
    ) -> None:
        # read here and not in the trainer, so that a bad probe file is told before the model loads
        self._probes = probes if isinstance(probes, ProbeSet) else ProbeSet.load(probes)
        self._options = {**options, "run": run, "every": every, "on_alarm": on_alarm}
        self._settings = dict(self._options.pop("settings", None) or {})
        self._directory, self._phase, self._loss = directory, phase, loss
        self._log, self._report = log, trackers
        self._rate: float | None = None
        self._teller: Teller | None = None
        self._trackers: list[TrainerCallback] = []
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
            directory=self._directory or os.environ.get("FORCEGAUGE_DIR") or _folder(args),
            phase=self._phase or kind or "train",
            loss=self._loss or trainer_loss(args, kind),
            beta=getattr(args, "beta", None),
            optimizer=kwargs.get("optimizer"),
            settings={**of_arguments(args), **self._settings},
            **self._options,
        )
        carried: Any = state.stateful_callbacks
        self.gauge.load_state_dict(carried.get(STATE, {}))
        self._teller = Teller(self.gauge, log=self._log)
        with self.gauge.guard("other", state.global_step):
            self._trackers = trackers_of_the_caller() if self._report else []
        self.gauge.step(kwargs["model"], state.global_step, tokens_seen=tokens_seen(args, state))
        self._tell(args, state, control, kwargs)
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
            self.gauge.step(
                kwargs["model"],
                state.global_step,
                loss=last_loss(state),
                learning_rate=self._rate,
                tokens_seen=tokens_seen(args, state),
            )
            if state.global_step >= state.max_steps:
                # here already: at the end of the training trackers are closed before us
                self.gauge.finish(kwargs["model"], state.global_step)
            self._tell(args, state, control, kwargs)
            self._ask(control)
            self._carry(state, control)

    def on_epoch_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Have the run travel with a checkpoint that is saved at an epoch's end."""
        self._carry(state, control)

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
            self._trackers = []
            self._tell(args, state, control, kwargs)
            self.gauge.close("finished" if state.global_step >= state.max_steps else "stopped")

    def _ask(self, control: TrainerControl) -> None:
        if self.gauge is not None:
            control.should_save = control.should_save or self.gauge.should_save
            control.should_training_stop = control.should_training_stop or self.gauge.should_stop

    def _carry(self, state: TrainerState, control: TrainerControl) -> None:
        """The run travels in the checkpoint, for a resume that does not find its directory.

        Not as an `ExportableState`: that one is restored by making the callback anew from JSON, and
        a checkpoint from before the callback was added could not be gone on from.
        """
        if self.gauge is not None and control.should_save:
            with self.gauge.guard("record", state.global_step):
                carried: Any = state.stateful_callbacks
                carried[STATE] = self.gauge.state_dict()

    def _tell(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        known: dict[str, Any],
    ) -> None:
        """To the log, and to trackers alone: what the trainer logs itself stays as it is."""
        if self._teller is not None and state.is_world_process_zero:
            send = partial(_send, self._trackers, args, state, control, known)
            self._teller.tell(known["model"], state.global_step, send if self._trackers else None)


class Attached(ForceGaugeCallback):
    """For a training script that knows nothing of it, see `forcegauge.attach`: the environment
    names the probes, and a script's own callback goes first."""

    def __init__(self) -> None:
        super().__init__(os.environ["FORCEGAUGE_PROBES"])

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Take the baseline, unless somebody else does or nothing fits."""
        others = [each for each in callbacks_of_the_caller() if each is not self]
        if any(isinstance(each, ForceGaugeCallback) for each in others):
            return
        try:
            super().on_train_begin(args, state, control, **kwargs)
        except InputError as error:
            logger.error("not attached, training goes on: %s", error)


def trackers_of_the_caller() -> list[TrainerCallback]:
    """The integrations that ``report_to`` gave the trainer whose handler is calling just now."""
    # not part of its documented interface: where it is gone, only trackers are silent
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    known: tuple[Any, ...] = tuple(INTEGRATION_TO_CALLBACK.values())
    return [each for each in callbacks_of_the_caller() if isinstance(each, known)]


def callbacks_of_the_caller() -> list[TrainerCallback]:
    """All callbacks of the trainer whose handler is calling just now.

    transformers gives a callback no way to log, and not the handler that has the trackers either:
    it is read off the stack. Empty where no handler calls.
    """
    from transformers.trainer_callback import CallbackHandler

    frame = inspect.currentframe()
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, CallbackHandler):
            return list(caller.callbacks)
        frame = frame.f_back
    return []


def _send(
    trackers: list[TrainerCallback],
    args: TrainingArguments,
    state: TrainerState,
    control: TrainerControl,
    known: dict[str, Any],
    numbers: dict[str, float],
    verdict: str,
) -> None:
    for tracker in trackers:
        takes = type(tracker).__name__ in TAKING_TEXT
        text = {"forcegauge/verdict_text": verdict} if takes else {}
        tracker.on_log(args, state, control, logs={**numbers, **text}, **known)


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


def tokens_seen(args: TrainingArguments, state: TrainerState) -> int | None:
    """Tokens trained on so far, where ``include_num_input_tokens_seen`` has the trainer count."""
    counted = getattr(args, "include_num_input_tokens_seen", "no") not in (False, "no")
    return int(state.num_input_tokens_seen) if counted else None


def last_loss(state: TrainerState) -> float | None:
    """The last logged training loss."""
    for row in reversed(state.log_history):
        if "loss" in row:
            return float(row["loss"])
    return None


def _folder(args: TrainingArguments) -> Path | None:
    return Path(str(args.output_dir)) / FOLDER if args.output_dir else None
