"""Probe sets from training examples: prompts by seed, other answers of like length."""

import re
from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forcegauge.build import build_probes, random_words, shuffled, split_tail
from forcegauge.errors import InputError
from forcegauge.pairs_input import Pair, Pairs
from forcegauge.probes import Probe, ProbeSet

WORDS = ["tea", "rain", "maps", "wool"]


def pair(index: int, chosen: str, prompt: str | None = None, **more: str) -> Pair:
    return Pair(
        f"line-{index + 1}", index, prompt or f"Question {index}?", {"chosen": chosen, **more}
    )


def answers(count: int, seed: int = 0) -> list[Pair]:
    """Examples whose answers have 3 to 40 words."""
    rng = Random(seed)
    return [
        pair(i, " ".join(rng.choices(WORDS, k=rng.randint(3, 40))) + f" {i}") for i in range(count)
    ]


def column(probe_set: ProbeSet, name: str) -> list[str]:
    return [probe.responses[name] for probe in probe_set.probes]


def owner(training: list[Pair]) -> dict[str, str]:
    return {one.chosen: one.id for one in training}


def test_the_same_input_and_seed_give_the_same_probes() -> None:
    training, held_out = answers(80)[:50], answers(80)[50:]
    one = build_probes(training, held_out, n=8, seed=3)
    assert one == build_probes(training, held_out, n=8, seed=3)


def test_another_seed_asks_other_prompts() -> None:
    one, other = (build_probes(answers(50), n=8, seed=seed) for seed in (0, 1))
    assert {probe.id for probe in one.probes} != {probe.id for probe in other.probes}


def test_a_larger_set_has_the_smaller_one_in_it() -> None:
    training = answers(50)
    small, large = (build_probes(training, n=n) for n in (4, 50))
    texts = {probe.id: probe.responses["shuffled"] for probe in large.probes}
    assert all(texts[probe.id] == probe.responses["shuffled"] for probe in small.probes)


def test_probes_come_in_the_order_of_the_data_and_ask_each_prompt_once() -> None:
    training = [pair(0, "one"), pair(1, "two"), pair(2, "three", prompt="Question 0?")]
    probe_set = build_probes(training, n=64)
    assert [probe.prompt for probe in probe_set.probes] == ["Question 0?", "Question 1?"]


def test_given_answers_are_kept_in_reading_order() -> None:
    given_texts = {"unrelated": "u", "rejected": "r", "chosen_rephrase": "c"}
    (probe,) = build_probes([pair(0, "a b", **given_texts)]).probes
    assert list(probe.responses) == [
        "chosen", "rejected", "chosen_rephrase", "unrelated", "shuffled", "random_words"
    ]  # fmt: skip


@pytest.mark.parametrize("count", [2, 3, 4, 5, 20, 21, 99])
def test_other_prompt_is_a_derangement_of_the_training_answers(count: int) -> None:
    training = answers(count)
    probe_set = build_probes(training, n=count)
    donors = [owner(training)[text] for text in column(probe_set, "other_prompt")]
    assert sorted(donors) == sorted(one.id for one in training)
    assert all(donor != probe.id for donor, probe in zip(donors, probe_set.probes, strict=True))


def test_other_prompt_has_about_the_length_of_chosen() -> None:
    probe_set = build_probes(answers(400), n=64)
    lengths = [
        (len(probe.responses["chosen"]), len(probe.responses["other_prompt"]))
        for probe in probe_set.probes
    ]
    assert all(abs(own - other) <= max(2, own / 4) for own, other in lengths)


def test_the_seed_chooses_the_derangement_among_answers_of_one_length() -> None:
    training = [pair(i, f"answer {i:02}") for i in range(30)]
    one, other = (build_probes(training, n=30, seed=seed) for seed in (0, 1))
    assert column(one, "other_prompt") != column(other, "other_prompt")


def test_other_prompt_is_never_an_answer_of_the_own_prompt_even_when_texts_repeat() -> None:
    training = [pair(i, text) for i, text in enumerate(["Yes.", "Yes.", "Yes.", "No."])]
    for probe in build_probes(training, n=4).probes:
        assert probe.responses["other_prompt"] != probe.responses["chosen"]


def test_where_texts_repeat_other_prompt_still_has_about_the_length_of_chosen() -> None:
    short = [pair(i, "Yes." if i % 2 else f"No {i}.") for i in range(60)]
    long = [pair(60 + i, "tea " * 50 + str(i)) for i in range(20)]
    for probe in build_probes([*short, *long], n=80).probes:
        own, other = probe.responses["chosen"], probe.responses["other_prompt"]
        assert (len(own) > 20) == (len(other) > 20)


def test_other_prompt_is_not_the_own_rejected_answer_nor_one_in_another_row() -> None:
    training = [
        pair(0, "aa", rejected="bb"),
        pair(1, "bb"),
        pair(2, "cc", prompt="Question 0?"),
        pair(3, "cc"),
        pair(4, "a long answer"),
    ]
    probes = {probe.id: probe for probe in build_probes(training).probes}
    assert probes["line-1"].responses["other_prompt"] == "a long answer"


def test_a_type_that_cannot_be_made_is_left_out() -> None:
    (probe,) = build_probes([pair(0, "Yes.")]).probes
    assert set(probe.responses) == {"chosen", "random_words"}


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("pqrs")), min_size=1))
def test_no_probe_ever_gets_an_answer_of_its_own_prompt(rows: list[tuple[str, str]]) -> None:
    training = [pair(i, text * 3, prompt=prompt) for i, (text, prompt) in enumerate(rows)]
    firsts = {one.prompt: one.chosen for one in reversed(training)}
    own: dict[object, set[str]] = {}
    for one in training:
        own.setdefault(one.prompt, set()).add(one.chosen)
    for probe in build_probes(training).probes:
        others = set(firsts.values()) - own[probe.prompt]
        assert ("other_prompt" in probe.responses) == bool(others)
        assert probe.responses.get("other_prompt") not in own[probe.prompt]


def test_unseen_prompt_is_a_held_out_answer_of_about_the_length_of_chosen() -> None:
    held_out = [pair(i, one.chosen + " x", f"New {i}?") for i, one in enumerate(answers(300, 1))]
    probe_set = build_probes(answers(100), held_out, n=32)
    texts = column(probe_set, "unseen_prompt")
    assert set(texts) <= {one.chosen for one in held_out}
    assert len(set(texts)) == 32
    lengths = zip(map(len, column(probe_set, "chosen")), map(len, texts), strict=True)
    assert all(abs(own - other) <= max(2, own / 4) for own, other in lengths)


def test_a_held_out_prompt_or_answer_that_is_trained_on_is_not_unseen() -> None:
    training = [pair(0, "aa", rejected="bb"), pair(1, "cc")]
    held_out = [
        pair(0, "new", prompt="Question 1?"),
        pair(1, "bb", prompt="New?"),
        pair(2, "dd", prompt="Newer?"),
    ]
    assert column(build_probes(training, held_out), "unseen_prompt") == ["dd", "dd"]


def test_held_out_prompts_that_are_all_trained_on_are_an_error() -> None:
    with pytest.raises(InputError, match="every held-out prompt or its answer is trained on"):
        build_probes(answers(5), answers(5))


def test_the_held_out_share_is_cut_where_datasets_cut_it() -> None:
    rows = tuple(one for one in answers(10) if one.row != 8)
    training, held_out = split_tail(Pairs(rows, 10, {}), 0.2)
    assert [one.row for one in training] == list(range(8))
    assert [one.row for one in held_out] == [9]


@pytest.mark.parametrize("share", [0.01, 0.99])
def test_a_share_that_leaves_a_part_empty_is_an_error(share: float) -> None:
    with pytest.raises(InputError, match="leaves one part empty"):
        split_tail(Pairs(tuple(answers(10)), 10, {}), share)


@given(st.text(min_size=1), st.integers())
def test_shuffled_has_the_same_words_and_white_space_in_another_order(text: str, seed: int) -> None:
    found = shuffled(text, Random(seed))
    if found is None:
        assert len(set(text.split())) <= 1 or not text.split()
    else:
        assert found != text
        assert Counter(found) == Counter(text)
        assert re.findall(r"\s", found) == re.findall(r"\s", text)


def test_shuffled_keeps_the_space_in_front_and_the_lines() -> None:
    assert shuffled(" one\ntwo", Random(0)) == " two\none"


def test_scripts_without_spaces_are_shuffled_by_character() -> None:
    found = shuffled("天空是蓝色的。", Random(0))
    assert found != "天空是蓝色的。"
    assert Counter(found or "") == Counter("天空是蓝色的。")


def test_random_words_have_the_number_of_words_of_chosen_and_come_from_the_data() -> None:
    training = answers(20)
    known = {word for one in training for word in one.chosen.split()}
    for probe in build_probes(training).probes:
        words = probe.responses["random_words"].split()
        assert len(words) == len(probe.responses["chosen"].split())
        assert set(words) <= known


def test_random_words_keep_white_space_in_place() -> None:
    assert random_words(" a\n b", ["x"], Random(0)) == " x\n x"


def test_messages_are_asked_as_they_are() -> None:
    message = {"role": "user", "content": "Why?"}
    (probe,) = build_probes([Pair("line-1", 0, (message,), {"chosen": "a"})]).probes
    assert probe == Probe("line-1", (message,), {"chosen": "a", "random_words": "a"})
