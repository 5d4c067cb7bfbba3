"""Who makes a store beside this process: the ranks of one job, which meet; or shares of the work, which never do."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from shards.disk import StoreError, Writing

T = TypeVar("T")
PATIENCE = 6 * 3600  # seconds that a share waits for share 0
LOOK = 2.0  # seconds between two looks at what another share is to do first
SHARE = re.compile(r"(\d+)/(\d+)")


class Team(Protocol):
    """This process among the ranks of a job."""

    @property
    def rank(self) -> int: ...

    @property
    def world(self) -> int: ...

    def barrier(self) -> None: ...

    def text(self, text: str | None) -> str:
        """Rank 0's text, on every rank."""
        ...


@dataclass(frozen=True)
class Alone:
    """The team of one."""

    rank: int = 0
    world: int = 1

    def barrier(self) -> None:
        return

    def text(self, text: str | None) -> str:
        return text or ""


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
        """Returns when share 0 has prepared the store, which this one looks for on the disk. Raises TimeoutError."""
        start = time.monotonic()
        if not ready():
            say(f"share {self}: waits for share 0/{self.count} to prepare the store")
        while not ready():
            if time.monotonic() - start > PATIENCE:
                raise TimeoutError(
                    f"share {self}: share 0/{self.count} has not prepared the store in {PATIENCE / 3600:g} h; start it"
                )
            time.sleep(LOOK)


class Unfinished(Exception):
    """A share is done, others are not: the store is not complete yet."""


def hold(root: Path, team: Team, held: ExitStack, *, shared: bool) -> Writing | None:
    """Rank 0 holds the store while this pass writes it. Where it cannot, all ranks raise the StoreError."""
    problem, writing = "", None
    if team.rank == 0:
        if not root.exists():
            root.mkdir(parents=True, exist_ok=True)
            held.callback(remove_empty, root)  # after a pass that was refused
        try:
            writing = held.enter_context(Writing(root, shared=shared))
        except StoreError as error:
            problem = str(error)
    if problem := team.text(problem):
        raise StoreError(problem)
    return writing


def remove_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()
