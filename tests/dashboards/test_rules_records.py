"""What is recorded: one series of a run, whichever process it ran in."""

from __future__ import annotations

from pathlib import Path

import pytest

from forcegauge_monitor.rules import RECORDS
from tests.dashboards.promtool.case import AGAIN, AGENT, TWIN, missing, named, values
from tests.dashboards.promtool.running import recorded

pytestmark = pytest.mark.slow

ONE, OTHER = (f'cluster="{cluster}",namespace="n",run="r"' for cluster in ("c1", "c2"))


def test_a_run_is_recorded_by_cluster_through_a_restart_and_a_gap(tmp_path: Path) -> None:
    before, after, gap = "3x4 stale", values(missing(6), (4, 3), missing(3)), "0x7 stale _x3"
    series = {
        named("probe_step", AGENT): before,
        named("probe_step", AGAIN): after,
        named("squeeze_nats", TWIN): "0.5x9 stale",
        named("run_state", TWIN, state="learning"): "1x20",
        named("run_state", TWIN, state="squeezing"): gap,
        named("alarm_streak", AGENT, alarm="repeater"): "3x20",
        named("alarm_streak_needed", AGENT, alarm="repeater"): "3x20",
        named("alarm_streak", AGENT, alarm="eos_loss"): "2x20",
        named("alarm_streak_needed", AGENT, alarm="eos_loss"): "3x20",
    }
    samples = {
        f"run:forcegauge_probe_step:max{{{ONE}}}": 4.0,
        f"run:forcegauge_squeeze_nats:max{{{OTHER}}}": 0.5,
        f'run:forcegauge_run_state:max{{{OTHER},state="learning"}}': 1.0,
        f'run:forcegauge_run_state:max{{{OTHER},state="squeezing"}}': 0.0,
        f'run:forcegauge_alarm_on:max{{{ONE},alarm="repeater"}}': 1.0,
        f'run:forcegauge_alarm_on:max{{{ONE},alarm="eos_loss"}}': 0.0,
    }
    assert recorded(tmp_path, RECORDS, series, samples) == ""


def test_what_is_gone_for_over_five_minutes_is_recorded_no_more(tmp_path: Path) -> None:
    gone = dict.fromkeys((named("probe_step", AGENT), named("squeeze_nats", AGENT)), "3x4 stale")
    assert recorded(tmp_path, RECORDS, gone, {}) == ""
