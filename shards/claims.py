"""What manifest.json claims, held against the records, the indices and the statistics of a store.

A column's origin and extent, and how views were chosen, stand in the manifest alone: nothing can contradict them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from shards.agreement import describe_clips, identity
from shards.column import CLIPS, Sidecar, keys_digest
from shards.disk import StoreError, read_inside
from shards.manifest import MANIFEST, Column, Manifest, digest
from shards.statistics import STATISTICS_FILE
from shards.store import FeatureStore
from shards.tensorfile import Spec, metadata_of

OURS = re.compile(r"[0-9a-f]{10}")  # the identity in a key that shards.videos gives
MOST_SPANS = 100  # of one video that are looked for
NAMED = 3  # values that a sentence names


@dataclass
class Tally:
    """What the indices of a column say together. refused: key -> the reasons."""

    planned: set[str] = field(default_factory=set)
    members: int = 0
    uncovered: int = 0
    refused: dict[str, set[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, root: Path, manifest: Manifest, column: str, spec: Spec) -> Tally:
        tally = cls()
        for shard in range(manifest.partition.shards):
            index = Sidecar.read(root, column, shard, spec=spec)
            tally.planned |= index.planned
            tally.members += len(index.members)
            tally.uncovered += len(index.uncovered)
            tally.refuse({key: {reason} for key, reason in index.refused.items()})
        return tally

    def refuse(self, refused: Mapping[str, set[str]]) -> None:
        for key, reasons in refused.items():
            self.refused.setdefault(key, set()).update(reasons)


def false_claims(root: Path, manifest: Manifest) -> Iterator[str]:
    """A sentence for every entry of the manifest that the store contradicts. Its shards are sound.

    Raises StoreError where a record is damaged.
    """
    clips = Tally.of(root, manifest, CLIPS, {})
    if unlike := list(_partition(manifest, clips)):
        yield from unlike
        return
    records = FeatureStore(root, []).clips
    yield from _labels(manifest, records, refused=len(clips.refused))
    yield from _digests(manifest, records, whole=not clips.refused)
    everything = Tally()
    everything.refuse(clips.refused)
    complete = [column for column in manifest.columns.values() if column.complete]
    for column in complete:
        tally = Tally.of(root, manifest, column.name, column.spec)
        yield from _coverage(column, tally, clips)
        yield from _split(root, column, manifest)
        everything.refuse(tally.refused)
    if len(complete) == len(manifest.columns):  # else the count is of before
        yield from _refused(manifest.refused, len(clips.refused), everything.refused)


def _differs(entry: str, said: object, found: object) -> str:
    return f"{MANIFEST}: {entry} is {str(said)[:80]}, not {found}"


def _partition(manifest: Manifest, clips: Tally) -> Iterator[str]:
    partition, keys = manifest.partition, keys_digest(clips.planned)
    if partition.clips != len(clips.planned):
        yield _differs("partition.clips", partition.clips, len(clips.planned))
    if partition.keys != keys:
        yield _differs("partition.keys", partition.keys[:12], f"{keys[:12]}, the digest of the shards' keys")


def _labels(manifest: Manifest, records: list[dict[str, Any]], *, refused: int) -> Iterator[str]:
    """Labels are those of all clips; the records of refused ones are not there, so that a few may have none."""
    said, found = manifest.labels, {record["label"] for record in records if record["label"] is not None}
    if lacking := sorted(found - set(said)):
        yield f"{MANIFEST}: labels lacks {_some(lacking)}, which clips have"
    if len(beside := sorted(set(said) - found)) > refused:
        yield f"{MANIFEST}: labels has {_some(beside)}, which no clip has"
    if said != sorted(set(said)):
        yield f"{MANIFEST}: labels is not sorted, or has one twice: {_some(said)}"


def _some(names: list[str]) -> str:
    return ", ".join(map(repr, names[:NAMED])) + (", ..." if len(names) > NAMED else "")


def _digests(manifest: Manifest, records: list[dict[str, Any]], *, whole: bool) -> Iterator[str]:
    """whole: no clip is refused, so that the records are all that the digests were made from."""
    try:
        found = {"view": digest(manifest.view)} | (_describe(records, manifest.view) if whole else {})
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        yield f"{MANIFEST}: digests cannot be compared, the view or a record holds what has no digest ({error})"
        return
    for name, value in found.items():
        said = manifest.digests.get(name)
        if said != value:
            yield _differs(f"digests.{name}", str(said)[:12], f"{value[:12]} as of the store's records and view")


def _describe(records: list[dict[str, Any]], view: Mapping[str, Any]) -> dict[str, str]:
    """The digests of the split and, where the records tell enough, of the data."""
    spans = [_given_span(record, view) for record in records]
    clips = [
        SimpleNamespace(**{"size": None, "factors": {}, **record, "start": span and span[0], "end": span and span[1]})
        for record, span in zip(records, spans, strict=True)
    ]
    made = describe_clips(clips)
    return made if None not in spans else {"split": made["split"]}


def _given_span(record: Mapping[str, Any], view: Mapping[str, Any]) -> tuple[Any, Any] | None:
    """The seconds that a clip was given, (None, None) where the view chose them; None where that cannot be told.

    A key of ours identifies source and span, and so says which it was (shards.videos.make_clips).
    """
    mark, seen = identity(record["key"]), record.get("view")
    if not OURS.fullmatch(mark):
        return None, None
    seconds, count = float(view.get("clip_seconds", 2.0)), view.get("clips_per_video", 1)
    chosen = ((index, count, seconds) for index in range(min(count, MOST_SPANS)))
    if mark in (_mark(record, span) for span in chosen):
        return None, None
    given = (seen.get("start"), seen.get("end")) if isinstance(seen, Mapping) else (None, None)
    return given if mark == _mark(record, given) else None


def _mark(record: Mapping[str, Any], span: Iterable[Any]) -> str:
    return hashlib.sha256(json.dumps([record["source"], list(span)]).encode()).hexdigest()[:10]


def _coverage(column: Column, tally: Tally, clips: Tally) -> Iterator[str]:
    """Refused clips may count as uncovered too: a declared part is a part of all clips."""
    said, refused = column.coverage, len(tally.refused.keys() | clips.refused.keys())
    uncovered = range(tally.uncovered, tally.uncovered + refused + 1)
    where = f"columns.{column.name}.coverage"
    if said.get("clips") != tally.members:
        yield _differs(f"{where}.clips", said.get("clips"), tally.members)
    if said.get("refused") != refused:
        yield _differs(f"{where}.refused", said.get("refused"), refused)
    if said.get("uncovered", 0) not in uncovered:
        yield _differs(f"{where}.uncovered", said.get("uncovered", 0), _span_of(uncovered))


def _split(root: Path, column: Column, manifest: Manifest) -> Iterator[str]:
    """Statistics say of which split's train clips they are. What is missing or damaged is said elsewhere."""
    try:
        metadata, _ = metadata_of(read_inside(root, column.name, STATISTICS_FILE))
    except (StoreError, FileNotFoundError, ValueError, TypeError, AttributeError, RecursionError):
        return
    said, made = manifest.digests.get("split"), metadata.get("split")
    if said != made:
        where = f"{column.name}/{STATISTICS_FILE}"
        yield f"{MANIFEST}: digests.split is {str(said)[:12]}, but {where} is of the split {str(made)[:12]}"


def _refused(said: Mapping[str, Any], fewest: int, refused: Mapping[str, set[str]]) -> Iterator[str]:
    """The records' refusals count in any case; those of a column that was imported or derived may not yet."""
    counts = range(fewest, len(refused) + 1)
    if said.get("clips") not in counts:
        yield _differs("refused.clips", said.get("clips"), _span_of(counts))
    first = said.get("first")
    if not isinstance(first, Mapping):
        yield _differs("refused.first", first, "keys with reasons")
        return
    for key, reason in list(first.items())[:NAMED]:
        if str(reason) not in refused.get(key, ()):
            yield f"{MANIFEST}: refused.first has clip {key!r} ({str(reason)[:80]}), which no index refuses for that"


def _span_of(counts: range) -> str:
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
