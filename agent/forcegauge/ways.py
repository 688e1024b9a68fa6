"""Ways to run a scoring pass, fastest first, and the choice of one by comparing with the plainest.

``shared``: a prompt and its responses in one flat row. ``cached``: the prompt's keys and values
computed once and expanded. ``padded``: plain padded batches. ``single``: one sequence at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from forcegauge import budget as budgets
from forcegauge import head as heads
from forcegauge.attention import AttentionError, attending, shared_row
from forcegauge.encoding import TokenSequence
from forcegauge.head import Head, HeadError, Reading
from forcegauge.layout import (
    Batch,
    CachedBatch,
    SharedBatch,
    cached_batches,
    padded_batches,
    shared_batches,
)
from forcegauge.products import FastProducts
from forcegauge.ranks import ALONE, RankError, Ranks
from forcegauge.reductions import Statistics

logger = logging.getLogger(__name__)

Way = Literal["shared", "cached", "padded", "single"]

AnyBatch = Batch | CachedBatch

TOLERANCE = 1e-4
"""Nats per token within which a way must agree with the plainest one, where batching does not
itself change more."""

_WORST = {torch.float32: 0.01, torch.float64: 0.01}
_WORST_SHORT = 1.0
# Nats by which batching may change a token: with TF32, and in bfloat16 or float16.

_ROUNDINGS = 64
# Roundings of the format, in nats, by which two right ways may differ: on a CPU padding may change
# no bit in bfloat16, where a token is off by half a nat from the exact model (numerics.md).

_WHOLE_LOGITS = 1 << 27  # logits that may be held at once where they come whole, 512 MiB

_FAILURES = (
    RankError,
    HeadError,
    AttentionError,
    budgets.BudgetError,
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
)


@dataclass(frozen=True)
class Choice:
    """How a model is scored, and with how many tokens at a time."""

    way: Way
    reading: Reading
    budget: int


def batches(way: Way, sequences: Sequence[TokenSequence], budget: int) -> Iterator[AnyBatch]:
    """The forwards of one pass, each of at most ``budget`` tokens where one sequence allows it."""
    if way == "shared":
        return shared_batches(sequences, budget)
    if way == "cached":
        return cached_batches(sequences, budget)
    return padded_batches(sequences, budget if way == "padded" else 1)


def forwards(choice: Choice, sequences: Sequence[TokenSequence]) -> int:
    """How often a pass over these calls the model."""
    found = batches(choice.way, sequences, choice.budget)
    return sum(1 + (isinstance(each, CachedBatch) and each.responses is not None) for each in found)


def idle(model: nn.Module, sequences: Sequence[TokenSequence]) -> None:
    """One forward of the shortest of these, for nothing but that all ranks run as many."""
    few = heads.accepted(model, {"logits_to_keep": 1})
    model(**_bare(model, min(sequences, key=len)), **few)


def run(model: nn.Module, head: Head, batch: AnyBatch, reading: Reading) -> Statistics:
    """Statistics of one batch, in the order of its slots, on the model's device."""
    with FastProducts():
        if isinstance(batch, CachedBatch):
            return _run_cached(model, head, batch, reading)
        if isinstance(batch, SharedBatch):
            return _run_shared(model, head, batch, reading)
        return _forward(model, head, batch, reading, _masked(model, batch))[0]


def _forward(
    model: nn.Module, head: Head, batch: Batch, reading: Reading, inputs: dict[str, Any]
) -> tuple[Statistics, Any]:
    device = _device(model)
    ids = torch.from_numpy(batch.input_ids).to(device)
    rows, targets = (torch.from_numpy(array).to(device) for array in (batch.rows, batch.targets))
    inputs = {"input_ids": ids, **inputs, **heads.accepted(model, {"return_dict": True})}
    return heads.read(model, head, inputs, rows, targets, reading)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _masked(model: nn.Module, batch: Batch) -> dict[str, Any]:
    """A mask and no positions: padded on the right, the model's own are right."""
    mask = torch.from_numpy(batch.attention_mask).to(_device(model))
    return {"attention_mask": mask, **heads.accepted(model, {"use_cache": False})}


def _positions(model: nn.Module, batch: Batch) -> Tensor:
    return torch.from_numpy(batch.position_ids.copy()).to(_device(model))


def _run_shared(model: nn.Module, head: Head, batch: SharedBatch, reading: Reading) -> Statistics:
    positions = heads.accepted(model, {"position_ids": _positions(model, batch)})
    inputs = {**_masked(model, batch), **positions}
    if not positions:
        raise AttentionError("the model takes no position ids")
    row = shared_row(batch.blocks, _device(model))
    with attending(model, row):
        found, _ = _forward(model, head, batch, reading, inputs)
    layers = getattr(heads.text_config(model), "num_hidden_layers", None)
    if row.calls != layers:
        raise AttentionError(f"{row.calls} of {layers} layers use attention that can be replaced")
    return found


def _run_cached(model: nn.Module, head: Head, batch: CachedBatch, reading: Reading) -> Statistics:
    prompt = {**_masked(model, batch.prompt), "use_cache": True}
    found, output = _forward(model, head, batch.prompt, reading, prompt)
    if batch.responses is None:
        return found
    count = len(batch.responses.input_ids)
    name = "past_key_values" if hasattr(output, "past_key_values") else "cache_params"
    cache = getattr(output, name)
    cache.reorder_cache(torch.zeros(count, dtype=torch.long, device=_device(model)))
    positions = heads.accepted(model, {"position_ids": _positions(model, batch.responses)})
    rest = {**_masked(model, batch.responses), **positions, name: cache}
    more, _ = _forward(model, head, batch.responses, reading, {**rest, "use_cache": True})
    return {name: torch.cat([found[name], more[name]]) for name in found}


def choose(
    model: nn.Module,
    sequences: Sequence[TokenSequence],
    budget: int,
    max_memory: int | None = None,
    ranks: Ranks = ALONE,
) -> Choice:
    """The fastest way and reading whose log-probs are those of single sequences, unpadded, with
    the model's own logits. It costs about six small forwards; the log says what was chosen.

    Forwards take at most ``budget`` tokens and ``max_memory`` bytes above what was there; raises
    `InputError` where one sequence alone takes more. All ``ranks`` run the same forwards, and
    choose what is right on all of them.
    """
    with FastProducts(narrow_only=True):
        return _chosen(model, sequences, budget, max_memory, ranks)


def _chosen(
    model: nn.Module,
    sequences: Sequence[TokenSequence],
    budget: int,
    max_memory: int | None,
    ranks: Ranks,
) -> Choice:
    few, head = _sample(sequences), heads.head_of(model)
    if max_memory is not None:
        _check_memory(model, few, max_memory)
    bare = _bare(model, few[0])
    truth = torch.cat([_plainest(model, head, item) for item in few])

    def distance(way: Way, reading: Reading) -> float:
        found = torch.full_like(truth, torch.nan)
        tokens = tokens_of(model, way, reading, few, budget, max_memory, ranks)
        for batch in batches(way, few, tokens):
            slots = torch.from_numpy(batch.slots).to(found.device)
            found[slots] = run(model, head, batch, reading)["logprob"].to(found.dtype)
        return _distance(found, truth)

    dtype = _working_dtype(model, head, few[0])
    worst = _WORST.get(dtype, _WORST_SHORT)
    readings: list[Reading] = ["head", "rows", "logits"]
    if not _works(lambda: heads.agrees(model, head, bare, dtype), "head", ranks):
        readings = readings[1:]
    plain: list[tuple[Way, Reading]] = [("padded", reading) for reading in readings]
    plain += [("single", reading) for reading in readings]
    base, reading = _first(plain, ("single", "logits"), lambda c: distance(*c) <= worst, ranks)
    noise = max(ranks.gathered(distance(base, reading)))
    near = max(TOLERANCE, _ROUNDINGS * torch.finfo(dtype).eps, min(4 * noise, worst))
    fast: list[tuple[Way, Reading]] = [("shared", reading), ("cached", reading)]
    way = _first(fast, (base, reading), lambda c: distance(*c) <= near, ranks)[0]
    if noise > TOLERANCE:
        logger.info("batching alone changes a token's log-prob by up to %.1e nats", noise)
    _say(way, reading, slow=way == base or reading == "logits")
    try:
        tokens = tokens_of(model, way, reading, sequences, budget, max_memory, ranks)
    except budgets.BudgetError as error:
        raise budgets.too_little(error.needed, max_memory or 0) from None
    return Choice(way, reading, tokens)


def tokens_of(
    model: nn.Module,
    way: Way,
    reading: Reading,
    sequences: Sequence[TokenSequence],
    budget: int,
    max_memory: int | None,
    ranks: Ranks = ALONE,
) -> int:
    """Tokens of a forward; fewer where the logits of all of them are held, or memory is short.
    Raises `BudgetError` where one sequence alone takes more than ``max_memory`` bytes."""
    vocabulary = getattr(heads.text_config(model), "vocab_size", None) or _WHOLE_LOGITS
    few = budget if reading == "head" else max(1, min(budget, _WHOLE_LOGITS // vocabulary))
    if max_memory is None:
        return few
    shape = budgets.shape_of(model)
    fitting = partial(batches, way, sequences)
    # a rank may hold another part of the weights, and take the model for narrower
    return min(ranks.gathered(budgets.largest(shape, fitting, reading, few, max_memory)))


def _check_memory(model: nn.Module, few: Sequence[TokenSequence], limit: int) -> None:
    """Raise `InputError` where the check itself, a sequence at a time, takes more."""
    shape = budgets.shape_of(model)
    single = (budgets.cost(shape, batch, "head") for batch in batches("single", few, 1))
    plain = (budgets.truth_cost(shape, len(item), len(item.response)) for item in few)
    if (needed := max(*single, *plain)) > limit:
        raise budgets.too_little(needed, limit)


def _say(way: Way, reading: Reading, *, slow: bool) -> None:
    text = "scoring runs by way %r and reads logits by way %r"
    if slow:
        logger.warning(text + ": right but slow, the model allows no faster one", way, reading)
    else:
        logger.info(text, way, reading)


def _first(
    options: Sequence[tuple[Way, Reading]],
    otherwise: tuple[Way, Reading],
    right: Callable[[tuple[Way, Reading]], bool],
    ranks: Ranks,
) -> tuple[Way, Reading]:
    for option in options:
        if _works(partial(right, option), "/".join(option), ranks):
            return option
    return otherwise


def _works(check: Callable[[], bool], name: str, ranks: Ranks) -> bool:
    """Whether a check holds on all ranks; one that fails in any way but memory does not."""
    ranks.meet()
    try:
        with ranks.together():
            held = check()
        held = all(ranks.gathered(held))
    except torch.OutOfMemoryError:
        raise
    except _FAILURES as error:
        logger.info("scoring by %s is not possible: %s", name, error)
        return False
    if not held:
        logger.info("scoring by %s differs from the plain way and is not used", name)
    return held


def _working_dtype(model: nn.Module, head: Head, item: TokenSequence) -> torch.dtype:
    try:
        return heads.working_dtype(model, head, _bare(model, item))
    except HeadError:
        return next(model.parameters()).dtype


def _distance(found: Tensor, truth: Tensor) -> float:
    """The largest difference in nats; equal infinities and NaN on both sides are none."""
    same = (found == truth) | (found.isnan() & truth.isnan())
    return float(torch.where(same, 0.0, found - truth).abs().nan_to_num(torch.inf).max())


def _bare(model: nn.Module, item: TokenSequence) -> dict[str, Any]:
    ids = torch.tensor([[*item.prompt, *item.response]], device=_device(model))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return {**inputs, **heads.accepted(model, {"use_cache": False, "return_dict": True})}


def _plainest(model: nn.Module, head: Head, item: TokenSequence) -> Tensor:
    """Log-probs [tokens] of one response: one sequence, log_softmax of all its logits."""
    count = len(item.response)
    few = heads.accepted(model, {"logits_to_keep": count + 1})
    logits = heads.whole_logits(head, model(**_bare(model, item), **few))
    targets = torch.tensor(item.response, device=logits.device)
    predicting = logits[-count - 1 : -1].float().log_softmax(-1)
    return predicting.gather(1, targets[:, None])[:, 0]


def _sample(sequences: Sequence[TokenSequence]) -> list[TokenSequence]:
    """What a check is made on: the longest and the shortest response of two probes, the one with
    the longest sequence (it shows attention windows) and the one with the shortest prompt."""
    longest = max(sequences, key=len).probe
    shortest = min(sequences, key=lambda item: (item.probe == longest, len(item.prompt))).probe
    few = []
    for probe in sorted({longest, shortest}):
        mine = [item for item in sequences if item.probe == probe]
        mine.sort(key=lambda item: len(item.response))
        few += mine if len(mine) < 3 else [mine[-1], mine[0], mine[len(mine) // 2]]
    return few
