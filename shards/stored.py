"""The features of a store as it is: clips, labels and splits are its own, columns are taken by their names.

What a recipe with data=store trains on: imported features, or a store whose videos are elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from shards.column import PIXELS, STUDENT
from shards.disk import StoreError
from shards.manifest import Manifest
from shards.notices import notices, split_lines
from shards.ranks import Ranks
from shards.store import FeatureStore
from teachers.layout import TokenLayout

if TYPE_CHECKING:
    from shards.remote import Mirror


@dataclass
class Stored:
    """path: of the store, or what stands for one behind a URL. special: target -> the tokens beside its grid that are
    converted. floors: with "pixels" among them, the averaged pixels have to be there too. Raises StoreError, naming the
    column, where one is not there."""

    path: Path | Mirror
    special: Mapping[str, Sequence[str]]
    floors: Sequence[str]
    ranks: Ranks
    say: Callable[[str], None] = field(default=print, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.path, Path):
            self.path.fetch_manifest()
        there = Manifest.read(self.path if isinstance(self.path, Path) else self.path.root).columns
        self.columns = [STUDENT, *self.special]
        for name in self.columns:
            if name not in there:
                raise StoreError(f"{self.path} has no column {name!r}; there are {', '.join(there) or 'none'}")
        if "pixels" in self.floors:
            pixels = [PIXELS + name for name in self.special]
            if lacking := [name for name in pixels if name not in there]:
                rest = ",".join(floor for floor in self.floors if floor != "pixels")
                raise StoreError(f"{self.path} has no column {lacking[0]!r}: no pixels; set evaluate.floors=[{rest}]")
            self.columns += pixels
        self.layouts: dict[str, TokenLayout] = {name: there[name].layout for name in self.columns}

    def extract(self) -> FeatureStore:
        """Opens the store; nothing is computed."""
        store = FeatureStore(self.path, self.columns, special=self.special)
        lines = split_lines([_Clip(record["label"], record["group"], record["split"]) for record in store.clips])
        if self.ranks.main:
            for line in [f"features: as they are in {self.path}", *(f"data: {line}" for line in lines)]:
                self.say(line)
            for line in notices(store):
                self.say(line)
        return store


@dataclass
class _Clip:
    """Where a clip of a store stands."""

    label: str | None
    group: str
    split: str
