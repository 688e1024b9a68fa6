"""A pass dealt to ranks: nothing twice, nothing left out; and what ranks say to each other."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from forcegauge import ranks as together
from forcegauge import ways
from forcegauge.encoding import TokenSequence, encode_probes
from forcegauge.head import head_of
from forcegauge.ranks import ALONE, RankError, RankMemoryError, Ranks
from forcegauge.sharding import merged, shares
from forcegauge.ways import Choice
from tests import tiny


@pytest.fixture
def sequences() -> list[TokenSequence]:
    return encode_probes(tiny.probe_set(5), tiny.tokenizer())


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_every_token_is_dealt_to_one_rank(count: int, sequences: list[TokenSequence]) -> None:
    parts = shares(sequences, count)
    tokens = sum(len(item.response) for item in sequences)
    assert sorted(np.concatenate([part.slots for part in parts])) == list(range(tokens))
    found = [
        {"logprob": part.slots.astype(np.float32)} if len(part.slots) else {} for part in parts
    ]
    np.testing.assert_array_equal(merged(parts, found)["logprob"], np.arange(tokens))


def test_a_probe_is_dealt_whole_and_ranks_get_like_shares(sequences: list[TokenSequence]) -> None:
    parts = shares(sequences, 2)
    probes = [{item.probe for item in part.sequences} for part in parts]
    assert not probes[0] & probes[1]
    assert abs(len(parts[0].slots) - len(parts[1].slots)) < 0.35 * len(parts[0].slots)


@pytest.mark.parametrize("way", ["shared", "cached", "padded", "single"])
def test_forwards_are_counted_as_they_run(way: ways.Way, sequences: list[TokenSequence]) -> None:
    model, calls = tiny.llama().eval(), []
    handle = model.register_forward_hook(lambda *_: calls.append(1))
    choice = Choice(way, "head", 100)
    with torch.no_grad():
        for batch in ways.batches(way, sequences, 100):
            ways.run(model, head_of(model), batch, "head")
    handle.remove()
    assert len(calls) == ways.forwards(choice, sequences)


class Table:
    """Ranks as threads: an exchange ends when all have spoken."""

    def __init__(self, count: int) -> None:
        self.said: list[Any] = [None] * count
        self.barrier = threading.Barrier(count, timeout=10)

    def exchange(self, own: Ranks, value: Any) -> list[Any]:
        self.said[own.rank] = value
        self.barrier.wait()
        heard = list(self.said)
        self.barrier.wait()
        return heard


def run(count: int, act: Callable[[Ranks], Any], monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What each rank returns, or the error that it raises."""
    table, found = Table(count), [None] * count
    monkeypatch.setattr(together.Ranks, "_exchange", lambda own, value: table.exchange(own, value))

    def one(rank: int) -> None:
        try:
            found[rank] = act(Ranks(rank, count))
        except Exception as error:  # noqa: BLE001
            found[rank] = error  # type: ignore[call-overload]

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return found


def test_values_are_heard_in_the_order_of_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(3, lambda own: own.gathered(own.rank), monkeypatch) == [[0, 1, 2]] * 3
    assert run(3, lambda own: own.agreed(own.rank + 7), monkeypatch) == [7] * 3


@pytest.mark.parametrize(
    ("error", "kind"),
    [(OSError("torn"), RankError), (torch.OutOfMemoryError("no room"), RankMemoryError)],
)
def test_a_failure_on_a_rank_ends_all_at_their_next_exchange(
    error: Exception, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def act(own: Ranks) -> None:
        with own.together():
            for turn in range(3):
                own.meet()
                if (own.rank, turn) == (1, 1):
                    raise error

    found = run(3, act, monkeypatch)
    assert [type(each) for each in found] == [kind] * 3
    assert str(error) in str(found[0])
    assert "(rank 1)" in str(found[0])


def test_alone_nothing_is_caught_or_changed() -> None:
    with pytest.raises(OSError, match="torn"), ALONE.together():
        raise OSError("torn")
    assert ALONE.gathered(3) == [3]
