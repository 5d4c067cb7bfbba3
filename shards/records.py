"""The clips of a store that no video stands behind: its manifest and the records of its clips."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from shards.agreement import check_clips, describe_clips
from shards.column import CLIPS, Sidecar, keys_digest
from shards.disk import StoreError, Writing, remove_temporaries
from shards.group import Clip, record_of
from shards.manifest import MANIFEST, Manifest, Partition, digest
from shards.plan import check_place
from shards.writer import ShardWriter


def write_records(
    root: Path,
    clips: Sequence[Clip],
    *,
    view: Mapping[str, Any],
    clips_per_shard: int,
    more: Callable[[Clip], dict[str, Any]],
) -> None:
    """Makes a store of clips without columns; what a killed start has done stays. more: of a clip's record.

    Raises ValueError where the store there holds other clips.
    """
    check_place(root)
    root.mkdir(parents=True, exist_ok=True)
    with Writing(root):
        remove_temporaries(root)
        if (root / MANIFEST).exists():
            manifest = Manifest.read(root)
            check_clips(root, manifest, clips=clips, view=view, clips_per_shard=None)
        else:
            partition = Partition(len(clips), clips_per_shard, keys_digest(clip.key for clip in clips))
            labels = sorted({clip.label for clip in clips if clip.label is not None})
            digests = describe_clips(clips) | {"view": digest(dict(view))}
            manifest = Manifest(dict(view), digests, labels, partition, {})
            manifest.write(root)
        for shard in range(manifest.partition.shards):
            start = shard * manifest.partition.clips_per_shard
            own = clips[start : start + manifest.partition.clips_per_shard]
            if not is_finished(root, shard):
                with ShardWriter(root, column=CLIPS, shard=shard, spec={}) as writer:
                    for clip in own:
                        writer.add_record(clip.key, record_of(clip) | more(clip))
                    writer.finish()


def is_finished(root: Path, shard: int) -> bool:
    """Whether the records of a shard are there."""
    try:
        return Sidecar.read(root, CLIPS, shard, spec={}).has_tar(root)
    except (FileNotFoundError, StoreError):
        return False
