"""Reads the completions that an RL trainer samples off the batches that it trains on anyway.

Nothing is generated for this. TRL's GRPO and RLOO trainers call the model with ``labels`` that
hold the completion and nothing else; the samples of one prompt are found by its tokens, among the
batches of one optimizer step in this process (trainers shuffle them).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from forcegauge.capture import IGNORED
from forcegauge.rl import Samples

Tokens = tuple[int, ...]


class SampledRows:
    """Adds the completions of an optimizer step to ``samples`` when the step is done.

    Args:
        samples: where they go.
        stop: token ids that end a completion.
        observing: whether the step under way is looked at.
        harmless: makes a context that keeps errors from the training.
    """

    def __init__(
        self,
        samples: Samples,
        stop: Collection[int],
        observing: Callable[[], bool],
        harmless: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._samples, self._stop = samples, stop
        self._observing, self._harmless = observing, harmless
        self._groups: dict[Tokens, list[Tokens]] = {}
        self._handle: RemovableHandle | None = None

    def attach(self, model: nn.Module) -> None:
        """Look at every forward of the model that trains it, until `detach`."""
        self._handle = model.register_forward_pre_hook(self._before, with_kwargs=True)

    def detach(self) -> None:
        """Remove the hook and let go of what is unfinished."""
        if self._handle is not None:
            self._handle.remove()
        self._handle, self._groups = None, {}

    def step(self) -> None:
        """Tell that an optimizer step is done."""
        groups, self._groups = self._groups, {}
        with self._harmless():
            ended = [[bool(row) and row[-1] in self._stop for row in g] for g in groups.values()]
            self._samples.add(groups.values(), ended)

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if torch.compiler.is_compiling():
            return
        if self._observing() and torch.is_grad_enabled():
            with self._harmless(), torch.no_grad():
                self._read(*(kwargs.get(key) for key in ("input_ids", "attention_mask", "labels")))

    def _read(self, ids: Tensor | None, mask: Tensor | None, labels: Tensor | None) -> None:
        if ids is None or mask is None or labels is None:
            return
        said = labels != IGNORED
        asked = (mask != 0) & ~said
        for row, prompt, completion in zip(ids.cpu(), asked.cpu(), said.cpu(), strict=True):
            key = tuple(row[prompt].tolist())
            self._groups.setdefault(key, []).append(tuple(row[completion].tolist()))
