"""What a gauge is told, by its arguments, the environment or the model itself."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, SupportsFloat

from torch import Tensor, nn

from forcegauge.errors import InputError
from forcegauge.record import check_run_name

DEFAULT_PORT = 9790
LOOPBACK = "127.0.0.1"


def run_name(run: str | None, phase: str) -> str:
    """The run's name, else `FORCEGAUGE_RUN`'s; raises `InputError` for a name that is none."""
    found = run or os.environ.get("FORCEGAUGE_RUN") or "run"
    check_run_name(found)
    check_run_name(phase)
    return found


def run_directory(directory: str | Path | None, run: str) -> Path:
    """The run's directory, else `FORCEGAUGE_DIR`, else ``forcegauge-runs/RUN``."""
    return Path(directory or os.environ.get("FORCEGAUGE_DIR") or f"forcegauge-runs/{run}")


def absolute(path: str | Path | None) -> str | None:
    """A path as other processes find it."""
    return str(Path(path).absolute()) if path else None


def address(bind: str | None, port: int | None) -> tuple[str, int]:
    """Where metrics are served; raises `InputError` where `FORCEGAUGE_PORT` is none."""
    return bind or os.environ.get("FORCEGAUGE_BIND") or LOOPBACK, _port(port)


def _port(port: int | None) -> int:
    if port is not None:
        return port
    named = os.environ.get("FORCEGAUGE_PORT") or str(DEFAULT_PORT)
    if named.startswith(("tcp://", "udp://")):
        # Kubernetes puts this into every container beside a Service named forcegauge
        return DEFAULT_PORT
    if not named.isdigit():
        raise InputError(f"'{named}' is no port", field="FORCEGAUGE_PORT", fix="Use 0 to 65535")
    return int(named)


def loss_signal(loss: SupportsFloat | None) -> dict[str, float]:
    """Whether the training loss is finite; reading it may wait for the device."""
    if loss is None:
        return {}
    value = float(loss.detach() if isinstance(loss, Tensor) else loss)
    return {"loss_nonfinite_ratio": float(not math.isfinite(value))}


def model_name(model: nn.Module) -> str:
    """The name or folder that a model was loaded from, else its class."""
    inner = getattr(model, "module", model)
    return str(getattr(getattr(inner, "config", None), "_name_or_path", "") or type(inner).__name__)


def model_facts(model: nn.Module) -> dict[str, Any]:
    """The format of the weights, and which of them are trained."""
    weights = list(model.parameters())
    if not weights:
        return {}
    adapters = getattr(getattr(model, "module", model), "peft_config", None) or {}
    kinds = [_adapter(each) for each in adapters.values()]
    trained = "all weights" if all(each.requires_grad for each in weights) else "some weights"
    return {
        "dtype": str(weights[0].dtype).removeprefix("torch."),
        "trained": ", ".join(kinds) or trained,
    }


def _adapter(config: Any) -> str:
    kind = str(getattr(config.peft_type, "value", config.peft_type)).lower()
    rank = getattr(config, "r", None)
    return kind if rank is None else f"{kind} of rank {rank}"
