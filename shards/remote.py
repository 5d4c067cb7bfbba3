"""A store behind a URL (http, s3, whatever fsspec knows), read through a folder on this machine.

Indices are fetched anew at every opening; a shard stays in the folder for as long as its index is the same. What was
fetched counts only when its length and its sum are right; else, and after a reset, a 503 or a silence, it is fetched
again, and again, and then refused. Several processes share a folder. Messages never hold what may be secret in a URL.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fsspec
from fsspec.callbacks import Callback

from shards.codec import CALIBRATION_FILE
from shards.column import CLIPS, Sidecar, shard_name
from shards.disk import JSON_LIMIT, TEMPORARY, StoreError, open_inside
from shards.manifest import MANIFEST, Column
from shards.prefetch import prefetch
from shards.statistics import STATISTICS_FILE
from shards.tensorfile import CHECKSUM, checksum, metadata_of

CACHE = Path("~/.cache/tokenbridge/stores")
TRIES = 8
PAUSE = 0.2  # seconds before the second try; twice as many before each further one
SILENCE = 60  # seconds without a byte
THREADS = 8  # that fetch indices


class _Broken(Exception):
    """What was fetched is not whole."""


class _TooLong(Callback):
    """Stops a download above a number of bytes."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def relative_update(self, inc: int = 1) -> None:
        super().relative_update(inc)
        if self.value > self.limit:
            raise _Broken(f"more than {self.limit} bytes")


def public(url: str) -> str:
    """A URL without user, password and query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


class Mirror:
    """The folder that stands for a remote store.

    url: of the store's folder. cache: where such folders are. limit: bytes of shards that stay; the least recently
    fetched go first (None: all stay). options: fsspec's storage options, over timeouts of our own.
    """

    def __init__(
        self,
        url: str,
        *,
        cache: str | os.PathLike[str] | None = None,
        limit: int | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.name = public(url)
        scheme = urlsplit(url).scheme
        if urlsplit(url).query:
            raise StoreError(f"{self.name}: a store's URL has no query: its files' names come after it; use `options`")
        try:
            self._files, self._base = fsspec.core.url_to_fs(
                url.rstrip("/"), **(_patience(scheme) | dict(options or {}))
            )
        except ImportError as error:
            raise StoreError(
                f"{self.name}: reading {scheme} needs {error.name}; pip install 'tokenbridge[remote]'"
            ) from None
        folder = hashlib.sha256(self.name.encode()).hexdigest()[:16]
        self.root = Path(cache or CACHE).expanduser() / folder
        self.root.mkdir(parents=True, exist_ok=True)
        self.limit = limit
        self._tars: dict[tuple[str, int], Sidecar] = {}

    def __str__(self) -> str:
        return self.name

    def know(self, sidecar: Sidecar) -> None:
        """Keeps what a shard's tar shall be, without its members."""
        self._tars[sidecar.column, sidecar.shard] = replace(sidecar, members={}, refused={}, uncovered=[])

    def size(self, column: str, shard: int) -> int:
        """Bytes of a shard that is known."""
        return self._tars[column, shard].bytes

    def bring(self, column: str, shard: int) -> None:
        """Fetches a shard that is known; one that is here will stay as long as if it had just come."""
        self.fetch_tar(self._tars[column, shard])
        with suppress(FileNotFoundError):
            os.utime(self.root / column / f"{shard_name(shard)}.tar")

    def open_tar(self, column: str, shard: int) -> int:
        """A descriptor of a shard that is known, fetched where it is not here."""
        for _ in range(TRIES):
            self.fetch_tar(self._tars[column, shard])
            try:
                return open_inside(self.root, column, f"{shard_name(shard)}.tar")
            except FileNotFoundError:
                continue  # another process made room in between
        raise StoreError(
            f"{self.root}: {column}/{shard_name(shard)}.tar goes as fast as it comes; raise the cache's limit"
        )

    def forget(self, column: str, shard: int, descriptor: int) -> None:
        """Deletes the shard of this descriptor, which is damaged here, unless another already stands in its place."""
        path = self.root / column / f"{shard_name(shard)}.tar"
        with _alone(path.with_name(path.name + ".lock")), suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.lstat(path)):
                path.unlink()

    def fetch_manifest(self) -> None:
        try:
            self._fetch(MANIFEST, check=lambda path: json.loads(path.read_bytes()))
        except FileNotFoundError:
            raise StoreError(f"{self.name} is no feature store: it has no {MANIFEST}") from None

    def fetch_indices(self, columns: Mapping[str, Column], shards: int) -> None:
        """Everything but the tokens: sidecars and records, calibrations, statistics where there are any."""
        names = [(column, shard) for column in (CLIPS, *columns) for shard in range(shards)]
        for _ in prefetch(
            names, lambda place: self._fetch_sidecar(*place, columns), threads=THREADS, ahead=2 * THREADS
        ):
            pass
        for name, column in columns.items():
            for file in [CALIBRATION_FILE] * (column.codec == "int8") + [STATISTICS_FILE]:
                with suppress(FileNotFoundError):  # said by who needs it
                    self._fetch(f"{name}/{file}", check=_vouches_for_itself)
        tars = [Sidecar.read(self.root, CLIPS, shard, spec={}) for shard in range(shards)]
        for _ in prefetch(tars, self.fetch_tar, threads=THREADS, ahead=2 * THREADS):
            pass

    def fetch_tar(self, sidecar: Sidecar) -> None:
        """Brings a shard here, unless it is. Raises StoreError where its sum cannot be had."""
        if sidecar.has_tar(self.root):
            return

        def check(path: Path) -> None:
            digest = hashlib.sha256()
            with open(path, "rb") as file:
                while chunk := file.read(2**22):
                    digest.update(chunk)
            if digest.hexdigest() != sidecar.sha256:
                raise _Broken("its sha256 is not that of the index")

        name = f"{sidecar.column}/{shard_name(sidecar.shard)}.tar"
        self._fetch(name, check=check, limit=sidecar.bytes, unless=lambda: sidecar.has_tar(self.root))
        if self.limit is not None and sidecar.column != CLIPS:
            self._evict(self.root / name)

    def _evict(self, newest: Path) -> None:
        """Makes room for the newest. Other threads and processes may do the same, so that any file may be gone."""
        found: dict[Path, os.stat_result] = {}
        for path in self.root.glob("*/*.tar"):
            if path.parent.name != CLIPS:
                with suppress(FileNotFoundError):
                    found[path] = path.stat()
        over = sum(stat.st_size for stat in found.values()) - (self.limit or 0)
        for path in sorted(found.keys() - {newest}, key=lambda path: found[path].st_mtime):
            if over <= 0:
                return
            path.unlink(missing_ok=True)
            over -= found[path].st_size

    def _fetch_sidecar(self, column: str, shard: int, columns: Mapping[str, Column]) -> None:
        """A new index makes an old shard worthless."""
        name = f"{column}/{shard_name(shard)}.json"
        path = self.root / name
        before = path.read_bytes() if path.is_file() else None
        try:
            self._fetch(name, check=lambda fetched: json.loads(fetched.read_bytes()))
        except FileNotFoundError:
            raise StoreError(f"{self.name}: {name} is missing") from None
        if before is not None and path.read_bytes() != before:
            path.with_suffix(".tar").unlink(missing_ok=True)

    def _fetch(
        self,
        name: str,
        *,
        check: Callable[[Path], object],
        limit: int = JSON_LIMIT,
        unless: Callable[[], bool] = lambda: False,
    ) -> None:
        """Downloads a file until `check` does not raise, then gives it its name."""
        final = self.root / name
        final.parent.mkdir(exist_ok=True)
        temporary = final.with_name(final.name + TEMPORARY)
        with _alone(final.with_name(final.name + ".lock")):
            for attempt in range(TRIES):
                if unless():
                    return
                try:
                    self._files.get_file(f"{self._base}/{name}", str(temporary), callback=_TooLong(limit))
                    check(temporary)
                    os.replace(temporary, final)
                    return
                except FileNotFoundError:
                    temporary.unlink(missing_ok=True)
                    final.unlink(missing_ok=True)
                    raise FileNotFoundError(f"{self.name}/{name} is not there") from None
                except PermissionError:
                    temporary.unlink(missing_ok=True)
                    raise StoreError(f"{self.name}/{name}: access is denied; give credentials in `options`") from None
                except Exception as error:  # of the network, of a library, or of the check: the same cure for all
                    temporary.unlink(missing_ok=True)
                    why = _why(error)
                if attempt + 1 < TRIES:
                    time.sleep(PAUSE * 2**attempt * (0.5 + random.random() / 2))
        raise StoreError(f"{self.name}/{name} could not be had in {TRIES} tries, the last: {why}")


def _why(error: Exception) -> str:
    """An error without what may be secret in its text."""
    status = getattr(error, "status", None)
    return str(error) if isinstance(error, _Broken) else f"{type(error).__name__}{f' {status}' if status else ''}"


def _vouches_for_itself(path: Path) -> None:
    metadata, body = metadata_of(path.read_bytes())
    if metadata.get(CHECKSUM) != checksum(body):
        raise _Broken("its checksum is not that of its tensors")


def _patience(scheme: str) -> dict[str, Any]:
    """Timeouts: a silence ends a download, its length does not."""
    if scheme in ("http", "https"):
        import aiohttp

        return {"client_kwargs": {"timeout": aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=SILENCE)}}
    if scheme == "s3":
        return {"config_kwargs": {"read_timeout": SILENCE, "connect_timeout": 30, "retries": {"max_attempts": 1}}}
    return {}


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process and one thread at a time; the lock of a dead process is free."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
