"""Work done ahead of its consumer, in threads, in order, within bounds; and memory that is used again."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from math import prod
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

T = TypeVar("T")
R = TypeVar("R")


def prefetch(
    tasks: Iterable[T], work: Callable[[T], R], *, threads: int = 2, ahead: int = 2
) -> Generator[R, None, None]:
    """Yields work(task) for every task, in order, while `threads` threads compute at most `ahead` results in advance.

    An exception of `work` is raised in the consumer, at its task's turn. Closing the generator (also by leaving the
    loop and dropping it) waits for the tasks under way and drops the rest.
    """
    remaining = iter(tasks)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="prefetch")
    try:
        pending: deque[Future[R]] = deque(pool.submit(work, task) for task in islice(remaining, max(ahead, threads)))
        while pending:
            result = pending.popleft().result()
            pending.extend(pool.submit(work, task) for task in islice(remaining, 1))
            yield result
            del result  # so that the consumer alone decides how long its memory lives
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class Behind:
    """One thread that works behind its producer, in order: a task waits while the next is made, and no more than one.

    A context. Left without an error it has done everything; an exception of a task is raised at the next call, or then.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="behind")
        self._last: Future[None] | None = None

    def do(self, work: Callable[[], None]) -> None:
        """Starts `work` once the one before is done."""
        self.wait()
        self._last = self._pool.submit(work)

    def wait(self) -> None:
        """Returns when everything is done."""
        if self._last is not None:
            last, self._last = self._last, None
            last.result()

    def __enter__(self) -> Behind:
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        self._pool.shutdown(wait=True)
        if kind is None:
            self.wait()


class Memory:
    """CPU tensors whose memory is used again once nobody refers to it.

    Fresh pages cost more than decoding into them. A block is taken again only when every tensor on it is gone, so what
    a consumer keeps stays as it is.
    """

    def __init__(self, blocks: int = 8) -> None:
        self._blocks: list[np.ndarray] = []
        self._limit = blocks
        self._lock = threading.Lock()

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """An uninitialised tensor."""
        size = prod(shape) * dtype.itemsize
        with self._lock:
            for index in range(len(self._blocks)):
                # two references: the list and the argument of getrefcount. A tensor on the block holds a third.
                if self._blocks[index].size == size and sys.getrefcount(self._blocks[index]) <= 2:
                    return torch.from_numpy(self._blocks[index]).view(dtype).view(shape)
            block = np.empty(size, dtype=np.uint8)
            self._blocks.append(block)
            if len(self._blocks) > self._limit:
                self._blocks.pop(0)  # its tensors keep it alive; it is not used again
            return torch.from_numpy(block).view(dtype).view(shape)
