"""From finished pieces to a snapshot: tensors, one JSON of metrics, and who pushes most."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from forcegauge.errors import RunError
from forcegauge.loading import checkpoint_step
from forcegauge.textfiles import write_whole
from forcegauge_monitor.entk.kernel import pooled_norm
from forcegauge_monitor.entk.pieces import Piece, metadata_of, read_piece, write_piece
from forcegauge_monitor.entk.stability import alignment, rank_stability, velocity
from forcegauge_monitor.entk.state import NO_STATE
from forcegauge_monitor.entk.validity import agreement
from forcegauge_monitor.job import KINDS, PUSHERS, Job
from forcegauge_monitor.storage import METRICS

Metrics = dict[str, Any]


@dataclass(frozen=True)
class Attribution:
    """A[f, row] in nats per unit of learning rate, float64 [types, rows]; Adam's form or why not.

    Rows are sequences: a pair's effect is the sum of its two.
    """

    raw: Tensor
    adam: Tensor | None
    reason: str


def merge(job: Job) -> Metrics:
    """Put all pieces together, write the snapshot's files and drop the pieces.

    Raises `RunError` when a piece is missing.
    """
    if missing := [piece.name for stage in job.missing() for piece in stage]:
        raise RunError(f"{len(missing)} pieces are not done yet, {missing[0]} among them.")
    attribution = merged_attribution(job)
    kernel = merged_kernel(job)
    changes = merged_changes(job)
    earlier = _earlier(job)
    tensors = {"raw": attribution.raw}
    tensors |= {} if attribution.adam is None else {"adam": attribution.adam}
    names = {"types": json.dumps(job.types), "sides": json.dumps(job.samples.sides)}
    write_piece(job.folder / "attribution.safetensors", tensors, names)
    metrics = _metrics(job, attribution, kernel, changes, earlier)
    if kernel:
        kept = {f"first.{n}": t for n, t in first_of(earlier).items()}
        write_piece(job.folder / "kernel.safetensors", kernel | kept, names)
    if changes:
        write_piece(job.folder / "changes.safetensors", changes, names)
    write_whole(job.folder / "pushers.json", json.dumps(pushers(job, attribution), indent=1))
    write_whole(job.folder / METRICS, json.dumps(metrics, indent=1, allow_nan=False))
    shutil.rmtree(job.work, ignore_errors=True)
    return metrics


def merged_attribution(job: Job) -> Attribution:
    """The table of all pieces: sums over blocks of parameters, the rest at its place."""
    shape = (len(job.types), len(job.samples.sequences))
    raw, adam = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
    reason = "" if job.adam else NO_STATE
    for piece in job.pieces("attribution"):
        found = read_piece(job.path(piece))
        reason = reason or metadata_of(job.path(piece))["adam"]
        scores, places = found["scores"].T, found["places"]
        for row, name in enumerate(piece.types):
            raw[job.types.index(name), places] += scores[row]
            if not reason:
                adam[job.types.index(name), places] += scores[len(piece.types) + row]
    return Attribution(raw, None if reason else adam, reason)


def row_weights(job: Job) -> list[Tensor]:
    """w of every trained token by row, from the log-probs of the policy and its reference."""
    policy = _logprobs(job, "policy")
    reference = None if job.reference is None else _logprobs(job, "reference")
    return job.loss.weights(policy, reference, job.samples.advantages)


def _logprobs(job: Job, kind: str) -> list[Tensor]:
    items = job.samples.sequences
    found: dict[int, Tensor] = {}
    for piece, places in zip(job.pieces(kind), job.slices(items), strict=True):
        sizes = [len(items[place].response) for place in places]
        flat = read_piece(job.path(piece))["logprobs"]
        found |= zip(places, flat.split(sizes), strict=True)
    return [found[place] for place in range(len(items))]


@dataclass(frozen=True)
class Coverage:
    """Rows that a batch may hold, parameters whose products cannot be had, and their share."""

    rows: int
    left_out: list[str]
    share: float


def coverage_of(job: Job) -> Coverage:
    """What the check against autograd came to, over all blocks of parameters."""
    found = [metadata_of(job.path(piece)) for piece in job.pieces("coverage")]
    return Coverage(
        min(int(each["rows"]) for each in found),
        [name for each in found for name in json.loads(each["left_out"])],
        sum(float(each["share"]) for each in found),
    )


def merged_kernel(job: Job) -> dict[str, Tensor]:
    """Signed values by kind [probes, observed, updated, seeds, seeds], and responses' lengths."""
    pieces = job.pieces(*KINDS)
    made: dict[str, list[Tensor]] = {}
    for part in range(len(job.kernel_probes)):
        for kind in KINDS:
            blocks = [read_piece(job.path(p)) for p in pieces if (p.kind, p.part) == (kind, part)]
            values = torch.stack([each["values"] for each in blocks]).sum(0)
            made.setdefault(kind, []).append(values)
            for name in ("head", "head_exact"):
                made.setdefault(name, []).extend(each[name] for each in blocks if name in each)
        made.setdefault("tokens", []).append(blocks[0]["tokens"])
    return {name: torch.stack(parts) for name, parts in made.items() if parts}


def merged_changes(job: Job) -> dict[str, Tensor]:
    """Predicted and measured changes of per-token mean log-probs, [probes, types]."""
    if job.before is None:
        return {}
    before = [read_piece(job.path(piece)) for piece in job.pieces("before")]
    after = [read_piece(job.path(piece))["logprob_mean"] for piece in job.pieces("after")]
    measured = torch.cat(after) - torch.cat([each["logprob_mean"] for each in before])
    found = {"predicted": torch.cat([each["predicted"] for each in before]), "measured": measured}
    shape = (len(job.probe_set), len(job.types))
    rows = [job.probes[place] for part in job.slices(job.probes) for place in part]
    index = [item.probe for item in rows], [item.type for item in rows]
    made = {name: torch.full(shape, torch.nan, dtype=torch.float64) for name in found}
    for name, values in found.items():
        made[name][index] = values
    return made


def _earlier(job: Job) -> dict[str, Tensor]:
    path = None if job.earlier is None else job.earlier / "kernel.safetensors"
    return read_piece(path) if path is not None and path.is_file() else {}


def first_of(earlier: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The run's first kernel: the one that the earlier snapshot hands down, or its own."""
    handed = {name: earlier[f"first.{name}"] for name in KINDS if f"first.{name}" in earlier}
    return handed or {name: earlier[name] for name in KINDS if name in earlier}


def _metrics(
    job: Job,
    attribution: Attribution,
    kernel: dict[str, Tensor],
    changes: dict[str, Tensor],
    earlier: dict[str, Tensor],
) -> Metrics:
    coverage = coverage_of(job)
    step = checkpoint_step(job.settings.checkpoint)
    made: Metrics = {
        "schema": 1,
        "identity": job.identity,
        "checkpoint": str(Path(job.settings.checkpoint).resolve()),
        **({} if step is None else {"snapshot_step": step}),
        "probe_hash": job.probe_set.hash,
        "loss": job.loss.name,
        "beta": job.loss.strength,
        "reference": _reference(job),
        "types": list(job.types),
        "updated": list(job.samples.sides),
        "probes": len(job.probe_set),
        "samples": len(job.samples.pairs),
        "attribution_nats": _by_side(job, attribution.raw),
        "left_out": {"names": coverage.left_out, "ratio": coverage.share},
        "plan": asdict(job.plan),
    }
    if attribution.adam is None:
        made["adam"] = attribution.reason
    else:
        made["attribution_adam_nats"] = _by_side(job, attribution.adam)
    made |= _kernel_metrics(job, kernel) if kernel else {}
    made |= _stability(job, kernel, earlier) if kernel and earlier else {}
    made |= _change_metrics(job, changes) if changes else {}
    return made | {"history": [*_earlier_history(job, made), _own_history(made)]}


def _earlier_history(job: Job, made: Metrics) -> list[Metrics]:
    """The run's snapshots so far, as the earlier one hands them down."""
    if job.earlier is None or not isinstance(made.get("stability"), dict):
        return []
    metrics = json.loads((job.earlier / METRICS).read_text(encoding="utf-8"))
    handed: list[Metrics] = metrics.get("history", [])
    return handed


def _own_history(made: Metrics) -> Metrics:
    compared = made.get("stability") if isinstance(made.get("stability"), dict) else None
    ranks = list(compared["first"]["rank"].values()) if compared else []
    return {
        "step": made.get("snapshot_step"),
        "checkpoint": made["checkpoint"],
        "alignment_first": compared["first"]["alignment"] if compared else 1.0,
        "alignment_previous": compared["previous"]["alignment"] if compared else None,
        "rank_first": sum(ranks) / len(ranks) if ranks else None if compared else 1.0,
        "prediction_r2": made.get("prediction_r2_ratio"),
    }


def _reference(job: Job) -> str:
    if not job.loss.needs_reference:
        return "none needed"
    return job.reference or "none given: weights as where the model equals its reference"


def _by_side(job: Job, table: Tensor) -> dict[str, dict[str, float]]:
    """Mean over samples of A[f, side], and of whole samples."""
    sides = torch.tensor([item.type for item in job.samples.sequences])
    made = {}
    for row, name in enumerate(job.types):
        means = {s: float(table[row, sides == i].mean()) for i, s in enumerate(job.samples.sides)}
        made[name] = means | {"sample": float(table[row].sum()) / len(job.samples.pairs)}
    return made


def norms_of(kernel: Mapping[str, Tensor], kind: str) -> tuple[Tensor, Tensor]:
    """Root mean square of the kernel's centred norm over probes and pairs of tokens, and its
    standard error, [observed, updated]."""
    tokens, updated = kernel["tokens"], kernel[kind].shape[2]
    scale = (tokens[:, :, None] * tokens[:, None, :updated]).sqrt()
    return pooled_norm(kernel[kind], scale)


def _kernel_metrics(job: Job, kernel: dict[str, Tensor]) -> Metrics:
    made: Metrics = {}
    for kind, name in (("gaussian", "entk_norm"), ("fisher", "entk_fisher_norm")):
        norm, error = norms_of(kernel, kind)
        made[name] = _table(job, norm)
        made[f"{name}_error"] = _table(job, error)
    if "head" in kernel:
        exact = kernel["head_exact"].nansum()
        made["entk_head_control_ratio"] = float(
            kernel["head"].square().mean((-1, -2)).nansum() / exact
        )
    return made


def _table(job: Job, values: Tensor) -> dict[str, dict[str, float]]:
    rows = zip(job.types, values.tolist(), strict=True)
    tables = {o: dict(zip(job.kernel_types, row, strict=True)) for o, row in rows}
    return {o: {u: v for u, v in row.items() if math.isfinite(v)} for o, row in tables.items()}


def _stability(job: Job, kernel: dict[str, Tensor], earlier: dict[str, Tensor]) -> Metrics:
    """Against the earlier snapshot and the run's first, through the same pairs and seeds."""
    if earlier["gaussian"].shape != kernel["gaussian"].shape or not torch.equal(
        earlier["tokens"], kernel["tokens"]
    ):
        return {"stability": "the earlier snapshot is of other probes or seeds"}
    first = first_of(earlier)["gaussian"]
    made: Metrics = {
        name: _compared(job, kernel, before)
        for name, before in (("previous", earlier["gaussian"]), ("first", first))
    }
    return {"stability": made, "entk_alignment_ratio": made["first"]["alignment"]}


def _compared(job: Job, kernel: dict[str, Tensor], before: Tensor) -> Metrics:
    now, _ = norms_of(kernel, "gaussian")
    then, _ = norms_of({**kernel, "gaussian": before}, "gaussian")
    ranks = {
        name: rank_stability(now[:, column], then[:, column])
        for column, name in enumerate(job.kernel_types)
    }
    return {
        "alignment": alignment(kernel["gaussian"], before),
        "velocity": velocity(kernel["gaussian"], before),
        "rank": {name: value for name, value in ranks.items() if value is not None},
    }


def _change_metrics(job: Job, changes: dict[str, Tensor]) -> Metrics:
    made: Metrics = {
        f"{name}_change_nats": {
            response_type: float(values[:, place].nanmean())
            for place, response_type in enumerate(job.types)
        }
        for name, values in changes.items()
    }
    found = agreement(changes["predicted"].flatten(), changes["measured"].flatten())
    if found is None:
        return made
    return made | {"prediction_r2_ratio": found.r2, "prediction": asdict(found)}


def by_sample(job: Job, rows: Tensor) -> Tensor:
    """Sums over the sequences of each sample: [..., rows] to [..., samples]."""
    samples = torch.tensor([item.probe for item in job.samples.sequences])
    whole = torch.zeros(*rows.shape[:-1], len(job.samples.pairs), dtype=rows.dtype)
    return whole.index_add_(-1, samples, rows)


def ends(values: Tensor) -> tuple[list[int], list[int]]:
    """Samples that raise most and those that lower most, each strongest first."""
    order = values.argsort(descending=True).tolist()
    raised = [place for place in order[:PUSHERS] if values[place] > 0]
    lowered = [place for place in order[::-1][:PUSHERS] if values[place] < 0]
    return raised, lowered


def pushers(job: Job, attribution: Attribution) -> dict[str, dict[str, list[Metrics]]]:
    """For each response type the samples that raise and that lower it most, with their texts."""
    whole = by_sample(job, attribution.raw)
    made = {}
    for row, name in enumerate(job.types):
        tokens = read_piece(job.path(Piece("tokens", (name,)))) if job.settings.tokens else {}
        named = [
            [_pusher(job, attribution.raw[row], place, tokens) for place in places]
            for places in ends(whole[row])
        ]
        made[name] = {"up": named[0], "down": named[1]}
    return made


def _pusher(job: Job, values: Tensor, place: int, tokens: Mapping[str, Tensor]) -> Metrics:
    pair, sequences = job.samples.pairs[place], job.samples.sequences
    own = [row for row, item in enumerate(sequences) if item.probe == place]
    sides: Metrics = {}
    for row in own:
        side = sides[job.samples.sides[sequences[row].type]] = {
            "nats": float(values[row]),
            "text": job.samples.text(row),
        }
        if str(row) in tokens:
            texts = [job.tokenizer.decode([token]) for token in sequences[row].response]
            side["tokens"] = list(zip(texts, tokens[str(row)].tolist(), strict=True))
    total = sum(side["nats"] for side in sides.values())
    return {"sample": pair.id, "nats": total, "prompt": _prompt_text(pair.prompt), "sides": sides}


def _prompt_text(prompt: str | Sequence[Mapping[str, str]]) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)
