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
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from forcegauge.alarms import alarm
from forcegauge.behaviour import Behaviour, with_greedy
from forcegauge.capture import Capture
from forcegauge.detectors import Judgement
from forcegauge.errors import InputError, RunError
from forcegauge.isolation import undisturbed
from forcegauge.journal import Journal, Past
from forcegauge.phase import Phase, Probe, pushes_down
from forcegauge.probes import ProbeSet
from forcegauge.ranks import agreed, rank
from forcegauge.record import check_run_name
from forcegauge.schedule import Schedule
from forcegauge.scorer import Scorer
from forcegauge.scores import Scores

logger = logging.getLogger("forcegauge")

DEFAULT_PORT = 9790
LOOPBACK = "127.0.0.1"
OBSERVED_STEPS = 10
"""Forces are read at every tenth step at most: their cost stays under a percent."""
FORCE_SIGNALS = ("force_up_norm", "force_down_norm", "valley_force_ratio", "squeeze_law_ratio")
"""Forces that alarms look at."""


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
    ``texts=False`` keeps prompts and responses out of what is written. ``on_alarm`` is called with
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
        on_alarm: Callable[[Judgement], None] | None = None,
    ) -> None:
        self.run = run or os.environ.get("FORCEGAUGE_RUN") or "run"
        check_run_name(self.run)
        check_run_name(phase)
        if every < 1:
            raise InputError(f"{every} is no spacing of probes", field="every", fix="Use 1 or more")
        self.disabled = os.environ.get("FORCEGAUGE_DISABLED", "") not in ("", "0")
        self.judgement: Judgement | None = None
        self.failures: Counter[str] = Counter()
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
        self._on_alarm = on_alarm
        self._capture = Capture(every=max(1, min(OBSERVED_STEPS, every // 2)))
        self._seen: int | None = None
        self._scorer: Scorer | None = None
        self._phase: Phase | None = None
        self._first: tuple[int, float] | None = None
        self._due: int | None = None
        self._probed: int | None = None
        self._closed = False
        self._stretched = False
        settings = {"every": every, "budget": budget, "loss": loss, "beta": beta, **self._limits}
        folder = directory or os.environ.get("FORCEGAUGE_DIR") or f"forcegauge-runs/{self.run}"
        self._journal = Journal(
            self.run, Path(folder), phase, settings, texts, self._probe_set.hash
        )

    def __enter__(self) -> ForceGauge:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(_reason(kind))

    @property
    def directory(self) -> Path:
        """The run's directory."""
        return self._journal.directory

    @property
    def port(self) -> int | None:
        """The port on which metrics are served; None on other ranks or without an endpoint."""
        return self._journal.served.port if self._journal.served else None

    def step(self, model: nn.Module, step: int, *, loss: float | None = None) -> Judgement | None:
        """Tell that ``step`` optimizer steps are done in this phase; probes when it is due.

        The first call takes the baseline: make it before training, with step 0. ``loss`` is the
        last training loss, so that one that is not finite is noticed.
        """
        return self._tick(model, step, loss, last=False)

    def attach(self, model: nn.Module, *, pairs: bool = False, temperature: float = 1.0) -> None:
        """Read the forces off the model's own backward passes (see `Capture` for what it covers).

        ``pairs``: the first half of a batch's rows is chosen, the second rejected (TRL's order);
        ``temperature``: what the loss divides logits by.
        """
        with self._guard("forces", 0):
            every = self._capture.every
            self._capture = Capture(every=every, pairs=pairs, temperature=temperature)
            self._capture.attach(model)

    def observe(self, logps: Tensor, labels: Tensor, **known: Tensor) -> None:
        """Read the forces off per-token log-probs of a loop's own loss; see `Capture.observe`."""
        self._capture.observe(logps, labels, **known)

    def finish(self, model: nn.Module, step: int) -> Judgement | None:
        """Probe once more where this step has no probe yet: the phase's last state."""
        return self._tick(model, step, None, last=True)

    def saved(self, path: str | Path, step: int) -> None:
        """Tell that a checkpoint was saved, so that the last healthy one can be named."""
        healthy = self.judgement is None or self.judgement.healthy
        with self._guard("record", step):
            self._journal.line("checkpoint", step, {"path": str(path), "healthy": healthy})

    def close(self, reason: str = "finished") -> None:
        """End the run: ``finished``, ``stopped``, ``signal`` or ``error``. The endpoint stays."""
        atexit.unregister(self._at_exit)
        self._capture.detach()
        if self._first is not None and not self._closed:
            self._closed = True
            with self._guard("record", self._probed or 0):
                self._journal.end(reason, self._probed or 0)

    def _at_exit(self) -> None:
        # set where an exception ended the process
        died: type[BaseException] | None = getattr(sys, "last_type", None)
        self.close(_reason(died) if died else "stopped")

    def _tick(
        self, model: nn.Module, step: int, loss: float | None, *, last: bool
    ) -> Judgement | None:
        if self.disabled or self._closed:
            return None
        with self._guard("other", step):
            if self._first is None:
                self._open(model, step)
            if self._seen is not None and step > self._seen:
                self._capture.step()
            self._seen = step
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

    def _probe_now(self, model: nn.Module, step: int, loss: float | None) -> None:
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

    def _probe(self, model: nn.Module, step: int, loss: float | None) -> None:
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
        forces = self._forces(step)
        behaviour |= _loss_signal(loss)
        behaviour |= {name: forces[name] for name in FORCE_SIGNALS if name in forces}
        found = self._judge(step, scores, noise, behaviour)
        if rank() == 0:
            self._keep_forces(forces, step)
            self._keep(found, scores, texts, first, time.monotonic() - start)

    def _forces(self, step: int) -> dict[str, float]:
        found: dict[str, float] = {}
        with self._guard("forces", step):
            found = self._capture.take() or {}
            if self._capture.error is not None and not self.failures["forces"]:
                raise RunError(self._capture.error)
        return found

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
        return Phase(step, baseline, noise, pushes_down(self._loss))

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

    @contextmanager
    def _guard(self, reason: str, step: int) -> Iterator[None]:
        """Keep an error from the trainer: count it, log the first of its kind, record it."""
        try:
            yield
        except Exception as error:
            kind = "out_of_memory" if isinstance(error, torch.OutOfMemoryError) else reason
            self.failures[kind] += 1
            if self.failures[kind] == 1:
                detail = None if isinstance(error, InputError | OSError) else error
                logger.error("%s failed, training goes on: %s", kind, error, exc_info=detail)
            if reason != "record":
                self._record_failure(kind, error, step)

    def _record_failure(self, kind: str, error: Exception, step: int) -> None:
        with self._guard("record", step):
            facts = {"reason": kind, "message": f"{type(error).__name__}: {error}"[:500]}
            self._journal.line("error", step, facts)


def _port(port: int | None) -> int:
    if port is not None:
        return port
    named = os.environ.get("FORCEGAUGE_PORT") or str(DEFAULT_PORT)
    if not named.isdigit():
        raise InputError(f"'{named}' is no port", field="FORCEGAUGE_PORT", fix="Use 0 to 65535")
    return int(named)


def _reason(kind: type[BaseException] | None) -> str:
    if kind is None:
        return "finished"
    if issubclass(kind, SystemExit):
        return "stopped"
    return "signal" if issubclass(kind, KeyboardInterrupt) else "error"


def _loss_signal(loss: float | None) -> dict[str, float]:
    if loss is None:
        return {}
    return {"loss_nonfinite_ratio": float(not math.isfinite(loss))}


def _model_name(model: nn.Module) -> str:
    inner = getattr(model, "module", model)
    return str(getattr(getattr(inner, "config", None), "_name_or_path", "") or type(inner).__name__)
