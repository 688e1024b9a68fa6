"""The one table of alarms: what must hold, for how many probes, what it means, what to do.

Agent, Prometheus rules, runbooks and docs come from it. An alarm holds at a probe when *all* of
its conditions hold there; it switches on after `streak` such probes in a row and off after
`QUIET_PROBES` quiet ones. Conditions are conjunctions with sizes, never a raw sign.
"""

from __future__ import annotations

from dataclasses import dataclass

VERDICTS = ("warming", "learning", "squeezing", "diverging", "collapsed")
WARMING_PROBES = 3
QUIET_PROBES = 3
"""An alarm as quick to go as to come would call a ruined run healthy while one signal dips."""

NOISE_MULTIPLE = 3.0
UNKNOWN_PUSH_FACTOR = 2.0
"""Where nobody knows whether the loss pushes down, sizes are this much larger."""


@dataclass(frozen=True)
class Condition:
    """A signal above (or below) a size; the first condition of an alarm is the exported one.

    The size is in the signal's unit and never under `NOISE_MULTIPLE` times the signal's noise.
    """

    signal: str
    size: float
    above: bool = True

    def threshold(self, noise: float = 0.0, factor: float = 1.0) -> float:
        """The size that counts, with its sign: the larger of size and a multiple of the noise."""
        size = max(abs(self.size) * factor, NOISE_MULTIPLE * noise)
        return size if self.size >= 0 else -size

    def holds(self, value: float, threshold: float) -> bool:
        """Whether a value is beyond the threshold."""
        return value > threshold if self.above else value < threshold


@dataclass(frozen=True)
class Alarm:
    """One row of the table: all of ``conditions`` hold, or any one of ``or_else``.

    ``needs_push``: only where the loss pushes some answer down.
    """

    name: str
    conditions: tuple[Condition, ...]
    streak: int
    meaning: str
    advice: str
    needs_push: bool = False
    or_else: tuple[Condition, ...] = ()


LOWER_RATE = (
    "Lower the learning rate (by 2 to 10 times) and go back to the last healthy checkpoint."
)

ALARMS = (
    Alarm(
        "squeezing",
        (
            Condition("squeeze_excess_nats", 0.5),
            Condition("squeezed_probes_ratio", 0.25),
            # where chosen gains what the others lose, the push-down does its work: that is learning
            Condition("unearned_fall_nats", 0.3),
        ),
        2,
        "Answers that nobody trains on lose mass and the likeliest tokens gain it: the push on "
        "the rejected answers is squeezing the model into few outputs.",
        "Stop before the chosen answers fall too. Run SFT on both chosen and rejected answers "
        "first, use rejected answers that the model itself would write, or lower the learning "
        "rate; an NLL term on the chosen answers slows it.",
        needs_push=True,
    ),
    Alarm(
        "diverging",
        (
            Condition("joint_fall_nats", 0.5),
            Condition("untrained_change_nats", -0.5, above=False),
        ),
        2,
        "Chosen and untrained answers fall together from the first probes on: the steps are too "
        "large and the model is being damaged everywhere.",
        LOWER_RATE + " Check warm-up, gradient clipping and the data for broken rows.",
        or_else=(Condition("nonfinite_ratio", 0.5), Condition("loss_nonfinite_ratio", 0.5)),
    ),
    Alarm(
        "argmax_mass_spike",
        (Condition("pushed_mass_change_ratio", 0.09), Condition("squeeze_excess_nats", 0.3)),
        3,
        "In contexts of rejected and untrained answers the likeliest token gained much mass.",
        "Look at the argmax and squeeze curves: with untrained answers falling it is squeezing.",
        needs_push=True,
    ),
    Alarm(
        "hallucination_pressure",
        (Condition("hallucination_pressure_nats", 0.5), Condition("other_prompt_change_nats", 0.5)),
        3,
        "Answers to other training prompts become likelier for prompts they do not belong to.",
        "Fewer epochs, a smaller learning rate, or more varied answers; compare the greedy "
        "outputs before and after.",
    ),
    Alarm(
        "displacement",
        (Condition("displacement_nats", 0.5),),
        3,
        "The preference margin grows while the chosen answers themselves become less likely.",
        "Add an NLL term on the chosen answers (RPO, DPOP), drop pairs that are nearly alike, or "
        "raise beta; compare the squeeze index to see where the mass goes.",
    ),
    Alarm(
        "valley_force",
        (Condition("valley_force_ratio", 0.5), Condition("squeeze_law_ratio", 0.1)),
        3,
        "Most of the downward push falls on tokens that are already unlikely, where it only "
        "feeds the likeliest token.",
        "Use on-policy rejected answers, or SFT on both answers first, or a smaller beta.",
        needs_push=True,
    ),
    Alarm(
        "entropy_collapse",
        (
            Condition("entropy_left_ratio", 0.2, above=False),
            Condition("entropy_change_nats", -0.5, above=False),
        ),
        3,
        "The distributions along fixed answers have lost most of their entropy.",
        "The model will repeat itself when sampled: stop, lower the learning rate, or add an "
        "entropy bonus in RL.",
    ),
    Alarm(
        "entropy_surge",
        (Condition("entropy_change_nats", 2.0),),
        2,
        "The distributions along fixed answers flatten quickly: the model forgets its language.",
        LOWER_RATE,
    ),
    Alarm(
        "repeater",
        (
            Condition("greedy_repetition_ratio", 0.5),
            Condition("greedy_repetition_change_ratio", 0.25),
        ),
        2,
        "Free-running greedy outputs repeat themselves.",
        "Read the greedy outputs in the report; go back to the last healthy checkpoint.",
    ),
    Alarm(
        "eos_loss",
        (Condition("eos_change_nats", -3.0, above=False),),
        3,
        "The end-of-sequence token becomes unlikely after good answers: outputs will not stop.",
        "Train with EOS on chosen answers; check that it is not masked as padding.",
    ),
)
"""In the order of the report. Sizes are starting points of design 5, in nats or shares."""

COLLAPSE = ("repeater", "entropy_collapse", "eos_loss")
"""On top of squeezing or diverging, or alone for twice its streak, one of these is a collapse."""


def alarm(name: str) -> Alarm:
    """The alarm of this name."""
    return next(row for row in ALARMS if row.name == name)
