"""What the API takes and gives: every field with its bounds."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from forcegauge.alarms import VERDICTS
from forcegauge_monitor.records import LONGEST_PATH, Event, Run, Snapshot

RUN_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
_HOST = r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9][A-Za-z0-9._-]{0,252})"

Name = Annotated[str, Field(pattern=RUN_NAME)]
Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{0,63}$")]
Place = Annotated[str, Field(max_length=LONGEST_PATH)]
Text = Annotated[str, Field(max_length=2000)]
Step = Annotated[int, Field(ge=0, le=2**53)]
Beta = Annotated[float, Field(ge=0, le=1e6)]
LossName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{0,64}$")]


class _Body(BaseModel):
    # an agent of a later version may tell more than is known here
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class RunBody(_Body):
    """A run that begins, or goes on."""

    run: Name
    record_id: Word
    address: Annotated[str, Field(pattern=rf"^({_HOST}:[0-9]{{1,5}})?$")] = ""
    model: Annotated[str, Field(max_length=LONGEST_PATH)] = ""
    loss: LossName | None = None
    beta: Beta | None = None
    probes: Place = ""
    train: Place | None = None
    probe_hash: Annotated[str, Field(pattern=r"^[0-9a-f]{0,64}$")] = ""
    cluster: Label = ""
    namespace: Label = ""

    def record(self) -> Run:
        """The run as it is kept."""
        return Run(**self.model_dump())


class EventBody(_Body):
    """What happened in a run; ``time`` in Unix seconds."""

    id: Word
    kind: Literal["alarm", "verdict", "checkpoint", "phase"]
    step: Step
    time: Annotated[float, Field(ge=0, le=1e11)]
    text: Text = ""
    path: Place = ""

    def record(self) -> Event:
        """The event as it is kept."""
        return Event(**self.model_dump())


class Heartbeat(_Body):
    """How a run is, and what happened since the last time."""

    record_id: Word
    step: Step = 0
    verdict: Annotated[str, Field(pattern=rf"^({'|'.join(VERDICTS)})$")] = "warming"
    since_step: Step = 0
    evidence: Annotated[str, Field(max_length=4000)] = ""
    events: Annotated[list[EventBody], Field(max_length=1000)] = []


class EndBody(_Body):
    """The end of a run."""

    record_id: Word
    reason: Literal["finished", "stopped", "signal", "error"]


class SnapshotBody(_Body):
    """A snapshot that is asked for; what is left out is as the run told it, the step as the
    checkpoint's name says."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    checkpoint: Annotated[str, Field(min_length=1, max_length=LONGEST_PATH)]
    step: Step | None = None
    probes: Place | None = None
    train: Place | None = None
    loss: LossName | None = None
    beta: Beta | None = None
    queue: Literal["cpu", "gpu"] | None = None


class Accepted(BaseModel):
    """The events that need not be told again."""

    accepted: list[str]


class Registered(BaseModel):
    """Whether the run is new."""

    run: str
    state: Literal["created", "same"]


class RunList(BaseModel):
    """A page of the runs, the newest first; ``total`` counts all of them."""

    runs: list[Run]
    total: int


class RunPage(BaseModel):
    """One run and its last events, the oldest first."""

    run: Run
    events: list[Event]


class SnapshotList(BaseModel):
    """A run's snapshots, the oldest first, without their metrics."""

    snapshots: list[Snapshot]


class Asked(BaseModel):
    """A snapshot that was asked for, or the one that answers the same question already."""

    id: str
    state: str
