"""What is read off the training's own batches between two probes: forces and samples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from forcegauge.capture import Capture
from forcegauge.errors import RunError
from forcegauge.failures import Guard
from forcegauge.greedy import stop_tokens
from forcegauge.rl import Completion, Samples
from forcegauge.sampled import SampledRows

FORCE_SIGNALS = ("force_up_norm", "force_down_norm", "valley_force_ratio", "squeeze_law_ratio")
"""Forces that alarms look at."""


class Observed:
    """Looks at every ``every``-th optimizer step; errors go to ``guard``."""

    def __init__(self, every: int, tokenizer: Any, guard: Guard) -> None:
        self._every, self._tokenizer, self._guard = every, tokenizer, guard
        self._capture = Capture(every=every)
        self._samples = Samples()
        self._rows: SampledRows | None = None
        self._done: int | None = None
        self._count = 0

    @property
    def observing(self) -> bool:
        """Whether the optimizer step under way is one that is looked at."""
        return self._count % self._every == 0

    def attach(self, model: nn.Module, *, pairs: bool, temperature: float, samples: bool) -> None:
        """Watch the model's own passes, see `ForceGauge.attach`."""
        with self._guard("forces", self._done or 0):
            self._capture = Capture(every=self._every, pairs=pairs, temperature=temperature)
            self._capture.attach(model)
        if samples:
            with self._guard("other", self._done or 0):
                self._rows = self._reader(model)
                self._rows.attach(model)

    def _reader(self, model: nn.Module) -> SampledRows:
        stop = stop_tokens(model, self._tokenizer.eos_token_id)
        harmless = partial(self._guard, "other", 0)
        return SampledRows(self._samples, stop, lambda: self.observing, harmless)

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
        if self._done is not None and step > self._done:
            self._count += 1
            self._capture.step(learning_rate)
            if self._rows is not None:
                self._rows.step()
        self._done = step

    def take(self, step: int) -> tuple[dict[str, float], dict[str, float]]:
        """The forces since the last call, and the signals of forces and samples."""
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
