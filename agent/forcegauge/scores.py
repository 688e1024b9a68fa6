"""What one scoring pass found: statistics per response, and per token where asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from forcegauge.encoding import TokenSequence

FloatArray = npt.NDArray[np.float64]

PREFIX_TOKENS = 8
"""Length of a response's beginning that is also looked at on its own."""

TOP_K = 5

CANDIDATES = tuple(f"candidate_{rank}_logprob" for rank in range(2, TOP_K + 1))
"""Log-probs of the second to the `TOP_K`-th likeliest token, whatever the response says (SimKO,
Peng et al. 2025, arXiv 2510.14807, section 3); the first is the argmax."""

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
    *CANDIDATES,
)
"""Per response. Log-probs and entropy in nats; all but tokens and sums are means over its tokens
(``*_prefix``: over the first `PREFIX_TOKENS`). ``log_rest`` is the log of the mass outside the
argmax, ``mass_argmax`` the mass on the argmax where it is not the target, ``rank`` counts tokens
above the target, ``top_mass`` is the mass of the `TOP_K` likeliest tokens, ``eos_logprob`` the
log-prob of the EOS that was appended (absent when none was)."""

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

    @property
    def scored(self) -> npt.NDArray[np.bool_]:
        """Which probes were scored, shape [probe]."""
        known: npt.NDArray[np.bool_] = np.isfinite(self.values["tokens"]).sum(axis=1) > 0
        return known

    def only(self, probes: npt.NDArray[np.bool_]) -> Scores:
        """The same of these probes alone; the rows of the others are NaN."""
        if probes.all():
            return self
        values = {n: np.where(probes[:, None], v, np.nan) for n, v in self.values.items()}
        return replace(self, values=values)

    def levels(self, baseline: Scores) -> Scores:
        """Levels that stand for all probes where a part was scored: that the parts differ is no
        change, so the other probes have their baseline and the mean change of those scored."""
        scored = self.scored
        if scored.all():
            return self
        values = {}
        for name, now in self.values.items():
            start = baseline.values.get(name, now)
            moved = np.where(scored[:, None], now - start, np.nan)
            likely = np.clip(start + _column_means(moved), *_bounds(name))
            values[name] = np.where(scored[:, None], now, likely)
        return replace(self, values=values)


def _bounds(statistic: str) -> tuple[float, float]:
    """The least and the most that a statistic can be."""
    if "log" in statistic:
        return -np.inf, 0.0
    return 0.0, 1.0 if "mass" in statistic or statistic in ("collision", "energy") else np.inf


def _column_means(values: FloatArray) -> FloatArray:
    """Means of the finite values of each column, NaN where there are none."""
    known = np.isfinite(values)
    count = known.sum(axis=0)
    return np.where(count, np.where(known, values, 0.0).sum(axis=0) / np.maximum(count, 1), np.nan)


def collect(
    ids: tuple[str, ...],
    types: tuple[str, ...],
    sequences: Sequence[TokenSequence],
    values: Mapping[str, npt.NDArray[np.float32]],
) -> Scores:
    """Scores from per-token ``values``, flat arrays [tokens] in the order of ``sequences``."""
    lengths = np.array([len(item.response) for item in sequences])
    probe = np.array([item.probe for item in sequences], dtype=np.int32)
    place = np.array([item.type for item in sequences], dtype=np.int32)
    position = np.concatenate([np.arange(n, dtype=np.int32) for n in lengths])
    found = _per_response({name: v.astype(np.float64) for name, v in values.items()}, lengths)
    ends = np.array([item.eos for item in sequences])
    last = values["logprob"].astype(np.float64)[np.cumsum(lengths) - 1]
    found["eos_logprob"] = np.where(ends, last, np.nan)
    table = {name: np.full((len(ids), len(types)), np.nan) for name in STATISTICS}
    for name in STATISTICS:
        table[name][probe, place] = found[name]
    tokens = TokenScores(
        np.repeat(probe, lengths),
        np.repeat(place, lengths),
        position,
        np.concatenate([np.array(item.response, dtype=np.int64) for item in sequences]),
        {name: values[name] for name in TOKEN_STATISTICS},
    )
    return Scores(ids, types, table, tokens)


def _per_response(
    values: Mapping[str, FloatArray], lengths: npt.NDArray[np.int64]
) -> dict[str, FloatArray]:
    """Sums and means over each response's tokens, float64 arrays of shape [response]."""
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    sums = {name: np.add.reduceat(array, starts) for name, array in values.items()}
    found = {name: total / lengths for name, total in sums.items()}
    short = np.minimum(lengths, PREFIX_TOKENS)
    edges = np.stack([starts, starts + short], axis=1).reshape(-1)
    for name in ("logprob", "argmax_logprob"):
        found[f"{name}_sum"] = sums[name]
        found[f"{name}_mean"] = found.pop(name)
        padded = np.append(values[name], 0.0)
        found[f"{name}_prefix"] = np.add.reduceat(padded, edges)[::2] / short
    found["tokens"] = lengths.astype(np.float64)
    return found
