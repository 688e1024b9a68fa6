"""Run: is it sick, since which step, what to do; then where its mass goes."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard as sdk

from dashboards.advice import ADVICE
from dashboards.detectors import alarms_on, detectors, streaks
from dashboards.frame import Section, dashboard
from dashboards.looks import (
    AGO,
    ALL_TYPES,
    DOWN_COLOR,
    NATS,
    SHARE,
    STEP,
    TYPE_COLORS,
    UP_COLOR,
    fixed,
    verdict_map,
)
from dashboards.panels import Frame, Panel, Scale, about, lines, number, verdicts, words
from dashboards.promql import (
    OF_RUN,
    ONE_RUN,
    WINDOW,
    last,
    last_healthy_step,
    series,
    sick_since_step,
    told_verdict,
    verdict,
    verdict_now,
    verdict_since,
)

UID = "forcegauge-run"

VERDICT = f"{verdict(ONE_RUN)} or on (run) {told_verdict(OF_RUN)}"


def run() -> sdk.Dashboard:
    """The dashboard of one run."""
    sections: list[Section] = [
        ("Is it sick, since which step, what to do?", [*_answer(), alarms_on(), _advice()]),
        ("The verdict, and which step was when", [_bands(), _steps(), _what()]),
        ("Where the mass goes", [_changes(), _argmax(), _flow(), _margin()]),
        ("Squeezing", [_squeeze(), _squeezed(), _pressure()]),
        ("What pushes: the forces of the loss", [_forces(), _valley()]),
        ("Does it still write well?", [_entropy(), _repetition(), _eos()]),
        ("Detectors: each alarm against its threshold", [streaks(), *detectors()]),
    ]
    text = (
        "One finetuning run: is it sick, since which step, what to do, and the figures behind it."
    )
    return dashboard(UID, text, sections, runs="one", annotated=True)


def _answer() -> list[Panel]:
    well = Scale(STEP, 0, empty="–")
    return [
        number(
            Frame(
                "Verdict",
                about(
                    "How the run is, in one word. Squeezing and worse: act, see What to do. From "
                    "the monitor where Prometheus did not see the run's process in this time.",
                    "run_state",
                    "monitor_run_state",
                ),
                5,
                4,
            ),
            Scale("none", 0, empty="no data"),
            {"verdict": VERDICT},
            mappings=[verdict_map()],
            filled=True,
        ),
        number(_sick_frame(), Scale(STEP, 0, empty="not sick"), {"step": sick_since_step(ONE_RUN)}),
        number(_healthy_frame(), well, {"step": last_healthy_step(ONE_RUN)}),
        number(_since_frame(), Scale(AGO, None), {"since": f"{verdict_since(ONE_RUN)} * 1000"}),
        number(
            Frame(
                "Last probed step",
                about("All other numbers here are from this step at the latest.", "probe_step"),
                4,
                4,
            ),
            Scale(STEP, 0),
            {"step": last(series("probe_step", ONE_RUN), ONE_RUN)},
        ),
        number(
            Frame(
                "Last probe",
                about(
                    "Long ago: the training stands still, or its probes fail.",
                    "probe_timestamp_seconds",
                ),
                3,
                4,
            ),
            Scale(AGO, None),
            {"when": f"{last(series('probe_timestamp_seconds', ONE_RUN), ONE_RUN)} * 1000"},
        ),
    ]


def _sick_frame() -> Frame:
    text = (
        "Where it began, as the agent tells with its verdict: some probes before that was certain. "
        "Of several verdicts since the last healthy probe within the chosen time, the first."
    )
    return Frame(
        "Sick since step", about(text, "verdict_since_step", "probe_step", "run_state"), 4, 4
    )


def _healthy_frame() -> Frame:
    text = (
        "The last probe that was warming or learning. The next verdict took several probes "
        "running: a checkpoint to go back to is one from before **Sick since step**."
    )
    return Frame("Last healthy step", about(text, "probe_step", "run_state"), 4, 4)


def _since_frame() -> Frame:
    text = "When the verdict of now began; the start of the chosen time where it is older."
    return Frame("This verdict began", about(text, "run_state"), 4, 4)


def _advice() -> Panel:
    frame = Frame(
        "What to do",
        about("Find the verdict of this run and do what stands beside it.", "run_state"),
        11,
        12,
    )
    return words(frame, ADVICE)


def _bands() -> Panel:
    frame = Frame(
        "Verdict over time",
        about("A gap is a time at which the run was not heard of.", "run_state"),
        12,
        7,
    )
    return verdicts(frame, {"{{run}}": verdict_now(ONE_RUN)})


def _steps() -> Panel:
    frame = Frame(
        "Which step was when",
        about(
            "Time is below, steps are at the left: the step at any moment of the other figures. "
            "A line that stops rising: the training stands still.",
            "train_step",
            "probe_step",
        ),
        8,
        7,
    )
    return lines(
        frame,
        Scale(STEP, 0),
        {"training": _now("train_step"), "last probe": _now("probe_step")},
        overrides={"training": [fixed(UP_COLOR)], "last probe": [fixed(DOWN_COLOR)]},
    )


def _what() -> Panel:
    frame = Frame(
        "What trains",
        about(
            "The phase of the training, and the model. Each phase has a baseline of its own.",
            "run_info",
        ),
        4,
        7,
    )
    # each phase has a series of its own: the one that was there last
    seen = f"max_over_time(timestamp({series('run_info', ONE_RUN)}){WINDOW})"
    asks = {"{{phase}}: {{model}}": f"max by (phase, model) (topk(1, {seen}))"}
    return number(frame, Scale("none", 0), asks, named=True)


def _changes() -> Panel:
    frame = Frame(
        "Log-probability of each response type since the start of the phase",
        about(
            "The paper's figure, live. Healthy: chosen rises and the others stay near 0. "
            "Squeezing: the untrained ones fall first, chosen later.",
            "logprob_change_nats",
        ),
        24,
        12,
    )
    return _by_type(frame, Scale(NATS), "logprob_change_nats")


def _argmax() -> Panel:
    frame = Frame(
        "Mass of the likeliest token since the start of the phase",
        about(
            "Rising along *rejected* and untrained responses is squeezing; along chosen it rises "
            "in healthy learning too.",
            "argmax_mass_change_ratio",
        ),
        12,
        10,
    )
    return _by_type(frame, Scale(SHARE, 1), "argmax_mass_change_ratio")


def _flow() -> Panel:
    frame = Frame(
        "Mass along chosen",
        about(
            "The three parts add up to 100 %. Squeezing: the argmax's part grows and the "
            "target's shrinks.",
            "mass_ratio",
        ),
        6,
        10,
    )
    parts = {
        "on the chosen token": ("target", TYPE_COLORS["one"]),
        "on another likeliest token": ("argmax", TYPE_COLORS["two"]),
        "on the rest": ("rest", TYPE_COLORS["rest"]),
    }
    return lines(
        frame,
        Scale(SHARE, 1),
        {title: _now("mass_ratio", part=part) for title, (part, _) in parts.items()},
        overrides={title: [fixed(color)] for title, (_, color) in parts.items()},
        stacked=True,
        bounds=(0, 1),
    )


def _margin() -> Panel:
    frame = Frame(
        "Preference margin",
        about(
            "It rises in healthy and in squeezing runs alike: look at displacement beside it, "
            "the chosen answers' own loss.",
            "preference_margin_nats",
            "displacement_nats",
        ),
        6,
        10,
    )
    asks = {"margin": _now("preference_margin_nats"), "displacement": _now("displacement_nats")}
    looks = {"margin": [fixed(UP_COLOR)], "displacement": [fixed(DOWN_COLOR)]}
    return lines(frame, Scale(NATS), asks, overrides=looks)


def _squeeze() -> Panel:
    frame = Frame(
        "Squeeze index (higher is worse)",
        about(
            "How much the likeliest tokens gained over natural answers that nobody trains on. "
            "Near 0 is healthy; it speaks before chosen falls. The dashed line is the size of "
            "the alarm, which asks for more than this one number: see the detectors.",
            "squeeze_nats",
            "squeeze_prefix_nats",
        ),
        8,
        9,
    )
    asks = {"whole answers": _now("squeeze_nats"), "first 8 tokens": _now("squeeze_prefix_nats")}
    looks = {"whole answers": [fixed(UP_COLOR)], "first 8 tokens": [fixed(DOWN_COLOR)]}
    scale = Scale(NATS, 2, ((0.5, "red"),))
    return lines(frame, scale, asks, overrides=looks, limited=True)


def _squeezed() -> Panel:
    frame = Frame(
        "Share of answers that are squeezed",
        about(
            "How widespread it is: 0 % is healthy, 100 % is every probe and every type.",
            "squeezed_ratio",
        ),
        8,
        9,
    )
    asks = {"squeezed": _now("squeezed_ratio")}
    looks = {"squeezed": [fixed(UP_COLOR)]}
    return lines(frame, Scale(SHARE, 1), asks, overrides=looks, bounds=(0, 1))


def _pressure() -> Panel:
    frame = Frame(
        "Hallucination pressure",
        about(
            "The pull on answers that belong to other training prompts. It means something while "
            "those answers rise themselves (second line above 0).",
            "hallucination_pressure_nats",
            "logprob_change_nats",
        ),
        8,
        9,
    )
    asks = {
        "pressure": _now("hallucination_pressure_nats"),
        "other_prompt": _now("logprob_change_nats", response_type="other_prompt"),
    }
    looks = {"pressure": [fixed(UP_COLOR)], "other_prompt": ALL_TYPES["other_prompt"]}
    return lines(frame, Scale(NATS), asks, overrides=looks)


def _forces() -> Panel:
    frame = Frame(
        "Force of the loss, up and down",
        about(
            "How hard the loss pulls tokens up and pushes others down. A push down is not bad by "
            "itself; one that falls into the valley is.",
            "force_norm",
        ),
        12,
        8,
    )
    asks = {"up": _now("force_norm", direction="up"), "down": _now("force_norm", direction="down")}
    looks = {"up": [fixed(UP_COLOR)], "down": [fixed(DOWN_COLOR)]}
    return lines(frame, Scale("short", 2, empty="no forces seen"), asks, overrides=looks)


def _valley() -> Panel:
    frame = Frame(
        "Share of the push down that falls on unlikely tokens (the valley)",
        about(
            "Such a push lowers nothing that matters and feeds the likeliest token.",
            "valley_force_ratio",
        ),
        12,
        8,
    )
    asks = {"valley": _now("valley_force_ratio")}
    scale = Scale(SHARE, 1, empty="no push down seen")
    return lines(frame, scale, asks, overrides={"valley": [fixed(DOWN_COLOR)]}, bounds=(0, 1))


def _entropy() -> Panel:
    frame = Frame(
        "Entropy along each response type",
        about(
            "Falling towards 0: the model repeats itself when sampled. Rising fast: it forgets "
            "its language.",
            "entropy_nats",
        ),
        12,
        9,
    )
    return _by_type(frame, Scale(NATS), "entropy_nats")


def _repetition() -> Panel:
    frame = Frame(
        "Repetition in greedy outputs",
        about("Above the dashed line outputs go round in circles.", "greedy_repetition_ratio"),
        6,
        9,
    )
    asks = {"repeated": _now("greedy_repetition_ratio")}
    looks = {"repeated": [fixed(UP_COLOR)]}
    scale = Scale(SHARE, 1, ((0.5, "red"),))
    return lines(frame, scale, asks, overrides=looks, limited=True, bounds=(0, 1))


def _eos() -> Panel:
    frame = Frame(
        "End of answers (log-prob)",
        about("When it falls by several nats, outputs will not stop any more.", "eos_logprob_nats"),
        6,
        9,
    )
    asks = {"end of sequence": _now("eos_logprob_nats")}
    looks = {"end of sequence": [fixed(UP_COLOR)]}
    return lines(frame, Scale(NATS, empty="only with append_eos"), asks, overrides=looks)


def _by_type(frame: Frame, scale: Scale, name: str) -> Panel:
    asks = {"{{response_type}}": f"max by (response_type) ({series(name, ONE_RUN)})"}
    return lines(frame, scale, asks, overrides=ALL_TYPES)


def _now(name: str, **labels: str) -> str:
    return f"max by (run) ({series(name, ONE_RUN, **labels)})"
