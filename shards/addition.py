"""A column added to a store that is there, from tokens that no backbone has to compute: derived or imported ones.

Axes: q tokens of a clip, d channels.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from typing import TypeAlias

import torch
from torch import Tensor
from tqdm import tqdm

from shards.codec import CALIBRATION_CLIPS, CALIBRATION_FILE, Calibration, Codec, load_codec
from shards.column import CLIPS, Sidecar
from shards.disk import StoreError, Writing, remove_temporaries
from shards.extraction import write_statistics
from shards.manifest import Column, Manifest
from shards.store import FeatureStore
from shards.writer import ShardWriter

# keys -> for each, in order, its tokens (q d) or the reason why it has none
Tokens: TypeAlias = Callable[[Sequence[str]], Iterator[tuple[str, Tensor | str]]]


def add_column(
    store: FeatureStore,
    column: Column,
    tokens: Tokens,
    *,
    uncovered: Collection[str] = (),
    device: torch.device | str = "cpu",
) -> Column:
    """Writes a column for the clips of `store`, which is opened with the columns that it is made from.

    What `store` lacks, the column lacks for the same reason. uncovered: further keys that it declares not to have.
    Finished shards stay, so that a killed start continues. Returns the column with its coverage. Raises StoreError
    where the store has a column of that name that was made otherwise.
    """
    root = store.path
    there = Manifest.read(root).columns.get(column.name)
    if there and (there.layout, there.codec, there.origin) != (column.layout, column.codec, column.origin):
        raise StoreError(f"{root} has a column {column.name!r} that was made otherwise; choose another --column")
    with Writing(root):
        return _write(store, column, tokens, uncovered=uncovered, device=device)


def _write(
    store: FeatureStore, column: Column, tokens: Tokens, *, uncovered: Collection[str], device: torch.device | str
) -> Column:
    root = store.path
    remove_temporaries(root)
    _declare(store, column)
    (root / column.name).mkdir(exist_ok=True)
    present = [key for key in store.keys if key not in set(uncovered)]
    if column.codec == "int8" and not (root / column.name / CALIBRATION_FILE).exists():
        _calibrate(store, column, tokens, present)
    codec = load_codec(column.codec, root=root, column=column.name, dim=column.layout.dim).to(device)
    done = []
    with tqdm(total=len(present), desc=column.name, unit="clip", dynamic_ncols=True) as bar:
        for shard in range(store.manifest.partition.shards):
            done.append(_write_shard(store, column, shard, tokens=tokens, present=set(present), codec=codec, bar=bar))
    coverage = {"complete": True, "clips": sum(len(sidecar.members) for sidecar in done)}
    coverage["refused"] = sum(len(sidecar.refused) for sidecar in done)
    if away := sum(len(sidecar.uncovered) for sidecar in done):
        coverage["uncovered"] = away
    if not coverage["clips"]:
        reasons = [reason for sidecar in done for reason in sidecar.refused.values()]
        raise StoreError(f"column {column.name} has none of {len(store)} clips: {reasons[0] if reasons else 'no file'}")
    column = replace(column, coverage=coverage)
    _declare(store, column)
    write_statistics(root, [column.name])
    return column


def _declare(store: FeatureStore, column: Column) -> None:
    manifest = Manifest.read(store.path)
    wanted = replace(manifest, columns={**manifest.columns, column.name: column})
    if wanted != manifest:
        wanted.write(store.path)


def _calibrate(store: FeatureStore, column: Column, tokens: Tokens, present: Sequence[str]) -> None:
    """From train clips that are spread over the store; a clip without tokens is left out."""
    split = {record["key"]: record["split"] for record in store.clips}
    train = [key for key in present if split[key] == "train"]
    step = max(1, len(train) // CALIBRATION_CLIPS)
    spread = [key for start in range(step) for key in train[start::step]]
    found: list[Tensor] = []
    for start in range(0, len(spread), CALIBRATION_CLIPS):
        chosen = spread[start : start + CALIBRATION_CLIPS]
        found += [rows.cpu() for _, rows in tokens(chosen) if not isinstance(rows, str)]
        if len(found) >= CALIBRATION_CLIPS:
            break
    Calibration.fit(found[:CALIBRATION_CLIPS], column=column.name).save(store.path / column.name)


def _write_shard(
    store: FeatureStore,
    column: Column,
    shard: int,
    *,
    tokens: Tokens,
    present: set[str],
    codec: Codec,
    bar: tqdm,
) -> Sidecar:
    """One shard, unless it is there: the clips of the partition in their order."""
    clips = Sidecar.read(store.path, CLIPS, shard, spec={})
    keys = [key for key in clips.members if key in present]
    refused = {key: store.refused[key] for key in clips.planned if key in store.refused}
    bar.update(len(keys))
    try:
        sidecar = Sidecar.read(store.path, column.name, shard, spec=column.spec)
        if sidecar.planned == clips.planned and sidecar.has_tar(store.path):
            return sidecar
    except (FileNotFoundError, StoreError):
        pass  # not there, or damaged: written again
    with ShardWriter(store.path, column=column.name, shard=shard, spec=column.spec) as writer:
        for key, rows in tokens(keys):
            if isinstance(rows, str):
                writer.refuse(key, rows)
            else:
                writer.add(key, {part: tensor.cpu() for part, tensor in codec.encode(rows).items()})
        for key, reason in refused.items():
            writer.refuse(key, reason)
        for key in sorted(clips.planned - set(keys) - refused.keys()):
            writer.leave_out(key)
        return writer.finish()
