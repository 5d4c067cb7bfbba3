"""Where clips come from, what is stored of them, and how it is read back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shards.store import FeatureStore

__all__ = ["FeatureStore"]


def __getattr__(name: str) -> Any:
    """FeatureStore on first use: the modules about videos need nothing of the store."""
    if name != "FeatureStore":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from shards.store import FeatureStore

    return FeatureStore
