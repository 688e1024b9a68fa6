"""What one scoring pass found: statistics per response, and per token where asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

PREFIX_TOKENS = 8
"""Length of a response's beginning that is also looked at on its own."""

STATISTICS = (
    "tokens",
    "logprob_sum",
    "logprob_mean",
    "argmax_logprob_sum",
    "argmax_logprob_mean",
    "argmax_mass",
    "log_rest",
    "entropy",
    "collision",
    "energy",
    "residual_norm",
    "rank",
    "top_mass",
    "logprob_prefix",
    "argmax_logprob_prefix",
    "mass_target",
    "mass_argmax",
    "mass_rest",
    "eos_logprob",
)
"""Per response. Log-probs and entropy in nats; all but tokens and sums are means over its tokens
(``*_prefix``: over the first `PREFIX_TOKENS`). ``log_rest`` is the log of the mass outside the
argmax, ``mass_argmax`` the mass on the argmax where it is not the target, ``rank`` counts tokens
above the target, ``top_mass`` is the mass of the `TOP_K` likeliest tokens, ``eos_logprob`` the
log-prob of the EOS that was appended (absent when none was)."""

TOP_K = 5

TOKEN_STATISTICS = ("logprob", "argmax_logprob", "argmax_mass", "entropy", "collision", "energy")
"""Per token, kept for the baseline and the latest probe."""


@dataclass(frozen=True)
class TokenScores:
    """Per-token statistics, flat over all responses: arrays of shape [tokens]."""

    probe: npt.NDArray[np.int32]
    type: npt.NDArray[np.int32]
    position: npt.NDArray[np.int32]
    token: npt.NDArray[np.int64]
    values: Mapping[str, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Scores:
    """One scoring pass: ``values[statistic]`` has shape [probe, type], NaN where absent."""

    ids: tuple[str, ...]
    types: tuple[str, ...]
    values: Mapping[str, FloatArray]
    per_token: TokenScores

    def column(self, statistic: str, response_type: str) -> FloatArray:
        """One statistic of one response type over the probes, shape [probe]; NaN where absent."""
        if response_type not in self.types:
            return np.full(len(self.ids), np.nan)
        return self.values[statistic][:, self.types.index(response_type)]
