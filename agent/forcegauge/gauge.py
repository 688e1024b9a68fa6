"""ForceGauge: when to probe, isolation from the training, and what goes where.

Nothing in here may change the training or stop it: every error is caught, logged once, counted.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsFloat

from torch import Tensor, nn

from forcegauge.alarms import alarm
from forcegauge.behaviour import Behaviour, with_greedy
from forcegauge.detectors import Judgement
from forcegauge.ending import Termination, reason_of
from forcegauge.errors import InputError
from forcegauge.failures import Guard
from forcegauge.isolation import undisturbed
from forcegauge.journal import Journal, Past
from forcegauge.observed import Observed
from forcegauge.phase import Phase, Probe, alarms_with, pushes_down
from forcegauge.probes import ProbeSet
from forcegauge.ranks import agreed, rank
from forcegauge.record import check_run_name
from forcegauge.rl import Completion
from forcegauge.schedule import Schedule
from forcegauge.scorer import Scorer
from forcegauge.scores import Scores

logger = logging.getLogger("forcegauge")

DEFAULT_PORT = 9790
LOOPBACK = "127.0.0.1"
OBSERVED_STEPS = 10
"""Forces are read at every tenth step at most: their cost stays under a percent."""


class ForceGauge:
    """Scores a fixed probe set while a model is trained and says where the mass goes.

        with ForceGauge("probes.jsonl", tokenizer, run="my-run") as gauge:
            gauge.step(model, 0)                      # the baseline, before training
            for step, batch in enumerate(loader, 1):
                ...
                gauge.step(model, step)

    ``every`` is the spacing of probes in optimizer steps after the dense early ones, ``budget``
    the share of training time that they may take (None: no limit). ``phase`` names the part of the
    run that has its own baseline; ``loss`` tells whether it pushes answers down ("sft" does not).
    ``texts=False`` keeps prompts and responses out of what is written. ``thresholds`` gives alarms
    of this run another size: alarm -> size of its first condition. ``on_alarm`` is called with
    the judgement when an alarm goes on. A second gauge with the same run and directory continues
    record and endpoint. Raises `InputError` when it is made with bad arguments; afterwards it
    never raises.
    """

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
        texts: bool = True,
        port: int | None = None,
        bind: str | None = None,
        thresholds: Mapping[str, float] | None = None,
        on_alarm: Callable[[Judgement], None] | None = None,
    ) -> None:
        self.run = run or os.environ.get("FORCEGAUGE_RUN") or "run"
        check_run_name(self.run)
        check_run_name(phase)
        if every < 1:
            raise InputError(f"{every} is no spacing of probes", field="every", fix="Use 1 or more")
        self.disabled = os.environ.get("FORCEGAUGE_DISABLED", "") not in ("", "0")
        self.judgement: Judgement | None = None
        self.probe_seconds = 0.0
        self._schedule = Schedule(every, budget)
        self._probe_set = probes if isinstance(probes, ProbeSet) else ProbeSet.load(probes)
        self._tokenizer = tokenizer
        self._limits: dict[str, Any] = {
            "max_prompt_tokens": max_prompt_tokens,
            "max_response_tokens": max_response_tokens,
            "append_eos": append_eos,
        }
        self._behaviour: Behaviour | None = None
        self._loss = loss
        self._texts = texts
        self._address = (bind or os.environ.get("FORCEGAUGE_BIND") or LOOPBACK, _port(port))
        self._alarms = alarms_with(thresholds or {})
        self._on_alarm = on_alarm
        self._termination = Termination(self._terminated)
        self._scorer: Scorer | None = None
        self._phase: Phase | None = None
        self._first: tuple[int, float] | None = None
        self._due: int | None = None
        self._probed: int | None = None
        self._closed = False
        self._stretched = False
        settings = {"every": every, "budget": budget, "loss": loss, "beta": beta, **self._limits}
        settings["thresholds"] = dict(thresholds or {})
        folder = directory or os.environ.get("FORCEGAUGE_DIR") or f"forcegauge-runs/{self.run}"
        self._journal = Journal(
            self.run, Path(folder), phase, settings, texts, self._probe_set.hash
        )
        self._guard = Guard(self._journal.line)
        self.failures = self._guard.counts
        spacing = max(1, min(OBSERVED_STEPS, every // 2))
        self._observed = Observed(spacing, tokenizer, self._guard)

    def __enter__(self) -> ForceGauge:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(reason_of(kind))

    @property
    def directory(self) -> Path:
        """The run's directory."""
        return self._journal.directory

    @property
    def port(self) -> int | None:
        """The port on which metrics are served; None on other ranks or without an endpoint."""
        return self._journal.served.port if self._journal.served else None

    def step(
        self, model: nn.Module, step: int, *, loss: SupportsFloat | None = None
    ) -> Judgement | None:
        """Tell that ``step`` optimizer steps are done in this phase; probes when it is due.

        The first call takes the baseline: make it before training, with step 0. ``loss`` is the
        last training loss, so that one that is not finite is noticed; it may be a tensor with one
        value, which is read at a probe only: reading it waits for the device.
        """
        return self._tick(model, step, loss, last=False)

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
        return self._tick(model, step, None, last=True)

    def saved(self, path: str | Path, step: int) -> None:
        """Tell that a checkpoint was saved, so that the last healthy one can be named."""
        healthy = self.judgement is None or self.judgement.healthy
        with self._guard("record", step):
            self._journal.line("checkpoint", step, {"path": str(path), "healthy": healthy})

    def close(self, reason: str = "finished") -> None:
        """End the run: ``finished``, ``stopped``, ``signal`` or ``error``. The endpoint stays.

        Left alone, a run ends ``signal`` on Ctrl-C and SIGTERM (where nobody else listens to it),
        ``stopped`` when the process exits, ``error`` on any other exception.
        """
        atexit.unregister(self._at_exit)
        self._termination.ignore()
        self._observed.detach()
        if self._first is not None and not self._closed:
            self._closed = True
            with self._guard("record", self._probed or 0):
                self._journal.end(reason, self._probed or 0)

    def _at_exit(self) -> None:
        # set where an exception ended the process
        died: type[BaseException] | None = getattr(sys, "last_type", None)
        self.close(reason_of(died) if died else "stopped")

    def _terminated(self) -> None:
        # the line alone: the handler may have interrupted what would go to the endpoint
        with self._guard("record", self._probed or 0):
            self._journal.line("end", self._probed or 0, {"reason": "signal"})

    def _tick(
        self, model: nn.Module, step: int, loss: SupportsFloat | None, *, last: bool
    ) -> Judgement | None:
        if self.disabled or self._closed:
            return None
        with self._guard("other", step):
            if self._first is None:
                self._open(model, step)
            self._observed.step(step)
            self._show(train_step=self._journal.offset + step)
            due = self._due is not None and step >= self._due
            if due or (last and step != self._probed):
                self._probe_now(model, step, loss)
        return self.judgement

    def _open(self, model: nn.Module, step: int) -> None:
        self._first, self._due = (step, time.monotonic()), step
        past = Past()
        if rank() == 0:
            atexit.register(self._at_exit)
            self._termination.listen()
            with self._guard("exporter", step):
                self._journal.serve(*self._address)
            with self._guard("record", step):
                past = self._journal.open(self._probe_set, _model_name(model), step)
        self._resume(agreed(past), step)

    def _resume(self, past: Past, step: int) -> None:
        self._journal.offset = past.offset
        if past.greedy:
            self._scorer = self._make_scorer(with_greedy(self._probe_set, past.greedy))
        if past.baseline is None:
            return
        baseline, *later = past.probes
        self._phase = self._make_phase(baseline["step"], past.baseline, baseline["noise"])
        found = self._phase.first(baseline["signals"])
        self._journal.show_probe(found, baseline=True, seconds=0.0, now=baseline["time"])
        for line in later:
            self.judgement = self._phase.replay(line["step"], line["signals"], line["noise"])
        last = past.probes[-1]["step"] - past.offset
        self._due = self._next_due(last, 0.0)
        logger.info("resumed at step %d, baseline of step %d", step, baseline["step"])

    def _probe_now(self, model: nn.Module, step: int, loss: SupportsFloat | None) -> None:
        start = time.monotonic()
        try:
            with self._guard("scoring", step):
                self._probe(model, step, loss)
        finally:
            seconds = time.monotonic() - start
            self.probe_seconds += seconds
            self._probed = step
            self._due = agreed(self._next_due(step, seconds))
            self._show()

    def _probe(self, model: nn.Module, step: int, loss: SupportsFloat | None) -> None:
        start = time.monotonic()
        first, noise = self._phase is None, {}
        with undisturbed(model):
            behaviour, texts = self._behave(model, step)
            if self._scorer is None:
                greedy = with_greedy(self._probe_set, texts if self._texts else {})
                self._scorer = self._make_scorer(greedy)
            scores = self._scorer.score(model)
            if first:
                noise = self._scorer.noise(model)
        forces, observed = self._observed.take(step)
        behaviour |= observed
        with self._guard("other", step):
            behaviour |= _loss_signal(loss)
        found = self._judge(step, scores, noise, behaviour)
        if rank() == 0:
            self._keep_forces(forces, step)
            self._keep(found, scores, texts, first, time.monotonic() - start)

    def _keep_forces(self, forces: dict[str, float], step: int) -> None:
        if forces:
            with self._guard("record", step):
                self._journal.line("forces", step, forces)
            self._journal.show(forces=forces)

    def _behave(self, model: nn.Module, step: int) -> tuple[dict[str, float], dict[str, str]]:
        signals: dict[str, float] = {}
        texts: dict[str, str] = {}
        with self._guard("greedy", step):
            behaviour = self._behaviour or self._make_behaviour()
            outputs = behaviour.decode(model)
            signals, texts = behaviour.signals(outputs), behaviour.texts(outputs)
        return signals, texts

    def _judge(
        self, step: int, scores: Scores, noise: dict[str, float], behaviour: dict[str, float]
    ) -> Probe:
        run_step = self._journal.offset + step
        if self._phase is None:
            self._phase = self._make_phase(run_step, scores, noise)
            found = self._phase.first(behaviour)
        else:
            found = self._phase.probe(run_step, scores, behaviour)
        self.judgement = found.judgement
        return found

    def _keep(
        self, found: Probe, scores: Scores, texts: dict[str, str], first: bool, seconds: float
    ) -> None:
        step = found.step - self._journal.offset
        with self._guard("record", step):
            self._journal.probe(found, scores, baseline=first, seconds=seconds)
            self._journal.judgement(found)
            if self._texts:
                prompts = {p.id: p.as_json()["prompt"] for p in self._probe_set.probes}
                self._journal.outputs(step, prompts, texts)
        with self._guard("exporter", step):
            self._journal.show_probe(found, baseline=first, seconds=seconds, now=time.time())
        self._alert(found.judgement, step)

    def _alert(self, judgement: Judgement, step: int) -> None:
        raised = [state for state in judgement.changed if state.on]
        for state in raised:
            logger.warning("%s. %s %s", state.name, state.evidence, alarm(state.name).advice)
        if raised and self._on_alarm is not None:
            with self._guard("other", step):
                self._on_alarm(judgement)

    def _make_scorer(self, probe_set: ProbeSet) -> Scorer:
        return Scorer(probe_set, self._tokenizer, **self._limits)

    def _make_behaviour(self) -> Behaviour:
        self._behaviour = Behaviour(
            self._probe_set, self._tokenizer, self._limits["max_prompt_tokens"]
        )
        return self._behaviour

    def _make_phase(self, step: int, baseline: Scores, noise: dict[str, float]) -> Phase:
        return Phase(step, baseline, noise, pushes_down(self._loss), self._alarms)

    def _next_due(self, step: int, seconds: float) -> int:
        assert self._first is not None
        start = self._phase.baseline_step - self._journal.offset if self._phase else self._first[0]
        per_step = self._step_seconds(step)
        if self._schedule.stretched(seconds, per_step) and not self._stretched:
            self._stretched = True
            logger.info("a probe takes %.1f s: spacing is stretched to keep the budget", seconds)
        return start + self._schedule.next(step - start, seconds, per_step)

    def _step_seconds(self, step: int) -> float:
        assert self._first is not None
        first, began = self._first
        trained = time.monotonic() - began - self.probe_seconds
        return trained / (step - first) if step > first else 0.0

    def _show(self, **known: Any) -> None:
        assert self._first is not None
        elapsed = time.monotonic() - self._first[1]
        ratio = self.probe_seconds / elapsed if elapsed > 0 else None
        self._journal.show(overhead_ratio=ratio, failures=dict(self.failures), **known)


def _port(port: int | None) -> int:
    if port is not None:
        return port
    named = os.environ.get("FORCEGAUGE_PORT") or str(DEFAULT_PORT)
    if not named.isdigit():
        raise InputError(f"'{named}' is no port", field="FORCEGAUGE_PORT", fix="Use 0 to 65535")
    return int(named)


def _loss_signal(loss: SupportsFloat | None) -> dict[str, float]:
    if loss is None:
        return {}
    return {"loss_nonfinite_ratio": float(not math.isfinite(float(loss)))}


def _model_name(model: nn.Module) -> str:
    inner = getattr(model, "module", model)
    return str(getattr(getattr(inner, "config", None), "_name_or_path", "") or type(inner).__name__)
