"""Every metric of the monitor: name, type, labels, unit, meaning, formula. One source for all."""

from __future__ import annotations

from forcegauge.catalogue import PREFIX, Metric

UPDATED = ("chosen", "rejected", "completion")
"""The sides of training samples: values of ``updated`` in attributions."""


def _metric(name: str, unit: str, meaning: str, formula: str, *labels: str) -> Metric:
    kind = "counter" if name.endswith("_total") else "gauge"
    return Metric(f"{PREFIX}{name}", kind, labels, unit, meaning, formula)  # type: ignore[arg-type]


SNAPSHOTS = (
    _metric(
        "entk_norm",
        "",
        "How strongly a step on updated moves observed, by the centred empirical neural tangent "
        "kernel of the run's last snapshot.",
        "root mean square over probes and pairs of tokens of ||P K(o,u) P||_F, P = I - 11'/V",
        *("observed", "updated"),
    ),
    _metric(
        "entk_alignment_ratio",
        "ratio",
        "How alike the kernels of the last and the first snapshot are up to their size: 1 alike, "
        "0 unrelated.",
        "<K_t, K_0> / (||K_t|| ||K_0||), signed values pooled over seeds and pairs",
    ),
    _metric(
        "attribution_nats",
        "nats",
        "How much training on updated raises observed at the last snapshot, in nats per unit of "
        "learning rate; negative lowers it.",
        "-mean_o <grad log pi(y_o), grad L_u>",
        *("observed", "updated"),
    ),
    _metric(
        "predicted_change_nats",
        "nats",
        "Change of the log-probability per token that the kernel predicts for the step before "
        "the last snapshot.",
        "D_f . (theta - theta of the checkpoint before)",
        "response_type",
    ),
    _metric(
        "prediction_r2_ratio",
        "ratio",
        "Share of the probes' measured change that the prediction explains at the last snapshot.",
        "R^2 of measured against predicted change over probes and types",
    ),
    _metric("snapshot_step", "steps", "The training step of the last snapshot.", "step"),
    _metric(
        "snapshots_total",
        "snapshots",
        "Snapshots of the run that ended, by how.",
        "count",
        "state",
    ),
    _metric(
        "monitor_run_state",
        "",
        "The last verdict that the run told: 1 for the state that holds, the others are absent; "
        "kept until the run is forgotten.",
        "1",
        "state",
    ),
    _metric(
        "monitor_snapshot_progress_ratio",
        "ratio",
        "How much of the run's running snapshot is done, 0 to 1.",
        "pieces done / pieces",
    ),
)
"""Of runs: every series also carries the label ``run``."""

SERVICE = (
    _metric("monitor_store_up", "", "1 while Redis answers, 0 while it does not.", "1 or 0"),
    _metric(
        "monitor_runs",
        "runs",
        "Runs that are known: active, stale (not heard of in time) and ended.",
        "count",
        "state",
    ),
    _metric(
        "monitor_snapshots",
        "snapshots",
        "Snapshots that wait in a queue or are being made.",
        "count",
        *("queue", "state"),
    ),
    _metric(
        "monitor_failed_snapshots",
        "snapshots",
        "Snapshots that failed and were not queued again: the dead-letter list.",
        "count",
    ),
    _metric(
        "monitor_workers",
        "workers",
        "Workers that live, by the queues they take from.",
        "count of those heard of within a minute",
        *("queue", "state"),
    ),
    _metric(
        "monitor_beat_timestamp_seconds",
        "seconds",
        "When a beat last did its chores, in seconds since the Unix epoch.",
        "Unix time",
    ),
    _metric(
        "monitor_requests_total",
        "requests",
        "Answers of this API process since it started, by the class of their status.",
        "count",
        "code",
    ),
)
"""Of the monitor itself, without the label ``run``."""

METRICS = (*SNAPSHOTS, *SERVICE)

_BY_NAME = {row.name: row for row in METRICS}


def metric(name: str) -> Metric:
    """The monitor's metric of this name without its prefix; raises `KeyError`."""
    return _BY_NAME[PREFIX + name]
