"""One shard of one column: a tar that WebDataset reads, and the sidecar that says what is in it and that it is done.

The tar is plain ustar with one member per clip, KEY.safetensors (or KEY.json in the `clips` column), integer times, and
the same bytes every time. The sidecar, 00000.json beside 00000.tar, is written last: no sidecar, no shard.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from shards.disk import Buffer, StoreError, read_inside
from shards.tensorfile import Spec, describe, header, sizes

SCHEMA = 1
CLIPS = "clips"  # the column of records
STUDENT = "student"  # the column that converters read
PIXELS = "pixels_"  # + target: the averaged pixels under each of its tokens, for the pixel floor
BLOCK = 512
END_OF_TAR = bytes(2 * BLOCK)
USTAR = struct.Struct("100s8s8s8s12s12s8s1s100s6s2s32s32s8s8s155s12x")
KEY = re.compile(r"[A-Za-z0-9_-]{1,88}")  # with .safetensors it fills the 100 bytes of a ustar name
COLUMN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
CHECKSUM = re.compile(r"[0-9a-f]{16}")
RESERVED = (CLIPS, "key", "keys", "label", "step", "micro", "indices")  # other entries of a sample or a batch


def check_key(key: str) -> str:
    if not KEY.fullmatch(key):
        raise ValueError(f"clip key {key!r}: a key has 1 to 88 letters, digits, - and _, and no dots")
    return key


def check_column(name: str) -> str:
    """A name that is a folder in the store and an entry of a batch."""
    if not COLUMN.fullmatch(name) or name in RESERVED:
        raise ValueError(
            f"column {name!r}: a column has 1 to 64 letters, digits, - and _, and is none of {', '.join(RESERVED)}"
        )
    return name


def shard_name(shard: int) -> str:
    return f"{shard:05d}"


def member_suffix(column: str) -> str:
    return ".json" if column == CLIPS else ".safetensors"


def keys_digest(keys: Iterable[str]) -> str:
    """sha256 over the sorted keys, one a line."""
    return hashlib.sha256("\n".join(sorted(keys)).encode()).hexdigest()


def member_bytes(spec: Spec) -> int:
    """Bytes of one KEY.safetensors."""
    return len(header(spec)) + sum(sizes(spec).values())


def padding(size: int) -> int:
    """Bytes after a tar member of `size` bytes."""
    return -size % BLOCK


def tar_header(name: str, size: int) -> bytes:
    """A ustar header: a plain file, mode 644, owner and time 0. Seven times faster than webdataset's TarWriter."""
    number, length, time = b"0000000", b"%011o" % size, b"%011o" % 0

    def block(checksum: bytes) -> bytes:
        head = (name.encode(), b"0000644", number, number, length, time, checksum, b"0", b"")
        return USTAR.pack(*head, b"ustar", b"00", b"", b"", number, number, b"")

    return block(b"%06o\0 " % sum(block(b" " * 8)))


@dataclass(frozen=True)
class Member:
    """Where one clip's file lies in the tar: first byte, length, xxh3_64 of those bytes."""

    offset: int
    bytes: int
    xxh3: int


@dataclass
class Sidecar:
    """The index of one shard of one column.

    bytes, sha256: of the tar. members: what it holds, in order. refused: the keys of this shard that could not be had,
    with the reason. uncovered: keys that the column declares not to have. Members, refused and uncovered together are
    the keys that the partition gives to this shard, the same in every column.
    """

    column: str
    shard: int
    bytes: int
    sha256: str
    members: dict[str, Member]
    refused: dict[str, str] = field(default_factory=dict)
    uncovered: list[str] = field(default_factory=list)

    @property
    def planned(self) -> set[str]:
        return {*self.members, *self.refused, *self.uncovered}

    def to_json(self, spec: Spec) -> Buffer:
        """spec: the tensors of every member; empty for the clips column, whose members are JSON."""
        tensors = describe(spec)
        members = {
            key: {"offset": m.offset, "bytes": m.bytes, "xxh3_64": f"{m.xxh3:016x}", "tensors": tensors}
            for key, m in self.members.items()
        }
        document = {
            "schema": SCHEMA,
            "column": self.column,
            "shard": self.shard,
            "bytes": self.bytes,
            "sha256": self.sha256,
            "keys": keys_digest(self.planned),
            "refused": self.refused,
            "uncovered": self.uncovered,
            "members": members,
        }
        return json.dumps(document, separators=(",", ":")).encode() + b"\n"

    @classmethod
    def read(cls, root: Path, column: str, shard: int, *, spec: Spec) -> Sidecar:
        """Reads and checks 00000.json of a column.

        Raises FileNotFoundError where the shard is not done, StoreError naming file, clip and value where the sidecar
        is damaged, holds other tensors than `spec`, or points outside the tar.
        """
        where = f"{column}/{shard_name(shard)}.json"
        try:
            document = json.loads(read_inside(root, column, f"{shard_name(shard)}.json"))
            return cls._parse(document, column, shard, spec)
        except StoreError as error:
            raise StoreError(f"{where}: {error}") from None
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise StoreError(f"{where} is damaged ({error!r}); delete it and re-run precompute") from None

    @classmethod
    def _parse(cls, document: dict[str, Any], column: str, shard: int, spec: Spec) -> Sidecar:
        for name, expected in (("schema", SCHEMA), ("column", column), ("shard", shard)):
            if document[name] != expected:
                raise StoreError(f"{name} is {document[name]!r}, expected {expected!r}")
        tensors = describe(spec)
        fixed = member_bytes(spec) if spec else None
        total = _count(document["bytes"])
        members: dict[str, Member] = {}
        for key, entry in document["members"].items():
            member = Member(_count(entry["offset"]), _count(entry["bytes"]), _checksum(entry["xxh3_64"], key))
            if entry["tensors"] != tensors or fixed not in (None, member.bytes):
                raise StoreError(
                    f'clip "{key}": {member.bytes} bytes of {entry["tensors"]} but the manifest says {tensors}; '
                    "re-run precompute on a fresh store"
                )
            if member.offset < BLOCK or member.offset + member.bytes > total:
                raise StoreError(f'clip "{key}": bytes {member.offset}+{member.bytes} lie outside a tar of {total}')
            members[check_key(key)] = member
        refused = {check_key(key): str(reason) for key, reason in document["refused"].items()}
        uncovered = [check_key(key) for key in document["uncovered"]]
        sidecar = cls(column, shard, total, str(document["sha256"]), members, refused, uncovered)
        if keys_digest(sidecar.planned) != document["keys"]:
            raise StoreError(f"its keys have digest {keys_digest(sidecar.planned)}, not {document['keys']}")
        return sidecar

    def has_tar(self, root: Path) -> bool:
        """Whether the tar is there, no link, with the length that the sidecar says."""
        try:
            found = os.lstat(root / self.column / f"{shard_name(self.shard)}.tar")
        except (FileNotFoundError, NotADirectoryError):
            return False
        return stat.S_ISREG(found.st_mode) and found.st_size == self.bytes


class Places:
    """Where every clip of a column lies: 20 bytes a clip, because all its members have one length and one header."""

    def __init__(self) -> None:
        self._rows: list[tuple[int, int, int]] = []

    def extend(self, shard: int, members: list[Member]) -> None:
        """Appends the clips of a shard."""
        self._rows += [(shard, member.offset, member.xxh3) for member in members]

    def freeze(self) -> None:
        """Turns the rows into arrays."""
        self.shard = np.array([row[0] for row in self._rows], dtype=np.int32)
        self.offset = np.array([row[1] for row in self._rows], dtype=np.int64)
        self.xxh3 = np.array([row[2] for row in self._rows], dtype=np.uint64)
        self._rows = []


def _checksum(value: Any, key: str) -> int:
    if not isinstance(value, str) or not CHECKSUM.fullmatch(value):
        raise StoreError(
            f'clip "{key}": xxh3_64 is {str(value)[:40]!r}, expected 16 hex digits; delete this file and re-run '
            "precompute"
        )
    return int(value, 16)


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**62:
        raise StoreError(f"{value!r} is not a count of bytes")
    return value
