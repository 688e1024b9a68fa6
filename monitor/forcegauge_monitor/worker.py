"""Does the pieces of a snapshot: loads what one needs, keeps it for the next, writes the result."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from forcegauge.checkpoints import load_checkpoint
from forcegauge.encoding import TokenSequence
from forcegauge.loading import DTYPES
from forcegauge_monitor.checkpoints import weight_step, without_adapter
from forcegauge_monitor.entk.adam import preconditioner
from forcegauge_monitor.entk.attribution import (
    attribute,
    direction,
    disagreeing,
    rows_that_split,
    token_products,
)
from forcegauge_monitor.entk.kernel import Kind, bilinear, head_squared_norm
from forcegauge_monitor.entk.pieces import Piece, stacked_directions, write_piece
from forcegauge_monitor.entk.rows import all_logprobs, make_batches
from forcegauge_monitor.entk.samples import probe_rows
from forcegauge_monitor.entk.state import NoStateError
from forcegauge_monitor.entk.validity import predicted_changes
from forcegauge_monitor.job import BASE, Job
from forcegauge_monitor.results import (
    by_sample,
    coverage_of,
    ends,
    merged_attribution,
    row_weights,
)

Advance = Callable[[float], object]
"""Told a share of the piece, 0 to 1, as it is done."""


class Worker:
    """Runs pieces of one job; any number of workers may share the job's folder."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._kept: dict[str, tuple[Any, Any]] = {}

    def run(self, piece: Piece, advance: Advance = lambda share: None) -> None:
        """Do one piece whose stages before are finished, and write its file."""
        run = {
            "reference": self._reference,
            "policy": self._policy,
            "before": self._before,
            "after": self._after,
            "direction": self._direction,
            "coverage": self._coverage,
            "attribution": self._attribution,
            "tokens": self._tokens,
        }.get(piece.kind, self._kernel)
        tensors, metadata = run(piece, advance)
        write_piece(self.job.path(piece), tensors, metadata)

    def _policy(self, piece: Piece, advance: Advance) -> tuple[dict[str, Tensor], dict[str, str]]:
        model = self._model(self.job.settings.checkpoint)
        return self._sample_logprobs(model, piece, advance), {}

    def _reference(
        self, piece: Piece, advance: Advance
    ) -> tuple[dict[str, Tensor], dict[str, str]]:
        job = self.job
        if job.reference != BASE:
            return self._sample_logprobs(self._model(str(job.reference)), piece, advance), {}
        model = self._model(job.settings.checkpoint)
        with without_adapter(model):
            return self._sample_logprobs(model, piece, advance), {}

    def _sample_logprobs(
        self, model: nn.Module, piece: Piece, advance: Advance
    ) -> dict[str, Tensor]:
        """Log-probs of the tokens of one part of the samples, one row after the other."""
        items = self.job.samples.sequences
        rows = [items[place] for place in self.job.slices(items)[piece.part]]
        found = all_logprobs(model, rows, self.job.plan.rows, lambda n: advance(n / len(rows)))
        return {"logprobs": torch.cat(found)}

    def _before(self, piece: Piece, advance: Advance) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Log-probs before the step between two checkpoints, and what the step should change."""
        rows = self._part(self.job.probes, piece)
        model = self._model(str(self.job.before))
        step = self._keep("step", self.job.before, self._step)
        found = all_logprobs(model, rows, self.job.plan.rows)
        predicted = predicted_changes(
            model, rows, step, rows=self._rows(), advance=lambda n: advance(n / len(rows))
        )
        before = torch.stack([row.double().mean() for row in found])
        return {"predicted": predicted, "logprob_mean": before}, {}

    def _step(self) -> dict[str, Tensor]:
        return weight_step(self._model(str(self.job.before)), self.job.settings.checkpoint)

    def _after(self, piece: Piece, advance: Advance) -> tuple[dict[str, Tensor], dict[str, str]]:
        rows = self._part(self.job.probes, piece)
        model, share = self._model(self.job.settings.checkpoint), 1 / len(rows)
        found = all_logprobs(model, rows, self.job.plan.rows, lambda n: advance(n * share))
        return {"logprob_mean": torch.stack([row.double().mean() for row in found])}, {}

    def _part(self, rows: Sequence[TokenSequence], piece: Piece) -> Sequence[TokenSequence]:
        return [rows[place] for place in self.job.slices(rows)[piece.part]]

    def _direction(
        self, piece: Piece, advance: Advance
    ) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The gradient of one response type: mean over probes of per-token mean log-probs."""
        job = self.job
        rows, weights = probe_rows(job.probes, job.types.index(piece.types[0]))
        made = direction(
            self._model(job.settings.checkpoint),
            job.plan.blocks[piece.block],
            make_batches(rows, self.job.plan.rows),
            weights,
            lambda n: advance(n / len(rows)),
        )
        storage = DTYPES[job.plan.storage]
        return {name: tensor.to(storage) for name, tensor in made.items()}, {}

    def _coverage(self, piece: Piece, advance: Advance) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Whether batches can hold several rows, and parameters whose products cannot be had: those
        of a row with its own gradient are looked at."""
        job, model = self.job, self._model(self.job.settings.checkpoint)
        items = job.samples.sequences
        weights = [torch.full((len(item.response),), 1 / len(item.response)) for item in items]
        batch, names = make_batches(items, job.plan.rows)[0], job.plan.blocks[piece.block]
        gradient = direction(model, names, [batch.first()], weights)
        own = {name: each.unsqueeze(0) for name, each in gradient.items()}
        advance(0.3)
        rows, left_out = job.plan.rows, list[str]()
        if not rows_that_split(model, batch, weights, own):
            left_out = disagreeing(model, batch.first(), weights, own)
            kept = {name: each for name, each in own.items() if name not in left_out}
            several = bool(left_out) and rows_that_split(model, batch, weights, kept)
            rows = rows if several else 1
        share = sum(own[name].numel() for name in left_out) / _trained(model)
        said = {"rows": str(rows), "left_out": json.dumps(left_out), "share": str(share)}
        return {"nothing": torch.zeros(1)}, said

    def _attribution(
        self, piece: Piece, advance: Advance
    ) -> tuple[dict[str, Tensor], dict[str, str]]:
        job, items = self.job, self.job.samples.sequences
        model = self._model(job.settings.checkpoint)
        directions, said = self._keep(
            "directions", (piece.types, piece.block), lambda: self._directions(piece)
        )
        places = job.slices(items)[piece.part]
        weights = self._row_weights()
        scores = attribute(
            model,
            make_batches([items[place] for place in places], self._rows()),
            [weights[place] for place in places],
            directions,
            lambda n: advance(n / len(places)),
        )
        return {"scores": scores, "places": torch.tensor(places)}, {"adam": said}

    def _tokens(self, piece: Piece, advance: Advance) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The samples that push one type most, token by token, by row."""
        job, items = self.job, self.job.samples.sequences
        values = merged_attribution(job).raw[job.types.index(piece.types[0])]
        samples = {place for end in ends(by_sample(job, values)) for place in end}
        rows = [row for row, item in enumerate(items) if item.probe in samples]
        found: dict[str, Tensor] = {}
        for block in range(len(job.plan.blocks)):
            one = self._stacked(piece.types, block, None)
            for done, row in enumerate(rows):
                [batch] = make_batches([items[row]], 1)
                model = self._model(job.settings.checkpoint)
                [scores] = token_products(model, batch, [self._row_weights()[row]], one)
                found[str(row)] = found.get(str(row), torch.zeros(())) + scores[:, 0]
                advance((block + done / len(rows)) / len(job.plan.blocks))
        return found, {}

    def _row_weights(self) -> Sequence[Tensor]:
        return cast(Sequence[Tensor], self._keep("weights", "", lambda: row_weights(self.job)))

    def _directions(self, piece: Piece) -> tuple[dict[str, Tensor], str]:
        job, said, scale = self.job, "", None
        names = job.plan.blocks[piece.block]
        if job.adam:
            try:
                model = self._model(job.settings.checkpoint)
                scale = preconditioner(job.settings.checkpoint, model, names)
            except NoStateError as reason:
                said = str(reason)
        stacked = self._stacked(piece.types, piece.block, scale)
        left_out = coverage_of(job).left_out
        return {n: each for n, each in stacked.items() if n not in left_out}, said

    def _stacked(
        self, types: Sequence[str], block: int, scale: dict[str, Tensor] | None
    ) -> dict[str, Tensor]:
        job = self.job
        paths = [job.path(Piece("direction", (name,), block)) for name in types]
        return stacked_directions(paths, job.plan.blocks[block], scale, job.device)

    def _rows(self) -> int:
        return coverage_of(self.job).rows

    def _kernel(self, piece: Piece, advance: Advance) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Signed values of one probe: every type observed, the trained ones updated."""
        job, index = self.job, self.job.kernel_probes[piece.part]
        self._kept.pop("directions", None)
        here = {job.types[item.type]: item for item in job.probes if item.probe == index}
        updated = [name for name in job.kernel_types if name in here]
        labels = {name: f"{job.probe_set.probes[index].id}/{name}" for name in here}
        model = self._model(job.settings.checkpoint)
        left_out = coverage_of(job).left_out
        parts = bilinear(
            model,
            [name for name in job.plan.kernel_blocks[piece.block] if name not in left_out],
            [(labels[name], here[name]) for name in here],
            [(labels[name], here[name]) for name in updated],
            kind=cast(Kind, piece.kind),
            seeds=job.settings.seeds,
            dtype=DTYPES[job.plan.storage],
            rows=self._rows(),
            advance=lambda n: advance(n / (len(here) + len(updated))),
        )
        tensors = {"values": self._placed(sum(parts.values(), torch.zeros(())), here, updated)}
        sizes = torch.tensor([float(len(here[n].response)) if n in here else 0 for n in job.types])
        tensors["tokens"] = sizes
        head = _untied_head(model)
        if piece.kind == "gaussian" and head in parts:
            tensors["head"] = self._placed(parts[str(head)], here, updated)
            exact = [[head_squared_norm(model, here[o], here[u]) for u in updated] for o in here]
            tensors["head_exact"] = self._placed(torch.tensor(exact), here, updated)
        return tensors, {}

    def _placed(
        self, values: Tensor, here: dict[str, TokenSequence], updated: Sequence[str]
    ) -> Tensor:
        """Values [present types, updated, ...] at their places among all types, NaN elsewhere."""
        job = self.job
        shape = (len(job.types), len(job.kernel_types), *values.shape[2:])
        made = torch.full(shape, torch.nan, dtype=torch.float64)
        for row, name in enumerate(here):
            for column, other in enumerate(updated):
                place = job.types.index(name), job.kernel_types.index(other)
                made[place] = values[row, column].double()
        return made

    def _model(self, name: str) -> nn.Module:
        settings = self.job.settings
        found: nn.Module = self._keep(
            "model",
            name,
            lambda: load_checkpoint(name, dtype=settings.dtype, device=self.job.device),
        )
        return found

    def _keep(self, what: str, key: Any, make: Callable[[], Any]) -> Any:
        """The last thing of its kind if it is the one asked for, else made after it is dropped."""
        if self._kept.get(what, (None, None))[0] != key:
            self._kept.pop(what, None)
            if what == "model":
                # no plan has room for what belongs to two models
                self._kept.pop("directions", None)
                self._kept.pop("step", None)
            gc.collect()
            self._kept[what] = key, make()
        return self._kept[what][1]


def _trained(model: nn.Module) -> int:
    return sum(each.numel() for each in model.parameters() if each.requires_grad)


def _untied_head(model: nn.Module) -> str | None:
    """Name of the head's weight where it is trained and nothing else uses it."""
    from forcegauge.head import head_of

    head = head_of(model)
    weight = getattr(head.module, "weight", None)
    if head.cap is not None or weight is None:
        return None
    uses = sum(
        parameter is weight
        for module in model.modules()
        for parameter in module.parameters(recurse=False)
    )
    names = [name for name, p in model.named_parameters() if p is weight and p.requires_grad]
    return names[0] if uses == 1 and names else None
