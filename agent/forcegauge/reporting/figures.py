"""The figures of a run: what is drawn, as plain data. Colours belong to the page's style."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from forcegauge.alarms import ALARMS
from forcegauge.reporting.story import Phase, Story, Value, field, number

Points = tuple[tuple[Value, ...], ...]
"""Values per phase and step."""


@dataclass(frozen=True)
class Series:
    """One line of a figure; ``role`` says which colour, dash and marker it has."""

    name: str
    role: str
    points: Points


@dataclass(frozen=True)
class Figure:
    """Lines over optimizer steps, broken where a phase ends."""

    key: str
    title: str
    reading: str
    unit: str
    axis: tuple[tuple[str, tuple[int, ...]], ...]
    series: tuple[Series, ...]
    wide: bool = False
    stacked: bool = False
    toggles: bool = False
    clip: bool = False
    """Whether one line that falls far deeper than all others may leave the picture."""
    limit: Value = None
    """Size from which an alarm counts, drawn as a line."""

    @property
    def percent(self) -> bool:
        """Whether values are shares, shown in percent."""
        return self.unit == "share"


def figures(story: Story, most: int) -> list[Figure]:
    """Every figure that this record has numbers for, at most about ``most`` probes a phase."""
    if not story.has_course:
        return []
    phases = tuple(phase.thinned(most) for phase in story.phases)
    forced = tuple(phase.thinned(most) for phase in story.forces)
    made = [
        _change_figure(story, phases),
        _squeeze_figure(story, phases),
        _squeezed_figure(story, phases),
        _pressure_figure(story, phases),
        _margin_figure(phases),
        _argmax_figure(story, phases),
        _entropy_figure(story, phases),
        _mass_figure(phases),
        _greedy_figure(story, phases),
        _eos_figure(phases),
        _forces_figure(forced),
        _valley_figure(story, forced),
    ]
    return [figure for figure in made if figure.series]


def limit_of(story: Story, alarm: str, signal: str) -> Value:
    """The size that an alarm's condition on a signal starts from (noise may raise it), or the
    run's own for the first condition of an alarm."""
    conditions = next((row.conditions for row in ALARMS if row.name == alarm), ())
    size = next((each.size for each in conditions if each.signal == signal), None)
    if size is not None and conditions[0].signal == signal and story.runs:
        own = number(field(story.runs[-1], "settings", "thresholds", alarm))
        return size if own is None else own
    return size


def _axis(phases: Sequence[Phase]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((phase.name, tuple(phase.steps)) for phase in phases)


def _line(name: str, role: str, values: Sequence[Sequence[Value]]) -> list[Series]:
    """A series of these values per phase; none where no value is defined."""
    defined = any(value is not None for row in values for value in row)
    return [Series(name, role, tuple(map(tuple, values)))] if defined else []


def _signals(phases: Sequence[Phase], *rows: tuple[str, str, str]) -> tuple[Series, ...]:
    """Rows of (signal, name, role); signals that were never defined are left out."""
    return tuple(
        line
        for signal, name, role in rows
        for line in _line(name, role, [phase.signal(signal) for phase in phases])
    )


def _levels(story: Story, phases: Sequence[Phase], statistic: str) -> tuple[Series, ...]:
    return tuple(
        line
        for kind in story.types
        for line in _line(kind, kind, [phase.levels(statistic, kind) for phase in phases])
    )


def _changes(types: Sequence[str], phases: Sequence[Phase]) -> tuple[Series, ...]:
    return tuple(
        line
        for kind in types
        for line in _line(kind, kind, [phase.changes("logprob_mean", kind) for phase in phases])
    )


def _change_figure(story: Story, phases: Sequence[Phase]) -> Figure:
    return Figure(
        "logprob_change",
        "Log-prob change of every response type",
        "Each line is the mean change per token since the baseline of its phase. Healthy: chosen "
        "rises and what nobody trains on stays about level. Squeezing: nearly everything falls.",
        "nats per token",
        _axis(phases),
        _changes(story.types, phases),
        wide=True,
        toggles=True,
        clip=True,
    )


def _squeeze_figure(story: Story, phases: Sequence[Phase]) -> Figure:
    return Figure(
        "squeeze",
        "Squeeze index",
        "How much more the argmax gained than the answers themselves, where nobody pulled either "
        "up. “Beyond sharpening” takes off what a mere sharpening explains; the alarm reads it.",
        "nats",
        _axis(phases),
        _signals(
            phases,
            ("squeeze_nats", "whole response", "one"),
            ("squeeze_prefix_nats", "first 8 tokens", "two"),
            ("squeeze_excess_nats", "beyond sharpening", "three"),
        ),
        limit=limit_of(story, "squeezing", "squeeze_excess_nats"),
    )


def _squeezed_figure(story: Story, phases: Sequence[Phase]) -> Figure:
    return Figure(
        "squeezed",
        "Squeezed ratio",
        "Share of untrained answers that fell while the argmax along them rose, and share of "
        "probes with at least half of their answers squeezed (the alarm reads the second).",
        "share",
        _axis(phases),
        _signals(
            phases,
            ("squeezed_ratio", "answers", "one"),
            ("squeezed_probes_ratio", "probes", "two"),
        ),
        limit=limit_of(story, "squeezing", "squeezed_probes_ratio"),
    )


def _pressure_figure(story: Story, phases: Sequence[Phase]) -> Figure:
    moved = _changes(("other_prompt", "unseen_prompt"), phases)
    pressure = _signals(phases, ("hallucination_pressure_nats", "pressure", "one"))
    return Figure(
        "pressure",
        "Hallucination pressure",
        "Change of answers to other training prompts minus change of answers to prompts never "
        "trained on. It is a real pull only where other_prompt itself rises.",
        "nats per token",
        _axis(phases),
        (*pressure, *moved) if pressure else (),
        limit=limit_of(story, "hallucination_pressure", "hallucination_pressure_nats"),
    )


def _margin_figure(phases: Sequence[Phase]) -> Figure:
    return Figure(
        "margin",
        "Preference margin",
        "Chosen minus rejected, per token. Displacement is what chosen itself has lost while the "
        "margin grew.",
        "nats per token",
        _axis(phases),
        _signals(
            phases,
            ("preference_margin_nats", "margin", "one"),
            ("displacement_nats", "displacement", "two"),
        ),
    )


def _argmax_figure(story: Story, phases: Sequence[Phase]) -> Figure:
    return Figure(
        "argmax",
        "Argmax log-prob along every response type",
        "How sure the model is of its likeliest token, whatever the response says there; 0 is "
        "certainty. Along chosen it rises with learning too; along the rest it tells squeezing.",
        "nats per token",
        _axis(phases),
        _levels(story, phases, "argmax_logprob_mean"),
        wide=True,
        toggles=True,
    )


def _mass_figure(phases: Sequence[Phase]) -> Figure:
    return Figure(
        "mass",
        "Mass along chosen",
        "Where the probability stands at a position of chosen: on its token, on the argmax where "
        "that is another token, on all the rest.",
        "share",
        _axis(phases),
        _signals(
            phases,
            ("mass_target_ratio", "target", "one"),
            ("mass_argmax_ratio", "argmax", "two"),
            ("mass_rest_ratio", "rest", "rest"),
        ),
        stacked=True,
    )


def _entropy_figure(story: Story, phases: Sequence[Phase]) -> Figure:
    return Figure(
        "entropy",
        "Entropy along every response type",
        "Falling towards 0: the model has one answer left. A surge: it forgets its language.",
        "nats",
        _axis(phases),
        _levels(story, phases, "entropy"),
        wide=True,
        toggles=True,
    )


def _greedy_figure(story: Story, phases: Sequence[Phase]) -> Figure:
    return Figure(
        "repetition",
        "Repetition of greedy outputs",
        "Share of repeated n-grams in what the model writes freely.",
        "share",
        _axis(phases),
        _signals(phases, ("greedy_repetition_ratio", "repeated", "one")),
        limit=limit_of(story, "repeater", "greedy_repetition_ratio"),
    )


def _eos_figure(phases: Sequence[Phase]) -> Figure:
    return Figure(
        "eos",
        "End of sequence after chosen",
        "Log-prob of the end-of-sequence token after chosen; far below 0, outputs do not stop.",
        "nats",
        _axis(phases),
        _signals(phases, ("eos_logprob_nats", "EOS", "one")),
    )


def _forces_figure(phases: Sequence[Phase]) -> Figure:
    up, down = ([p.force(f"force_{way}_norm") for p in phases] for way in ("up", "down"))
    return Figure(
        "forces",
        "Forces of the loss at the logits",
        "Norm per batch of what the loss pulls up and of what it pushes down.",
        "norm",
        _axis(phases),
        (*_line("up", "one", up), *_line("down", "two", down)),
    )


def _valley_figure(story: Story, phases: Sequence[Phase]) -> Figure:
    return Figure(
        "valley",
        "Valley force",
        "Share of the push down that falls on tokens which are already unlikely.",
        "share",
        _axis(phases),
        (*_line("in the valley", "two", [phase.force("valley_force_ratio") for phase in phases]),),
        limit=limit_of(story, "valley_force", "valley_force_ratio"),
    )
