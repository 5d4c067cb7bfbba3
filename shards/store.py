"""FeatureStore: the columns of a feature store, joined on the clip key.

Axes: q tokens of a clip, d channels of the column.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import xxhash
from torch import Tensor

from shards.codec import Codec, load_codec
from shards.column import CLIPS, Places, Sidecar, keys_digest, shard_name
from shards.disk import Descriptor, OpenFiles, StoreError, open_inside, read_exactly
from shards.manifest import MAKE, Column, Manifest
from shards.special import choose_special, rows_of
from shards.statistics import load_statistics
from shards.task import LABEL, Task, are_factors, tasks_of
from shards.tensorfile import as_bytes, header
from teachers.layout import TokenLayout

if TYPE_CHECKING:
    from shards.remote import Mirror

RECORD_LIMIT = 2**20  # bytes of one clip's record
SPLITS = ("train", "val", "test")


class FeatureStore:
    """Features of clips on disk, or behind a URL; opening it reads indices only, not features.

    path: a folder, or a URL that fsspec knows: shards are then fetched when they are first read, into a folder on this
    machine. A shards.remote.Mirror says which folder, how large it grows, and with which credentials.
    columns: names to open; None opens every complete one but references. Clips that any of them lacks by declaration
    are left out and stand in `refused` or `uncovered`. special: column -> names of the tokens beside the grid to read;
    a column that is not named there gives all it has, a pooled one its pooled token in any case.

    keys: of the clips, in order. clips: their records (key, label, source, group, split, and the view's span and crop).
    columns: name -> Column (layout, codec, origin). labels: names, in the order of the label index. label_indices: of
    every clip, -1 without a label. tasks: "label" (labels and label_indices), if any clip has one, and every factor.
    groups: of every clip. refused: key -> reason. uncovered: keys that a column declares not to have. digests: split,
    view, data. manifest: the rest.

    Raises StoreError (a ValueError) naming shard, column and clip where the store is missing, incomplete or damaged, or
    its columns differ in a way that they do not declare.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | Mirror,
        columns: Sequence[str] | None = None,
        *,
        special: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.mirror = mirror_of(path)
        self.path = self.mirror.root if self.mirror else Path(path)  # type: ignore[arg-type]
        if self.mirror:
            self.mirror.fetch_manifest()
        self.manifest = Manifest.read(self.path)
        self.columns = self._choose(columns)
        if self.mirror:
            self.mirror.fetch_indices(self.columns, self.manifest.partition.shards)
        self._layouts = {name: choose_special(column, special or {}) for name, column in self.columns.items()}
        self._rows = {name: rows_of(column.layout, self._layouts[name]) for name, column in self.columns.items()}
        self.labels: list[str] = self.manifest.labels
        self.digests: dict[str, str] = dict(self.manifest.digests)
        self.refused: dict[str, str] = {}
        self.uncovered: set[str] = set()
        self.keys: list[str] = []
        self.clips: list[dict[str, Any]] = []
        self._codecs: dict[str, Codec] = {
            name: load_codec(column.codec, root=self.path, column=name, dim=column.layout.dim)
            for name, column in self.columns.items()
        }
        self._headers = {name: bytearray(header(column.spec)) for name, column in self.columns.items()}
        self._files = OpenFiles(self.path)
        self._places = {name: Places() for name in self.columns}
        planned: set[str] = set()
        for shard in range(self.manifest.partition.shards):
            planned |= self._join(shard)
        self.uncovered -= self.refused.keys()
        for places in self._places.values():
            places.freeze()
        if keys_digest(planned) != self.manifest.partition.keys:
            raise StoreError(f"{self.path}: the shards' keys are not those of the manifest's partition")
        self.groups = [str(record["group"]) for record in self.clips]
        index = {label: number for number, label in enumerate(self.labels)}
        self.label_indices = [index.get(record["label"], -1) for record in self.clips]
        labelled = any(number >= 0 for number in self.label_indices)
        self.tasks: dict[str, Task] = {LABEL: Task(self.labels, self.label_indices)} if labelled else {}
        self.tasks |= tasks_of(self.clips)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One clip: {"key", "label" (name or None), and per column (q d) float32 in the backbone's units}."""
        index = range(len(self))[index]
        tokens = {name: self.decode(self.read(index, name), name) for name in self.columns}
        return {"key": self.keys[index], "label": self.clips[index]["label"], **tokens}

    def layout(self, column: str) -> TokenLayout:
        """What a column's tokens mean, as they are read."""
        self._column(column)
        return self._layouts[column]

    def codec(self, column: str) -> Codec:
        """What turns the encoded tensors of `read` into tokens."""
        self._column(column)
        return self._codecs[column]

    def check_splits(self) -> None:
        """Raises ValueError where refusals have emptied a split."""
        for split in SPLITS:
            if not self.indices(split):
                raise ValueError(
                    f"no {split} clip is left of {len(self)}: {len(self.refused)} were refused; give more videos"
                )

    def indices(self, split: str) -> list[int]:
        """Clips of one split: train, val or test."""
        if split not in SPLITS:
            raise ValueError(f"split is {split!r}; there are {', '.join(SPLITS)}")
        return [index for index, record in enumerate(self.clips) if record["split"] == split]

    def statistics(self, column: str) -> dict[str, Tensor]:
        """mean (q d), scale (d,), global_mean (d,), global_scale (d,): float32, over train clips. shards.statistics."""
        shape = self._column(column).layout.shape
        return load_statistics(self.path, column, shape=shape, rows=torch.arange(shape[0])[self._rows[column]])

    def decode(self, encoded: Mapping[str, Tensor], column: str, *, out: Tensor | None = None) -> Tensor:
        """Encoded tensors of one clip -> (q d) float32 in the backbone's units, the special tokens being chosen."""
        return self._codecs[column].decode(self.select(encoded, column), out=out)

    def select(self, encoded: Mapping[str, Tensor], column: str, *, batched: bool = False) -> dict[str, Tensor]:
        """The chosen tokens of the encoded tensors of one clip, or of a batch of them."""
        rows = self._rows[column]
        return {name: tensor[:, rows] if batched else tensor[rows] for name, tensor in encoded.items()}

    def empty(self, column: str, *leading: int, pinned: bool = False) -> dict[str, Tensor]:
        """Memory for the encoded tensors of one clip of a column, or of `leading` clips."""
        spec = self._column(column).spec
        return {n: torch.empty(*leading, *shape, dtype=dtype, pin_memory=pinned) for n, (dtype, shape) in spec.items()}

    def read(self, index: int, column: str, *, out: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The encoded tensors of one clip. out: contiguous CPU tensors that receive them (see `empty`)."""
        tensors = dict(out) if out is not None else self.empty(column)
        self.read_into(index, column, [as_bytes(tensor) for tensor in tensors.values()])
        return tensors

    def read_into(self, index: int, column: str, parts: Sequence[memoryview], *, again: bool = True) -> None:
        """Fills the bytes of one clip's encoded tensors by one positioned read, checked against its checksum.

        Safe to call from several threads. again: whether to fetch once more what is damaged and came from a URL.
        """
        places = self._places[column]
        shard, offset = int(places.shard[index]), int(places.offset[index])
        buffers = [memoryview(bytearray(len(self._headers[column]))), *parts]
        file = self._open(column, shard)
        whole = read_exactly(file.number, buffers, offset)
        digest = xxhash.xxh3_64()
        for buffer in buffers:
            digest.update(buffer)
        if whole and digest.intdigest() == int(places.xxh3[index]):
            return
        if self.mirror and again:
            self.mirror.forget(column, shard, file.number)
            return self.read_into(index, column, parts, again=False)
        fault = "its checksum differs from the index" if whole else "the file ends before it"
        name = f"{column}/{shard_name(shard)}"
        raise StoreError(
            f'{name}.tar, clip "{self.keys[index]}" is damaged: {fault}; delete {name}.json and re-run precompute'
        )

    def shard_of(self, index: int) -> int:
        """The shard that a clip stands in, the same in every column."""
        return int(next(iter(self._places.values())).shard[index])

    def _open(self, column: str, shard: int) -> Descriptor:
        """A shard, fetched first where that has to be; what is fetched does not stay open, for it may have to go."""
        if self.mirror:
            return Descriptor(self.mirror.open_tar(column, shard))
        return self._files(column, f"{shard_name(shard)}.tar")

    def _choose(self, names: Sequence[str] | None) -> dict[str, Column]:
        there = self.manifest.columns
        complete = ", ".join(name for name, column in there.items() if column.complete) or "none"
        if names is None:
            names = [name for name, column in there.items() if column.complete and not column.reference]
        for name in names:
            if name not in there or not there[name].complete:
                state = "incomplete" if name in there else "not there"
                raise StoreError(f"{self.path}: column {name!r} is {state}; complete ones: {complete}. {MAKE}")
        return {name: there[name] for name in names}

    def _column(self, name: str) -> Column:
        if name not in self.columns:
            raise StoreError(
                f"{self.path}: column {name!r} is not open; open ones: {', '.join(self.columns) or 'none'}"
            )
        return self.columns[name]

    def _sidecar(self, column: str, shard: int) -> Sidecar:
        spec = {} if column == CLIPS else self.columns[column].spec
        try:
            sidecar = Sidecar.read(self.path, column, shard, spec=spec)
        except FileNotFoundError:
            raise StoreError(f"{self.path}: {column}/{shard_name(shard)}.json is missing; {MAKE}") from None
        if self.mirror and column != CLIPS:
            self.mirror.know(sidecar)
        elif not sidecar.has_tar(self.path):
            raise StoreError(
                f"{self.path}: {column}/{shard_name(shard)}.tar is missing or not {sidecar.bytes} bytes long; delete "
                f"{column}/{shard_name(shard)}.json and re-run precompute"
            )
        return sidecar

    def _join(self, shard: int) -> set[str]:
        """Adds one shard's clips to the store. Returns the keys that the partition gives to it."""
        clips = self._sidecar(CLIPS, shard)
        sidecars = {name: self._sidecar(name, shard) for name in self.columns}
        self.refused.update(clips.refused)
        absent: set[str] = set()
        for name, sidecar in sidecars.items():
            where = f"{self.path}: {name}/{shard_name(shard)}"
            for key in sorted(sidecar.planned ^ clips.planned):
                side = "has a clip that clips/ lacks" if key in sidecar.planned else "lacks a clip without declaring it"
                raise StoreError(f'{where} {side}: "{key}"; delete {name}/ and re-run precompute')
            order = [key for key in clips.members if key in sidecar.members]
            for key, expected in zip((key for key in sidecar.members if key in clips.members), order, strict=True):
                if key != expected:
                    raise StoreError(f'{where} holds clip "{key}" where clips/ has "{expected}": the order differs')
            self.refused.update({key: why for key, why in sidecar.refused.items() if key not in self.refused})
            self.uncovered |= set(sidecar.uncovered) - clips.refused.keys()
            absent |= {*sidecar.refused, *sidecar.uncovered}
        present = [key for key in clips.members if key not in absent]
        self._read_records(shard, clips, present)
        for name, sidecar in sidecars.items():
            self._places[name].extend(shard, [sidecar.members[key] for key in present])
        self.keys += present
        return clips.planned

    def _read_records(self, shard: int, sidecar: Sidecar, keys: list[str], *, again: bool = True) -> None:
        file = Descriptor(open_inside(self.path, CLIPS, f"{shard_name(shard)}.tar"))
        found = []
        for key in keys:
            member = sidecar.members[key]
            data = bytearray(min(member.bytes, RECORD_LIMIT))
            where = f'{self.path}: {CLIPS}/{shard_name(shard)}.tar, clip "{key}"'
            if (
                not read_exactly(file.number, [memoryview(data)], member.offset)
                or xxhash.xxh3_64_intdigest(data) != member.xxh3
            ):
                if self.mirror and again:
                    self.mirror.forget(CLIPS, shard, file.number)
                    self.mirror.fetch_tar(sidecar)
                    return self._read_records(shard, sidecar, keys, again=False)
                raise StoreError(f"{where} is damaged; delete {CLIPS}/{shard_name(shard)}.json and re-run precompute")
            try:
                found.append(parse_record(data, key))
            except ValueError as error:
                raise StoreError(f"{where}: {error}") from None
        self.clips += found


def mirror_of(path: str | os.PathLike[str] | Mirror) -> Mirror | None:
    """What stands for a store behind a URL; None for a folder."""
    if isinstance(path, (str, os.PathLike)) and "://" not in os.fspath(path):
        return None
    from shards.remote import Mirror  # fsspec, which a local store does not need

    return path if isinstance(path, Mirror) else Mirror(os.fspath(path))


def parse_record(data: bytes | bytearray, key: str) -> dict[str, Any]:
    """What a store says of a clip. Raises ValueError where that is no record, or one of another clip."""
    try:
        record = json.loads(data)
    except RecursionError:
        raise ValueError("its record is nested too deeply") from None
    texts = isinstance(record, dict) and isinstance(record.get("group"), str) and "source" in record
    sound = texts and isinstance(record.get("label", 0), (str, type(None))) and record.get("split") in SPLITS
    if not sound or record.get("key") != key or not are_factors(record.get("factors", {})):
        raise ValueError(f"its record is {str(record)[:200]}")
    return record
