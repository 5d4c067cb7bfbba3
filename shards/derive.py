"""Columns computed from another column: converted or pooled tokens, without the videos.

    python -m shards.derive STORE SOURCE --column NAME      # the mean of SOURCE's tokens: 2 kB a clip, not 2 MB

Axes: b clips, q tokens of the source column, d its channels, r tokens of the new column, e its channels.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shards.addition import add_column
from shards.codec import check_codec
from shards.column import check_column
from shards.disk import StoreError
from shards.manifest import Column, digest
from shards.reader import scan
from shards.store import FeatureStore
from teachers.layout import TokenLayout

Function = Callable[[Tensor], Tensor]  # (b q d) -> (b r e), both in the units of the columns


def derive(
    path: str | Path,
    *,
    column: str,
    source: str,
    function: Function,
    layout: TokenLayout,
    origin: dict[str, Any],
    codec: str = "int8",
    batch: int = 4,
    device: torch.device | str = "cpu",
) -> Column:
    """Adds `column` = function(source) to a store, for every clip that has the source column.

    origin: what identifies the function, for the manifest. Finished shards stay, so that a killed run continues.
    Raises StoreError where the store has a column of that name that was made otherwise, or tokens are not finite.
    """
    store = FeatureStore(path, [source])
    place = {key: index for index, key in enumerate(store.keys)}

    def tokens(keys: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        indices = [place[key] for key in keys]
        for part in scan(store, indices=indices, columns=[source], batch=batch, device=device):
            with torch.no_grad():
                rows = function(part[source]).float()
            for key, row in zip(part["keys"], rows, strict=True):
                if row.shape != layout.shape or not bool(row.isfinite().all()):
                    shape = tuple(row.shape)
                    raise StoreError(
                        f'column {column}, clip "{key}": tokens {shape}: not finite, or not {layout.shape}'
                    )
                yield key, row

    wanted = Column(check_column(column), layout, check_codec(codec), dict(origin))
    return add_column(store, wanted, tokens, device=device)


def pool(path: str | Path, *, column: str, source: str, device: torch.device | str = "cpu") -> Column:
    """Adds a column with the mean of the source's grid tokens, one token a clip in fp16; the special ones are left out.

    Raises StoreError where the source is pooled already, or not there.
    """
    there = FeatureStore(path, [source]).columns[source]
    grid = there.layout.num_grid_tokens
    if not grid:
        raise StoreError(f"{path}: column {source!r} is pooled already: {there.layout.describe()}")
    origin = {"function": "shards.derive:pool", "source": source, "source_origin": digest(there.origin)}
    origin |= {name: there.origin[name] for name in ("licence",) if name in there.origin}
    return derive(
        path,
        column=column,
        source=source,
        function=lambda tokens: tokens[:, :grid].mean(1, keepdim=True),
        layout=TokenLayout(grid=None, dim=there.layout.dim),
        origin=origin,
        codec="fp16",
        device=device,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 1 with a message."""
    parser = argparse.ArgumentParser(prog="python -m shards.derive", description="Pooled tokens as a column.")
    parser.add_argument("store", type=Path)
    parser.add_argument("source", help="the column whose tokens are averaged")
    parser.add_argument("--column", required=True, help="name of the new column")
    arguments = parser.parse_args(argv)
    try:
        made = pool(arguments.store, column=arguments.column, source=arguments.source)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{arguments.store}: column {made.name}, {made.layout.describe()}, {made.coverage['clips']} clips")
    return 0


if __name__ == "__main__":
    sys.exit(main())
