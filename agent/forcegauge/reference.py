"""What a model with PEFT adapters says without them: the reference, scored once per run.

The adapters are switched off in place, so that there is never a second model. PEFT's own
``disable_adapter`` is not used: it also sets ``requires_grad`` of every adapter anew, which under
FSDP is an error, and it is not found through wrappers.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import nn

from forcegauge.encoding import TokenSequence
from forcegauge.head import inner_model
from forcegauge.ranks import agreed, rank
from forcegauge.scores import FloatArray, Scores

logger = logging.getLogger("forcegauge")

FILE_NAME = "reference.safetensors"

_SWITCH = "_disable_adapters"
_WITHOUT = ("base_layer.", "original_module.")
"""Parts of a layer with adapters that are used when these are off."""

_LOOKED_AT = 64
"""Weights, and numbers of each, that tell one base model from another."""


@dataclass
class Reference:
    """Log-probs of the model with its adapters off, kept in ``directory`` over resumes.

    All ranks have to make the same calls.
    """

    directory: Path | None
    _found: FloatArray | None = field(default=None, init=False)
    _asked: bool = field(default=False, init=False)

    def changes(
        self,
        model: nn.Module,
        now: Scores,
        sequences: Sequence[TokenSequence],
        score: Callable[[], Scores],
    ) -> dict[str, float]:
        """``reference_change_TYPE_nats``: policy minus reference per token, a mean over the probes
        that both have; empty for a model without adapters.

        ``score`` scores ``sequences`` with the model as it is then; it is called once at most.
        """
        if not self._asked:
            self._asked = True
            self._find(model, sequences, score)
        if self._found is None:
            return {}
        moved = now.values["logprob_mean"] - self._found
        columns = {name: moved[:, place] for place, name in enumerate(now.types)}
        return {
            f"reference_change_{name}_nats": float(np.mean(column[np.isfinite(column)]))
            for name, column in columns.items()
            if np.isfinite(column).any()
        }

    def _find(
        self, model: nn.Module, sequences: Sequence[TokenSequence], score: Callable[[], Scores]
    ) -> None:
        if not can_switch(model):
            return
        key = identity(model, sequences)
        self._found = agreed(_read(self.directory, key))
        if self._found is None:
            with adapters_off(model):
                self._found = score().values["logprob_mean"]
            if rank() == 0 and self.directory is not None:
                self.directory.mkdir(parents=True, exist_ok=True)
                kept = {"logprob_mean": self._found}
                save_file(kept, self.directory / FILE_NAME, {"key": key})


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """The base model alone, inside wrappers too; afterwards each adapter as it was."""
    before = [(layer, _SWITCH in vars(layer), getattr(layer, _SWITCH)) for layer in _layers(model)]
    try:
        for layer, _, _ in before:
            setattr(layer, _SWITCH, True)
        yield
    finally:
        for layer, own, value in before:
            if own:
                setattr(layer, _SWITCH, value)
            else:
                delattr(layer, _SWITCH)


def can_switch(model: nn.Module) -> bool:
    """Whether the model has adapters, and is the one it was before them when they are off."""
    layers = _layers(model)
    if not layers:
        return False
    adapters = {
        id(weight)
        for layer in layers
        for name, weight in layer.named_parameters()
        if not name.startswith(_WITHOUT)
    }
    beside = [n for n, w in model.named_parameters() if w.requires_grad and id(w) not in adapters]
    if beside:
        logger.info("no reference: %s is trained beside the adapters", beside[0])
    elif any(getattr(layer, "merged", False) for layer in layers):
        logger.info("no reference: the adapters are merged")
    else:
        return True
    return False


def identity(model: nn.Module, sequences: Sequence[TokenSequence]) -> str:
    """A hash of what a reference depends on: the probes as tokens, and the base model's name and
    some of its weights (adapters are not among them, for they are trained)."""
    found = hashlib.sha256()
    for item in sequences:
        found.update(repr((item.probe, item.type, item.prompt, item.response)).encode())
    inner = inner_model(model)
    found.update(str(getattr(inner and inner.config, "_name_or_path", "")).encode())
    weights = [w for w in model.parameters() if not w.requires_grad and w.numel()]
    for weight in weights[:: max(1, len(weights) // _LOOKED_AT)]:
        here = weight.to_local() if hasattr(weight, "to_local") else weight
        few = here.detach().flatten()[: here.numel() : max(1, here.numel() // _LOOKED_AT)]
        found.update(few.to("cpu", torch.float32).numpy().tobytes())
    return found.hexdigest()


def _layers(model: nn.Module) -> list[nn.Module]:
    # by type: wrappers such as FSDP's pass on the attributes of what they wrap
    return [m for m in model.modules() if hasattr(type(m), _SWITCH) or _SWITCH in vars(m)]


def _read(directory: Path | None, key: str) -> FloatArray | None:
    """What is kept for this key; None where nothing is, or nothing that can be read."""
    if directory is None:
        return None
    try:
        with safe_open(directory / FILE_NAME, framework="numpy") as kept:
            mine = (kept.metadata() or {}).get("key") == key
            return kept.get_tensor("logprob_mean") if mine else None
    except (OSError, SafetensorError):
        return None
