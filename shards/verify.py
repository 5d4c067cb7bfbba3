"""Whether a store holds what it says: schema, sums, joins, shapes, finite values, counts. Everything is read, a piece
at a time: what a stranger's index says decides neither where nor how much.

Axes: q tokens of a clip, d channels.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import xxhash

from shards.claims import false_claims
from shards.codec import load_codec
from shards.column import (
    BLOCK,
    CLIPS,
    END_OF_TAR,
    Member,
    Sidecar,
    member_suffix,
    padding,
    shard_name,
    tar_header,
)
from shards.disk import TEMPORARY, StoreError, open_inside
from shards.manifest import Column, Manifest
from shards.store import RECORD_LIMIT, FeatureStore
from shards.tensorfile import header

CHUNK = 2**22  # bytes read at a time
MOST = 1000  # problems that are looked for


def problems_of(root: Path) -> Iterator[str]:
    """A sentence for everything that is wrong with a store, with the file and the clip that it is about; MOST at most.

    What is unfinished is no problem. Raises StoreError where there is no store, or its manifest is damaged.
    """
    manifest = Manifest.read(root)
    return islice(_problems(root, manifest), MOST)


def _problems(root: Path, manifest: Manifest) -> Iterator[str]:
    yield from _leftovers(root)
    sound = True
    for name in (CLIPS, *(name for name, column in manifest.columns.items() if column.complete)):
        for shard in range(manifest.partition.shards):
            for problem in _shard_problems(root, manifest.columns.get(name), name, shard):
                sound = False
                yield problem
    if not sound:
        return  # the joins would only say the same again
    yield from false_claims(root, manifest)
    for column in manifest.columns.values():
        if column.complete:
            yield from _column_problems(root, column)


def _leftovers(root: Path) -> Iterator[str]:
    for path in sorted((*root.glob("*" + TEMPORARY), *root.glob("*/*" + TEMPORARY))):
        yield (
            f"{path.relative_to(root)}: a writer is at work, or left it; the command that writes this store removes it "
            "at its next start, and where nobody writes it may be deleted"
        )


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
        if misplaced := _misplaced(sidecar, column):
            yield f"{where}.json{misplaced}; delete it and run the command that made the column again"
            return
        digest = hashlib.sha256()
        while chunk := tar.read(CHUNK):
            digest.update(chunk)
        if digest.hexdigest() != sidecar.sha256:
            yield f"{where}.tar: its sha256 differs from the index"
        for key, member in sidecar.members.items():
            yield from _member_problems(tar, f'{where}.tar, clip "{key}"', key, member, column)
        tar.seek(-len(END_OF_TAR), os.SEEK_END)
        if tar.read() != END_OF_TAR:
            yield f"{where}.tar: something else than its end follows the last clip"


def _misplaced(sidecar: Sidecar, column: Column | None) -> str | None:
    """Where an index says other than that its clips follow each other and fill the tar, and that a record is small."""
    end = 0
    for key, member in sidecar.members.items():
        if member.offset != end + BLOCK:
            return f', clip "{key}": offset is {member.offset}, not {end + BLOCK}, right after the clip before it'
        if column is None and member.bytes > RECORD_LIMIT:
            return f', clip "{key}": its record has {member.bytes} bytes; at most {RECORD_LIMIT} are read'
        end = member.offset + member.bytes + padding(member.bytes)
    full = end + len(END_OF_TAR)
    return None if sidecar.bytes == full else f": bytes is {sidecar.bytes}, but its clips and the end fill {full}"


def _member_problems(tar: BinaryIO, where: str, key: str, member: Member, column: Column | None) -> Iterator[str]:
    """Of one clip: the header of the tar, the bytes, and what stands at their start."""
    tar.seek(member.offset - BLOCK)
    if tar.read(BLOCK) != tar_header(key + member_suffix(CLIPS if column is None else column.name), member.bytes):
        yield f"{where}: its tar header is another than the index says"
    digest, left, start = xxhash.xxh3_64(), member.bytes, b""
    while left and (chunk := tar.read(min(left, CHUNK))):
        start, left = start or chunk, left - len(chunk)
        digest.update(chunk)
    if digest.intdigest() != member.xxh3:
        yield f"{where}: its checksum differs from the index"
    elif column and not start.startswith(header(column.spec)):
        yield f"{where}: its safetensors header is another than the manifest says"


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
