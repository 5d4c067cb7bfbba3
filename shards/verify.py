"""Whether a store holds what it says: schema, sums, joins, shapes, finite values, counts. Everything is read.

Axes: q tokens of a clip, d channels.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import xxhash

from shards.codec import load_codec
from shards.column import (
    CLIPS,
    END_OF_TAR,
    Member,
    Sidecar,
    keys_digest,
    member_suffix,
    padding,
    shard_name,
    tar_header,
)
from shards.disk import TEMPORARY, StoreError, open_inside
from shards.manifest import Column, Manifest
from shards.store import FeatureStore
from shards.tensorfile import header

CHUNK = 2**22  # bytes read at a time


def problems_of(root: Path) -> Iterator[str]:
    """A sentence for everything that is wrong with a store, with the file and the clip that it is about.

    What is unfinished is no problem. Raises StoreError where there is no store, or its manifest is damaged.
    """
    manifest = Manifest.read(root)
    yield from _leftovers(root)
    everything: set[str] = set()
    sound = True
    for name in (CLIPS, *(name for name, column in manifest.columns.items() if column.complete)):
        for shard in range(manifest.partition.shards):
            found = list(_shard_problems(root, manifest.columns.get(name), name, shard))
            sound &= not found
            yield from found
    if not sound:
        return  # the joins would only say the same again
    for column in manifest.columns.values():
        if column.complete:
            yield from _column_problems(root, column)
    for shard in range(manifest.partition.shards):
        everything |= Sidecar.read(root, CLIPS, shard, spec={}).planned
    if keys_digest(everything) != manifest.partition.keys or len(everything) != manifest.partition.clips:
        yield f"manifest.json: the shards hold {len(everything)} keys, not the {manifest.partition.clips} that it says"


def _leftovers(root: Path) -> Iterator[str]:
    for path in sorted((*root.glob("*" + TEMPORARY), *root.glob("*/*" + TEMPORARY))):
        yield f"{path.relative_to(root)}: a writer is at work, or left it; precompute removes it"


def _shard_problems(root: Path, column: Column | None, name: str, shard: int) -> Iterator[str]:
    where = f"{name}/{shard_name(shard)}"
    try:
        sidecar = None
        sidecar = Sidecar.read(root, name, shard, spec=column.spec if column else {})
        descriptor = open_inside(root, name, f"{shard_name(shard)}.tar")
    except FileNotFoundError:
        yield f"{where}.{'tar' if sidecar else 'json'}: is missing"
        return
    except StoreError as error:
        yield str(error)
        return
    with os.fdopen(descriptor, "rb") as tar:
        size = os.fstat(tar.fileno()).st_size
        if size != sidecar.bytes:
            yield f"{where}.tar: {size} bytes, but its index says {sidecar.bytes}"
            return
        digest = hashlib.sha256()
        while chunk := tar.read(CHUNK):
            digest.update(chunk)
        if digest.hexdigest() != sidecar.sha256:
            yield f"{where}.tar: its sha256 differs from the index"
        end = 0
        for key, member in sidecar.members.items():
            tar.seek(end)
            yield from _member_problems(tar.read(member.offset - end + member.bytes), where, key, member, end, column)
            end = member.offset + member.bytes + padding(member.bytes)
        tar.seek(end)
        if tar.read() != END_OF_TAR:
            yield f"{where}.tar: something else than its end follows the last clip"


def _member_problems(
    data: bytes, where: str, key: str, member: Member, start: int, column: Column | None
) -> Iterator[str]:
    """data: from the end of the member before to the end of this one."""
    lead, body = data[: member.offset - start], data[member.offset - start :]
    if lead != tar_header(key + member_suffix(CLIPS if column is None else column.name), member.bytes):
        yield f'{where}.tar, clip "{key}": its tar header is another than the index says'
    if xxhash.xxh3_64_intdigest(body) != member.xxh3:
        yield f'{where}.tar, clip "{key}": its checksum differs from the index'
    elif column and not body.startswith(header(column.spec)):
        yield f'{where}.tar, clip "{key}": its safetensors header is another than the manifest says'


def _column_problems(root: Path, column: Column) -> Iterator[str]:
    """Joins, finite values, statistics and counts, of a column whose shards are sound."""
    try:
        load_codec(column.codec, root=root, column=column.name, dim=column.layout.dim)
        store = FeatureStore(root, [column.name])
        if store.indices("train"):
            store.statistics(column.name)
    except (StoreError, FileNotFoundError) as error:
        yield str(error)
        return
    for index, key in enumerate(store.keys):
        encoded = store.read(index, column.name)
        if not bool(store.decode(encoded, column.name).isfinite().all()):
            yield f'{column.name}, clip "{key}": tokens are not finite'
    if column.coverage.get("clips") != len(store):
        yield f"manifest.json: column {column.name} has {len(store)} clips, not {column.coverage.get('clips')}"
