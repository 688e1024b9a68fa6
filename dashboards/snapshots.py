"""Snapshots: which kind of answer moves which, how stable that is, and who pushes what."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard as sdk

from dashboards.frame import Section, dashboard
from dashboards.looks import (
    ALL_TYPES,
    DOWN_COLOR,
    NATS,
    SHARE,
    STEP,
    TYPE_COLORS,
    UP_COLOR,
    fixed,
    prop,
    verdict_map,
)
from dashboards.panels import (
    Column,
    Frame,
    Panel,
    Property,
    Scale,
    about,
    lines,
    matrix,
    number,
    rows,
)
from dashboards.promql import OF_RUN, ONE_RUN, WINDOW, series, verdict
from forcegauge.probes import RESPONSE_TYPES
from forcegauge_monitor.catalogue import UPDATED

UID = "forcegauge-snapshots"

EMPTY, PAIR = "no snapshot of this run yet", "needs two snapshots"


def _level_at(step: str) -> str:
    level = f"max by (run, response_type) ({series('logprob_nats', ONE_RUN)})"
    probed = f"max by (run) ({series('probe_step', ONE_RUN)}) <= on (run) {step}"
    return f"last_over_time(({level} and on (run) ({probed})){WINDOW})"


def _measured() -> str:
    step = series("snapshot_step", OF_RUN)
    newest = f"max by (run) (last_over_time({step}[$__range] @ end()))"
    # looks ahead, for @ end() inside another @ end() finds nothing
    later = f"max by (run) (max_over_time({step}[$__range] offset -$__range))"
    before = f"max_over_time((max by (run) ({step}) < on (run) {later}){WINDOW} @ end())"
    return f"max by (response_type) ({_level_at(newest)} - {_level_at(before)})"


MEASURED = _measured()


def snapshots() -> sdk.Dashboard:
    """The dashboard of one run's snapshots."""
    sections: list[Section] = [
        ("Can the picture be trusted?", _trust()),
        ("Which answers move together, and who pushes what", [_kernel(), _attribution()]),
        ("Predicted against measured", [_predicted(), _over_time()]),
        ("Over the run", [_stability(), _pushes("chosen"), _pushes("rejected")]),
    ]
    text = "The empirical-NTK snapshots of one run, made from its checkpoints by the workers."
    return dashboard(UID, text, sections, runs="one", annotated=True)


def _last(name: str, by: str, **labels: str) -> str:
    return f"max by ({by}) (last_over_time({series(name, OF_RUN, **labels)}[$__range]))"


def _trust() -> list[Panel]:
    made = f"{series('snapshots_total', OF_RUN)}[$__range]"
    return [
        number(
            Frame(
                "Verdict on the run",
                about("How the run is, in one word: its own dashboard says more.", "run_state"),
                5,
                4,
            ),
            Scale("none", 0, empty="no data"),
            {"verdict": verdict(ONE_RUN)},
            mappings=[verdict_map()],
            filled=True,
        ),
        number(
            Frame(
                "Step of the last snapshot",
                about(
                    "The checkpoint of this step is what the tables below are about.",
                    "snapshot_step",
                ),
                5,
                4,
            ),
            Scale(STEP, 0, empty=EMPTY),
            {"step": _last("snapshot_step", "run")},
        ),
        number(
            Frame(
                "Prediction explains",
                about(
                    "The share of what the probes really did that the kernel predicted: near "
                    "100 % the figures below can be trusted, near 0 % they cannot.",
                    "prediction_r2_ratio",
                ),
                5,
                4,
            ),
            Scale(SHARE, 0, ((0.0, "red"), (0.5, "orange"), (0.8, "green")), empty=PAIR),
            {"explained": _last("prediction_r2_ratio", "run")},
        ),
        number(
            Frame(
                "Kernel like at the start",
                about(
                    "100 %: answers still move one another as in the first snapshot, as the "
                    "paper assumes.",
                    "entk_alignment_ratio",
                ),
                5,
                4,
            ),
            Scale(SHARE, 0, ((0.0, "orange"), (0.8, "green")), empty=PAIR),
            {"alike": _last("entk_alignment_ratio", "run")},
        ),
        number(
            Frame(
                "Snapshots",
                about("How many there were, and how they ended.", "snapshots_total"),
                4,
                4,
            ),
            Scale("none", 0, empty=EMPTY),
            {"{{state}}": f"max by (state) (last_over_time({made}))"},
            overrides={"done": [fixed("green")], "failed": [fixed("red")]},
        ),
    ]


def _kernel() -> Panel:
    frame = Frame(
        "How strongly training on a column's answers moves a row's (kernel norm)",
        about(
            "As a share of the strongest pair; the bluer, the stronger. A type near 100 % moves "
            "with whatever is learned there. It has no direction: who raises whom is at the "
            "right.",
            "entk_norm",
        ),
        12,
        13,
    )
    norm = _last("entk_norm", "observed, updated")
    expr = f"{norm} / scalar(max({norm}))"
    looks = [*_cells("continuous-blues"), prop("min", 0), prop("max", 1)]
    scale = Scale(SHARE, 0, empty=EMPTY)
    return matrix(frame, scale, expr, ("observed", "updated"), RESPONSE_TYPES, looks)


def _attribution() -> Panel:
    frame = Frame(
        "Who pushes what: training on a column's side raises a row's (+) or lowers it (−)",
        about(
            "Blue: that side of the training samples raises the row's answers; orange: it lowers "
            "them. A healthy preference run lowers rejected, not the others.",
            "attribution_nats",
        ),
        12,
        13,
    )
    expr = _last("attribution_nats", "observed, updated")
    scale = Scale("none", 2, ((0.0, UP_COLOR),), empty=EMPTY, base=DOWN_COLOR)
    looks = _cells("thresholds")
    return matrix(frame, scale, expr, ("observed", "updated"), UPDATED, looks)


def _cells(mode: str) -> list[Property]:
    cell = {"type": "color-background", "mode": "basic"}
    return [prop("color", {"mode": mode}), prop("custom.cellOptions", cell)]


def _predicted() -> Panel:
    frame = Frame(
        "Last snapshot: what the kernel predicted, and what the probes measured",
        about(
            "The change from the snapshot before to the last one, per type. Measured is from the "
            "probes at or before both checkpoints, so it is off by at most one spacing of probes; "
            "the share above is from the checkpoints themselves.",
            "predicted_change_nats",
            "logprob_nats",
            "probe_step",
            "snapshot_step",
        ),
        12,
        13,
    )
    predicted = _last("predicted_change_nats", "response_type")
    nats = Scale(NATS, 3)
    columns = [
        Column("predicted", predicted, nats, 110),
        Column("measured", MEASURED, nats, 110),
        Column("measured − predicted", f"{MEASURED} - {predicted}", nats, 170),
    ]
    order = ("response type", *(column.title for column in columns))
    return rows(frame, columns, labels={"response_type": "response type"}, order=order)


def _over_time() -> Panel:
    frame = Frame(
        "Predicted change of each type, snapshot by snapshot",
        about(
            "Each snapshot predicts the change since the one before it: a stair at each.",
            "predicted_change_nats",
        ),
        12,
        13,
    )
    asks = {"{{response_type}}": _now("predicted_change_nats", "response_type")}
    return lines(frame, Scale(NATS, 3, empty=PAIR), asks, overrides=ALL_TYPES)


def _stability() -> Panel:
    frame = Frame(
        "Stability of the kernel",
        about(
            "Both near 100 %: the paper's picture holds for this run. A falling line: answers "
            "influence one another differently than at the start.",
            "entk_alignment_ratio",
            "prediction_r2_ratio",
        ),
        8,
        10,
    )
    asks = {
        "like the first kernel": _now("entk_alignment_ratio", "run"),
        "explained by prediction": _now("prediction_r2_ratio", "run"),
    }
    looks = {
        "like the first kernel": [fixed(UP_COLOR)],
        "explained by prediction": [fixed(TYPE_COLORS["two"])],
    }
    return lines(frame, Scale(SHARE, 1, empty=PAIR), asks, overrides=looks, bounds=(0, 1))


def _pushes(side: str) -> Panel:
    frame = Frame(
        f"What training on {side} does",
        about(
            "Above 0 it raises the type, below 0 it lowers it, for each unit of learning rate.",
            "attribution_nats",
        ),
        8,
        10,
    )
    asks = {"{{observed}}": _now("attribution_nats", "observed", updated=side)}
    return lines(frame, Scale("none", 2, empty=EMPTY), asks, overrides=ALL_TYPES)


def _now(name: str, by: str, **labels: str) -> str:
    return f"max by ({by}) ({series(name, OF_RUN, **labels)})"
