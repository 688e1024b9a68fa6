"""What the monitor keeps of runs, their events and their snapshots, and which names and paths may
be in it."""

from __future__ import annotations

import posixpath
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import unquote, urlsplit

from forcegauge.errors import InputError
from forcegauge_monitor.settings import Settings

RunState = Literal["active", "stale", "ended"]
SnapshotState = Literal["queued", "running", "done", "failed", "cancelled", "superseded"]

OPEN: tuple[SnapshotState, ...] = ("queued", "running")
CLOSED: tuple[SnapshotState, ...] = ("done", "failed", "cancelled", "superseded")

LONGEST_PATH = 1024


@dataclass(frozen=True)
class Event:
    """What happened in a run; ``id`` is unique in it, ``time`` in Unix seconds."""

    id: str
    kind: Literal["alarm", "verdict", "checkpoint", "phase"]
    step: int
    time: float
    text: str = ""
    path: str = ""


@dataclass(frozen=True)
class Run:
    """A run: what it registered with, and how it was when last heard of.

    ``address`` is the ``host:port`` of its metrics. ``created``, ``seen`` and ``ended`` are in
    Unix seconds.
    """

    run: str
    record_id: str
    address: str = ""
    model: str = ""
    loss: str | None = None
    beta: float | None = None
    probes: str = ""
    train: str | None = None
    probe_hash: str = ""
    cluster: str = ""
    namespace: str = ""
    state: RunState = "active"
    created: float = 0.0
    seen: float = 0.0
    step: int = 0
    verdict: str = "warming"
    since_step: int = 0
    evidence: str = ""
    ended: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Snapshot:
    """A snapshot that was asked for, how far it is, and what came of it.

    ``path`` is where its arrays lie, ``metrics`` its numbers; ``attempts`` counts how often a
    worker began it. Times are in Unix seconds.
    """

    id: str
    run: str
    checkpoint: str
    step: int
    probes: str
    train: str
    loss: str = "sft"
    beta: float | None = None
    probe_hash: str = ""
    queue: str = "cpu"
    state: SnapshotState = "queued"
    pieces_done: int = 0
    pieces_total: int = 0
    created: float = 0.0
    started: float | None = None
    finished: float | None = None
    reason: str = ""
    path: str = ""
    metrics: dict[str, Any] = field(default_factory=dict)
    attempts: int = 0

    @property
    def question(self) -> str:
        """What makes two snapshots of a run the same: the step and the probes."""
        return f"{self.step}|{self.probe_hash or self.probes}"


@dataclass(frozen=True)
class Unannotated:
    """Events of a run that Grafana was not told yet, the oldest first, after ``done`` others."""

    run: str
    record_id: str
    done: int
    events: list[Event]


@dataclass(frozen=True)
class Watch:
    """A folder whose checkpoints are scored as they come; ``settings`` are more of
    `agentless.Scoring`."""

    run: str
    folder: str
    probes: str
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Worker:
    """A worker that lives; ``seen`` in Unix seconds."""

    name: str
    queue: str
    busy: bool
    seen: float


T = TypeVar("T", Run, Event, Snapshot, Watch, Worker)


def to_json(record: Run | Event | Snapshot | Watch | Worker) -> dict[str, Any]:
    """A record as JSON values."""
    return asdict(record)


def from_json(kind: type[T], values: dict[str, Any]) -> T:
    """A record of its JSON values; keys of a later version are left out."""
    known = {each.name for each in fields(kind)}
    return kind(**{name: value for name, value in values.items() if name in known})


def check_path(settings: Settings, path: str, name: str) -> str:
    """The path or URL as it may be opened: links and ``..`` resolved, under an allowed root.

    Raises `InputError`, naming the field, for one that lies elsewhere.
    """
    found = _inside(settings, path)
    if found is None:
        fix = "Put it under the storage, or allow its folder by the setting roots"
        raise InputError("lies under no allowed root", field=name, fix=fix)
    return found


def allowed(settings: Settings, path: str) -> bool:
    """Whether a path or URL lies under an allowed root."""
    return _inside(settings, path) is not None


def _inside(settings: Settings, path: str) -> str | None:
    if not path or len(path) > LONGEST_PATH or not path.isprintable():
        return None
    for root in (settings.storage, *settings.roots):
        if ("://" in root) == ("://" in path):
            found = _url_inside(root, path) if "://" in path else _folder_inside(root, path)
            if found is not None:
                return found
    return None


def _url_inside(root: str, url: str) -> str | None:
    try:
        asked, given = urlsplit(url), urlsplit(root)
    except ValueError:
        return None
    place, base = unquote(asked.path), given.path.rstrip("/")
    # chained and options-bearing URLs of fsspec lead elsewhere than their beginning says
    plain = not (asked.query or asked.fragment or "::" in url)
    same = (asked.scheme, asked.netloc) == (given.scheme, given.netloc)
    clean = posixpath.normpath(place) == place.rstrip("/")
    if plain and same and clean and (place == base or place.startswith(f"{base}/")):
        return url
    return None


def _folder_inside(root: str, path: str) -> str | None:
    try:
        place = Path(path).resolve()
    except (OSError, RuntimeError):
        return None
    return str(place) if place.is_relative_to(Path(root).resolve()) else None
