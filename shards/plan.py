"""What an extraction has to do: which shards of which columns are missing, and whether the store there agrees."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shards.agreement import check_clips, check_columns, describe_clips
from shards.codec import CALIBRATION_FILE, check_codec
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
from shards.statistics import are_current
from shards.tensorfile import Spec

SHARD_BYTES = 512 * 10**6  # of the first column
FEWEST_SHARDS = 8  # so that several ranks have something to do
FIRST_REFUSALS = 20  # that the manifest names; the sidecars name all
NAMED = 3  # files that an error names
RECORD_BYTES = 4 * BLOCK  # a generous guess of a record with its header


@dataclass(frozen=True)
class Work:
    """One shard that some columns miss. keys: all that the partition gives to it, in order. wanted: those of them that
    a missing column covers."""

    shard: int
    keys: tuple[str, ...]
    wanted: tuple[str, ...]
    columns: tuple[str, ...]

    def groups(self, batch: int) -> Iterator[tuple[int, tuple[str, ...]]]:
        """Neighbours that are computed together, with the place of the first."""
        for start in range(0, len(self.keys), batch):
            yield start, self.keys[start : start + batch]


@dataclass(frozen=True)
class Plan:
    """The store as it shall be, and the work until then. columns: of the store, those of this pass included.

    covers: column -> its keys, if not all.
    """

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
    covers: dict[str, frozenset[str]]

    @property
    def shards(self) -> range:
        return range(self.partition.shards)

    @property
    def missing(self) -> set[str]:
        """Columns with an unfinished shard."""
        return {name for work in self.work for name in work.columns}

    @property
    def wanted(self) -> frozenset[str]:
        """The keys that a missing column covers."""
        return frozenset(key for work in self.work for key in work.wanted)

    def groups(self, batch: int) -> Iterator[tuple[int, int, tuple[str, ...]]]:
        """(shard, place, keys) of every group of the unfinished shards."""
        for work in self.work:
            for start, keys in work.groups(batch):
                yield work.shard, start, keys

    def left(self) -> int:
        """How many shards are unfinished now."""
        columns = {name: self.columns[name] for name in self.passing}
        return sum(1 for _ in _unfinished(self.root, list(self.clips), self.partition, columns, self.covers))

    def is_prepared(self) -> bool:
        """Whether the manifest names this store's clips and columns, and what these need is there."""
        if not (self.root / MANIFEST).exists():
            return False
        manifest = Manifest.read(self.root)
        return manifest.partition == self.partition and all(
            name in manifest.columns
            and (self.columns[name].codec != "int8" or (self.root / name / CALIBRATION_FILE).exists())
            for name in self.passing
        )

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
        now = Manifest.read(self.root).columns if (self.root / MANIFEST).exists() else {}
        columns = now | self.columns  # another command may have added one since
        summary: dict[str, Any] = self.there.refused if self.there else {"clips": 0, "first": {}}
        if complete:
            for name in self.passing:
                lacking = self.refusals(self.shards, columns=[CLIPS, name])
                covered = len(self.covers.get(name, self.clips.keys()) - lacking.keys())
                coverage = {"complete": True, "clips": covered, "refused": len(lacking)}
                if name in self.covers:
                    coverage["uncovered"] = len(self.clips) - len(self.covers[name])
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
    covers: Mapping[str, Collection[str]] | None = None,
    extend: bool = False,
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
        column = next(iter(wanted.values()))
        clips_per_shard = there.partition.clips_per_shard if there else default_clips_per_shard(column, len(clips))
    partition = Partition(len(clips), clips_per_shard, keys_digest(by_key))
    digests = describe_clips(clips) | {"view": digest(view)}
    labels = sorted({clip.label for clip in clips if clip.label is not None})
    old = dict(there.columns) if there else {}
    if there:
        first = clips[: there.partition.clips] if extend else clips
        check_clips(root, there, clips=first, view=view, clips_per_shard=clips_per_shard)
        check_columns(root, there, wanted)
        if len(clips) > len(first):
            old = {name: replace(column, coverage={"complete": False}) for name, column in old.items()}
    chosen = {name: frozenset(keys) for name, keys in (covers or {}).items() if name in wanted}
    work = tuple(_unfinished(root, list(by_key), partition, wanted, chosen))
    missing = {name for item in work for name in item.columns}
    merged = {**wanted, **old, **{name: wanted[name] for name in missing - {CLIPS}}}
    return Plan(root, by_key, merged, partition, view, digests, labels, tuple(wanted), work, there, chosen)


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
    names = {
        name for name in names if not (name.startswith(MANIFEST) and name.endswith(TEMPORARY))
    }  # of a killed start
    if names and MANIFEST not in names:
        few = ", ".join(sorted(names)[:NAMED])
        raise ValueError(
            f"store.path={root} holds {few} and no {MANIFEST}: it is no feature store; choose a new or empty folder"
        )


def _unfinished(
    root: Path,
    keys: Sequence[str],
    partition: Partition,
    wanted: Mapping[str, Column],
    covers: Mapping[str, frozenset[str]],
) -> Iterator[Work]:
    """The shards that the records or some column miss. A shard whose sidecar or tar is damaged counts as missing."""
    specs: dict[str, Spec] = {CLIPS: {}} | {name: column.spec for name, column in wanted.items()}
    for shard in range(partition.shards):
        own = tuple(keys[shard * partition.clips_per_shard : (shard + 1) * partition.clips_per_shard])
        missing = tuple(
            name
            for name, spec in specs.items()
            if not _finished(root, name, shard, spec=spec, keys=own, covered=covers.get(name))
        )
        if missing:
            everything = set(missing) - covers.keys()  # records among them
            some = tuple(key for key in own if everything or any(key in covers[name] for name in missing))
            yield Work(shard, own, some, missing)


def _finished(
    root: Path, column: str, shard: int, *, spec: Spec, keys: Sequence[str], covered: frozenset[str] | None
) -> bool:
    """Whether a shard of a column is there; one of fewer clips is from before the store was extended."""
    try:
        sidecar = Sidecar.read(root, column, shard, spec=spec)
    except (FileNotFoundError, StoreError):
        return False
    if sidecar.planned < set(keys):
        return False
    if sidecar.planned != set(keys):
        raise ValueError(f"{root}/{column}/{shard_name(shard)}.json holds other clips than this shard shall; delete it")
    away = set() if covered is None else set(keys) - covered - sidecar.refused.keys()
    if set(sidecar.uncovered) != away:
        raise ValueError(
            f"{root}/{column}/{shard_name(shard)}.json leaves out {len(sidecar.uncovered)} of {len(keys)} clips where "
            f"{len(away)} shall be: the column covers other clips; ask for the same ones, or delete {root}/{column}"
        )
    return sidecar.has_tar(root)


def is_whole(root: Path, manifest: Manifest, columns: Collection[str], *, statistics: Collection[str]) -> bool:
    """Whether complete columns have all their files, and nothing that a killed start has left. What is in the files is
    seen when they are opened. statistics: the columns that have some, for they have a train clip."""
    names = [f"{shard_name(shard)}{end}" for shard in range(manifest.partition.shards) for end in (".tar", ".json")]
    for column in (CLIPS, *columns):
        there = set(os.listdir(root / column)) if (root / column).is_dir() else set()
        if not there.issuperset(names) or any(name.endswith(TEMPORARY) for name in there):
            return False
    return all(
        (column not in statistics or are_current(root, column, split=manifest.digests["split"]))
        and (manifest.columns[column].codec != "int8" or (root / column / CALIBRATION_FILE).exists())
        for column in columns
    )


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
    total = 0
    for work in plan.work:
        for name in work.columns:
            covered = plan.covers.get(name)
            total += on_disk[name] * (len(work.keys) if covered is None else sum(key in covered for key in work.keys))
    return total, total / max(1, sum(len(work.wanted) for work in plan.work))


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
