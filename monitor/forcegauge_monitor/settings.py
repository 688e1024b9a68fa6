"""The monitor's settings: flags over environment over file; unknown keys are errors."""

from __future__ import annotations

import json
import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, NoDecode, SettingsConfigDict

from forcegauge.errors import InputError

PREFIX = "FORCEGAUGE_MONITOR_"
LOOPBACK = ("127.0.0.1", "::1", "localhost")

# Kubernetes puts these into every container beside a service named forcegauge-monitor.
_SERVICE_LINK = re.compile(r"SERVICE_HOST|SERVICE_PORT(_.*)?|PORT_\d+_(TCP|UDP).*")


class Settings(BaseSettings):
    """What can be set, as `FORCEGAUGE_MONITOR_<NAME>`, in a file, or by a flag.

    Attributes:
        redis_url: where runs and snapshots are kept: ``redis://``, ``rediss://``, ``unix://`` or
            ``redis+sentinel://host1,host2/service/db``, with ``user:password@`` where needed.
        broker_url: where tasks wait; the same Redis by default.
        storage: folder or fsspec URL of the snapshots' arrays, the same for all workers.
        work: folder in which snapshots are made where ``storage`` is a URL, also the same for all
            workers.
        roots: folders and URLs under which checkpoints, probes and training files may lie, beside
            ``storage``; in the environment separated by commas.
        tokens_file: file of hashed tokens, one a line (`forcegauge monitor token`).
        tokens: the same lines in a setting, separated by commas.
        protect_pages: whether ``/metrics``, ``/sd/targets`` and ``/runbooks`` need a token too.
        bind: address that the API listens on.
        port: port that it listens on; 0 takes a free one.
        stale_seconds: a run is stale when it was not heard of for so long.
        retention_days: how long a run is kept after it was last heard of.
        snapshot_every: training steps between the snapshots that checkpoints start; 0 for none.
        samples: training samples of a snapshot, evenly spread over the file.
        kernel_probes: probes whose kernel a snapshot estimates; 0 for none.
        queue: queue of the snapshots: ``cpu`` or ``gpu``.
        lease_seconds: a snapshot of which no worker was heard for so long is given to others.
        visibility_seconds: a task is given to another worker after so long: more than the longest
            piece of a snapshot.
        max_body_bytes: largest request.
        requests_per_second: of one client address, on average; 0 for no limit.
        burst: of one client address, at once.
        grafana_url: the Grafana that `grafana` manages and that beat annotates; none by default.
        grafana_token: a service account's token for it; in no file that the monitor writes.
        grafana_token_file: file of that token, read each time.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, extra="forbid", frozen=True, hide_input_in_errors=True
    )

    redis_url: str = Field(default="redis://127.0.0.1:6379/0", repr=False)
    broker_url: str = Field(default="", repr=False)
    storage: str = "forcegauge-monitor"
    work: str = "forcegauge-monitor"
    roots: Annotated[tuple[str, ...], NoDecode] = ()
    tokens_file: Path | None = None
    tokens: Annotated[tuple[str, ...], NoDecode] = Field(default=(), repr=False)
    protect_pages: bool = False
    bind: str = "127.0.0.1"
    port: int = Field(default=8790, ge=0, le=65535)
    stale_seconds: float = Field(default=60.0, gt=0)
    retention_days: float = Field(default=30.0, gt=0)
    snapshot_every: int = Field(default=0, ge=0)
    samples: int = Field(default=256, gt=0)
    kernel_probes: int = Field(default=8, ge=0)
    queue: str = Field(default="cpu", pattern=r"^[a-z0-9-]{1,32}$")
    lease_seconds: float = Field(default=60.0, gt=0)
    visibility_seconds: int = Field(default=6 * 3600, gt=0)
    max_body_bytes: int = Field(default=1 << 20, gt=0)
    requests_per_second: float = Field(default=500.0, ge=0)
    burst: int = Field(default=1000, gt=0)
    grafana_url: str = ""
    grafana_token: str = Field(default="", repr=False, exclude=True)
    grafana_token_file: Path | None = None

    @field_validator("roots", "tokens", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return [part.strip() for part in value.split(",") if part.strip()]


def load_settings(file: str | Path | None = None, **flags: Any) -> Settings:
    """Settings of flags (None is not given), environment and file (TOML or JSON), in that order.

    Raises `InputError` for a file that cannot be read, an unknown key and a value that cannot be.
    """
    _check_environment()
    # a link of Kubernetes in the place of the port is none of our settings
    environment = {k: v for k, v in EnvSettingsSource(Settings)().items() if not _is_link(k, v)}
    given = {name: value for name, value in flags.items() if value is not None}
    defaults = {"port": Settings.model_fields["port"].default}
    try:
        return Settings(**{**defaults, **_from_file(file), **environment, **given})
    except ValidationError as error:
        raise _problem(error, file) from None


def _from_file(file: str | Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    try:
        text = Path(file).read_text(encoding="utf-8")
        found = json.loads(text) if str(file).endswith(".json") else tomllib.loads(text)
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", file=file) from None
    except ValueError as error:
        raise InputError(f"is neither TOML nor JSON ({error})", file=file) from None
    if not isinstance(found, dict):
        raise InputError("holds no settings", fix="Write one object of names", file=file)
    return found


def _check_environment() -> None:
    for variable in os.environ:
        name = variable.removeprefix(PREFIX)
        if name == variable or name.lower() in Settings.model_fields:
            continue
        if not _SERVICE_LINK.fullmatch(name):
            raise InputError("no such setting", field=variable, fix=f"There are {_known()}")


def _is_link(name: str, value: Any) -> bool:
    return name == "port" and str(value).startswith(("tcp://", "udp://"))


def _known() -> str:
    return ", ".join(Settings.model_fields)


def _problem(error: ValidationError, file: str | Path | None) -> InputError:
    first = error.errors(include_input=False, include_url=False)[0]
    name = str(first["loc"][0]) if first["loc"] else None
    if first["type"] == "extra_forbidden":
        return InputError("no such setting", field=name, file=file, fix=f"There are {_known()}")
    return InputError(first["msg"], field=name)
