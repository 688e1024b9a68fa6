"""Compare: two or more runs side by side."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard as sdk

from dashboards.frame import Section, dashboard, to_run
from dashboards.looks import NATS, SHARE, STEP, verdict_cell, width
from dashboards.panels import Column, Frame, Panel, Scale, about, lines, rows
from dashboards.promql import GROUP, RUNS, last, series, sick_since_step, verdict

UID = "forcegauge-compare"

HINT = (
    "One line for each run chosen above, over time: runs that started at different times stand "
    "beside each other. A jump back to 0 is a new phase with a baseline of its own."
)

Signal = tuple[str, str, Scale, dict[str, str]]

SIGNALS: tuple[Signal, ...] = (
    ("Squeeze index (higher is worse)", "squeeze_nats", Scale(NATS, 2), {}),
    ("Share of answers that are squeezed", "squeezed_ratio", Scale(SHARE, 1), {}),
    (
        "Chosen answers since the start of the phase",
        "logprob_change_nats",
        Scale(NATS, 2),
        {"response_type": "chosen"},
    ),
    (
        "Rejected answers since the start of the phase",
        "logprob_change_nats",
        Scale(NATS, 2),
        {"response_type": "rejected"},
    ),
    (
        "Answers to other training prompts since the start of the phase",
        "logprob_change_nats",
        Scale(NATS, 2),
        {"response_type": "other_prompt"},
    ),
    (
        "Mass of the likeliest token along rejected answers",
        "argmax_mass_change_ratio",
        Scale(SHARE, 1),
        {"response_type": "rejected"},
    ),
    ("Preference margin", "preference_margin_nats", Scale(NATS, 2), {}),
    ("Hallucination pressure", "hallucination_pressure_nats", Scale(NATS, 2), {}),
    (
        "Entropy along chosen answers",
        "entropy_nats",
        Scale(NATS, 2),
        {"response_type": "chosen"},
    ),
    ("Repetition in greedy outputs", "greedy_repetition_ratio", Scale(SHARE, 1), {}),
    (
        "Push down that falls on unlikely tokens",
        "valley_force_ratio",
        Scale(SHARE, 1, empty="no push down seen"),
        {},
    ),
    ("Step", "train_step", Scale(STEP, 0), {}),
)
"""Title, metric, how it is written, and which one of its labels."""


def compare() -> sdk.Dashboard:
    """The dashboard of several runs."""
    sections: list[Section] = [
        ("How they stand at their last probe", [_table()]),
        ("How they got there", [_signal(*row) for row in SIGNALS]),
    ]
    return dashboard(UID, "Two or more finetuning runs side by side.", sections, runs="many")


def _table() -> Panel:
    names = ("squeeze_nats", "squeezed_ratio", "logprob_change_nats", "preference_margin_nats")
    frame = Frame(
        "Last values of each run (click a run to see what happens in it)",
        about(
            "A row for each run, the sickest first. Values are of its last probe in this time. "
            "Chosen and rejected: log-probability since the start of the phase; these, margin, "
            "pressure and squeeze are in nats per token.",
            *("run_state", "verdict_since_step", "probe_step", *names),
            "hallucination_pressure_nats",
            "greedy_repetition_ratio",
        ),
        24,
        8,
    )
    columns = _columns()
    return rows(
        frame,
        columns,
        labels={"run": "run", "cluster": "cluster", "namespace": "namespace"},
        order=("run", *(column.title for column in columns), "cluster", "namespace"),
        overrides={"run": [to_run(), width(150)], "cluster": [width(75)], "namespace": [width(95)]},
        sort=("verdict",),
    )


def _columns() -> list[Column]:
    nats, share = Scale("none", 2), Scale(SHARE, 0)
    return [
        Column("verdict", verdict(RUNS), Scale("none", 0), 95, verdict_cell()),
        Column("step", _last("probe_step"), Scale(STEP, 0), 65),
        Column("sick since step", sick_since_step(RUNS), Scale(STEP, 0), 115),
        Column("squeeze, nats", _last("squeeze_nats"), nats, 105),
        Column("squeezed", _last("squeezed_ratio"), share, 85),
        Column("chosen", _last("logprob_change_nats", response_type="chosen"), nats, 80),
        Column("rejected", _last("logprob_change_nats", response_type="rejected"), nats, 80),
        Column("margin", _last("preference_margin_nats"), nats, 80),
        Column("pressure", _last("hallucination_pressure_nats"), nats, 90),
        Column("repetition", _last("greedy_repetition_ratio"), share, 90),
    ]


def _last(name: str, **labels: str) -> str:
    return last(series(name, RUNS, **labels), RUNS, GROUP)


def _signal(title: str, name: str, scale: Scale, labels: dict[str, str]) -> Panel:
    expr = f"max by (run) ({series(name, RUNS, **labels)})"
    return lines(Frame(title, about(HINT, name), 12, 8), scale, {"{{run}}": expr})
