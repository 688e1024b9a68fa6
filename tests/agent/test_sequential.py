"""CUSUM, EWMA and Page-Hinkley against their definitions, and what each of them is blind to."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forcegauge.sequential import Cusum, Ewma, PageHinkley, standardised

levels = st.lists(st.floats(-5, 5), min_size=1, max_size=40)


@given(levels, st.floats(0, 2))
def test_cusum_is_the_largest_sum_of_a_run_of_levels_that_ends_now(
    series: list[float], slack: float
) -> None:
    cusum = Cusum(slack)
    for step, z in enumerate(series, start=1):
        found = cusum.update(z, step, 1)
    tails = [sum(z - slack for z in series[start:]) for start in range(len(series))]
    assert found == pytest.approx(max(0.0, *tails), abs=1e-9)


def test_cusum_says_at_which_step_the_drift_began() -> None:
    cusum = Cusum(0.5)
    for step, z in enumerate([0.1, 0.2, 2.0, 2.0], start=1):
        cusum.update(z, 5 * step, 5)
    assert cusum.since == 15
    cusum.update(-20.0, 25, 5)
    assert cusum.since is None


@given(st.floats(-3, 3))
def test_a_held_level_counts_the_same_at_every_probe_spacing(z: float) -> None:
    dense, sparse = (Cusum(), Ewma(), PageHinkley()), (Cusum(), Ewma(), PageHinkley())
    for step in range(1, 13):
        dense_found = _update(dense, z, step, 1)
        sparse_found = _update(sparse, z, step, 3) if step % 3 == 0 else ()
    assert sparse_found == pytest.approx(dense_found, abs=1e-9)


def _update(three: tuple[Cusum, Ewma, PageHinkley], z: float, step: int, n: int) -> list[float]:
    cusum, ewma, hinkley = three
    return [cusum.update(z, step, n), ewma.update(z, n), hinkley.update(z, n)]


def test_ewma_of_independent_levels_has_the_sigma_that_it_names() -> None:
    ewma = Ewma(0.2)
    draws = np.random.default_rng(0).normal(size=20_000)
    means = [ewma.update(float(z), 1) for z in draws]
    assert np.std(means[100:]) == pytest.approx(ewma.sigma, rel=0.05)


@given(levels, st.floats(0, 1))
def test_page_hinkley_is_the_rise_of_its_sum_above_its_lowest(
    series: list[float], slack: float
) -> None:
    hinkley = PageHinkley(slack)
    found = [hinkley.update(z, 1) for z in series]
    means = np.cumsum(series) / np.arange(1, len(series) + 1)
    sums = np.concatenate([[0.0], np.cumsum(np.array(series) - means - slack)])
    assert found[-1] == pytest.approx(sums[-1] - sums.min(), abs=1e-9)


def test_page_hinkley_never_sees_what_is_sick_from_the_start_and_cusum_does() -> None:
    cusum, hinkley = Cusum(), PageHinkley()
    for step in range(1, 100):
        found = cusum.update(5.0, step, 1), hinkley.update(5.0, 1)
    assert found[0] > 400
    assert found[1] == 0


def test_levels_that_are_not_finite_change_nothing() -> None:
    cusum, ewma, hinkley = Cusum(), Ewma(), PageHinkley()
    before = [_update((cusum, ewma, hinkley), 2.0, 1, 1)]
    for step, bad in enumerate((math.nan, math.inf, -math.inf), start=2):
        assert _update((cusum, ewma, hinkley), bad, step, 1) == before[0]


def test_sigma_is_never_under_the_noise_floor() -> None:
    assert standardised(1.0, 0.0, 0.1) == 10
    assert standardised(1.0, 0.5, 0.1) == 2
