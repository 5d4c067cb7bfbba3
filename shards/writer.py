"""Writing one shard of one column: members appended to a temporary tar, then synced, named, and declared done."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import xxhash
from torch import Tensor

from shards.column import (
    CLIPS,
    END_OF_TAR,
    Member,
    Sidecar,
    check_key,
    member_suffix,
    padding,
    shard_name,
    tar_header,
)
from shards.disk import TEMPORARY, Buffer, commit, sync_folder, write_atomically
from shards.tensorfile import Spec, pack, spec_of

SYNC_BYTES = 64 * 2**20  # written data is synced this often, so that the last sync is short


class ShardWriter:
    """One shard of one column, as a context: left without `finish`, it removes its temporary file.

    spec: the tensors of every member (empty for the clips column). The bytes that come out depend on the keys, the
    tensors and the refusals alone.
    """

    def __init__(self, root: Path, *, column: str, shard: int, spec: Spec) -> None:
        self.folder = root / column
        self.column, self.shard, self.spec = column, shard, spec
        self.members: dict[str, Member] = {}
        self.refused: dict[str, str] = {}
        self.uncovered: list[str] = []
        self._final = self.folder / f"{shard_name(shard)}.tar"
        self._temporary = self._final.with_name(self._final.name + TEMPORARY)
        self._sha256 = hashlib.sha256()
        self._size = self._unsynced = 0
        self.folder.mkdir(parents=True, exist_ok=True)
        sync_folder(self.folder.parent)
        self._file: BinaryIO = open(self._temporary, "wb")  # noqa: SIM115 (closed by finish or __exit__)

    def add(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Appends KEY.safetensors."""
        if spec_of(tensors) != dict(self.spec):
            raise ValueError(f"{self._place(key)}: {spec_of(tensors)} given, but the column holds {dict(self.spec)}")
        self._append(key, pack(tensors))

    def add_record(self, key: str, record: Mapping[str, Any]) -> None:
        """Appends KEY.json, in the clips column."""
        assert self.column == CLIPS
        self._append(key, [json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"])

    def refuse(self, key: str, reason: str) -> None:
        """Declares that this shard lacks a clip, and why."""
        self.refused[check_key(key)] = reason

    def leave_out(self, key: str) -> None:
        """Declares that the column does not cover a clip."""
        self.uncovered.append(check_key(key))

    def finish(self) -> Sidecar:
        """Ends the tar, makes it durable under its name, then writes the sidecar."""
        self._write(END_OF_TAR)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        commit(self._temporary, self._final)
        refused = dict(sorted(self.refused.items()))
        sidecar = Sidecar(
            self.column,
            self.shard,
            self._size,
            self._sha256.hexdigest(),
            self.members,
            refused,
            sorted(self.uncovered),
        )
        write_atomically(self._final.with_suffix(".json"), [sidecar.to_json(self.spec)])
        return sidecar

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self._file.close()  # which writes what is left, and may find the disk full
        finally:
            self._temporary.unlink(missing_ok=True)

    def _place(self, key: str) -> str:
        return f'{self.column}/{shard_name(self.shard)}.tar, clip "{key}"'

    def _append(self, key: str, pieces: list[bytes | memoryview]) -> None:
        if check_key(key) in self.members or key in self.refused:
            raise ValueError(f"{self._place(key)} is given twice; keys are unique")
        size = sum(len(piece) for piece in pieces)
        self._write(tar_header(key + member_suffix(self.column), size))
        digest = xxhash.xxh3_64()
        offset = self._size
        for piece in pieces:
            digest.update(piece)
            self._write(piece)
        self._write(bytes(padding(size)))
        self.members[key] = Member(offset, size, digest.intdigest())
        if self._unsynced > SYNC_BYTES:
            self._file.flush()
            os.fdatasync(self._file.fileno())
            self._unsynced = 0

    def _write(self, piece: Buffer) -> None:
        self._file.write(piece)
        self._sha256.update(piece)
        self._size += len(piece)
        self._unsynced += len(piece)
