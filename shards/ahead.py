"""Shards of a remote store that are fetched before they are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import product
from threading import Lock

from shards.disk import StoreError
from shards.order import SampleOrder
from shards.remote import Mirror


class Ahead:
    """Fetches the shards of the samples that come next, a window of shards beyond where reading is.

    shards: of every sample. Does nothing where the cache holds no two windows, for one would drive out the other. What
    cannot be fetched is no error here: it is one where it is read.
    """

    def __init__(
        self, mirror: Mirror, order: SampleOrder, *, shards: Sequence[int], columns: Sequence[str], window: int
    ) -> None:
        self._mirror, self._order, self._shards, self._columns = mirror, order, shards, columns
        of_a_shard = sum(max(mirror.size(column, shard) for shard in set(shards)) for column in columns)
        fits = mirror.limit is None or 2 * window * of_a_shard <= mirror.limit
        self._span = window * max(Counter(shards).values()) + 1 if fits else 0
        self._seen = 0
        self._under_way: set[tuple[str, int]] = set()
        self._lock = Lock()
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="ahead")

    def reach(self, position: int) -> None:
        """Reading is at this sample of the stream. Returns at once; safe to call from several threads."""
        with self._lock:
            start, self._seen = max(self._seen, position), max(self._seen, position + self._span)
            shards = dict.fromkeys(self._shards[sample] for sample in self._order.samples(start, self._seen))
            wanted = [place for place in product(self._columns, shards) if place not in self._under_way]
            self._under_way.update(wanted)
            for place in wanted:
                self._pool.submit(self._bring, place)

    def close(self) -> None:
        """Waits for what is under way, and drops the rest."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _bring(self, place: tuple[str, int]) -> None:
        with suppress(StoreError):
            self._mirror.bring(*place)
        with self._lock:
            self._under_way.discard(place)
