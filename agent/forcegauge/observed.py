"""What is read off the training's own batches between two probes: forces and samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from forcegauge.capture import Capture
from forcegauge.clocks import Clock, finish_queued
from forcegauge.errors import RunError
from forcegauge.failures import Guard
from forcegauge.greedy import stop_tokens
from forcegauge.pace import Pace
from forcegauge.rl import Completion, Samples
from forcegauge.sampled import SampledRows

FORCE_SIGNALS = ("force_up_norm", "force_down_norm", "valley_force_ratio", "squeeze_law_ratio")
"""Forces that alarms look at."""


class Observed:
    """Looks at optimizer steps as often as ``pace`` says; errors go to ``guard``.

    What reading takes of the training's time is counted, not what the hooks themselves cost where
    nothing is looked at (microseconds per forward).
    """

    def __init__(self, pace: Pace, tokenizer: Any, guard: Guard) -> None:
        self._pace, self._tokenizer, self._guard = pace, tokenizer, guard
        self._capture: Capture = _Timed(pace.reading, every=pace.observed_every)
        self._samples = Samples()
        self._rows: SampledRows | None = None
        self._done: int | None = None
        self._count = 0

    @property
    def observing(self) -> bool:
        """Whether the optimizer step under way is one that is looked at."""
        return self._count % self._capture.every == 0

    def attach(self, model: nn.Module, *, pairs: bool, temperature: float, samples: bool) -> None:
        """Watch the model's own passes, see `ForceGauge.attach`."""
        with self._guard("forces", self._done or 0):
            how = {"pairs": pairs, "temperature": temperature}
            self._capture = _Timed(self._pace.reading, every=self._capture.every, **how)
            self._capture.attach(model)
        if samples:
            with self._guard("other", self._done or 0):
                self._rows = self._reader(model)
                self._rows.attach(model)

    def _reader(self, model: nn.Module) -> SampledRows:
        stop = stop_tokens(model, self._tokenizer.eos_token_id)
        return SampledRows(self._samples, stop, lambda: self.observing, self._harmless)

    @contextmanager
    def _harmless(self) -> Iterator[None]:
        with self._guard("other", 0), _counted(self._pace.reading):
            yield

    def forces(self, logps: Tensor, labels: Tensor, **known: Tensor) -> None:
        """See `Capture.observe`."""
        self._capture.observe(logps, labels, **known)

    def samples(
        self,
        groups: Iterable[Sequence[Completion]],
        ended: Iterable[Sequence[bool]] | None,
    ) -> None:
        """See `Samples.add`."""
        with self._guard("other", self._done or 0):
            self._samples.add(groups, ended)

    def step(self, step: int, learning_rate: float | None = None) -> None:
        """Tell that this many optimizer steps are done, and the learning rate of the last one; the
        same number twice is one step."""
        # one rank that fails here must not miss the probe that the others are going to
        with self._guard("forces", step):
            if self._done is not None and step > self._done:
                self._count += 1
                self._capture.step(learning_rate)
                if self._rows is not None:
                    self._rows.step()
        self._done = step

    def take(self, step: int) -> tuple[dict[str, float], dict[str, float]]:
        """The forces since the last call, and the signals of forces and samples."""
        self._capture.every = self._pace.observed_every
        forces: dict[str, float] = {}
        with self._guard("forces", step):
            forces = self._capture.take() or {}
            if self._capture.error is not None and not self._guard.counts["forces"]:
                raise RunError(self._capture.error)
        signals = {name: forces[name] for name in FORCE_SIGNALS if name in forces}
        return forces, {**signals, **self._samples.take()}

    def detach(self) -> None:
        """Remove all hooks."""
        self._capture.detach()
        if self._rows is not None:
            self._rows.detach()


class _Timed(Capture):
    """A capture that counts its time."""

    def __init__(self, clock: Clock, **how: Any) -> None:
        super().__init__(**how)
        self._clock = clock

    @contextmanager
    def _harmless(self) -> Iterator[None]:
        with super()._harmless(), _counted(self._clock):
            yield


@contextmanager
def _counted(clock: Clock) -> Iterator[None]:
    finish_queued()
    with clock:
        yield
