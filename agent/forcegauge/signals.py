"""Scores against the phase's baseline: where the mass went (design: signals, section 5).

Every function is pure and takes `Scores` of the same probes and types. Signals are a dict from
name to value; what is not defined is absent, never 0. Log-probs are means per token, in nats.
Where a part of the probes was scored, changes are theirs alone, against their own baseline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from forcegauge.probes import UNTRAINED_NATURAL
from forcegauge.scores import STATISTICS, FloatArray, Scores

SIZE_FLOOR_NATS = 0.1
NOISE_MULTIPLE = 5.0
PEAKED_MASS = 0.9
PEAKED_MULTIPLE = 10.0
HALF = 0.5
WINDOWS = ("mean", "prefix")
QUANTILES = {"q10": 0.1, "q50": 0.5, "q90": 0.9}
PUSHED_CONTEXTS = ("rejected", *UNTRAINED_NATURAL)
MASS_PARTS = ("target", "argmax", "rest")

Summary = dict[str, dict[str, dict[str, float]]]


def summarise(scores: Scores, baseline: Scores | None = None) -> Summary:
    """``{type: {statistic: {mean, q10, q50, q90, n}}}`` over probes; absent where undefined.

    Where a part was scored these are levels against the ``baseline`` (`Scores.levels`), and ``n``
    counts what was scored.
    """
    levels = scores if baseline is None else scores.levels(baseline)
    rows: Summary = {}
    for kind in scores.types:
        rows[kind] = {}
        for name in STATISTICS:
            count = int(np.isfinite(scores.column(name, kind)).sum())
            if count:
                rows[kind][name] = {**_spread(levels.column(name, kind)), "n": count}
    return rows


def _spread(values: FloatArray) -> dict[str, float]:
    finite = _finite(values)
    quantiles = np.quantile(finite, list(QUANTILES.values()))
    return {
        "mean": _short(finite.mean()),
        **dict(zip(QUANTILES, map(_short, quantiles), strict=True)),
    }


def _short(value: float) -> float:
    """Seven significant digits: all that float32 scores hold, and half the size of a record."""
    return float(f"{value:.7g}")


def change(scores: Scores, baseline: Scores, statistic: str, response_type: str) -> FloatArray:
    """Score minus baseline per probe, shape [probe]; NaN where either is absent."""
    return scores.column(statistic, response_type) - baseline.column(statistic, response_type)


def type_noise(
    scores: Scores, baseline: Scores, layout_noise: Mapping[str, float]
) -> dict[str, float]:
    """Noise of each type's change in nats: the larger of layout noise and standard error."""
    noise = {}
    for response_type in scores.types:
        moved = _finite(change(scores, baseline, "logprob_mean", response_type))
        if moved.size:
            error = _standard_error(moved)
            noise[response_type] = float(np.fmax(layout_noise.get(response_type, 0.0), error))
    return noise


def threshold(noise: float) -> float:
    """tau of design 5: a size that counts as a change, in nats."""
    return max(SIZE_FLOOR_NATS, NOISE_MULTIPLE * noise)


def signal_noise(scores: Scores, baseline: Scores) -> dict[str, float]:
    """Standard errors over probes of the signals that alarms compare with a size in nats."""
    other, unseen = (
        change(scores, baseline, "logprob_mean", name) for name in ("other_prompt", "unseen_prompt")
    )
    untrained = [change(scores, baseline, "logprob_mean", t) for t in _untrained(scores)]
    gaps = [_gap_change(scores, baseline, "mean", t) for t in _untrained(scores)]
    per_probe = {
        "squeeze_excess_nats": _row_means(gaps),
        "untrained_change_nats": _row_means(untrained),
        "hallucination_pressure_nats": other - unseen,
        "other_prompt_change_nats": other,
        "displacement_nats": change(scores, baseline, "logprob_mean", "chosen"),
    }
    errors = {name: _standard_error(values) for name, values in per_probe.items()}
    return {name: value for name, value in errors.items() if np.isfinite(value)}


def signals(
    scores: Scores, baseline: Scores, layout_noise: Mapping[str, float]
) -> dict[str, float]:
    """Every signal that scores and baseline define (design 5); layout noise in nats by type."""
    start = baseline.only(scores.scored)
    noise = type_noise(scores, start, layout_noise)
    found = {
        **_squeeze(scores, start),
        **_squeezed(scores, start, layout_noise),
        **_mass_flow(scores, start),
        **_pressure(scores, start, noise),
        **_preference(scores, start, noise),
        **_sharpness(scores, start),
        **_levels(scores.levels(baseline)),
        "nonfinite_ratio": _nonfinite(scores),
    }
    return {name: value for name, value in found.items() if np.isfinite(value)}


def squeeze_index(scores: Scores, baseline: Scores, window: str) -> float:
    """Mean over untrained natural types of the change of (argmax log-prob - log-prob)."""
    per_type = [_mean(_gap_change(scores, baseline, window, t)) for t in _untrained(scores)]
    return _mean(np.array(per_type))


def squeeze_excess(scores: Scores, baseline: Scores, window: str) -> float:
    """The squeeze index beyond what a mere sharpening of every distribution explains.

    Sharpening z -> s z adds (s - 1) times the baseline's gap, which is taken off for the largest s
    that all types allow.
    """
    starts = np.array([_mean(_gap(baseline, window, t)) for t in _untrained(scores)])
    gained = (sharpening(scores, baseline) - 1.0) * _mean(starts)
    return squeeze_index(scores, baseline, window) - gained


def sharpening(scores: Scores, baseline: Scores) -> float:
    """The largest s, at least 1, with which z -> s z could have led from baseline to scores.

    It multiplies every gap max z - z_y by s. It also raises every argmax log-prob a by at least
    (1 - 1/s) (a_s + H_s), for da/ds = max z - E_s z = (a_s + H_s) / s falls as s grows: hence
    s <= (a_s + H_s) / (a_1 + H_s). A squeeze grows all gaps too, but by pushing answers down more
    than the argmax up, which the second bound sees.
    """
    bounds = [
        bound
        for t in scores.types
        for bound in (*_grown_gaps(scores, baseline, t), _grown_argmax(scores, baseline, t))
        if np.isfinite(bound)
    ]
    return max(1.0, min(bounds, default=1.0))


def _grown_gaps(scores: Scores, baseline: Scores, response_type: str) -> list[float]:
    gaps = [[_gap(each, w, response_type) for each in (scores, baseline)] for w in WINDOWS]
    return [_grown(later, start) for later, start in gaps]


def _grown_argmax(scores: Scores, baseline: Scores, response_type: str) -> float:
    entropy = scores.column("entropy", response_type)
    later, start = (x.column("argmax_logprob_mean", response_type) for x in (scores, baseline))
    return _grown(later + entropy, start + entropy)


def _grown(later: FloatArray, start: FloatArray) -> float:
    """Ratio of the means; NaN where the start is too small for one."""
    return _mean(later) / _mean(start) if _mean(start) > SIZE_FLOOR_NATS else np.nan


def _squeeze(scores: Scores, baseline: Scores) -> dict[str, float]:
    excess = [squeeze_excess(scores, baseline, window) for window in WINDOWS]
    return {
        "squeeze_nats": squeeze_index(scores, baseline, "mean"),
        "squeeze_prefix_nats": squeeze_index(scores, baseline, "prefix"),
        "squeeze_excess_nats": float(np.fmax(excess[0], excess[1])),
    }


def squeezed_pairs(
    scores: Scores, baseline: Scores, noise: Mapping[str, float], window: str
) -> FloatArray:
    """1 where a (probe, untrained natural type) pair is squeezed, 0 where not, NaN where absent.

    ``noise`` is the layout noise: a pair is one probe, and the standard error of a mean over
    probes (which design 5 would put here) says nothing about it. With that one, real squeezed runs
    showed no squeezed pair, for their spread between probes is larger than the argmax's gain.
    """
    columns = []
    for response_type in _untrained(scores):
        tau = threshold(noise.get(response_type, 0.0))
        down = change(scores, baseline, f"logprob_{window}", response_type)
        up = change(scores, baseline, f"argmax_logprob_{window}", response_type)
        # the argmax cannot rise where it holds nearly all mass already: a fall must do alone
        peaked = baseline.column("argmax_mass", response_type) > PEAKED_MASS
        hit = np.where(peaked, down < -PEAKED_MULTIPLE * tau, (down < -tau) & (up > tau))
        columns.append(np.where(np.isfinite(down) & np.isfinite(up), hit, np.nan))
    return np.stack(columns, axis=1) if columns else np.empty((len(scores.ids), 0))


def _squeezed(scores: Scores, baseline: Scores, noise: Mapping[str, float]) -> dict[str, float]:
    whole = squeezed_pairs(scores, baseline, noise, "mean")
    either = np.fmax(whole, squeezed_pairs(scores, baseline, noise, "prefix"))
    shares = np.array([_mean(row) for row in either])
    return {
        "squeezed_ratio": _mean(whole.ravel()),
        "squeezed_probes_ratio": _mean(np.where(np.isfinite(shares), shares >= HALF, np.nan)),
    }


def _levels(scores: Scores) -> dict[str, float]:
    flow = {f"mass_{part}_ratio": scores.column(f"mass_{part}", "chosen") for part in MASS_PARTS}
    found = {
        **flow,
        "preference_margin_nats": _margin(scores),
        "eos_logprob_nats": scores.column("eos_logprob", "chosen"),
    }
    return {name: _mean(values) for name, values in found.items()}


def _mass_flow(scores: Scores, baseline: Scores) -> dict[str, float]:
    return {
        f"mass_{part}_change_ratio": _mean_change(scores, baseline, f"mass_{part}", "chosen")
        for part in MASS_PARTS
    }


def _pressure(scores: Scores, baseline: Scores, noise: Mapping[str, float]) -> dict[str, float]:
    other = _mean_change(scores, baseline, "logprob_mean", "other_prompt")
    chosen = _mean_change(scores, baseline, "logprob_mean", "chosen")
    rephrase = _mean_change(scores, baseline, "logprob_mean", "chosen_rephrase")
    pressure = other - _mean_change(scores, baseline, "logprob_mean", "unseen_prompt")
    moved = abs(chosen) > threshold(noise.get("chosen", 0.0))
    return {
        "hallucination_pressure_nats": pressure,
        "hallucination_pressure_share_ratio": pressure / chosen if moved else np.nan,
        "other_prompt_change_nats": other,
        "rephrase_drift_nats": rephrase - chosen,
    }


def _preference(scores: Scores, baseline: Scores, noise: Mapping[str, float]) -> dict[str, float]:
    margin_change = _mean(_margin(scores) - _margin(baseline))
    chosen = _mean_change(scores, baseline, "logprob_mean", "chosen")
    untrained = _over_types(scores, baseline, "logprob_mean", UNTRAINED_NATURAL)
    tau = threshold(max(noise.get("chosen", 0.0), noise.get("rejected", 0.0)))
    return {
        "displacement_nats": max(0.0, -chosen) if margin_change > tau else np.nan,
        "chosen_change_nats": chosen,
        "untrained_change_nats": untrained,
        "unearned_fall_nats": -untrained - max(0.0, chosen),
    }


def _sharpness(scores: Scores, baseline: Scores) -> dict[str, float]:
    entropy = _over_types(scores, baseline, "entropy", PUSHED_CONTEXTS)
    start = _mean(np.array([_mean(baseline.column("entropy", t)) for t in PUSHED_CONTEXTS]))
    return {
        "pushed_mass_change_ratio": _over_types(scores, baseline, "argmax_mass", PUSHED_CONTEXTS),
        "entropy_change_nats": entropy,
        "entropy_left_ratio": (start + entropy) / start if start > 0 else np.nan,
        "eos_change_nats": _mean_change(scores, baseline, "eos_logprob", "chosen"),
    }


def _nonfinite(scores: Scores) -> float:
    scored = scores.values["tokens"] > 0
    bad = ~np.isfinite(scores.values["logprob_mean"])
    return float(bad[scored].mean()) if scored.any() else float("nan")


def _over_types(scores: Scores, baseline: Scores, statistic: str, types: Sequence[str]) -> float:
    return _mean(np.array([_mean_change(scores, baseline, statistic, t) for t in types]))


def _margin(scores: Scores) -> FloatArray:
    return scores.column("logprob_mean", "chosen") - scores.column("logprob_mean", "rejected")


def _gap(scores: Scores, window: str, response_type: str) -> FloatArray:
    return scores.column(f"argmax_logprob_{window}", response_type) - scores.column(
        f"logprob_{window}", response_type
    )


def _gap_change(scores: Scores, baseline: Scores, window: str, response_type: str) -> FloatArray:
    return _gap(scores, window, response_type) - _gap(baseline, window, response_type)


def _mean_change(scores: Scores, baseline: Scores, statistic: str, response_type: str) -> float:
    return _mean(change(scores, baseline, statistic, response_type))


def _untrained(scores: Scores) -> list[str]:
    return [name for name in scores.types if name in UNTRAINED_NATURAL]


def _row_means(columns: Sequence[FloatArray]) -> FloatArray:
    return np.array([_mean(row) for row in np.stack(columns, axis=1)]) if columns else np.empty(0)


def _standard_error(values: FloatArray) -> float:
    finite = _finite(values)
    return float(finite.std(ddof=1) / np.sqrt(finite.size)) if finite.size > 1 else float("nan")


def _finite(values: FloatArray) -> FloatArray:
    return values[np.isfinite(values)]


def _mean(values: FloatArray) -> float:
    finite = _finite(values)
    return float(finite.mean()) if finite.size else float("nan")
