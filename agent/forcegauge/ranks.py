"""What the ranks of torch.distributed have to do together; without it, there is one rank."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NoReturn, TypeVar

import torch
from torch import distributed, nn

T = TypeVar("T")


class RankError(Exception):
    """Something failed on some rank, and so it fails on all."""


class RankMemoryError(RankError, torch.OutOfMemoryError):
    """The same where a rank was out of memory."""


@dataclass(frozen=True)
class _Failure:
    rank: int
    message: str
    memory: bool


@dataclass(frozen=True)
class Ranks:
    """This process's ``rank`` among ``count``, which all make the same calls in the same order.

    There is one kind of exchange, and what a rank has to say in it may be that it failed: however
    far the others are by then, they hear of it in their next exchange and fail too. So none waits
    for one that is not coming. It takes the default process group and no other: a second one
    would have communicators and buffers of its own, and collectives of two groups may cross.
    """

    rank: int = 0
    count: int = 1

    def gathered(self, value: T) -> list[T]:
        """Every rank's value, in their order. Raises `RankError` where one has failed."""
        said = self._exchange(value)
        failed = [each for each in said if isinstance(each, _Failure)]
        if failed:
            _fail(failed)
        return said

    def agreed(self, value: T) -> T:
        """Rank 0's value, on every rank. Raises as `gathered` does."""
        said: list[Any] = self.gathered(value if self.rank == 0 else None)
        found: T = said[0]
        return found

    def meet(self) -> None:
        """All ranks are here. Raises `RankError` where one failed on its way. To be called before
        whatever catches that error and goes on, lest some go on without the others."""
        self.gathered(None)

    @contextmanager
    def together(self, model: nn.Module | None = None) -> Iterator[None]:
        """What is done inside succeeds on all ranks, or raises `RankError` on all of them.

        Each forward of ``model`` inside begins with an exchange, so that none begins where a rank
        is missing: under FSDP the forward itself waits for all. Alone, it does nothing.
        """
        if self.count == 1:
            yield
            return
        try:
            with self._meeting(model):
                yield
        except RankError:
            raise
        except Exception as error:  # noqa: BLE001
            self._tell(error)
        self.meet()

    @contextmanager
    def _meeting(self, model: nn.Module | None) -> Iterator[None]:
        if model is None:
            yield
            return
        # first of all hooks: before those that gather weights
        handle = model.register_forward_pre_hook(lambda *_: self.meet(), prepend=True)
        try:
            yield
        finally:
            handle.remove()

    def _tell(self, error: Exception) -> NoReturn:
        memory = isinstance(error, torch.OutOfMemoryError)
        mine = _Failure(self.rank, f"{type(error).__name__}: {error}", memory)
        failed = [each for each in self._exchange(mine) if isinstance(each, _Failure)]
        _fail(failed, error)

    def _exchange(self, value: Any) -> list[Any]:
        if self.count == 1:
            return [value]
        said: list[Any] = [None] * self.count
        distributed.all_gather_object(said, value)
        return said


def _fail(failed: list[_Failure], cause: Exception | None = None) -> NoReturn:
    kind = RankMemoryError if any(each.memory for each in failed) else RankError
    ranks = ", ".join(str(each.rank) for each in failed)
    raise kind(f"{failed[0].message} (rank {ranks})") from cause


ALONE = Ranks()


def everyone() -> Ranks:
    """All ranks of the default process group."""
    if not distributed.is_available() or not distributed.is_initialized():
        return ALONE
    return Ranks(distributed.get_rank(), distributed.get_world_size())


def rank() -> int:
    """This process's global rank."""
    return everyone().rank


def agreed(value: T) -> T:
    """Rank 0's value, on every rank: all of them have to call."""
    return everyone().agreed(value)


def mean_of(values: Mapping[str, float]) -> dict[str, float]:
    """Each number's mean over the ranks that have it: all of them have to call."""
    said = everyone().gathered(values)
    names = dict.fromkeys(name for each in said for name in each)
    return {name: fmean(each[name] for each in said if name in each) for name in names}
