"""forcegauge: shows where the probability mass goes while a language model is finetuned."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from forcegauge.gauge import ForceGauge as ForceGauge
    from forcegauge.integrations.transformers import ForceGaugeCallback as ForceGaugeCallback
    from forcegauge.probes import ProbeSet as ProbeSet

__all__ = ["ForceGauge", "ForceGaugeCallback", "ProbeSet"]

_HOMES = {
    "ForceGauge": "forcegauge.gauge",
    "ForceGaugeCallback": "forcegauge.integrations.transformers",
    "ProbeSet": "forcegauge.probes",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used: `import forcegauge` stays instant."""
    if name not in _HOMES:
        raise AttributeError(f"module 'forcegauge' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)
