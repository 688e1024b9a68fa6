"""ForceGauge: when to probe, isolation from the training, and what goes where.

Nothing in here may change the training or stop it: every error is caught, logged once, counted.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any, SupportsFloat

from torch import Tensor, nn

from forcegauge.alerting import Alerts, OnAlarm
from forcegauge.arguments import (
    absolute,
    address,
    loss_signal,
    model_facts,
    model_name,
    run_directory,
    run_name,
)
from forcegauge.budget import parse_bytes
from forcegauge.clocks import finish_queued
from forcegauge.detectors import Judgement
from forcegauge.ending import Ending, reason_of
from forcegauge.exporter import Snapshot, build_snapshot
from forcegauge.failures import Guard
from forcegauge.isolation import is_schedule_free
from forcegauge.journal import Journal, Past
from forcegauge.observed import Observed
from forcegauge.pace import Pace
from forcegauge.phase import Phase, Probe, alarms_with, pushes_down
from forcegauge.prober import Limits, Look, Prober
from forcegauge.probes import ProbeSet
from forcegauge.ranks import agreed, everyone, mean_of, rank
from forcegauge.reference import Reference
from forcegauge.rl import Completion
from forcegauge.rotation import most_parts
from forcegauge.scores import Scores

logger = logging.getLogger("forcegauge")


class ForceGauge:
    """Scores a fixed probe set while a model is trained and says where the mass goes.

        with ForceGauge("probes.jsonl", tokenizer, run="my-run") as gauge:
            gauge.step(model, 0)                      # the baseline, before training
            for step, batch in enumerate(loader, 1):
                ...
                gauge.step(model, step)

    ``every`` is the spacing of probes in optimizer steps after the dense early ones, ``budget``
    the share of training time that they may take (None: no limit): later probes score the set in
    parts and stand further apart to keep it. ``max_memory`` is what a probe may add to the memory
    in use, in bytes or as "2GiB" (None: an eighth of what is free on a GPU, no limit on a CPU);
    where it does not suffice, probes fail and training goes on. ``phase`` names the part of the
    run that has its own baseline; ``loss`` tells whether it pushes answers down ("sft" does not).
    ``texts=False`` keeps prompts and responses out of what is written. ``thresholds`` gives alarms
    of this run another size: alarm -> size of its first condition. ``on_alarm`` is "log",
    "checkpoint" or "stop", done when the verdict turns squeezing, diverging or collapsed (see
    `should_save` and `should_stop`), or a function that is called with the judgement when any alarm
    goes on and may return one of these words. ``settings`` are more facts of the training for the
    record, such as its learning rate. ``optimizer``: of a schedule-free one the evaluation weights
    are scored. ``monitor`` is the URL of a monitor to join, ``train`` the training samples (JSONL)
    that its snapshots take. A second gauge with the same run and directory continues record and
    endpoint. Raises `InputError` when it is made with bad arguments; afterwards it never raises.
    """

    judgement: Judgement | None = None
    """What is known since the last probe; None before the first."""

    _phase: Phase | None = None
    _carried: Mapping[str, Any] = MappingProxyType({})
    _closed = False

    def __init__(
        self,
        probes: str | Path | ProbeSet,
        tokenizer: Any,
        *,
        run: str | None = None,
        directory: str | Path | None = None,
        phase: str = "train",
        every: int = 50,
        budget: float | None = 0.01,
        loss: str | None = None,
        beta: float | None = None,
        max_prompt_tokens: int | None = None,
        max_response_tokens: int | None = None,
        append_eos: bool = False,
        max_memory: int | str | None = None,
        texts: bool = True,
        port: int | None = None,
        bind: str | None = None,
        thresholds: Mapping[str, float] | None = None,
        on_alarm: OnAlarm = "log",
        monitor: str | None = None,
        train: str | Path | None = None,
        settings: Mapping[str, Any] | None = None,
        optimizer: Any = None,
    ) -> None:
        self.run = run_name(run, phase)
        self.disabled = os.environ.get("FORCEGAUGE_DISABLED", "") not in ("", "0")
        self._loss, self._alarms = loss, alarms_with(thresholds or {})
        self._address = address(bind, port)
        limits = Limits(max_prompt_tokens, max_response_tokens, append_eos)
        own = {"every": every, "budget": budget, "loss": loss, "beta": beta, **asdict(limits)}
        own |= {"thresholds": dict(thresholds or {}), "train": absolute(train)}
        if is_schedule_free(optimizer):
            own["weights"] = "evaluation"
        known = {**(settings or {}), **own}
        folder = run_directory(directory, self.run)
        probe_set = probes if isinstance(probes, ProbeSet) else ProbeSet.load(probes)
        self._journal = Journal(self.run, folder, phase, known, texts, probe_set, monitor)
        self.guard = Guard(self._journal.line)
        self._alerts = Alerts(on_alarm, self.guard)
        self._pace = Pace(every, budget, most_parts(len(probe_set)))
        memory = parse_bytes(max_memory) if isinstance(max_memory, str) else max_memory
        self._prober = Prober(probe_set, tokenizer, limits, texts, self.guard, memory)
        self._prober.reference, self._prober.optimizer = Reference(folder), optimizer
        self._observed = Observed(self._pace, tokenizer, self.guard)
        self._ending = Ending(self.close, self._terminated)

    def __enter__(self) -> ForceGauge:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(reason_of(kind))

    @property
    def directory(self) -> Path:
        """The run's directory."""
        return self._journal.directory

    @property
    def record_id(self) -> str:
        """The record's own id; empty while none is open."""
        return self._journal.record.record_id if self._journal.record else ""

    @property
    def snapshot(self) -> Snapshot:
        """What a scrape sees now."""
        return build_snapshot(self._journal.state)

    @property
    def failures(self) -> Mapping[str, int]:
        """How many errors of the gauge's own there were, by reason."""
        return self.guard.counts

    @property
    def should_save(self) -> bool:
        """Whether ``on_alarm`` asks for a checkpoint, until the next step."""
        return self._alerts.should_save

    @property
    def should_stop(self) -> bool:
        """Whether ``on_alarm`` asks the training to end; so on every rank."""
        return self._alerts.should_stop

    @property
    def probe_seconds(self) -> float:
        """What probes took so far."""
        return self._pace.probe_seconds

    @property
    def port(self) -> int | None:
        """The port on which metrics are served; None on other ranks or without an endpoint."""
        return self._journal.served.port if self._journal.served else None

    def step(
        self,
        model: nn.Module,
        step: int,
        *,
        loss: SupportsFloat | None = None,
        learning_rate: float | None = None,
        tokens_seen: int | None = None,
    ) -> Judgement | None:
        """Tell that ``step`` optimizer steps are done in this phase; probes when it is due.

        The first call takes the baseline: make it before training, with step 0. ``loss`` is the
        last training loss, so that one that is not finite is noticed; it may be a tensor with one
        value, which is read at a probe only: reading it waits for the device. With the
        ``learning_rate`` of the last optimizer step the forces are recorded times it too.
        ``tokens_seen`` is how many the run has trained on, for comparing runs by them.
        """
        self._journal.tokens_seen = tokens_seen
        return self._tick(model, step, loss, learning_rate, last=False)

    def attach(
        self,
        model: nn.Module,
        *,
        pairs: bool = False,
        temperature: float = 1.0,
        samples: bool = False,
    ) -> None:
        """Read the forces off the model's own backward passes (see `Capture` for what it covers).

        ``pairs``: the first half of a batch's rows is chosen, the second rejected (TRL's order);
        ``temperature``: what the loss divides logits by; ``samples``: the batches are completions
        that the trainer sampled, as in TRL's GRPO (see `SampledRows`).
        """
        self._observed.attach(model, pairs=pairs, temperature=temperature, samples=samples)

    def observe(self, logps: Tensor, labels: Tensor, **known: Tensor) -> None:
        """Read the forces off per-token log-probs of a loop's own loss; see `Capture.observe`."""
        self._observed.forces(logps, labels, **known)

    def observe_samples(
        self,
        groups: Iterable[Sequence[Completion]],
        *,
        ended: Iterable[Sequence[bool]] | None = None,
    ) -> None:
        """Tell what a loop of one's own sampled: per prompt its completions as token ids.

        ``ended`` says of each whether it ended by itself. Read at the next probe; see `Samples`.
        """
        self._observed.samples(groups, ended)

    def finish(self, model: nn.Module, step: int) -> Judgement | None:
        """Probe once more where this step has no probe yet: the phase's last state."""
        return self._tick(model, step, None, None, last=True)

    def saved(self, path: str | Path, step: int) -> None:
        """Tell that a checkpoint was saved, so that the last healthy one can be named."""
        healthy = self.judgement is None or self.judgement.healthy
        with self.guard("record", step):
            self._journal.line("checkpoint", step, {"path": str(path), "healthy": healthy})

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs where the run's directory is gone, to be saved with a checkpoint.

        Its size is about 7 kB per probe; it holds greedy outputs unless ``texts`` is false.
        Empty on other ranks.
        """
        found: dict[str, Any] = {}
        with self.guard("record", self._pace.probed or 0):
            found |= self._journal.pack()
        return found

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave, unless the run's directory has a record; before the
        first step."""
        self._carried = state

    def close(self, reason: str | None = "finished") -> None:
        """End the run: ``finished``, ``stopped``, ``signal`` or ``error``. The endpoint stays.

        One that ``on_alarm`` asked to stop has not finished: its end is ``stopped``.
        Left alone, a run ends ``signal`` on Ctrl-C and SIGTERM (where nobody else listens to it),
        ``stopped`` when the process exits, ``error`` on any other exception. None writes no end:
        another process will go on with the run.
        """
        self._ending.ignore()
        self._observed.detach()
        reason = "stopped" if reason == "finished" and self.should_stop else reason
        if self._pace.running and not self._closed:
            self._closed = True
            with self.guard("record", self._pace.probed or 0):
                self._journal.end(reason, self._pace.probed or 0)

    def _terminated(self) -> None:
        # no more than that: the handler may have interrupted what would go to the endpoint
        with self.guard("record", self._pace.probed or 0):
            self._journal.told_end("signal", self._pace.probed or 0)

    def _tick(
        self,
        model: nn.Module,
        step: int,
        loss: SupportsFloat | None,
        learning_rate: float | None,
        *,
        last: bool,
    ) -> Judgement | None:
        if self.disabled or self._closed:
            return None
        self._alerts.should_save = False
        with self.guard("other", step):
            if not self._pace.running:
                self._open(model, step)
            self._pace.told(step, observed=self._observed.observing)
            due = self._pace.due(step, last=last)
            if due:
                finish_queued()
            with self._pace.ours:
                self._observed.step(step, learning_rate)
                with self.guard("exporter", step):
                    self._journal.show_step(train_step=self._journal.offset + step, **self._costs())
                if due:
                    self._probe_now(model, step, loss)
                    self._alerts.agree()
        return self.judgement

    def _open(self, model: nn.Module, step: int) -> None:
        self._pace.begin(step)
        with everyone().together():
            self._resume(agreed(self._begun(model, step)), step)

    def _begun(self, model: nn.Module, step: int) -> Past:
        """Rank 0 has the endpoint and the record, and knows what went before."""
        past = Past()
        if rank() == 0:
            self._ending.listen()
            with self.guard("exporter", step):
                self._journal.serve(*self._address)
            with self.guard("record", step):
                self._journal.unpack(self._carried)
            with self.guard("record", step):
                past = self._journal.open(model_name(model), step, model_facts(model))
            with self.guard("other", step):
                self._journal.join(lambda: self.judgement)
        return past

    def _resume(self, past: Past, step: int) -> None:
        self._journal.offset = past.offset
        self._prober.resume(past.greedy)
        if past.baseline is None:
            return
        start = past.probes[0]
        self._phase = self._make_phase(start["step"], past.baseline, start["noise"])
        for line, found in self._phase.replayed(past.probes):
            self.judgement = found.judgement if line is not start else None
            with self.guard("exporter", step):
                self._journal.show_again(found, line, baseline=line is start)
        if self.judgement is not None:
            self._alerts.known(self.judgement)
        begun = (past.probes[-1]["step"] - past.offset, self._baseline_step())
        self._pace.resume(*begun, turn=len(past.probes) - 1, parts=past.parts)
        logger.info("resumed at step %d, baseline of step %d", step, start["step"])

    def _probe_now(self, model: nn.Module, step: int, loss: SupportsFloat | None) -> None:
        start = time.monotonic()
        try:
            with self.guard("scoring", step), everyone().together():
                self._probe(model, step, loss)
        finally:
            seconds, base = time.monotonic() - start, self._baseline_step()
            self._pace.spent(step, seconds, base, self._prober.cost(seconds))
            with self.guard("other", step):
                self._prober.settle()
            self._show(step, **self._costs())

    def _probe(self, model: nn.Module, step: int, loss: SupportsFloat | None) -> None:
        start, pace = time.monotonic(), self._pace
        first, parts, turn = agreed((self._phase is None, pace.parts, pace.turn))
        look = self._prober.look(model, step, noise=first, parts=parts, turn=turn)
        forces, observed = self._observed.take(step)
        with self.guard("other", step):
            observed = observed | loss_signal(loss)
        observed, forces = mean_of(observed), mean_of(forces)
        found = self._judge(step, look, look.behaviour | observed)
        if rank() == 0:
            with self.guard("record", step):
                self._journal.forces(step, forces)
            self._keep(found, look, first, time.monotonic() - start)

    def _judge(self, step: int, look: Look, behaviour: dict[str, float]) -> Probe:
        run_step = self._journal.offset + step
        if self._phase is None:
            self._phase = self._make_phase(run_step, look.scores, look.noise)
            found = self._phase.first(behaviour)
        else:
            found = self._phase.probe(run_step, look.scores, behaviour)
        self.judgement = agreed(found.judgement)  # ranks may differ in the last bit
        return found

    def _keep(self, found: Probe, look: Look, first: bool, seconds: float) -> None:
        step = found.step - self._journal.offset
        with self.guard("record", step):
            self._journal.probe(found, look.scores, baseline=first, seconds=seconds)
            self._journal.judgement(found)
            self._journal.outputs(step, look.outputs)
        with self.guard("exporter", step):
            self._journal.show_probe(found, baseline=first, seconds=seconds, now=time.time())
        self._alerts.tell(found.judgement, step, self.directory)

    def _make_phase(self, step: int, baseline: Scores, noise: Mapping[str, float]) -> Phase:
        return Phase(step, baseline, noise, pushes_down(self._loss), self._alarms)

    def _baseline_step(self) -> int | None:
        """The trainer's step of the phase's baseline."""
        return self._phase.baseline_step - self._journal.offset if self._phase else None

    def _show(self, step: int, **known: Any) -> None:
        with self.guard("exporter", step):
            self._journal.show(**known)

    def _costs(self) -> dict[str, Any]:
        return {"overhead_ratio": self._pace.overhead_ratio, "failures": dict(self.failures)}
