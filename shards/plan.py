"""What an extraction has to do: which shards of which columns are missing, and whether the store there agrees."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shards.agreement import check_clips, check_columns, describe_clips
from shards.codec import check_codec
from shards.column import (
    BLOCK,
    CLIPS,
    Sidecar,
    check_column,
    check_key,
    keys_digest,
    member_bytes,
    padding,
    shard_name,
)
from shards.disk import TEMPORARY, StoreError, read_inside
from shards.manifest import MANIFEST, Column, Manifest, Partition, digest
from shards.tensorfile import Spec

SHARD_BYTES = 512 * 10**6  # of the first column
FEWEST_SHARDS = 8  # so that several ranks have something to do
FIRST_REFUSALS = 20  # that the manifest names; the sidecars name all
NAMED = 3  # files that an error names
RECORD_BYTES = 4 * BLOCK  # a generous guess of a record with its header


@dataclass(frozen=True)
class Work:
    """One shard that some columns miss. keys: all that the partition gives to it, in order."""

    shard: int
    keys: tuple[str, ...]
    columns: tuple[str, ...]

    def groups(self, batch: int) -> Iterator[tuple[int, tuple[str, ...]]]:
        """Neighbours that are computed together, with the place of the first."""
        for start in range(0, len(self.keys), batch):
            yield start, self.keys[start : start + batch]


@dataclass(frozen=True)
class Plan:
    """The store as it shall be, and the work until then. columns: of the store, those of this pass included."""

    root: Path
    clips: dict[str, Any]  # key -> clip, in order
    columns: dict[str, Column]
    partition: Partition
    view: dict[str, Any]
    digests: dict[str, str]
    labels: list[str]
    passing: tuple[str, ...]  # columns of this pass
    work: tuple[Work, ...]
    there: Manifest | None  # as it was found

    @property
    def shards(self) -> range:
        return range(self.partition.shards)

    @property
    def missing(self) -> set[str]:
        """Columns with an unfinished shard."""
        return {name for work in self.work for name in work.columns}

    def groups(self, batch: int) -> Iterator[tuple[int, int, tuple[str, ...]]]:
        """(shard, place, keys) of every group of the unfinished shards."""
        for work in self.work:
            for start, keys in work.groups(batch):
                yield work.shard, start, keys

    def refusals(self, shards: Iterable[int], *, columns: Iterable[str] | None = None) -> dict[str, str]:
        """key -> reason, from the finished shards of some columns, or of the whole store."""
        names = [CLIPS, *sorted(self.columns)] if columns is None else list(columns)
        found: dict[str, str] = {}
        for shard in shards:
            for name in names:
                for key, reason in read_refused(self.root, name, shard).items():
                    found.setdefault(key, reason)
        return found

    def write_manifest(self, *, complete: bool) -> None:
        """Before the work (columns that miss something are marked), or after it. Leaves an equal one alone."""
        columns = dict(self.columns)
        summary: dict[str, Any] = self.there.refused if self.there else {"clips": 0, "first": {}}
        if complete:
            for name in self.passing:
                lacking = len(self.refusals(self.shards, columns=[CLIPS, name]))
                coverage = {"complete": True, "clips": len(self.clips) - lacking, "refused": lacking}
                columns[name] = replace(columns[name], coverage=coverage)
            refused = self.refusals(self.shards)
            summary = {"clips": len(refused), "first": {key: refused[key] for key in sorted(refused)[:FIRST_REFUSALS]}}
        manifest = Manifest(self.view, self.digests, self.labels, self.partition, columns, summary)
        if not (self.root / MANIFEST).exists() or manifest != Manifest.read(self.root):
            manifest.write(self.root)


def make_plan(
    root: Path,
    *,
    clips: Sequence[Any],
    columns: Mapping[str, Any],
    view: dict[str, Any],
    codec: str,
    clips_per_shard: int | None,
) -> Plan:
    """Compares what is wanted with what is there. Raises ValueError for each way in which they contradict."""
    check_place(root)
    if not clips or not columns:
        raise ValueError(f"an extraction needs clips and columns, got {len(clips)} and {len(columns)}")
    by_key = {check_key(clip.key): clip for clip in clips}
    if len(by_key) != len(clips):
        raise ValueError(f"{len(clips)} clips have only {len(by_key)} different keys")
    wanted = {
        check_column(name): Column(name, source.layout, check_codec(codec), dict(source.origin))
        for name, source in columns.items()
    }
    there = Manifest.read(root) if (root / MANIFEST).exists() else None
    if clips_per_shard is None:
        first = next(iter(wanted.values()))
        clips_per_shard = there.partition.clips_per_shard if there else default_clips_per_shard(first, len(clips))
    partition = Partition(len(clips), clips_per_shard, keys_digest(by_key))
    digests = describe_clips(clips) | {"view": digest(view)}
    labels = sorted({clip.label for clip in clips if clip.label is not None})
    if there:
        check_clips(root, there, clips=clips, view=view, clips_per_shard=clips_per_shard)
        check_columns(root, there, wanted)
    work = tuple(_unfinished(root, list(by_key), partition, wanted))
    missing = {name for item in work for name in item.columns}
    merged = {**wanted, **(there.columns if there else {})}
    for name in missing - {CLIPS}:
        merged[name] = wanted[name]
    return Plan(root, by_key, merged, partition, view, digests, labels, tuple(wanted), work, there)


def check_place(root: Path) -> None:
    """Raises OSError or ValueError where no store can be: in a file, among other things, without permission."""
    above = root
    while not os.path.lexists(above):
        above = above.parent
    if not above.is_dir():
        raise NotADirectoryError(f"store.path={root}: {above} is not a folder; choose another store.path")
    if not os.access(above, os.W_OK | os.X_OK):
        raise PermissionError(f"store.path={root}: no permission to write in {above}; choose another store.path")
    names = {path.name for path in root.iterdir()} if above == root else set()
    if names - {MANIFEST + TEMPORARY} and MANIFEST not in names:  # a writer clears its folder of temporary files
        few = ", ".join(sorted(names)[:NAMED])
        raise ValueError(
            f"store.path={root} holds {few} and no {MANIFEST}: it is no feature store; choose a new or empty folder"
        )


def _unfinished(root: Path, keys: Sequence[str], partition: Partition, wanted: Mapping[str, Column]) -> Iterator[Work]:
    """The shards that the records or some column miss. A shard whose sidecar or tar is damaged counts as missing."""
    specs: dict[str, Spec] = {CLIPS: {}} | {name: column.spec for name, column in wanted.items()}
    for shard in range(partition.shards):
        own = tuple(keys[shard * partition.clips_per_shard : (shard + 1) * partition.clips_per_shard])
        missing = tuple(name for name, spec in specs.items() if not _finished(root, name, shard, spec=spec, keys=own))
        if missing:
            yield Work(shard, own, missing)


def _finished(root: Path, column: str, shard: int, *, spec: Spec, keys: Sequence[str]) -> bool:
    try:
        sidecar = Sidecar.read(root, column, shard, spec=spec)
    except (FileNotFoundError, StoreError):
        return False
    if sidecar.planned != set(keys):
        raise ValueError(f"{root}/{column}/{shard_name(shard)}.json holds other clips than this shard shall; delete it")
    return sidecar.has_tar(root)


def read_refused(root: Path, column: str, shard: int) -> dict[str, str]:
    """key -> reason of one shard of one column; empty where it is not finished."""
    try:
        document = json.loads(read_inside(root, column, f"{shard_name(shard)}.json"))
        return {check_key(key): str(reason) for key, reason in document["refused"].items()}
    except FileNotFoundError:
        return {}
    except StoreError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}  # damaged: it counts as missing, and is written again


def default_clips_per_shard(column: Column, clips: int) -> int:
    """About 512 MB of a column, in at least 8 shards."""
    return max(1, min(SHARD_BYTES // member_bytes(column.spec), -(-clips // FEWEST_SHARDS)))


def required_bytes(plan: Plan) -> tuple[int, float]:
    """(bytes that the work will write, of which per clip)."""
    sizes = {name: member_bytes(column.spec) for name, column in plan.columns.items()}
    on_disk = {name: BLOCK + size + padding(size) for name, size in sizes.items()} | {CLIPS: RECORD_BYTES}
    total = sum(len(work.keys) * on_disk[name] for work in plan.work for name in work.columns)
    return total, total / max(1, sum(len(work.keys) for work in plan.work))


def check_refused(refused: Mapping[str, str], *, total: int, share: float, final: bool) -> None:
    """Raises ValueError above the share of clips that may be refused, with the first reasons."""
    if len(refused) <= share * total:
        return
    first = "\n".join(f"  {key}: {refused[key]}" for key in sorted(refused)[:5])
    so_far = "" if final else " so far"
    raise ValueError(
        f"{len(refused)} of {total} clips ({len(refused) / total:.0%}){so_far} were refused, more than "
        f"data.max_refused={share:g} allows. The first:\n{first}\nTo try them again, delete the store."
    )
