"""Following a record: whatever is done to the file, in bounded memory, and with the same words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from forcegauge.errors import InputError
from forcegauge.record import open_record, read_record
from forcegauge.reporting.story import tell
from forcegauge.watching import following
from forcegauge.watching.course import OLDER, RECENT, Course, Lines
from forcegauge.watching.following import Follower
from forcegauge.watching.showing import PlainLines, Recorded
from forcegauge.watching.view import View, record_view
from tests.synthetic_run import two_phase_run, write_phase


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """The lines of a record: SFT, then a DPO that squeezes."""
    folder = two_phase_run(tmp_path_factory.mktemp("run"))
    return (folder / "record.jsonl").read_bytes().splitlines(keepends=True)


def write(folder: Path, rows: Sequence[bytes], mode: str = "wb") -> Path:
    with (folder / "record.jsonl").open(mode) as file:
        file.writelines(rows)
    return folder


def last(follower: Follower) -> View:
    *_, course = follower.read()
    return record_view(course)


def probe(step: int, **more: Any) -> bytes:
    line = {"schema": 1, "kind": "probe", "run": "r", "phase": "dpo", "step": step}
    facts = {"time": 100.0 + step, "signals": {}, "noise": {}, "scores": {}, "verdict": "learning"}
    return json.dumps(line | facts | more, separators=(",", ":")).encode() + b"\n"


def opened(**more: Any) -> bytes:
    line = {"schema": 1, "kind": "run", "run": "r", "phase": "dpo", "step": 0, "time": 99.0}
    facts = {"model": "m", "settings": {"every": 4, "loss": "dpo"}, "resumed_from": None}
    return json.dumps(line | facts | more, separators=(",", ":")).encode() + b"\n"


def steps(view: View) -> list[int]:
    return [step for step, _ in view.lines]


def test_a_view_says_what_the_record_says(tmp_path: Path, rows: list[bytes]) -> None:
    view = last(Follower(write(tmp_path, rows)))
    story = tell(read_record(tmp_path))
    said = story.verdict_line
    assert said is not None
    assert (view.verdict, view.since) == (said["verdict"], said["since_step"])
    assert view.verdict == "squeezing"
    assert view.advice == said["advice"]
    assert view.ended == "finished"
    assert [each.name for each in view.alarms if each.on] == [a.name for a in story.alarms_on]
    assert "out/sft/checkpoint-20" in view.checkpoint
    chosen = story.phases[-1].changes("logprob_mean", "chosen")
    assert view.changes["chosen"].values == chosen


def test_streaks_are_those_of_the_agents_detector(tmp_path: Path, rows: list[bytes]) -> None:
    states = {each.name: each for each in last(Follower(write(tmp_path, rows))).alarms}
    assert (states["squeezing"].streak, states["squeezing"].needed) == (6, 2)
    assert (states["displacement"].streak, states["displacement"].on) == (1, False)


def test_a_record_that_grows_line_by_line_ends_in_the_same_view(
    tmp_path: Path, rows: list[bytes]
) -> None:
    follower = Follower(write(tmp_path, rows[:1]))
    for row in rows[1:]:
        write(tmp_path, [row], "ab")
        view = last(follower)
    assert view == last(Follower(tmp_path))


def test_a_torn_last_line_waits_for_its_rest(tmp_path: Path) -> None:
    whole = probe(2)
    follower = Follower(write(tmp_path, [opened(), probe(1), whole[:30]]))
    assert steps(last(follower)) == [1]
    write(tmp_path, [whole[30:]], "ab")
    assert steps(last(follower)) == [1, 2]


def test_a_last_line_without_its_line_break_counts_once(tmp_path: Path) -> None:
    follower = Follower(write(tmp_path, [opened(), probe(1).rstrip()]))
    assert steps(last(follower)) == [1]
    write(tmp_path, [b"\n", probe(2)], "ab")
    assert steps(last(follower)) == [1, 2]


def test_damaged_lines_are_counted_and_passed_over(tmp_path: Path) -> None:
    rows = [opened(), b"\x00\x00\xff\n", probe(1), b'{"schema":1,"kind":"probe","run\n', b"[1]\n"]
    source = Recorded(write(tmp_path, [*rows, probe(2)]))
    *_, view = source.views()
    assert steps(view) == [1, 2]
    assert view.notes == ["Damaged lines in the record, left out: 3."]


def test_a_truncated_record_is_read_anew(tmp_path: Path) -> None:
    follower = Follower(write(tmp_path, [opened(), probe(1), probe(2), probe(3)]))
    last(follower)
    write(tmp_path, [opened(), probe(1)])
    assert steps(last(follower)) == [1]


def test_another_file_in_the_place_of_the_record_is_read_anew(tmp_path: Path) -> None:
    follower = Follower(write(tmp_path, [opened(), probe(1)]))
    last(follower)
    (tmp_path / "record.jsonl").rename(tmp_path / "old.jsonl")
    write(tmp_path, [opened(), probe(7), probe(8)])
    assert steps(last(follower)) == [7, 8]


def test_a_record_that_vanishes_is_shown_as_it_was_until_it_is_back(tmp_path: Path) -> None:
    source = Recorded(write(tmp_path, [opened(), probe(1)]))
    list(source.views())
    (tmp_path / "record.jsonl").unlink()
    *_, view = source.views()
    assert steps(view) == [1]
    assert "not there any more" in view.notes[0]
    write(tmp_path, [opened(), probe(1), probe(2)])
    *_, view = source.views()
    assert (steps(view), view.notes) == ([1, 2], [])


def test_a_resume_takes_back_what_it_trains_again(tmp_path: Path) -> None:
    begun = [opened(), *(probe(step) for step in range(9))]
    follower = Follower(write(tmp_path, begun))
    last(follower)
    write(tmp_path, [opened(resumed_from=4), probe(5), probe(6)], "ab")
    assert steps(last(follower)) == [0, 1, 2, 3, 4, 5, 6]
    assert last(follower).count == 7


def test_a_resume_with_the_real_record_agrees_with_reading_it(tmp_path: Path) -> None:
    two_phase_run(tmp_path)
    record = open_record(tmp_path, "demo")
    settings = {"loss": "dpo", "every": 4}
    facts = {"settings": settings, "model": "m", "resumed_from": 28}
    record.append("run", facts, phase="dpo", step=28)
    record.close()
    view = last(Follower(tmp_path))
    assert (view.step, view.verdict, view.ended) == (28, "learning", None)
    assert [each.name for each in view.alarms if each.on] == []


def test_an_end_that_is_followed_by_a_phase_is_no_end(tmp_path: Path) -> None:
    end = json.dumps(
        {"schema": 1, "kind": "end", "run": "r", "phase": "dpo", "step": 1, "time": 2.0}
        | {"reason": "finished"}
    ).encode()
    follower = Follower(write(tmp_path, [opened(), probe(1), end + b"\n"]))
    assert last(follower).ended == "finished"
    write(tmp_path, [opened(phase="kto"), probe(2, phase="kto")], "ab")
    view = last(follower)
    assert (view.phase, view.ended, steps(view)) == ("kto", None, [2])


def test_every_phase_is_seen_before_the_next_one_begins(tmp_path: Path, rows: list[bytes]) -> None:
    courses = list(Follower(write(tmp_path, rows)).read())
    assert [record_view(course).phase for course in courses] == ["sft", "dpo"]


def test_a_record_of_a_newer_forcegauge_is_refused(tmp_path: Path) -> None:
    follower = Follower(write(tmp_path, [opened(schema=2)]))
    with pytest.raises(InputError, match="newer forcegauge"):
        list(follower.read())


def test_an_empty_record_is_waited_for(tmp_path: Path) -> None:
    view = last(Follower(write(tmp_path, [])))
    assert (view.step, view.verdict, view.lines) == (None, "", ())


def test_a_run_before_its_first_probe_has_its_name(tmp_path: Path) -> None:
    view = last(Follower(write(tmp_path, [opened()])))
    assert (view.name, view.phase, view.model) == ("r", "dpo", "m")


def test_what_is_kept_of_a_long_record_is_bounded() -> None:
    course = Course()
    for step in range(20_000):
        course = course.take(probe(step) if step else opened())
    kept = course.probes.lines()
    assert len(course.probes) == 19_999
    assert OLDER / 2 < len(kept) <= OLDER + RECENT
    assert kept[0]["step"] == 1
    assert [line["step"] for line in kept[-RECENT:]] == list(range(20_000 - RECENT, 20_000))
    gaps = {later["step"] - line["step"] for line, later in pairwise(kept[:-RECENT])}
    assert len(gaps) == 1


def test_of_scores_only_what_is_shown_is_kept() -> None:
    lines = Lines()
    statistics = {"logprob_mean": {"mean": -1.0, "q10": -2.0}, "entropy": {"mean": 1.0}}
    lines.add(probe(1, scores={"chosen": statistics}))
    assert lines.lines()[0]["scores"] == {"chosen": {"logprob_mean": {"mean": -1.0}}}


def test_lines_that_are_written_otherwise_are_the_same_lines(tmp_path: Path) -> None:
    rows = [json.loads(row) for row in (opened(), probe(1), probe(2))]
    spaced = [json.dumps(dict(reversed(row.items()))).encode() + b"\n" for row in rows]
    view = last(Follower(write(tmp_path, spaced)))
    assert (steps(view), view.count) == ([1, 2], 2)


def test_checkpoints_and_alarms_are_bounded_too() -> None:
    course = Course().take(opened())
    head = {"schema": 1, "kind": "checkpoint", "run": "r", "phase": "dpo", "time": 1.0}
    for step in range(5_000):
        saved = head | {"step": step, "path": f"c-{step}", "healthy": True}
        course = course.take(json.dumps(saved).encode())
    assert len(course.rare) == 2048
    assert course.rare[-1]["path"] == "c-4999"


def test_of_a_long_record_the_end_is_shown_while_the_rest_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "SLICE", 4096)
    monkeypatch.setattr(following, "GLANCE", 2048)
    write(tmp_path, [opened(), *(probe(step) for step in range(100))])
    first, *_, done = Recorded(tmp_path).views()
    assert first.step == done.step == 99
    assert first.count is not None
    assert done.count == 100
    assert first.count < 20
    assert "are left" in first.notes[0]
    assert not done.notes


def test_the_next_probe_is_where_the_agents_schedule_has_it(tmp_path: Path) -> None:
    settings = {"every": 50, "budget": None, "loss": "dpo"}
    write(tmp_path, [opened(settings=settings), probe(0), probe(1), probe(2), probe(4)])
    assert last(Follower(tmp_path)).next_step == 8
    write(tmp_path, [probe(150)], "ab")
    assert last(Follower(tmp_path)).next_step == 200


def test_overhead_is_the_share_of_time_since_the_process_opened_the_record(
    tmp_path: Path,
) -> None:
    rows = [probe(step, duration_seconds=0.5) for step in range(11)]
    view = last(Follower(write(tmp_path, [opened(), *rows])))
    assert view.overhead == pytest.approx(11 * 0.5 / 11)
    assert view.seconds == 0.5


def test_a_runs_own_thresholds_count(tmp_path: Path) -> None:
    record = open_record(tmp_path, "demo")
    write_phase(record, "dpo", 0, (0, 1, 2))
    record.close()
    rows = (tmp_path / "record.jsonl").read_text().splitlines()
    first = json.loads(rows[0])
    first["settings"]["thresholds"] = {"squeezing": 0.9}
    (tmp_path / "record.jsonl").write_text("\n".join([json.dumps(first), *rows[1:], ""]))
    states = {each.name: each for each in last(Follower(tmp_path)).alarms}
    assert states["squeezing"].threshold == 0.9


def test_plain_lines_tell_each_probe_once_over_phases_and_resumes(
    tmp_path: Path, rows: list[bytes]
) -> None:
    lines, source = PlainLines(), Recorded(write(tmp_path, rows[:6]))
    told = [line for view in source.views() for line in lines.fresh(view)]
    write(tmp_path, rows[6:], "ab")
    told += [line for view in source.views() for line in lines.fresh(view)]
    numbered = [line for line in told if line.startswith("forcegauge step")]
    assert len(numbered) == len(set(numbered)) == 22
    assert numbered[-1].startswith("forcegauge step 44: squeezing since 26 | chosen -0.51")
    assert told[-1] == "forcegauge: the run has ended: finished"
    assert any("Stop before the chosen answers fall too" in line for line in told)
