"""What a store must have for what a run asks of it: said before the run trains anything."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from distill.compensation import Asked, check_head
from distill.survival import check_tasks
from shards.store import FeatureStore


def check_store(store: FeatureStore, *, probes: Sequence[str], head: Asked, say: Callable[[str], None]) -> None:
    """Raises ValueError where refusals have emptied a split, and where labels do not suffice for probes or heads."""
    store.check_splits()
    check_tasks(store, probes, say)
    check_head(store, head)
