"""Columns computed from another column: converted or pooled tokens, without the videos.

Axes: b clips, q tokens of the source column, d its channels, r tokens of the new column, e its channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from shards.codec import CALIBRATION_CLIPS, CALIBRATION_FILE, Calibration, Codec, check_codec, load_codec
from shards.column import Sidecar, check_column
from shards.disk import StoreError, remove_temporaries
from shards.extraction import write_statistics
from shards.manifest import Column, Manifest
from shards.reader import scan
from shards.store import FeatureStore
from shards.writer import ShardWriter
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
) -> None:
    """Adds `column` = function(source) to a store, for every clip that has the source column.

    origin: what identifies the function, for the manifest. Finished shards stay, so that a killed run continues.
    Raises StoreError where the store has a column of that name that was made otherwise, or tokens are not finite.
    """
    root = Path(path)
    store = FeatureStore(root, [source])
    wanted = Column(check_column(column), layout, check_codec(codec), dict(origin))
    manifest = Manifest.read(root)
    there = manifest.columns.get(column)
    if there and (there.layout, there.codec, there.origin) != (wanted.layout, wanted.codec, wanted.origin):
        raise StoreError(f"{root} has a column {column!r} that was made otherwise; choose another --column")
    remove_temporaries(root)
    replace(manifest, columns={**manifest.columns, column: wanted}).write(root)
    (root / column).mkdir(exist_ok=True)

    def compute(indices: Sequence[int]) -> Iterator[tuple[str, Tensor]]:
        for part in scan(store, indices=indices, columns=[source], batch=batch, device=device):
            with torch.no_grad():
                tokens = function(part[source]).float()
            for key, row in zip(part["keys"], tokens, strict=True):
                if row.shape != layout.shape or not bool(row.isfinite().all()):
                    shape = tuple(row.shape)
                    raise StoreError(
                        f'column {column}, clip "{key}": tokens {shape}: not finite, or not {layout.shape}'
                    )
                yield key, row

    if codec == "int8" and not (root / column / CALIBRATION_FILE).exists():
        train = store.indices("train")
        chosen = train[:: max(1, len(train) // CALIBRATION_CLIPS)][:CALIBRATION_CLIPS]
        Calibration.fit([row.cpu() for _, row in compute(chosen)], column=column).save(root / column)
    coder = load_codec(codec, root=root, column=column, dim=layout.dim).to(device)
    with tqdm(total=len(store), desc=column, unit="clip", dynamic_ncols=True) as bar:
        for shard in range(manifest.partition.shards):
            write_shard(store, wanted, shard, source=source, compute=compute, coder=coder, bar=bar)
    complete = {"complete": True, "clips": len(store), "refused": len(store.refused)}
    replace(manifest, columns={**manifest.columns, column: replace(wanted, coverage=complete)}).write(root)
    write_statistics(root, [column])


def write_shard(
    store: FeatureStore,
    column: Column,
    shard: int,
    *,
    source: str,
    compute: Callable[[Sequence[int]], Iterator[tuple[str, Tensor]]],
    coder: Codec,
    bar: tqdm[Any],
) -> None:
    """One shard: the clips of the source's shard in their order; what it lacks is lacking here for the same reason."""
    reference = Sidecar.read(store.path, source, shard, spec=store.columns[source].spec)
    place = {key: index for index, key in enumerate(store.keys)}
    keys = [key for key in reference.members if key in place]
    bar.update(len(keys))
    try:
        if Sidecar.read(store.path, column.name, shard, spec=column.spec).has_tar(store.path):
            return
    except (FileNotFoundError, StoreError):
        pass
    with ShardWriter(store.path, column=column.name, shard=shard, spec=column.spec) as writer:
        for key, tokens in compute([place[key] for key in keys]):
            writer.add(key, {part: tensor.cpu() for part, tensor in coder.encode(tokens).items()})
        for key in sorted(reference.planned - set(keys)):
            writer.refuse(key, store.refused.get(key, "not in the source column"))
        writer.finish()
