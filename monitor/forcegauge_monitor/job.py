"""One snapshot as a job: what it is asked for, how it is cut into pieces, what is done already."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from forcegauge.checkpoints import base_of, is_adapter
from forcegauge.encoding import TokenSequence, check_fits, encode_probes
from forcegauge.errors import InputError, RunError
from forcegauge.head import text_config
from forcegauge.loading import DTYPES, check_causal, load_tokenizer, pick_device
from forcegauge.probes import ProbeSet
from forcegauge.textfiles import write_whole
from forcegauge_monitor.checkpoints import check_same_weights, skeleton
from forcegauge_monitor.entk.pieces import Piece
from forcegauge_monitor.entk.plan import Plan, Work, free_memory, lengths, make_plan, size_of
from forcegauge_monitor.entk.samples import Loss, Samples, read_samples
from forcegauge_monitor.entk.state import has_state
from forcegauge_monitor.storage import METRICS

KINDS = ("gaussian", "fisher")
BASE = "the adapter's base model"

PUSHERS = 5
"""Samples that are named at either end of a response type's ranking."""


@dataclass(frozen=True)
class Settings:
    """What a snapshot is asked for.

    Attributes:
        checkpoint: folder of the model or adapter.
        probes: probe file.
        train: training samples, a file in the shapes that TRL documents.
        loss: a name of `entk.samples.LOSSES`.
        beta: the loss's beta.
        reference: model that a preference loss compares with; an adapter's base by itself.
        previous: an earlier snapshot of the run, or a checkpoint before this one.
        samples: at most so many training samples, evenly spread.
        kernel_probes: probes whose kernel is estimated; 0 for none.
        seeds: random seeds for each side of the kernel.
        tokens: whether the samples that push most are taken apart into their tokens.
        memory: bytes that may be used; all free ones by default.
    """

    checkpoint: str
    probes: str
    train: str
    loss: str = "sft"
    beta: float | None = None
    reference: str | None = None
    previous: str | None = None
    samples: int | None = 256
    kernel_probes: int = 8
    seeds: int = 4
    tokens: bool = False
    dtype: str = "float32"
    device: str | None = None
    memory: int | None = None
    max_prompt_tokens: int | None = None
    max_response_tokens: int | None = None


class Job:
    """A snapshot's inputs, its plan and its pieces; the folder holds what is done.

    Raises `InputError` for inputs that cannot be used, `RunError` when memory or disk cannot do.
    """

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings, self.folder, self.work = settings, folder, folder / "work"
        self.before, self.earlier = _previous(settings.previous)
        for name in (settings.checkpoint, settings.reference, self.before):
            if name is not None:
                check_causal(name)
        self.loss = Loss(settings.loss, settings.beta)
        self.probe_set = ProbeSet.load(settings.probes)
        self.tokenizer = tokenizer = tokenizer_of(settings.checkpoint)
        limits: dict[str, Any] = {
            "max_prompt_tokens": settings.max_prompt_tokens,
            "max_response_tokens": settings.max_response_tokens,
        }
        self.probes: list[TokenSequence] = encode_probes(self.probe_set, tokenizer, **limits)
        self.samples: Samples = read_samples(
            settings.train, tokenizer, self.loss, limit=settings.samples, **limits
        )

    @cached_property
    def device(self) -> torch.device:
        """Where the work is done."""
        return pick_device(self.settings.device)

    @cached_property
    def plan(self) -> Plan:
        """The plan that the folder holds, or a new one for this machine."""
        saved = _read_json(self.work / "job.json")
        if saved.get("identity") == self.identity:
            return restored_plan(saved["plan"])
        model = skeleton(self.settings.checkpoint)
        vocabulary: int = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
        context = getattr(text_config(model), "max_position_embeddings", None)
        check_fits(self.probes, self.probe_set, context, vocabulary)
        self._check_samples(context, vocabulary)
        if self.before is not None:
            check_same_weights(model, skeleton(self.before), self.before)
        size = size_of(model, torch.finfo(DTYPES[self.settings.dtype]).bits // 8)
        free = self.settings.memory or free_memory(self.device)
        return make_plan(size, self.asked, free)

    def finished(self) -> bool:
        """Whether the folder holds this snapshot; raises `InputError` if it holds another one."""
        done = _read_json(self.folder / METRICS)
        if done and done.get("identity") != self.identity:
            fix = "give another folder with -o"
            raise InputError("holds a snapshot of other inputs", fix=fix, file=self.folder)
        return bool(done)

    def start(self) -> None:
        """Make the folder and keep the plan; pieces of other inputs are removed."""
        saved = _read_json(self.work / "job.json")
        plan = self.plan
        if saved.get("identity") != self.identity:
            shutil.rmtree(self.work, ignore_errors=True)
        try:
            self.work.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{self.work}: cannot be made ({error.strerror}).") from None
        free = shutil.disk_usage(self.work).free
        if plan.disk_bytes > free and not saved:
            raise RunError(
                f"The snapshot needs {plan.disk_bytes / 2**30:.1f} GiB in {self.folder} while it "
                f"works, and {free / 2**30:.1f} GiB are free."
            )
        state = {"identity": self.identity, "settings": asdict(self.settings), "plan": asdict(plan)}
        write_whole(self.work / "job.json", json.dumps(state, indent=1))

    @cached_property
    def identity(self) -> str:
        """A hash of everything that the numbers depend on."""
        settings = replace(self.settings, device=None, memory=None)
        named = [name for name in (settings.checkpoint, settings.reference) if name]
        stamps = [_stamp(Path(name)) for name in named]
        rows = [(item.prompt, item.response) for item in (*self.probes, *self.samples.sequences)]
        parts = (asdict(settings), self.probe_set.hash, stamps, rows, self.samples.advantages)
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @property
    def types(self) -> tuple[str, ...]:
        """Observed response types."""
        return self.probe_set.types

    @property
    def kernel_types(self) -> tuple[str, ...]:
        """Response types that the kernel is about as updated: those that training moves."""
        return tuple(name for name in ("chosen", "rejected") if name in self.types)

    @property
    def kernel_probes(self) -> list[int]:
        """Probes whose kernel is estimated, evenly spread."""
        count = min(self.settings.kernel_probes, len(self.probe_set))
        return [place * len(self.probe_set) // count for place in range(count)]

    @property
    def adam(self) -> bool:
        """Whether the checkpoint brings an optimizer's state along."""
        return has_state(self.settings.checkpoint)

    @property
    def asked(self) -> Work:
        """How much work this is."""
        mean, longest, response = lengths([*self.probes, *self.samples.sequences])
        by_type = {
            name: sum(item.type == place for item in self.probes)
            for place, name in enumerate(self.types)
        }
        return Work(
            probes=by_type,
            tokens=mean,
            longest=longest,
            longest_response=response,
            samples=len(self.samples.sequences),
            kernel_probes=len(self.kernel_probes),
            kernel_updated=len(self.kernel_types),
            kernel_observed=len(self.types),
            kernel_kinds=len(KINDS),
            seeds=self.settings.seeds,
            adam=self.adam,
            validity=self.before is not None,
        )

    @property
    def reference(self) -> str | None:
        """The model that the loss compares with, where there is one: a name, or `BASE`."""
        if not self.loss.needs_reference:
            return None
        adapter = BASE if is_adapter(self.settings.checkpoint) else None
        return self.settings.reference or adapter

    def stages(self) -> list[list[Piece]]:
        """Pieces in the order in which stages must be finished; those of one stage need none of
        each other. What shares a model follows each other, and what takes longest comes first, so
        that several workers end a stage at about the same time."""
        plan, work = self.plan, self.asked
        blocks = range(len(plan.blocks))
        items = self.samples.sequences
        first = [] if self.reference is None else self._sliced("reference", items)
        first += [Piece("coverage", block=block, cost=3.3 * plan.rows + 6) for block in blocks]
        first += self._sliced("policy", items)
        first += [
            Piece("direction", (name,), block, cost=3.0 * work.probes[name])
            for name in self.types
            for block in blocks
        ]
        stages = [first, [*self._kernel_pieces(), *self._attribution_pieces()]]
        if self.before is not None:
            stages[1] += self._sliced("after", self.probes)
            stages[1] += self._sliced("before", self.probes, 4.0)
        if self.settings.tokens:
            cost = 4.0 * 2 * PUSHERS * len(self.samples.sides)
            stages.append([Piece("tokens", (name,), cost=cost) for name in self.types])
        return stages

    def pieces(self, *kinds: str) -> list[Piece]:
        """All pieces of some kinds, in their order."""
        return [piece for stage in self.stages() for piece in stage if piece.kind in kinds]

    def slices(self, sequences: Sequence[TokenSequence]) -> list[list[int]]:
        """Places of sequences, the shortest first, in parts of about equal size."""
        order = sorted(range(len(sequences)), key=lambda place: (len(sequences[place]), place))
        parts = -(-len(order) // self.plan.slice_rows)
        edges = [part * len(order) // parts for part in range(parts + 1)]
        return [order[start:end] for start, end in pairwise(edges)]

    def _sliced(
        self, kind: str, sequences: Sequence[TokenSequence], each: float = 1.0
    ) -> list[Piece]:
        parts = self.slices(sequences)
        return [
            Piece(kind, part=part, cost=each * len(places)) for part, places in enumerate(parts)
        ]

    def _attribution_pieces(self) -> list[Piece]:
        parts = self.slices(self.samples.sequences)
        return [
            Piece("attribution", group, block, part, 3.3 * len(places))
            for group in self.plan.groups
            for block in range(len(self.plan.blocks))
            for part, places in enumerate(parts)
        ]

    def _kernel_pieces(self) -> list[Piece]:
        work = self.asked
        cost = work.kernel_updated * (1 + 2.0 * work.seeds)
        cost += work.kernel_observed * (1 + 2.5 * work.seeds)
        return [
            Piece(kind, (), block, part, cost)
            for kind in KINDS
            for part in range(work.kernel_probes)
            for block in range(len(self.plan.kernel_blocks))
        ]

    def path(self, piece: Piece) -> Path:
        """The piece's file."""
        return self.work / f"{piece.name}.safetensors"

    def missing(self) -> list[list[Piece]]:
        """Pieces that are still to be done, by stage."""
        return [[p for p in stage if not self.path(p).exists()] for stage in self.stages()]

    def _check_samples(self, context: int | None, vocabulary: int) -> None:
        for item in self.samples.sequences:
            pair = self.samples.pairs[item.probe]
            if context is not None and len(item) > context:
                raise InputError(
                    f"{pair.id}: {len(item)} tokens and the model's context is {context}",
                    fix="set --max-prompt-tokens and --max-response-tokens",
                    file=self.settings.train,
                )
            if not item.response or max(*item.prompt, *item.response) >= vocabulary:
                problem = f"{pair.id}: the tokenizer gives tokens that the model does not know"
                raise InputError(problem, file=self.settings.train)


def tokenizer_of(name: str) -> Any:
    """The tokenizer beside a checkpoint, or that of an adapter's base."""
    if is_adapter(name) and not (Path(name) / "tokenizer_config.json").is_file():
        return load_tokenizer(base_of(name))
    return load_tokenizer(name)


def restored_plan(saved: dict[str, Any]) -> Plan:
    """A plan from its JSON."""
    cuts = ("groups", "blocks", "kernel_blocks")
    return Plan(**saved | {name: tuple(tuple(part) for part in saved[name]) for name in cuts})


def _previous(name: str | None) -> tuple[str | None, Path | None]:
    """The checkpoint before, and the earlier snapshot's folder, as far as --previous gives them."""
    if name is None:
        return None, None
    if (Path(name) / "work" / "job.json").is_file():
        raise InputError("this snapshot is not finished", fix="take it to its end first", file=name)
    if not (Path(name) / METRICS).is_file():
        return name, None
    checkpoint = str(_read_json(Path(name) / METRICS).get("checkpoint", ""))
    return (checkpoint if Path(checkpoint).is_dir() else None), Path(name)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        raise InputError("is no JSON of a snapshot", file=path) from None
    return found if isinstance(found, dict) else {}


def _stamp(folder: Path) -> list[tuple[str, int, int]]:
    """Names, sizes and times of the weights' files: what tells two checkpoints apart."""
    kinds = ("*.safetensors", "*.bin", "*.pt", "*/*.distcp", "global_step*/*.pt")
    files = sorted(path for kind in kinds for path in folder.glob(kind))
    return [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
