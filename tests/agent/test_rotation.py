"""Parts of a probe set stand for all of it: in cost, in levels, and in the verdict."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forcegauge.gauge import ForceGauge
from forcegauge.pace import Pace
from forcegauge.phase import Phase, Probe
from forcegauge.probes import RESPONSE_TYPES
from forcegauge.record import probes_by_phase, read_record, read_scores
from forcegauge.report import write_report
from forcegauge.reporting.moved import find_moved
from forcegauge.reporting.story import tell
from forcegauge.rotation import MOST_PARTS, SMALLEST_PART, Rotation, most_parts
from forcegauge.scores import STATISTICS, Scores, TokenScores
from forcegauge.watching.following import Follower
from forcegauge.watching.view import record_view
from tests import tiny
from tests.agent.test_watch_screen import text
from tests.synthetic_run import levels

PROBES = 64
TICKS = 40
EMPTY = np.empty(0, np.int32)
NOTHING = TokenScores(EMPTY, EMPTY, EMPTY, np.empty(0, np.int64), {})


def uneven_set(count: int = PROBES) -> tuple[list[set[str]], list[int]]:
    """Response types and lengths of probes that differ: some lack types, few are very long."""
    draw = np.random.default_rng(0)
    kinds = [set(RESPONSE_TYPES) for _ in range(count)]
    for place, each in enumerate(kinds):
        if place % 3 == 0:
            each -= {"chosen_rephrase", "rejected_rephrase"}
        if place >= 3:
            each -= {"unrelated"}
        if place >= 16:
            each -= {"greedy"}
    return kinds, [int(length) for length in draw.lognormal(5, 1, count)]


@pytest.mark.parametrize(
    ("probes", "parts"), [(1, 1), (15, 1), (16, 2), (31, 2), (32, 4), (64, 8), (500, 8)]
)
def test_no_part_is_smaller_than_eight_probes_or_an_eighth(probes: int, parts: int) -> None:
    assert most_parts(probes) == parts
    assert parts == 1 or probes // parts >= max(SMALLEST_PART, probes // MOST_PARTS)


@given(
    kinds=st.lists(st.sets(st.sampled_from(RESPONSE_TYPES[:5]), min_size=1), min_size=16),
    parts=st.sampled_from([2, 4, 8]),
    start=st.integers(0, 50),
)
def test_as_many_turns_as_parts_see_every_probe(
    kinds: list[set[str]], parts: int, start: int
) -> None:
    rotation = Rotation(kinds, [len(each) for each in kinds])
    seen = {i for turn in range(parts) for i in rotation.part(parts, start + turn) or ()}
    assert seen == set(range(len(kinds)))


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_parts_have_all_types_and_cost_alike(parts: int) -> None:
    kinds, tokens = uneven_set()
    rotation = Rotation(kinds, tokens)
    dealt = [rotation.part(parts, turn) or () for turn in range(parts)]
    for kind in RESPONSE_TYPES:
        assert min(sum(kind in kinds[i] for i in part) for part in dealt) >= 2
    shares = [rotation.share(part) for part in dealt]
    assert max(shares) < 2.5 * min(shares), "the longest probe alone is a twentieth of all tokens"
    assert dealt == [Rotation(kinds, tokens).part(parts, turn + parts) for turn in range(parts)]


def scores(phase: str, progress: float) -> Scores:
    """A run of the paper's shape on probes of which the longer ones are unlikelier and move more,
    without the types that a probe lacks."""
    kinds, tokens = uneven_set()
    draw = np.random.default_rng(1)
    spread = np.log(tokens)[:, None] / 5 * draw.lognormal(0, 0.3, (PROBES, 1))
    spread = spread * draw.lognormal(0, 0.1, (PROBES, len(RESPONSE_TYPES)))
    logprob, argmax = (row * spread for row in levels(phase, progress))
    argmax = np.maximum(argmax, logprob)
    found = dict.fromkeys(STATISTICS, np.full_like(logprob, np.nan)) | {
        "tokens": np.full_like(logprob, 24.0),
        "entropy": 2.2 * np.abs(argmax) ** 0.8,
        "argmax_mass": np.exp(argmax),
        "mass_target": np.exp(logprob),
        **{f"logprob_{window}": logprob for window in ("mean", "prefix")},
        **{f"argmax_logprob_{window}": argmax for window in ("mean", "prefix")},
    }
    has = np.array([[kind in each for kind in RESPONSE_TYPES] for each in kinds])
    values = {name: np.where(has, array, np.nan) for name, array in found.items()}
    return Scores(tuple(f"p{i}" for i in range(PROBES)), RESPONSE_TYPES, values, NOTHING)


def part_of(whole: Scores, parts: int, turn: int) -> Scores:
    part = Rotation(*uneven_set()).part(parts, turn)
    return whole if part is None else whole.only(np.isin(np.arange(PROBES), part))


def run(phase: str, parts: int, *, moving: bool = True) -> list[Probe]:
    """Judged probes of a run; with more than one part, each scores the next of them."""
    judge = Phase(0, scores(phase, 0.0), {}, pushes_down=phase != "sft")
    judge.first({})
    found = []
    for turn in range(1, TICKS + 1):
        now = scores(phase, turn / TICKS if moving else 0.0)
        found.append(judge.probe(turn, part_of(now, parts, turn), {}))
    return found


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_constant_weights_show_no_change_and_no_level_moves(parts: int) -> None:
    whole = run("dpo", 1, moving=False)[-1]
    for found in run("dpo", parts, moving=False):
        assert found.judgement.verdict in {"warming", "learning"}
        assert found.judgement.healthy
        assert found.scored < PROBES
        for name, value in whole.signals.items():
            assert found.signals.get(name, value) == pytest.approx(value, abs=1e-9), name
        for kind, statistics in whole.summary.items():
            for name, spread in statistics.items():
                mine = found.summary[kind][name]
                assert mine["mean"] == pytest.approx(spread["mean"], rel=1e-6)
                assert mine["q90"] == pytest.approx(spread["q90"], rel=1e-6)
                assert mine["n"] < spread["n"] or spread["n"] <= 3


@pytest.mark.parametrize("parts", [2, 4, 8])
@pytest.mark.parametrize("phase", ["sft", "dpo"])
def test_the_verdict_is_that_of_whole_passes(phase: str, parts: int) -> None:
    whole, rotated = run(phase, 1), run(phase, parts)
    verdict = whole[-1].judgement.verdict
    assert verdict == ("learning" if phase == "sft" else "squeezing")
    assert rotated[-1].judgement.verdict == verdict
    onsets = [
        next(probe.step for probe in probes if probe.judgement.verdict == verdict)
        for probes in (whole, rotated)
    ]
    assert abs(onsets[0] - onsets[1]) <= 3
    changes = [probes[-1].signals["untrained_change_nats"] for probes in (whole, rotated)]
    assert changes[1] == pytest.approx(changes[0], rel=0.15)


def test_levels_of_a_part_stay_within_what_they_can_be() -> None:
    start = scores("sft", 0.0)
    likely = {name: np.minimum(array * 0.01, 0) for name, array in start.values.items()}
    sure = {n: likely[n] if "log" in n else a for n, a in start.values.items()}
    sure |= {n: np.where(np.isfinite(a), 1.0, a) for n, a in sure.items() if "mass" in n}
    now = part_of(Scores(start.ids, start.types, sure, NOTHING), 8, 0)
    found = now.levels(start)
    assert np.nanmax(found.values["logprob_mean"]) <= 0
    assert np.nanmax(found.values["argmax_mass"]) <= 1


def test_a_step_that_is_probed_again_counts_once() -> None:
    once, twice = (Phase(0, scores("dpo", 0.0), {}, pushes_down=True) for _ in range(2))
    for judge in (once, twice):
        judge.first({})
    for turn in range(1, TICKS + 1):
        now = scores("dpo", turn / TICKS)
        wanted = once.probe(turn, now, {}).judgement
        twice.probe(turn, part_of(now, 8, turn), {})
        found = twice.probe(turn, now, {}).judgement
        assert found.alarms == wanted.alarms
        assert found.verdict == wanted.verdict


def rotating(directory: Path, monkeypatch: pytest.MonkeyPatch, last: int) -> ForceGauge:
    """A gauge that was told to score a quarter at a time after the early probes."""
    monkeypatch.setattr(Pace, "_plan", quartered)
    probes = tiny.probe_set(32)
    watched = ForceGauge(
        probes, tiny.tokenizer(), run="tiny", directory=directory, every=2, port=0, append_eos=True
    )
    model = tiny.llama()
    for step in range(last + 1):
        watched.step(model, step)
    watched.finish(model, last)
    watched.close(None)
    return watched


def quartered(self: Pace, step: int, baseline: int | None) -> tuple[int, int, int]:
    return 1 if step < 2 else 4, step + 1, 1


def test_a_gauge_scores_parts_in_turn_and_ends_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = rotating(tmp_path, monkeypatch, 8)
    assert not watched.failures
    lines = probes_by_phase(read_record(tmp_path))["train"]
    counts = [line["probes_scored"] for line in lines]
    assert counts[:3] == [32, 32, 32]
    assert all(8 <= count < 16 for count in counts[3:-1])
    assert counts[-1] == 32
    seen = set()
    for line in lines[3:7]:
        kept = read_scores(tmp_path / "scores" / f"{line['step']}.safetensors")
        rows = np.isfinite(kept.values["logprob_mean"])
        whole = np.isfinite(read_scores(tmp_path / "scores" / "0.safetensors").values["tokens"])
        assert (rows.any(axis=1) == (rows == whole).all(axis=1)).all(), "all types of a prompt"
        seen |= set(np.flatnonzero(rows.any(axis=1)))
    assert seen == set(range(32))
    decoded = ["greedy_repetition_ratio" in line["signals"] for line in lines]
    assert decoded.count(True) < len(lines)
    names = {sample.metric.name: sample.value for sample in watched.snapshot.samples}
    assert names["forcegauge_probes_scored"] == 32
    assert "forcegauge_greedy_repetition_ratio" in names


def test_weights_that_stand_still_move_no_signal_of_a_gauge_that_rotates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rotating(tmp_path, monkeypatch, 8)
    first, *later = probes_by_phase(read_record(tmp_path))["train"]
    for line in later:
        for name, value in line["signals"].items():
            assert value == pytest.approx(first["signals"].get(name, 0.0), abs=1e-4), name
        for kind, statistics in line["scores"].items():
            mean = first["scores"][kind]["logprob_mean"]["mean"]
            assert statistics["logprob_mean"]["mean"] == pytest.approx(mean, abs=1e-4)


def test_a_resume_goes_on_with_the_next_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rotating(tmp_path, monkeypatch, 4)
    monkeypatch.undo()
    with ForceGauge(
        tiny.probe_set(32), tiny.tokenizer(), run="tiny", directory=tmp_path, every=1, port=0
    ) as watched:
        watched.step(tiny.llama(), 3)
        assert watched._pace.turn == 3
        assert watched._pace.parts == 4


def test_a_report_and_the_watch_say_that_the_last_look_was_a_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pace, "_plan", quartered)
    with ForceGauge(
        tiny.probe_set(32), tiny.tokenizer(), directory=tmp_path, every=2, port=0
    ) as watched:
        for step in range(6):
            watched.step(tiny.llama(), step)
    story = tell(read_record(tmp_path))
    last = story.phases[-1].probes[-1]
    assert 8 <= last["probes_scored"] < 32
    moved = find_moved(tmp_path, story)
    assert moved is not None
    assert len(moved.order) == last["probes_scored"]
    page = write_report(tmp_path, tmp_path / "page.html").read_text()
    assert f"32; the last time {last['probes_scored']} of them" in page
    (course,) = list(Follower(tmp_path).read())[-1:]
    assert f"({last['probes_scored']} of 32 in turn)" in text(record_view(course))
