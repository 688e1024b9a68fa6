"""What RL loses first: candidates along fixed responses, and what the sampled completions show."""

from __future__ import annotations

import numpy as np
import pytest

from forcegauge.errors import InputError
from forcegauge.rl import Samples, rl_signals
from forcegauge.scores import STATISTICS, Scores, TokenScores

TYPES = ("chosen", "rejected", "greedy")


def scores(top: list[list[float]], first: list[list[float]]) -> Scores:
    none = np.empty(0, np.int32)
    values = {name: np.zeros((2, 3)) for name in STATISTICS}
    values |= {"top_mass": np.array(top), "argmax_mass": np.array(first)}
    tokens = TokenScores(none, none, none, none.astype(np.int64), {})
    return Scores(("a", "b"), TYPES, values, tokens)


def test_candidates_mass_and_that_of_the_runners_up_are_means_over_probes() -> None:
    before = scores([[0.8, 0, 0.9], [0.6, 0, 0.9]], [[0.3, 0, 0.5], [0.2, 0, 0.5]])
    after = scores([[0.9, 0, 0.9], [0.9, 0, 0.9]], [[0.8, 0, 0.5], [0.7, 0, 0.5]])
    found = rl_signals(after, before)
    assert found["top_mass_chosen_ratio"] == pytest.approx(0.9)
    assert found["top_mass_change_chosen_ratio"] == pytest.approx(0.2)
    assert found["runner_up_mass_chosen_ratio"] == pytest.approx(0.15)
    assert found["runner_up_mass_change_chosen_ratio"] == pytest.approx(-0.3)
    assert found["top_mass_change_greedy_ratio"] == 0
    assert not [name for name in found if "rejected" in name]


def test_candidates_of_a_type_that_was_not_scored_are_absent() -> None:
    nan = float("nan")
    some = scores([[0.8, 0, nan], [nan, 0, nan]], [[0.3, 0, nan], [nan, 0, nan]])
    found = rl_signals(some, some)
    assert found["runner_up_mass_chosen_ratio"] == pytest.approx(0.5)
    assert not [name for name in found if "greedy" in name]


def test_prompts_agree_when_all_their_samples_are_the_same_tokens() -> None:
    samples = Samples()
    samples.add([[(1, 2), (1, 2), (1, 2)], [(1, 2), (1, 2), (1, 3)]])
    samples.add([[[5], [5]], [[5], [5, 5]]])
    assert samples.take()["sample_agreement_ratio"] == 2 / 4


def test_distinct_counts_pairs_of_neighbours_within_a_prompt() -> None:
    samples = Samples()
    samples.add([[(1, 2, 3), (1, 2, 4)], [(1, 2), (1, 2)]])
    # 12 23 24 of 12 23 12 24, and 12 of 12 12
    assert samples.take()["sample_distinct_ratio"] == pytest.approx((3 / 4 + 1 / 2) / 2)


def test_length_and_endings_are_means_over_completions() -> None:
    samples = Samples()
    samples.add([[(1, 2, 3), (1,)]], ended=[[True, False]])
    samples.add([[(1, 2), (1, 2)]], ended=[[True, True]])
    found = samples.take()
    assert found["sample_length_tokens"] == 2
    assert found["sample_ended_ratio"] == 3 / 4


def test_a_single_sample_tells_its_length_and_nothing_of_agreement() -> None:
    samples = Samples()
    samples.add([[(1, 2, 3)]])
    assert samples.take() == {"sample_length_tokens": 3}


def test_a_sample_that_is_not_known_counts_as_one_that_did_not_end() -> None:
    samples = Samples()
    samples.add([[(1, 2), (1, 2), ()]], ended=[[True, True, False]])
    found = samples.take()
    assert found["sample_length_tokens"] == 2
    assert found["sample_agreement_ratio"] == 1
    assert found["sample_ended_ratio"] == pytest.approx(2 / 3)


def test_a_reading_begins_anew() -> None:
    samples = Samples()
    samples.add([[(1,), (1,)]])
    samples.take()
    assert samples.take() == {}


def test_endings_of_another_shape_are_refused_whole() -> None:
    samples = Samples()
    with pytest.raises(InputError, match="ended"):
        samples.add([[(1,), (2,)]], ended=[[True]])
    assert samples.take() == {}
