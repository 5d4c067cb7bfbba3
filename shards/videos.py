"""Where clips come from: class folders, a CSV, WebDataset tars of video files, the embedded demo, the world.

`shards.sources` reads a source into `Video`s (a file, or a given span of one); `find_clips` gives them groups, splits
and keys.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

from shards.sources import Video, read_csv, read_folder, read_tars, report
from shards.split import assign_splits


@dataclass(frozen=True)
class Clip:
    """One sample: a span of a video.

    source: the file to open, or the tar that holds it at `offset`. name: path relative to the source's root
    ("tar::member" in a tar), for messages and records. start, end: seconds, None where the view decides by
    `position` = (index, count) among the clips of this video. size: bytes of the video file. factors: further labels
    by name.
    """

    key: str
    source: str
    label: str | None
    group: str
    split: str
    start: float | None
    end: float | None
    position: tuple[int, int]
    name: str
    size: int
    offset: int | None = None
    factors: dict[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Found:
    """Clips in their order, their distinct labels sorted, and what the user should know."""

    clips: list[Clip]
    labels: list[str]
    notes: list[str]


def find_clips(
    *,
    source: str,
    root: str | Path | None = None,
    csv: str | Path | None = None,
    tars: str | None = None,
    clips: int = 80,
    seed: int = 0,
    clip_seconds: float = 2.0,
    clips_per_video: int = 1,
    group: str | None = None,
    split: str = "combination",
    difficulty: float = 0.5,
    rendered_dir: str | Path | None = None,
) -> Found:
    """All clips of a source, without decoding anything (demo and world are rendered first, unless they are there).

    source: demo or world (rendered under rendered_dir), folder (root), csv, or webdataset (tars). split, difficulty: of
    the world, see world_videos.render_world. group: a regular expression
    searched in the name; what it captures, joined by "/", is the group; default: the file. Raises ValueError or
    FileNotFoundError that names every bad row or file at once.
    """
    if source == "demo":
        from shards.demo import render_demo

        place = Path(_required(rendered_dir, "rendered_dir", source))
        videos, notes = read_folder(render_demo(place, clips=clips, seed=seed))
    elif source == "world":
        from shards.world_videos import render_world

        place = Path(_required(rendered_dir, "rendered_dir", source))
        videos, notes = read_csv(
            render_world(place, clips=clips, seed=seed, split=split, difficulty=difficulty), root=None
        )
    elif source == "folder":
        videos, notes = read_folder(Path(_required(root, "data.root", source)))
    elif source == "csv":
        videos, notes = read_csv(Path(_required(csv, "data.csv", source)), Path(root) if root else None)
    elif source == "webdataset":
        videos, notes = read_tars(str(_required(tars, "data.tars", source)), Path(root) if root else None)
    else:
        raise ValueError(f"data.source is {source!r}; it is one of demo, world, folder, csv, webdataset")
    return make_clips(videos, notes, clip_seconds=clip_seconds, clips_per_video=clips_per_video, group=group)


def make_clips(
    videos: Sequence[Video],
    notes: Sequence[str],
    *,
    clip_seconds: float = 2.0,
    clips_per_video: int = 1,
    group: str | None = None,
) -> Found:
    """Gives videos (or whatever stands for one) their groups, splits and keys. See find_clips."""
    groups = _groups(videos, group)
    splits, moved = assign_splits(groups, [video.split for video in videos])
    found: list[Clip] = []
    said = list(notes)
    for video, name, split in zip(videos, groups, splits, strict=True):
        count = 1 if video.start is not None else clips_per_video
        for position in ((index, count) for index in range(count)):
            span = (video.start, video.end) if video.start is not None else (*position, clip_seconds)
            digest = hashlib.sha256(json.dumps([video.name, span]).encode()).hexdigest()
            found.append(
                Clip(
                    f"{len(found):06d}-{digest[:10]}", video.source, video.label, name, split, video.start, video.end,
                    position, video.name, video.size, video.offset, video.factors,
                )
            )  # fmt: skip
    unlabelled = sum(clip.label is None for clip in found)
    values = {(name, value) for clip in found for name, value in clip.factors.items()}
    if factors := Counter(name for name, _ in values):
        said.append("factors: " + ", ".join(f"{name} ({factors[name]} values)" for name in sorted(factors)))
    if unlabelled:
        said.append(f"{unlabelled} of {len(found)} clips have no label")
    return Found(found, sorted({clip.label for clip in found if clip.label is not None}), said + moved)


def data_digest(clips: Sequence[Clip]) -> str:
    """Identifies the data: names, spans, positions (all in the keys), bytes, labels, factors and groups."""
    digest = hashlib.sha256()
    for clip in clips:
        line: list[Any] = [clip.key, clip.name, clip.size, clip.start, clip.end, clip.label, clip.group]
        line += [sorted(clip.factors.items())] if clip.factors else []  # data without factors keeps its digest
        digest.update(json.dumps(line).encode() + b"\n")
    return digest.hexdigest()


def open_source(clip: Clip) -> str | BytesIO:
    """What a decoder opens: the path, or the bytes of a tar's member. Raises OSError where they cannot be had."""
    if clip.offset is None:
        return clip.source
    with open(clip.source, "rb") as file:
        file.seek(clip.offset)
        data = file.read(clip.size)
    if len(data) != clip.size:
        raise OSError(f"{clip.source} ends within {clip.name}: it has changed since it was indexed")
    return BytesIO(data)


def _required(value: Any, name: str, source: str) -> Any:
    if value is None:
        raise ValueError(f"data.source={source} needs {name}")
    return value


def _groups(videos: Sequence[Video], pattern: str | None) -> list[str]:
    """The group of every video: given, else captured from its name, else the file. One file has one group."""
    try:
        search = re.compile(pattern).search if pattern is not None else None
    except re.error as error:
        raise ValueError(f"data.group={pattern!r} is not a regular expression: {error}") from error
    given, first, problems = defaultdict(dict), {}, []  # type: ignore[var-annotated]
    for video in videos:
        first.setdefault(video.identity, video.name)
        if video.group is not None:
            given[video.identity][video.group] = None
        elif search:
            match = search(video.name)
            if match:
                video.group = "/".join(part or "" for part in match.groups()) if match.groups() else match[0]
                given[video.identity][video.group] = None
            else:
                problems.append(f"{video.name}: data.group={pattern!r} matches nothing in it")
    for identity, names in given.items():
        if len(names) > 1:
            problems.append(f"{first[identity]}: one file stands in {len(names)} groups: {', '.join(map(repr, names))}")
    report(problems, "groups")
    return [next(iter(given[video.identity]), first[video.identity]) for video in videos]
