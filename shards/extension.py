"""A store that goes on: which key a clip has there, so that new clips come after the old ones; and parts of a store."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path

from shards.agreement import identity
from shards.column import CLIPS, Sidecar
from shards.manifest import Manifest
from shards.videos import Clip


def after_those_of(root: Path, clips: Sequence[Clip]) -> list[Clip]:
    """The clips in the order of the store at `root`, with its keys, and those that it does not have after them.

    A key is a number and the clip's identity. The listing of a folder puts new files between the old ones, so the
    numbers are the store's; free ones go to the new clips in their order, also after a start that was killed.
    """
    known: dict[str, str] = {}
    for shard in range(Manifest.read(root).partition.shards):
        try:
            planned = Sidecar.read(root, CLIPS, shard, spec={}).planned
        except FileNotFoundError:
            continue
        known |= {identity(key): key for key in planned}
    taken = {_number(key) for key in known.values()}
    free = (number for number in count() if number not in taken)
    keyed = [
        replace(clip, key=known.get(identity(clip.key)) or f"{next(free):06d}-{identity(clip.key)}") for clip in clips
    ]
    return sorted(keyed, key=lambda clip: _number(clip.key))


def _number(key: str) -> int:
    return int(key.partition("-")[0])


def choose_part(keys: Sequence[str], clips: int) -> frozenset[str]:
    """So many of the keys, by a hash of the clips' identities: spread over the store; a larger part holds a smaller."""
    order = sorted(keys, key=lambda key: hashlib.sha256(identity(key).encode()).digest())
    return frozenset(order[:clips])
