"""Ranks as threads of one process: what several ranks do together, without a launcher."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from shards.ranks import Ranks

Result = TypeVar("Result")


class Meeting:
    """Where the ranks of one job add up what each brings."""

    def __init__(self, world: int) -> None:
        self.barrier, self.brought = threading.Barrier(world, timeout=60), [torch.zeros(0)] * world

    def add(self, rank: int, tensor: Tensor) -> Tensor:
        self.brought[rank] = tensor.clone()
        self.barrier.wait()
        tensor.copy_(torch.stack(self.brought).sum(0))
        self.barrier.wait()
        return tensor


@dataclass(frozen=True)
class ThreadRanks(Ranks):
    meeting: Meeting | None = None

    def sum_(self, tensor: Tensor) -> Tensor:
        assert self.meeting is not None
        return self.meeting.add(self.rank, tensor)

    def barrier(self) -> None:
        self.sum_(torch.zeros(1))


def together(world: int, work: Callable[[Ranks], Result]) -> list[Result]:
    """What each rank's `work` returns."""
    meeting = Meeting(world)
    with ThreadPoolExecutor(world) as pool:
        ranks = [ThreadRanks(rank, world, meeting=meeting) for rank in range(world)]
        return list(pool.map(work, ranks))
