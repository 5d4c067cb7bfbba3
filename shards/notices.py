"""What a run must say about its clips."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from shards.split import SPLITS
from shards.store import FeatureStore

FEW_GROUPS = 8  # of test clips, below which a number is an anecdote


class Side(Protocol):
    """Where a clip stands."""

    @property
    def label(self) -> str | None: ...

    @property
    def group(self) -> str: ...

    @property
    def split(self) -> str: ...


def split_lines(clips: Sequence[Side]) -> list[str]:
    """What stands on which side, and a warning where that is too little to measure anything."""
    labels = len({clip.label for clip in clips} - {None})
    counts = {split: sum(clip.split == split for clip in clips) for split in SPLITS}
    groups = {split: len({clip.group for clip in clips if clip.split == split}) for split in SPLITS}
    sides = ", ".join(f"{split} {counts[split]}" for split in SPLITS)
    lines = [f"{len(clips)} clips in {sum(groups.values())} groups, {labels} labels; {sides}"]
    if groups["test"] < FEW_GROUPS:
        lines.append(
            f"test holds {groups['test']} group(s): too few to measure anything, and intervals mean nothing below "
            f"{FEW_GROUPS}; give more videos, or choose the test clips in a CSV (data=csv)"
        )
    return lines


def notices(store: FeatureStore, *, most: int = 10) -> list[str]:
    """What a run must say about its clips: which it does not have, and which were odd but could be read."""
    lines: list[str] = []
    if store.refused:
        lines.append(f"data: {len(store.refused)} of {len(store.refused) + len(store)} clips were refused:")
        lines += [f"  {key}: {reason}" for key, reason in sorted(store.refused.items())[:most]]
    if len(store.refused) > most:
        lines.append(f"  and {len(store.refused) - most} more; the store's clips/*.json names them all")
    if store.uncovered:
        lines.append(f"data: {len(store.uncovered)} clips are left out, which not every column covers")
    odd = [f"  {clip['source']}: {'; '.join(clip['notes'])}" for clip in store.clips if clip.get("notes")]
    if odd:
        lines += [f"data: {len(odd)} clips were read with a remark:", *odd[:most]]
    if len(odd) > most:
        lines.append(f"  and {len(odd) - most} more; the records in the store's clips/*.tar hold them all")
    return lines
