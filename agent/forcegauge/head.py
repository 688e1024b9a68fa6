"""The output head on response rows only, inside the model's own forward."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from forcegauge.reductions import Statistics, Tile, in_chunks, reduce_tiles, token_statistics
from forcegauge.vocabulary import shard_of

Reading = Literal["head", "rows", "logits"]
"""How logits are read. ``head``: tile by tile, inside the head. ``rows``: the model's own logits of
response rows. ``logits``: the model's own logits of everything, as a last resort."""

_MULTIPLIERS = ("logit_scale", "output_multiplier", "lm_head_multiplier")
_DIVISORS = ("logits_scaling",)


class HeadError(Exception):
    """The model's head cannot be read in the way that was tried."""


def inner_model(model: nn.Module) -> PreTrainedModel | None:
    """The transformers model inside wrappers (DDP, FSDP, PEFT, compiled), None if there is none."""
    return next((part for part in model.modules() if isinstance(part, PreTrainedModel)), None)


def text_config(model: nn.Module) -> Any:
    """The configuration of the model's text part, None for a model of no known kind."""
    inner = inner_model(model)
    return None if inner is None else inner.config.get_text_config(decoder=True)


def accepted(model: nn.Module, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those arguments that the model's forward names."""
    known = inspect.signature((inner_model(model) or model).forward).parameters
    return {name: value for name, value in arguments.items() if name in known}


@dataclass(frozen=True)
class Head:
    """A model's head and what the model does to its output: scaling, then soft-capping."""

    module: nn.Module | None
    scale: float
    cap: float | None

    def logits(self, hidden: Tensor) -> Tensor:
        """Float32 logits [rows, vocab] of hidden states [rows, hidden]. The head's hooks are not
        run again: this is called from one of them, when sharded weights are already gathered."""
        return self._after(self.raw(hidden)).float()

    def raw(self, hidden: Tensor) -> Tensor:
        """What the head's module makes of hidden states, in the type that it does."""
        if self.module is None:
            raise HeadError("the model names no output head")
        z: Tensor = self.module.forward(hidden)
        return z

    def statistics(self, hidden: Tensor, targets: Tensor) -> Statistics:
        """Statistics of rows from their hidden states [rows, hidden], a tile of logits at a time
        where the head is a plain matrix or this process's part of one, else with whole rows."""
        module = self.module
        if (shard := shard_of(module)) is not None:
            near = self._after(shard.near(hidden, targets)).float()
            return shard.statistics(self._tile(hidden, shard.weight, shard.bias), near, targets)
        # a linear layer with a forward of its own is more than one, FSDP2's class of it is not
        plain = isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward
        if not isinstance(module, nn.Linear) or not plain or "forward" in vars(module):
            return in_chunks(lambda part: self.logits(hidden[part]), targets)
        weight, bias = module.weight, module.bias
        near = (hidden * weight[targets]).sum(1)
        near = self._after(near if bias is None else near + bias[targets]).float()
        return reduce_tiles(self._tile(hidden, weight, bias), near, targets, len(weight))

    def _tile(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tile:
        """What makes the logits of some rows and some of the tokens that ``weight`` is of."""

        def tile(rows: slice, tokens: slice) -> Tensor:
            part = None if bias is None else bias[tokens]
            return self._after(F.linear(hidden[rows], weight[tokens], part))

        return tile

    def _after(self, z: Tensor) -> Tensor:
        z = z if self.scale == 1.0 else z.float() * self.scale
        return z if self.cap is None else torch.tanh(z.float() / self.cap) * self.cap


def head_of(model: nn.Module) -> Head:
    """The head of a model, with scaling and soft-capping as its configuration names them."""
    inner: Any = inner_model(model)
    config = text_config(model)
    module = None if inner is None else inner.get_output_embeddings()
    # FSDP1 gathers the weights of what it wraps between the wrapper's hooks and those inside
    module = getattr(module, "_fsdp_wrapped_module", module)
    scale = 1.0
    for name in _MULTIPLIERS:
        scale *= float(getattr(config, name, None) or 1.0)
    for name in _DIVISORS:
        scale /= float(getattr(config, name, None) or 1.0)
    cap = getattr(config, "final_logit_softcapping", None)
    return Head(module, scale, None if cap is None else float(cap))


@contextmanager
def replaced_hidden(head: Head, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While it lasts, the head sees ``change(hidden)`` of its flattened hidden states."""
    if head.module is None:
        raise HeadError("the model names no output head")

    def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if not args:
            raise HeadError("the head is not called with its hidden states")
        return (change(args[0].reshape(-1, args[0].shape[-1])).unsqueeze(0), *args[1:])

    handle = head.module.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def own_logits(output: Any) -> Tensor:
    """The logits in a model's output, flattened to [rows, vocab]."""
    logits: Tensor = output.logits if hasattr(output, "logits") else output[0]
    return logits.reshape(-1, logits.shape[-1])


def whole_logits(head: Head, output: Any) -> Tensor:
    """The same where each process's output holds a part of the vocabulary only."""
    logits, shard = own_logits(output), shard_of(head.module)
    return logits if shard is None or len(shard.weight) != logits.shape[-1] else shard.whole(logits)


def read(
    model: nn.Module,
    head: Head,
    inputs: Mapping[str, Any],
    rows: Tensor,
    targets: Tensor,
    reading: Reading,
) -> tuple[Statistics, Any]:
    """One forward; statistics of ``rows`` (places in the flattened batch), and its output."""
    if reading == "logits":
        output = model(**inputs)
        logits = own_logits(output)
        return in_chunks(lambda part: logits[rows[part]], targets), output
    if reading == "rows":
        with replaced_hidden(head, lambda hidden: hidden[rows]):
            output = model(**inputs)
        logits = own_logits(output)
        return token_statistics(logits, targets), output
    return _read_in_head(model, head, inputs, rows, targets)


def _read_in_head(
    model: nn.Module, head: Head, inputs: Mapping[str, Any], rows: Tensor, targets: Tensor
) -> tuple[Statistics, Any]:
    found: Statistics = {}

    def reduce(hidden: Tensor) -> Tensor:
        found.update(head.statistics(hidden[rows], targets))
        return hidden[:1]

    with replaced_hidden(head, reduce):
        output = model(**inputs)
    if not found:
        raise HeadError("the model does not call its output head")
    return found, output


def working_dtype(model: nn.Module, head: Head, inputs: Mapping[str, Any]) -> torch.dtype:
    """What logits are computed in: shorter than the weights where the model's forward autocasts."""
    found = [next(model.parameters()).dtype]

    def look(hidden: Tensor) -> Tensor:
        found.append(head.raw(hidden[:1]).dtype)
        return hidden[:1]

    with replaced_hidden(head, look):
        model(**inputs)
    return found[-1]


def agrees(model: nn.Module, head: Head, inputs: Mapping[str, Any], dtype: torch.dtype) -> bool:
    """Whether `Head.logits` is what the model itself makes of the same hidden states, also where
    these are large, so that soft-capping shows."""
    ours: list[Tensor] = []

    def widen(hidden: Tensor) -> Tensor:
        few = hidden[:8]
        both = torch.cat([few, few * 16])
        ours.append(head.logits(both))
        return both

    with replaced_hidden(head, widen):
        theirs = own_logits(model(**inputs)).float()
    if not ours or ours[0].shape != theirs.shape:
        return False
    tolerance = 64 * torch.finfo(dtype).eps
    return torch.allclose(ours[0], theirs, rtol=tolerance, atol=tolerance, equal_nan=True)
