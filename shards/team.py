"""Who makes a store beside this process: the ranks of one job, which meet; or shares of the work, which never do."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

T = TypeVar("T")
LOOK = 2.0  # seconds between two looks at what another share is to do first
SHARE = re.compile(r"(\d+)/(\d+)")


class Team(Protocol):
    """This process among the ranks of a job."""

    @property
    def rank(self) -> int: ...

    @property
    def world(self) -> int: ...

    def barrier(self) -> None: ...


@dataclass(frozen=True)
class Alone:
    """The team of one."""

    rank: int = 0
    world: int = 1

    def barrier(self) -> None:
        return


@dataclass(frozen=True)
class Share:
    """One of `count` jobs that make a store together and never meet, as the tasks of an array of a cluster's queue.

    Each has the shards whose number leaves `number` when divided by `count`: nothing is claimed, and a share that was
    killed is started again under its number. Share 0 prepares the store. The last to end completes it.
    """

    number: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str | None) -> Share:
        """K/N, N shares counted from 0. Raises ValueError on anything else."""
        if text is None:
            return cls()
        found = SHARE.fullmatch(text)
        if not found or int(found[1]) >= int(found[2]):
            raise ValueError(f"store.share={text}: write K/N, as 0/16, 1/16 ... 15/16 for sixteen shares")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def has(self, shard: int) -> bool:
        return shard % self.count == self.number

    def wait(self, ready: Callable[[], bool], *, say: Callable[[str], None]) -> None:
        """Returns when share 0 has prepared the store, which this one looks for on the disk."""
        if not ready():
            say(f"share {self}: waits for share 0/{self.count} to prepare the store")
        while not ready():
            time.sleep(LOOK)


class Unfinished(Exception):
    """A share is done, others are not: the store is not complete yet."""
