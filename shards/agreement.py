"""Whether a store that is there holds the clips and columns that are wanted, and in what it does not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from shards.column import keys_digest
from shards.disk import StoreError
from shards.manifest import Column, Manifest, digest
from shards.store import FeatureStore
from shards.task import prefixed

FACTS = ("start", "end", "size")  # of a clip that was given a span, and of its file
STATED = ("label", "group", "split")  # of a clip, beside its factors
NAMED = 3  # clips that a line of an error names


def check_clips(
    root: Path, there: Manifest, *, clips: Sequence[Any], view: Mapping[str, Any], clips_per_shard: int | None
) -> None:
    """Raises ValueError where a store holds other clips than these, or shows or divides them otherwise."""
    partition = there.partition
    pairs: dict[str, tuple[Any, Any]] = {
        "clips": (partition.clips, len(clips)),
        "digest of the keys": (partition.keys[:12], keys_digest({clip.key for clip in clips})[:12]),
        "clips_per_shard": (partition.clips_per_shard, clips_per_shard or partition.clips_per_shard),
    }
    for entry in sorted(there.view.keys() | view.keys()):
        pairs[f"{entry} of the view"] = (there.view.get(entry), view.get(entry))
    for name, value in describe_clips(clips).items():
        pairs[f"{name} digest"] = (there.digests.get(name, "none")[:12], value[:12])
    _refuse(root, pairs, more=lambda: _clip_lines(root, clips) if there.view == view else [])


def check_columns(root: Path, there: Manifest, wanted: Mapping[str, Column]) -> None:
    """Raises ValueError where a column that is there already was made otherwise than it would be."""
    pairs: dict[str, tuple[Any, Any]] = {}
    for name in wanted.keys() & there.columns.keys():
        old, new = there.columns[name], wanted[name]
        pairs[f"codec of {name}"] = (old.codec, new.codec)
        pairs[f"layout of {name}"] = (old.layout.describe(), new.layout.describe())
        pairs[f"extent of {name}"] = (old.layout.extent, new.layout.extent)
        for entry in sorted(old.origin.keys() | new.origin.keys()):
            pairs[f"{entry} of {name}"] = (old.origin.get(entry), new.origin.get(entry))
    _refuse(root, pairs)


def _refuse(root: Path, pairs: Mapping[str, tuple[Any, Any]], more: Callable[[], Iterable[str]] = lambda: ()) -> None:
    """Raises ValueError with everything in which the store there was made otherwise."""
    differences = [f"{name}: there {old}, here {new}" for name, (old, new) in sorted(pairs.items()) if old != new]
    if differences:
        lines = "\n  ".join([f"the store {root} was made otherwise:", *differences, *more()])
        raise ValueError(f"{lines}\nChoose another store.path, or delete it.")


def _clip_lines(root: Path, clips: Sequence[Any]) -> Iterator[str]:
    """Which clips a store lacks, has beside these, or has with another label, factor, group or split; a few by name."""
    try:
        store = FeatureStore(root, columns=[])
    except (StoreError, OSError):
        return
    here = {identity(clip.key): clip for clip in clips}
    there = {identity(record["key"]): record for record in store.clips}
    refused = set(map(identity, store.refused))
    lists = {
        "only there": [str(there[at].get("source")) for at in there if at not in here],
        "only here": [_name(here[at]) for at in here if at not in there and at not in refused],
    }
    for at in (at for at in here if at in there):
        clip, record = here[at], there[at]
        old = {name: record[name] for name in STATED} | prefixed(record.get("factors", {}))
        new = {name: getattr(clip, name) for name in STATED} | prefixed(clip.factors)
        for entry in {**old, **new}:
            if old.get(entry) != new.get(entry):
                line = f"{_name(clip)} (there {old.get(entry)}, here {new.get(entry)})"
                lists.setdefault(f"another {entry}", []).append(line)
    for title, names in lists.items():
        if names:
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            yield f"{title}: {', '.join(sorted(names)[:NAMED])}{more}"


def identity(key: str) -> str:
    """The key without its number, which other clips before it change."""
    return key.partition("-")[2]


def _name(clip: Any) -> str:
    return getattr(clip, "name", clip.source)


def describe_clips(clips: Sequence[Any]) -> dict[str, str]:
    """Digests of the split and of the data: keys, labels, factors, groups, spans and bytes, but no paths."""
    spans = [[clip.key, clip.label, clip.group, *(getattr(clip, fact, None) for fact in FACTS)] for clip in clips]
    for span, clip in zip(spans, clips, strict=True):
        span += [clip.factors] if clip.factors else []  # a store without factors keeps its digest
    return {
        "split": digest(sorted((clip.key, clip.split) for clip in clips)),
        "data": digest(sorted(spans, key=lambda span: span[0])),
    }
