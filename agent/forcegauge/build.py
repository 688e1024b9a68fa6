"""A probe set from training examples: prompts chosen by seed, other answers made for each."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random

from forcegauge.errors import InputError
from forcegauge.pairs_input import Pair, Pairs
from forcegauge.probes import RESPONSE_TYPES, Probe, ProbeSet

POOL = 16
"""Answers to other prompts are looked for among this many training prompts for each probe."""

CLOSE = 4
"""Length classes (each about an eighth longer) between answers that swap if others can be had."""

# Scripts without spaces between words: there every character counts as a word.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")


@dataclass(frozen=True)
class _Answers:
    """Every answer of the training data, by prompt: none of a probe's own may stand for another."""

    by_prompt: Mapping[str, frozenset[str]]

    def fits(self, own: Pair, other: Pair) -> bool:
        """Whether the other's chosen answer can be an answer of another prompt to `own`."""
        return other.chosen not in self.by_prompt[own.prompt_key]


def build_probes(
    training: Sequence[Pair], held_out: Sequence[Pair] = (), *, n: int = 64, seed: int = 0
) -> ProbeSet:
    """Probes that ask `n` training prompts (all, if there are fewer); equal input, equal bytes.

    ``other_prompt`` is a derangement over training answers of like length, ``unseen_prompt`` the
    answer of a held-out prompt of like length. A type that a probe cannot have is left out of it.
    Raises `InputError` when the held-out prompts are all trained on.
    """
    rows = _one_per_prompt(training)
    pool = Random(f"{seed}/prompts").sample(rows, min(len(rows), n * POOL))
    asked = sorted(pool[:n], key=lambda pair: pair.row)
    answers = _answers(training)
    other = _derangement(asked, pool, answers, Random(f"{seed}/other_prompt"))
    unseen = _unseen(asked, held_out, answers, Random(f"{seed}/unseen_prompt"))
    words = sorted({word for pair in training for word in _words(pair.responses.values())})
    return ProbeSet(tuple(_probe(pair, other, unseen, words, seed) for pair in asked))


def split_tail(source: Pairs, share: float) -> tuple[list[Pair], list[Pair]]:
    """Training and held-out part: the last `share` (between 0 and 1) of the rows is held out.

    Cut where ``train[:90%]`` cuts a dataset, so that a trainer can do the same. Raises `InputError`
    when either part would be empty.
    """
    cut = round(source.rows * (1 - share))
    training = [pair for pair in source.pairs if pair.row < cut]
    held_out = [pair for pair in source.pairs if pair.row >= cut]
    if not training or not held_out:
        problem = f"a share of {share:g} of {source.rows} rows leaves one part empty"
        raise InputError(problem, fix="Give another share", field="--held-out")
    return training, held_out


def _one_per_prompt(pairs: Sequence[Pair]) -> list[Pair]:
    firsts: dict[str, Pair] = {}
    for pair in pairs:
        firsts.setdefault(pair.prompt_key, pair)
    return list(firsts.values())


def _answers(training: Sequence[Pair]) -> _Answers:
    by_prompt: dict[str, set[str]] = defaultdict(set)
    for pair in training:
        by_prompt[pair.prompt_key].update(pair.responses.values())
    return _Answers({key: frozenset(texts) for key, texts in by_prompt.items()})


def _probe(
    pair: Pair,
    other: Mapping[str, str],
    unseen: Mapping[str, str],
    words: Sequence[str],
    seed: int,
) -> Probe:
    texts: dict[str, str | None] = {
        **pair.responses,
        "other_prompt": other.get(pair.id),
        "unseen_prompt": unseen.get(pair.id),
        "shuffled": shuffled(pair.chosen, Random(f"{seed}/shuffled/{pair.id}")),
        "random_words": random_words(pair.chosen, words, Random(f"{seed}/random_words/{pair.id}")),
    }
    responses = {name: text for name in RESPONSE_TYPES if (text := texts.get(name))}
    return Probe(pair.id, pair.prompt, responses)


def _derangement(
    asked: Sequence[Pair], pool: Sequence[Pair], answers: _Answers, rng: Random
) -> dict[str, str]:
    """Probe id -> chosen answer of another prompt, each text used once, where the data allow it.

    Neighbours by length swap answers; one that is left over (an odd number) joins the swap of
    others. Where a text repeats, its other prompts take the fitting answers nearest in length.
    """
    distinct = list({pair.chosen: pair for pair in reversed(pool)}.values())
    order = sorted(distinct, key=lambda pair: (_size(pair), rng.random()))
    donor: dict[str, Pair] = {}
    for classes in (CLOSE, math.inf):
        _swap(order, donor, answers, classes)
        for pair in order:
            if pair.id not in donor:
                _join(pair, order, donor, answers)
    uses: Counter[str] = Counter()
    for pair in asked:
        fitting = [] if pair.id in donor else [one for one in order if answers.fits(pair, one)]
        if fitting:
            donor[pair.id] = _nearest(pair, fitting, uses)
    return {key: pair.chosen for key, pair in donor.items()}


def _nearest(pair: Pair, others: Sequence[Pair], uses: Counter[str]) -> Pair:
    """The one whose answer is nearest in length; being used before counts as two classes off."""
    size = _size(pair)
    found = min(others, key=lambda one: abs(size - _size(one)) + 2 * uses[one.id])
    uses[found.id] += 1
    return found


def _swap(order: Sequence[Pair], donor: dict[str, Pair], answers: _Answers, classes: float) -> None:
    """Let pairs without donor swap answers with the next such one at most `classes` longer."""
    for index, pair in enumerate(order):
        if pair.id in donor:
            continue
        for mate in islice(order, index + 1, None):
            if _size(mate) > _size(pair) + classes:
                break
            if mate.id not in donor and answers.fits(pair, mate) and answers.fits(mate, pair):
                donor[pair.id], donor[mate.id] = mate, pair
                break


def _join(pair: Pair, order: Sequence[Pair], donor: dict[str, Pair], answers: _Answers) -> None:
    """Let the nearest giver that has a donor give that one up and take the pair's answer."""
    for giver in sorted(order, key=lambda one: abs(len(pair.chosen) - len(one.chosen))):
        taken = donor.get(giver.id)
        if taken and answers.fits(giver, pair) and answers.fits(pair, taken):
            donor[giver.id], donor[pair.id] = pair, taken
            return


def _unseen(
    asked: Sequence[Pair], held_out: Sequence[Pair], answers: _Answers, rng: Random
) -> dict[str, str]:
    """Probe id -> chosen answer of a prompt that is not trained on, nor is the answer."""
    trained = frozenset(text for texts in answers.by_prompt.values() for text in texts)
    new = [pair for pair in _one_per_prompt(held_out) if pair.prompt_key not in answers.by_prompt]
    fresh = list({pair.chosen: pair for pair in new if pair.chosen not in trained}.values())
    if held_out and not fresh:
        fix = "Hold out prompts that are not trained on"
        raise InputError("every held-out prompt or its answer is trained on", fix=fix)
    others = rng.sample(fresh, min(len(fresh), len(asked) * POOL))
    uses: Counter[str] = Counter()
    return {pair.id: _nearest(pair, others, uses).chosen for pair in asked if others}


def _size(pair: Pair) -> int:
    """Length class of the chosen answer: lengths in one class differ by about an eighth."""
    return math.floor(math.log(len(pair.chosen)) * 8)


def _words(texts: Iterable[str]) -> set[str]:
    return {word for text in texts for word in _WORD.findall(text)}


def shuffled(text: str, rng: Random) -> str | None:
    """The text with its words in another order, white space in place; None if there is no other."""
    words = _WORD.findall(text)
    if len(set(words)) < 2:
        return None
    order = words
    while order == words:
        order = rng.sample(words, len(words))
    return _filled(text, order)


def random_words(text: str, words: Sequence[str], rng: Random) -> str:
    """The text with each word replaced by one of `words` drawn at random, white space in place."""
    return _filled(text, rng.choices(words, k=len(_WORD.findall(text))))


def _filled(text: str, words: Iterable[str]) -> str:
    left = iter(words)
    return _WORD.sub(lambda _: next(left), text)
