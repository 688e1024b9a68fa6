"""Every metric of the agent: name, type, labels, unit, meaning, formula. One source for all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from forcegauge.alarms import ALARMS, VERDICTS
from forcegauge.probes import RESPONSE_TYPES

PREFIX = "forcegauge_"

PARTS = ("target", "argmax", "rest")
DIRECTIONS = ("up", "down")
FAILURE_REASONS = ("scoring", "out_of_memory", "greedy", "forces", "record", "exporter", "other")
"""What can go wrong in the agent, by the part in which it did."""

LABEL_VALUES: Mapping[str, tuple[str, ...]] = {
    "response_type": RESPONSE_TYPES,
    "part": PARTS,
    "direction": DIRECTIONS,
    "state": VERDICTS,
    "alarm": tuple(row.name for row in ALARMS),
    "reason": FAILURE_REASONS,
}
"""Every value that a label can have. The labels of ``forcegauge_run_info`` are not listed: they
have one value at a time per run."""

INFO_LABELS = ("phase", "model", "probe_hash", "version")


@dataclass(frozen=True)
class Metric:
    """One metric. ``labels`` come besides ``run``, which every series carries.

    ``meaning`` is one sentence in plain words and becomes the HELP text; ``unit`` is empty where
    there is none; ``formula`` is plain text, with its source.
    """

    name: str
    kind: Literal["gauge", "counter"]
    labels: tuple[str, ...]
    unit: str
    meaning: str
    formula: str


def _gauge(name: str, unit: str, meaning: str, formula: str, *labels: str) -> Metric:
    return Metric(f"{PREFIX}{name}", "gauge", labels, unit, meaning, formula)


_RUN = (
    _gauge(
        "run_info",
        "",
        "What this process trains, in labels: the current phase, the model's name, the first 12 "
        "digits of the probe set's hash, and forcegauge's version.",
        "1",
        *INFO_LABELS,
    ),
    _gauge("run_active", "", "1 while the run trains, 0 once it has ended.", "1 or 0"),
    _gauge(
        "run_state",
        "",
        "The verdict on the run at the last probe: 1 for the state that holds, 0 for the others.",
        "the first that holds of collapsed, diverging, squeezing, warming, learning",
        "state",
    ),
    _gauge(
        "verdict_since_step",
        "steps",
        "The step at which what the verdict names began, often some probes before it was certain.",
        "alarm_since_step of the alarm that leads, or the first probe with this verdict",
    ),
)

_PROGRESS = (
    _gauge(
        "train_step",
        "steps",
        "The last optimizer step that the agent saw, counted over all phases of the run.",
        "last step of the phase before + the trainer's step",
    ),
    _gauge(
        "probe_step",
        "steps",
        "The optimizer step of the last probe; every metric of scores and signals is from there.",
        "train_step at the last probe",
    ),
    _gauge(
        "probe_timestamp_seconds",
        "seconds",
        "When the last probe ended, in seconds since the Unix epoch.",
        "Unix time",
    ),
    _gauge(
        "probe_duration_seconds",
        "seconds",
        "How long the last probe held up the training, in seconds.",
        "end - start of the last probe",
    ),
    _gauge(
        "probe_overhead_ratio",
        "ratio",
        "The share of the training time since the dense early probes that the agent takes, 0 to 1.",
        "seconds of probes and of reading forces / (these + seconds of steps, without pauses)",
    ),
    _gauge(
        "probes_scored",
        "probes",
        "How many probes the last look scored: all, or in turn the part that the budget allows.",
        "probes with a score",
    ),
    Metric(
        f"{PREFIX}probe_failures_total",
        "counter",
        ("reason",),
        "failures",
        "Errors in the agent since the process started, by the part that failed; the training "
        "went on.",
        "count",
    ),
)

_SCORES = (
    _gauge(
        "logprob_nats",
        "nats",
        "Log-probability per token of the fixed responses of a type at the last probe, in nats.",
        "mean_i mean_t log pi(y_t)",
        "response_type",
    ),
    _gauge(
        "logprob_change_nats",
        "nats",
        "Log-probability per token of a type since the phase's baseline, in nats; up is pulled "
        "up, down is pushed or squeezed down.",
        "D mean_i mean_t log pi(y_t); the change that Ren & Sutherland, sections 4.1 and 4.2, plot",
        "response_type",
    ),
    _gauge(
        "argmax_logprob_nats",
        "nats",
        "Log-probability of the most likely token along the responses of a type at the last "
        "probe, per token in nats; teacher-forced, not a generation.",
        "mean_i mean_t log pi*; Ren & Sutherland, section 3.3",
        "response_type",
    ),
    _gauge(
        "argmax_mass_ratio",
        "ratio",
        "Probability of the most likely token along the responses of a type at the last probe, "
        "0 to 1.",
        "mean_i mean_t pi*",
        "response_type",
    ),
    _gauge(
        "argmax_mass_change_ratio",
        "ratio",
        "Probability of the most likely token along the responses of a type since the phase's "
        "baseline, -1 to 1; on chosen it rises in healthy learning too.",
        "D mean_i mean_t pi*",
        "response_type",
    ),
    _gauge(
        "entropy_nats",
        "nats",
        "Entropy of the next-token distribution along the responses of a type at the last probe, "
        "per token in nats.",
        "mean_i mean_t -sum_v pi(v) log pi(v)",
        "response_type",
    ),
    _gauge(
        "noise_floor_nats",
        "nats",
        "The change of a type's log-probability per token that means nothing, in nats; no alarm "
        "fires below a multiple of it.",
        "max(|log pi under two layouts of the same weights|, standard error of the mean over "
        "probes)",
        "response_type",
    ),
)

_SIGNALS = (
    _gauge(
        "mass_ratio",
        "ratio",
        "Where the probability along chosen responses is at the last probe, 0 to 1: on the "
        "response's token, on the argmax where that is another token, on the rest.",
        "mean_i mean_t of pi(y_t); pi* where argmax != y_t, else 0; 1 - the two",
        "part",
    ),
    _gauge(
        "squeeze_nats",
        "nats",
        "Squeeze index at the last probe, in nats per token: how much the argmax gained over the "
        "natural responses that nobody trains on; growing is squeezing.",
        "mean over untrained natural f of (D mean_t log pi* - D log pi(f)); Ren & Sutherland, "
        "section 3.3",
    ),
    _gauge(
        "squeeze_prefix_nats",
        "nats",
        "Squeeze index over the first 8 tokens of the responses at the last probe, in nats per "
        "token; it sees a collapse of the first tokens that the whole response dilutes.",
        "squeeze_nats with mean_t over t <= 8",
    ),
    _gauge(
        "squeezed_ratio",
        "ratio",
        "The share of pairs of a probe and an untrained natural type that are squeezed at the "
        "last probe, 0 to 1.",
        "share with d < -tau and u > tau, d = D mean_t log pi(y_t), u = D mean_t log pi*, "
        "tau = max(0.1 nats, 5 x noise); where the baseline's mean pi* > 0.9: d < -10 tau",
    ),
    _gauge(
        "hallucination_pressure_nats",
        "nats",
        "The pull on answers to other training prompts beyond the pull on answers to prompts "
        "never trained on, at the last probe, in nats per token.",
        "D log pi(other_prompt) - D log pi(unseen_prompt); Ren & Sutherland, section 4.1",
    ),
    _gauge(
        "preference_margin_nats",
        "nats",
        "How much likelier the chosen responses are than the rejected ones at the last probe, in "
        "nats per token.",
        "mean_i (log pi(chosen) - log pi(rejected))",
    ),
    _gauge(
        "displacement_nats",
        "nats",
        "How much likelihood the chosen responses lost while the preference margin grew, at the "
        "last probe, in nats per token; absent while the margin does not grow.",
        "max(0, -D log pi(chosen)) where D margin > tau",
    ),
    _gauge(
        "greedy_repetition_ratio",
        "ratio",
        "The share of repeated n-grams inside free-running greedy outputs at the last probe, "
        "0 to 1.",
        "mean_i (1 - distinct n-grams / n-grams), n = 4 tokens",
    ),
    _gauge(
        "eos_logprob_nats",
        "nats",
        "Log-probability of the end-of-sequence token after the chosen responses at the last "
        "probe, in nats; a fall means that outputs will not stop.",
        "mean_i log pi(EOS | x, y)",
    ),
)

_FORCES = (
    _gauge(
        "force_norm",
        "",
        "Size of the loss's force on the logits by direction, up where it pulls a token up and "
        "down where it pushes one down, a mean over the optimizer steps looked at since the last "
        "reading.",
        "sum over positions with w_t > 0 (up) or w_t < 0 (down) of |w_t| ||pi - e_y||, "
        "w_t = -dL/dlog pi(y_t), forces in the same context added first; Ren & Sutherland, "
        "section 3.2",
        "direction",
    ),
    _gauge(
        "valley_force_ratio",
        "ratio",
        "The share of the downward force that falls on tokens already unlikely, 0 to 1, a mean "
        "over the optimizer steps looked at since the last reading; such a push feeds the argmax.",
        "force_norm{down} over positions where pi(y_t) < 0.01 / force_norm{down}; Ren & "
        "Sutherland, section 3.3",
    ),
)

_CANDIDATES = (
    _gauge(
        "top_mass_ratio",
        "ratio",
        "Probability of the 5 likeliest tokens together along the responses of a type at the last "
        "probe, 0 to 1; for chosen and greedy.",
        "mean_i mean_t sum_{k<=5} pi(k-th likeliest); SimKO, arXiv 2510.14807",
        "response_type",
    ),
    _gauge(
        "top_mass_change_ratio",
        "ratio",
        "Probability of the 5 likeliest tokens together along the responses of a type since the "
        "phase's baseline, -1 to 1; less argmax_mass_change_ratio: what the runners-up gained.",
        "D top_mass_ratio",
        "response_type",
    ),
)

_REFERENCE = (
    _gauge(
        "reference_change_nats",
        "nats",
        "How much likelier the responses of a type are than with the PEFT adapters off, per token "
        "in nats; absent without adapters.",
        "mean_i mean_t (log pi(y_t) - log pi_ref(y_t)), ref: adapters off; DPO's implicit reward "
        "is beta times its sum over t (Rafailov et al., arXiv 2305.18290, section 4)",
        "response_type",
    ),
)

_SAMPLES = (
    _gauge(
        "sample_agreement_ratio",
        "ratio",
        "The share of prompts all of whose samples are the same, 0 to 1, since the probe before; "
        "they teach nothing, and a rise is lost exploration.",
        "share of prompts with two or more samples, all of the same tokens",
    ),
    _gauge(
        "sample_distinct_ratio",
        "ratio",
        "How different the samples of one prompt are, 0 to 1, since the probe before.",
        "mean over prompts of distinct / all pairs of neighbouring tokens in its samples "
        "(distinct-2, Li et al., arXiv 1510.03055)",
    ),
    _gauge(
        "sample_length_tokens",
        "tokens",
        "Mean length of the sampled completions since the probe before, in tokens.",
        "tokens / completions",
    ),
    _gauge(
        "sample_length_drift_ratio",
        "ratio",
        "How much longer the sampled completions are than at the first probe of the phase that saw "
        "any: 1 is twice as long, -0.5 half as long.",
        "sample_length_tokens / its first value - 1",
    ),
    _gauge(
        "sample_ended_ratio",
        "ratio",
        "The share of sampled completions that ended by themselves, 0 to 1, since the probe "
        "before; the others were cut off.",
        "completions whose last token is an end token / completions",
    ),
)

_ALARMS = (
    _gauge(
        "alarm_value",
        "the signal's",
        "The signal that an alarm watches, at the last probe, in that signal's unit (nats or a "
        "share).",
        "the alarm's first condition",
        "alarm",
    ),
    _gauge(
        "alarm_threshold",
        "the signal's",
        "The size that the alarm's signal must pass, in that signal's unit, the larger of a fixed "
        "size and a multiple of the noise.",
        "max(size, multiple x noise), with the size's sign",
        "alarm",
    ),
    _gauge(
        "alarm_streak",
        "probes",
        "For how many probes running an alarm's conditions have held.",
        "count",
        "alarm",
    ),
    _gauge(
        "alarm_streak_needed",
        "probes",
        "How many probes running switch the alarm on.",
        "alarm_streak >= alarm_streak_needed: the alarm is on",
        "alarm",
    ),
    _gauge(
        "alarm_since_step",
        "steps",
        "The step at which the drift began that an alarm is about, while its conditions hold.",
        "the probe at which a CUSUM of alarm_value / alarm_threshold last left 0",
        "alarm",
    ),
)

_OF_SIGNALS = (*_SIGNALS, *_FORCES, *_CANDIDATES, *_REFERENCE, *_SAMPLES)

METRICS = (*_RUN, *_PROGRESS, *_SCORES, *_OF_SIGNALS, *_ALARMS)
"""Every metric that the agent exports, in the order in which people read them."""


def metric(name: str) -> Metric:
    """The metric of this name, with or without the prefix; raises `KeyError`."""
    return _BY_NAME[PREFIX + name.removeprefix(PREFIX)]


def signal_metric(signal: str) -> tuple[Metric, tuple[str, ...]] | None:
    """Metric and label values of a signal or force; None where it stands in the record only.

    A labelled one carries its label's value before the unit: ``mass_target_ratio`` is
    ``mass_ratio{part="target"}``, ``force_up_norm`` is ``force_norm{direction="up"}``.
    """
    return _BY_SIGNAL.get(signal)


def _signals(row: Metric) -> dict[str, tuple[Metric, tuple[str, ...]]]:
    name = row.name.removeprefix(PREFIX)
    if not row.labels:
        return {name: (row, ())}
    stem, unit = name.rsplit("_", 1)
    return {f"{stem}_{value}_{unit}": (row, (value,)) for value in LABEL_VALUES[row.labels[0]]}


_BY_NAME = {row.name: row for row in METRICS}
_BY_SIGNAL = {k: v for row in _OF_SIGNALS for k, v in _signals(row).items()}
