"""Files of a store: written so that a crash leaves the old file or the new one, opened so that nothing leads outside.

A file is written under a temporary name, synced, renamed, and its folder synced. Reading goes down from the store's
root without following a link and refuses what is not a plain file, so that neither a link nor a pipe in a store that a
stranger made can lead anywhere or hang.
"""

from __future__ import annotations

import fcntl
import logging
import os
import stat
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from itertools import compress
from pathlib import Path
from threading import Lock
from typing import TypeAlias
from uuid import uuid4

TEMPORARY = ".tmp"
PATIENCE = 60.0  # seconds that a command waits for another one that writes
JSON_LIMIT = 256 * 2**20  # bytes; the sidecar of a shard of 100,000 clips has about 30 MB

Buffer: TypeAlias = bytes | bytearray | memoryview
log = logging.getLogger(__name__)


class StoreError(ValueError):
    """A store, or a file in it, is not what it says; the message names the file, the value and the way out."""


def sync_folder(folder: Path) -> None:
    """Makes renames and deletions in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def commit(temporary: Path, final: Path) -> None:
    """Gives a synced temporary file its name, durably."""
    os.replace(temporary, final)
    sync_folder(final.parent)


def write_atomically(path: Path, pieces: Iterable[Buffer]) -> None:
    """Writes a whole file: after a crash there is the old one or the new one, never a part; a full disk leaves none.
    Where several processes write the same, each has a temporary file of its own."""
    temporary = path.with_name(f"{path.name}.{uuid4().hex[:8]}{TEMPORARY}")
    try:
        with open(temporary, "wb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        commit(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


class Writing:
    """Holds a store against other commands that write it, as a context; the lock of a dead process is free.

    shared: beside others that are shared, too. Raises StoreError where the store is held otherwise, and stays so for a
    minute: ranks whose launcher was killed take some seconds to end. A file system without locks is said, and gone on
    with.
    """

    def __init__(self, root: Path, *, shared: bool = False) -> None:
        self.root, self.shared = root, shared

    def __enter__(self) -> Writing:
        self._folder = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        end = time.monotonic() + PATIENCE
        while not self._lock((fcntl.LOCK_SH if self.shared else fcntl.LOCK_EX) | fcntl.LOCK_NB):
            if time.monotonic() >= end:
                os.close(self._folder)
                raise StoreError(f"{self.root} is being written by another command; start again when it is done")
            time.sleep(0.1)
        return self

    def alone(self) -> None:
        """Waits until nobody shares it any more."""
        self._lock(fcntl.LOCK_EX)

    def __exit__(self, *error: object) -> None:
        os.close(self._folder)

    def _lock(self, how: int) -> bool:
        try:
            fcntl.flock(self._folder, how)
        except BlockingIOError:
            return False
        except OSError as error:
            log.warning("%s cannot be locked (%s): let no other command write it meanwhile", self.root, error.strerror)
        return True


def remove_temporaries(root: Path, *, mine: Callable[[int], bool] | None = None, others: bool = True) -> int:
    """Deletes what a killed writer left in a store and its columns. Returns how many files that were.

    mine: which shards' alone, for those of others are at work; others: and the files that belong to no shard.
    """
    found = [path for pattern in ("*", "*/*") for path in root.glob(pattern + TEMPORARY) if not path.is_dir()]
    if mine is not None:
        shards = [path.name.partition(".")[0] for path in found]
        ours = [mine(int(shard)) if shard.isdecimal() else others for shard in shards]
        found = list(compress(found, ours))
    for path in found:
        path.unlink(missing_ok=True)
    return len(found)


def open_inside(root: Path, *parts: str) -> int:
    """A descriptor of the plain file root/parts[0]/parts[1]..., for reading.

    Only the root itself may be a link. Raises StoreError for a link below it and for anything but a plain file,
    FileNotFoundError where there is nothing.
    """
    where = os.path.join(root, *parts)
    flags = os.O_RDONLY | os.O_CLOEXEC
    descriptor = os.open(root, flags | os.O_DIRECTORY)
    try:
        for depth, part in enumerate(parts):
            kind = os.O_NONBLOCK if depth == len(parts) - 1 else os.O_DIRECTORY
            below = os.open(part, flags | os.O_NOFOLLOW | kind, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = below
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise StoreError(f"{where} is not a plain file; a store holds plain files only")
    except FileNotFoundError:
        os.close(descriptor)
        raise
    except OSError as error:
        os.close(descriptor)
        raise StoreError(f"{where} cannot be opened ({error.strerror}); a store holds no links to elsewhere") from None
    except StoreError:
        os.close(descriptor)
        raise
    return descriptor


def read_inside(root: Path, *parts: str, limit: int = JSON_LIMIT) -> bytes:
    """The bytes of one plain file inside a store. Raises StoreError above `limit` bytes."""
    descriptor = open_inside(root, *parts)
    with os.fdopen(descriptor, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise StoreError(f"{os.path.join(root, *parts)} has {size} bytes; at most {limit} are read")
        return file.read()


class OpenFiles:
    """Plain files below a root (see `open_inside`), of which the last `limit` stay open: opening one costs as much as
    reading 100 kB. Safe to call from several threads: a file is closed when nobody reads it any more."""

    def __init__(self, root: Path, limit: int = 64) -> None:
        self.root, self.limit = root, limit
        self._files: OrderedDict[tuple[str, ...], Descriptor] = OrderedDict()
        self._lock = Lock()

    def __call__(self, *parts: str) -> Descriptor:
        with self._lock:
            file = self._files.pop(parts, None) or Descriptor(open_inside(self.root, *parts))
            self._files[parts] = file
            if len(self._files) > self.limit:
                self._files.popitem(last=False)
        return file

    def __reduce__(self) -> tuple[type[OpenFiles], tuple[Path, int]]:
        return OpenFiles, (self.root, self.limit)


class Descriptor:
    """An open file, closed with the last reference to it."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.close(self.number)


def read_exactly(descriptor: int, buffers: list[memoryview], offset: int) -> bool:
    """Fills the buffers, one after the other, from `offset` of a file. False where the file ends before."""
    pending = [buffer for buffer in buffers if buffer.nbytes]
    while pending:
        count = os.preadv(descriptor, pending, offset)
        if count == 0:
            return False
        offset += count
        while pending and count >= pending[0].nbytes:
            count -= pending.pop(0).nbytes
        if pending and count:
            pending[0] = pending[0][count:]
    return True
