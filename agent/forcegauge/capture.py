"""Reads the forces off a training job's own backward pass, without a second forward or backward.

What is covered:

- TRL's SFT, DPO, KTO, GRPO and RLOO trainers (``fused_lm_head=True``): a gradient hook on the
  per-token log-probs; ||pi||^2 from the same forward's hidden states where TRL did not compute it.
  An entropy bonus does not pass through the log-probs: it is named in `Capture.not_covered`.
- Any model that returns logits (transformers, older TRL, CPO and ORPO, label smoothing): a gradient
  hook on them. It sees every term; what is not w (pi - e_y) is ``force_uncovered_ratio``.
- A model that returns nothing but a token-mean loss of its ``labels`` (fused cross-entropy).
- Any other loop: `Capture.observe`.
- Of a compiled model what lies outside of the compiled code: with ``torch_compile`` nothing.

Forces are those of this process, before gradients are averaged over ranks. They sum over the
backward passes of an optimizer step, however the trainer divides the loss among these; contexts
are compared within one forward.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from forcegauge.errors import InputError, RunError
from forcegauge.forces import (
    TokenForces,
    add_sums,
    contexts,
    force_sums,
    force_values,
)
from forcegauge.head import head_of, inner_model
from forcegauge.measured import Measured, check_head, from_logps, from_statistics, here
from forcegauge.reductions import in_chunks

logger = logging.getLogger("forcegauge")

IGNORED = -100


@dataclass(frozen=True)
class _Pass:
    """Trained tokens of one forward; their weights come with the backward."""

    mask: Tensor  # over the log-probs [rows, tokens]; the forces are flat over its ones
    forces: TokenForces
    counted: bool  # whether the mask tells which tokens are trained


class Capture:
    """Forces of every k-th optimizer step of a training job.

        capture = Capture(every=10, pairs=True)
        with capture.attach(trainer.model):
            ...                       # the trainer's steps; call capture.step() after each
            values = capture.take()   # means over the steps seen since the last call

    Hooks return nothing, so gradients pass as they are; no random numbers are drawn. A failure
    never reaches the training: it is kept in `error`, logged once, and ends the capture.

    Attributes:
        every: spacing of what is looked at, in optimizer steps.
        error: why the capture stopped, None while all is well.
        not_covered: parts of the loss whose force could not be read.
    """

    def __init__(
        self,
        *,
        every: int = 10,
        pairs: bool = False,
        temperature: float = 1.0,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        """Make a capture that is not attached yet.

        Args:
            every: spacing in optimizer steps; the first is looked at.
            pairs: the first half of a batch's rows is chosen, the second rejected (TRL's order).
            temperature: what the trainer divides logits by (GRPO, RLOO).
            scaler: its scale is divided out of the forces.

        Raises:
            InputError: ``every`` or ``temperature`` is not positive.
        """
        for field, value in (("every", every), ("temperature", temperature)):
            if value <= 0:
                raise InputError(f"must be positive, not {value}", field=field)
        self.error: str | None = None
        self.not_covered: set[str] = set()
        self.every, self._pairs = every, pairs
        self._temperature, self._scaler = temperature, scaler
        self._count = 0
        self._handles: list[RemovableHandle] = []
        self._hidden: Tensor | None = None
        self._by_loss: dict[int, tuple[_Pass, Tensor]] = {}
        self._passes: list[dict[str, float]] = []
        self._steps: list[dict[str, float]] = []

    @property
    def observing(self) -> bool:
        """Whether the optimizer step under way is one that is looked at."""
        return self.error is None and self._count % self.every == 0

    def attach(self, model: nn.Module) -> Capture:
        """Watch a model (the trainer's ``model``, wrapped or not) until `detach`."""
        self.detach()
        self._handles = [model.register_forward_hook(self._after_model, with_kwargs=True)]
        backbone = getattr(inner_model(model), "base_model", None)
        # a hook less or more inside of a compiled wrapper would compile it anew
        if isinstance(backbone, nn.Module) and not hasattr(model, "_orig_mod"):
            self._handles.append(backbone.register_forward_hook(self._after_backbone))
        return self

    def detach(self) -> None:
        """Remove all hooks and let go of what is unfinished; finished steps can still be taken."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._hidden, self._passes, self._by_loss = [], None, [], {}

    def __enter__(self) -> Capture:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def step(self, learning_rate: float | None = None) -> None:
        """Tell that an optimizer step is done, and at which learning rate where it is known."""
        with self._harmless():
            for seen, weight in self._by_loss.values():
                self._keep(seen, weight)
        self._by_loss = {}
        if self._passes:
            self._steps.append(force_values(add_sums(self._passes), learning_rate))
        self._passes = []
        self._count += 1

    def take(self) -> dict[str, float] | None:
        """Means over the steps seen since the last call (`forces.force_values`); None without."""
        steps, self._steps = self._steps, []
        names = {name: None for values in steps for name in values}
        found = {name: [values[name] for values in steps if name in values] for name in names}
        return {name: sum(column) / len(column) for name, column in found.items()} or None

    def observe(
        self,
        logps: Tensor,
        labels: Tensor,
        *,
        logits: Tensor | None = None,
        log_sum_sq: Tensor | None = None,
        input_ids: Tensor | None = None,
    ) -> None:
        """Watch per-token log-probs of a loop's own loss; for a model that is not attached.

        Args:
            logps: log pi of ``labels``, [rows, tokens], in the graph that is back-propagated.
            labels: the tokens, same shape; `IGNORED` where nothing is trained.
            logits: what ``logps`` was made from before any temperature, [rows, tokens, vocab].
            log_sum_sq: log ||pi||^2 instead, [rows, tokens]. With neither, less is measured.
            input_ids: the token before each label, with all before it in the row: tells which
                contexts are the same. Without, all count as different.
        """
        if not (self.observing and logps.requires_grad):
            return
        with self._harmless():
            mask = labels != IGNORED
            if logits is not None:
                measured = self._from_logits(logits, labels, mask)
            else:
                measured = from_logps(logps.detach(), log_sum_sq, mask)
            ids = None if input_ids is None else contexts(input_ids)
            self._watch_logps(logps, self._pass(labels, ids, measured))

    @contextmanager
    def _harmless(self) -> Iterator[None]:
        try:
            with torch.no_grad():
                yield
        except Exception as error:  # noqa: BLE001 (whatever it is, the training goes on)
            self.error = str(error) or type(error).__name__
            logger.warning("forces are no longer read: %s", self.error)
            self.detach()

    def _looking(self) -> bool:
        """Never while compiling: hooks would become part of the graphs, and break them."""
        return not torch.compiler.is_compiling() and self.observing and torch.is_grad_enabled()

    def _after_backbone(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._looking():
            hidden = getattr(output, "last_hidden_state", None)
            self._hidden = None if hidden is None else hidden.detach()

    def _after_model(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        if self._looking():
            hidden, self._hidden = self._hidden, None
            with self._harmless():
                ids = {"input_ids": args[0] if args else None}
                self._watch(module, {**ids, **kwargs}, output, hidden)

    def _watch(
        self, model: nn.Module, inputs: Mapping[str, Any], output: Any, hidden: Tensor | None
    ) -> None:
        logps, logits, loss = (_learning(output, name) for name in ("log_probs", "logits", "loss"))
        if logps is not None:
            self._watch_fused(model, inputs, output, hidden)
        elif logits is not None:
            self._watch_logits(inputs, logits, loss)
        elif loss is not None and inputs.get("labels") is not None:
            self._watch_loss(model, inputs, loss, hidden)
        else:
            self.not_covered.add("outputs without log-probs, logits or loss")

    def _watch_fused(
        self, model: nn.Module, inputs: Mapping[str, Any], output: Any, hidden: Tensor | None
    ) -> None:
        labels = _next_labels(inputs)
        length, mask = labels.shape[1], labels != IGNORED
        theirs = output.log_probs.detach()[:, -length:]
        log_sum_sq = getattr(output, "log_sum_sq_probs", None)
        if log_sum_sq is not None:
            measured = from_logps(theirs, log_sum_sq[:, -length:], mask)
        else:
            measured = self._from_hidden(model, hidden, inputs, labels)
            check_head(measured[0], theirs[mask])
        seen = self._pass(labels, _prefixes(inputs, length), measured)
        self._watch_logps(output.log_probs, seen)
        entropy = _learning(output, "entropy")
        if entropy is not None:
            entropy.register_hook(self._after_entropy)

    def _watch_logps(self, logps: Tensor, seen: _Pass) -> None:
        def read(gradient: Tensor) -> None:
            with self._harmless():
                weight = -here(gradient[:, -seen.mask.shape[1] :][seen.mask])
                self._keep(seen, weight / self._temperature)

        logps.register_hook(read)

    def _watch_loss(
        self, model: nn.Module, inputs: Mapping[str, Any], loss: Tensor, hidden: Tensor | None
    ) -> None:
        labels = _next_labels(inputs)
        measured = self._from_hidden(model, hidden, inputs, labels)
        seen = self._pass(labels, _prefixes(inputs, labels.shape[1]), measured)

        def read(gradient: Tensor) -> None:
            with self._harmless():
                self._keep(seen, (here(gradient) / _items(inputs, seen)).expand_as(measured[0]))

        loss.register_hook(read)

    def _watch_logits(self, inputs: Mapping[str, Any], logits: Tensor, loss: Tensor | None) -> None:
        ids: Any = inputs.get("input_ids")
        labels: Any = inputs.get("labels")
        if ids is None:
            raise RunError("logits without input_ids: which tokens they are for is unknown")
        length = min(ids.shape[1], logits.shape[1]) - 1
        given = labels is not None and labels.shape == ids.shape
        words = labels if given else ids.masked_fill(_padding(inputs, ids), IGNORED)
        nexts: Tensor = words[:, 1:][:, -length:]
        measured = self._from_logits(logits[:, -length - 1 : -1], nexts, nexts != IGNORED)
        seen = self._pass(nexts, _prefixes(inputs, length), measured, counted=given)

        def read(gradient: Tensor | None) -> None:
            with self._harmless():
                if gradient is not None:
                    self._by_loss.pop(id(seen), None)
                    self._keep(seen, *_project(gradient, seen))

        logits.register_hook(read)
        if loss is not None and given:
            self._watch_loss_beside(inputs, loss, seen)

    def _watch_loss_beside(self, inputs: Mapping[str, Any], loss: Tensor, seen: _Pass) -> None:
        """Logits that came through mixed precision or compiled code are a copy, which the loss was
        not made from: their hook is not called, and the loss is taken for its token mean."""

        def read(gradient: Tensor) -> None:
            with self._harmless():
                weight = here(gradient) / _items(inputs, seen)
                self._by_loss[id(seen)] = seen, weight.expand_as(seen.forces.logprob)

        loss.register_hook(read)

    def _keep(self, seen: _Pass, weight: Tensor, more: Mapping[str, float] | None = None) -> None:
        scale = 1.0 if self._scaler is None else float(self._scaler.get_scale())
        forces = replace(seen.forces, weight=weight / scale)
        sums = force_sums(forces, len(forces.label) if seen.counted else None)
        self._passes.append(sums | {name: x / scale for name, x in (more or {}).items()})

    def _after_entropy(self, gradient: Tensor | None) -> None:
        # None: DDP passes on that nothing was done with it
        with self._harmless():
            if gradient is not None and gradient.any():
                self.not_covered.add("entropy bonus")

    def _pass(
        self, labels: Tensor, ids: Tensor | None, measured: Measured, *, counted: bool = True
    ) -> _Pass:
        mask = labels != IGNORED
        rows = torch.arange(len(labels), device=labels.device).unsqueeze(-1).expand_as(labels)
        source = (rows >= len(labels) // 2).long() if self._pairs else torch.full_like(rows, -1)
        if ids is None:
            ids = torch.arange(labels.numel(), device=labels.device).view_as(labels)
        places = (x[mask].cpu() for x in (ids, labels, source))
        return _Pass(mask, TokenForces(torch.zeros_like(measured[0]), *measured, *places), counted)

    def _from_logits(self, logits: Tensor, labels: Tensor, mask: Tensor) -> Measured:
        (row, place), z = mask.nonzero(as_tuple=True), logits.detach()
        return from_statistics(
            in_chunks(lambda part: z[row[part], place[part]] / self._temperature, labels[mask])
        )

    def _from_hidden(
        self, model: nn.Module, hidden: Tensor | None, inputs: Mapping[str, Any], labels: Tensor
    ) -> Measured:
        head = head_of(model)
        if hidden is None or head.module is None:
            raise RunError("the model's last hidden states or its output head were not found")
        if inputs.get("shift_labels") is None:
            hidden = hidden[:, :-1]
        mask = labels != IGNORED
        weight, rows = next(head.module.parameters()), hidden[:, -labels.shape[1] :][mask]
        rows = rows.to(weight if weight.is_floating_point() else rows)
        return from_statistics(
            in_chunks(lambda part: head.logits(rows[part]) / self._temperature, labels[mask])
        )


def _learning(output: Any, name: str) -> Tensor | None:
    """A field of a model's output that takes part in the backward pass."""
    found = getattr(output, name, None)
    return found if isinstance(found, Tensor) and found.requires_grad else None


def _next_labels(inputs: Mapping[str, Any]) -> Tensor:
    shifted = inputs.get("shift_labels")
    found: Tensor = inputs["labels"][:, 1:] if shifted is None else shifted
    return found


def _items(inputs: Mapping[str, Any], seen: _Pass) -> float:
    return float(inputs.get("num_items_in_batch") or seen.mask.sum().clamp(min=1))


def _padding(inputs: Mapping[str, Any], ids: Tensor) -> Tensor:
    mask = inputs.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.shape != ids.shape:
        return torch.zeros_like(ids, dtype=torch.bool)
    return mask == 0


def _prefixes(inputs: Mapping[str, Any], length: int) -> Tensor | None:
    """Contexts of the last ``length`` log-probs of a row: log-prob t follows token t."""
    ids = inputs.get("input_ids")
    if ids is None:
        return None
    positions = inputs.get("position_ids")
    if positions is not None and (positions.dim() != 2 or positions.shape[-1] != ids.shape[-1]):
        positions = None
    found = contexts(ids.masked_fill(_padding(inputs, ids), -1), positions)
    return (found if inputs.get("shift_labels") is not None else found[:, :-1])[:, -length:]


def _project(gradient: Tensor, seen: _Pass) -> tuple[Tensor, dict[str, float]]:
    """w from the gradient at the logits, [rows, tokens, vocab], and what of it w leaves out."""
    length, forces = seen.mask.shape[1], seen.forces
    row, place = seen.mask.nonzero(as_tuple=True)
    label = forces.label.to(gradient.device)
    at_label = here(gradient[:, -length - 1 : -1][row, place, label])
    weight = torch.where(forces.energy > 0, -at_label / forces.energy, 0.0)
    norms = torch.linalg.vector_norm(gradient, dim=-1, dtype=torch.float32)
    mine = here(norms[:, -length - 1 : -1][seen.mask])
    off = (mine - weight.abs() * forces.residual_norm()).abs()
    total = here(norms).sum()
    return weight, {"uncovered": float(total - mine.sum() + off.sum()), "gradient": float(total)}
