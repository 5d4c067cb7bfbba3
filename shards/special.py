"""Which of a column's special tokens, those beside its grid, are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from shards.disk import StoreError
from shards.manifest import Column
from teachers.layout import TokenLayout


def choose_special(column: Column, special: Mapping[str, Sequence[str]]) -> TokenLayout:
    """The column's layout with some of its special tokens."""
    layout, names = column.layout, special.get(column.name)
    if names is None or (layout.pooled and not names):
        return layout
    if lacking := [name for name in names if name not in layout.special]:
        raise StoreError(
            f"column {column.name!r} has no token {lacking[0]!r} beside its grid, but {list(layout.special)}; set "
            f"targets.{column.name}.special to some of these, or make a store with that token"
        )
    return replace(layout, special=tuple(name for name in layout.special if name in names))


def rows_of(stored: TokenLayout, chosen: TokenLayout) -> slice | list[int]:
    """Where the chosen tokens stand among the stored ones: a slice where possible, which copies nothing."""
    if chosen.special == stored.special[: len(chosen.special)]:
        return slice(0, chosen.num_tokens)
    first = stored.num_grid_tokens
    return [*range(first), *(first + stored.special.index(name) for name in chosen.special)]
