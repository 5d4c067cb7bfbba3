"""A group of neighbouring clips: rendered, run through every backbone that is asked for, refused where that fails.

Axes: b clips of a group, q tokens of a clip, d channels.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor

from shards.column import CLIPS
from teachers.layout import TokenLayout

Views = Mapping[tuple[int, int], Tensor]  # (frames, pixels) -> (frames, 3, pixels, pixels) uint8


class Clip(Protocol):
    """What is extracted. split: train, val or test. factors: further labels by name."""

    @property
    def key(self) -> str: ...

    @property
    def source(self) -> str: ...

    @property
    def label(self) -> str | None: ...

    @property
    def group(self) -> str: ...

    @property
    def split(self) -> str: ...

    @property
    def factors(self) -> Mapping[str, str]: ...


class Source(Protocol):
    """A column's function: video (b, frames, 3, pixels, pixels) float in [0, 1] -> tokens (b, q, d) float."""

    frames: int
    pixels: int
    layout: TokenLayout
    origin: dict[str, Any]

    def __call__(self, video: Tensor) -> Tensor: ...


Render = Callable[[Any], tuple[dict[str, Any], Views]]  # clip -> fields of its record, views
Rendered = tuple[dict[str, Any], Views] | str  # or the reason of the refusal


@dataclass
class Group:
    """Records of the clips that could be had, reasons of the others; column -> its keys, and their tokens (b q d)."""

    records: dict[str, dict[str, Any]]
    refused: dict[str, str]
    keys: dict[str, list[str]]
    tokens: dict[str, Tensor]


@dataclass(frozen=True)
class Computer:
    """Computes groups. clips: by key. sources: the columns' functions. refusal: what `render` raises for a bad clip.

    covers: column -> the keys that it shall have; a column that is not named there has all.
    """

    clips: Mapping[str, Clip]
    sources: Mapping[str, Source]
    render: Render
    refusal: type[Exception]
    device: torch.device
    covers: Mapping[str, frozenset[str]]

    def compute(
        self, keys: Sequence[str], known: Mapping[str, str], columns: Collection[str], rendered: Iterator[Rendered]
    ) -> Group:
        """One forward of every column over the clips of `keys` that it covers. columns: CLIPS among them where the
        records are missing. rendered: of `readable`.

        A clip that cannot be rendered, or is known to be refused, is black there: the shape of a forward, and with it
        the rounding of its results, depends on what is covered alone, and not on where an earlier start has ended.
        """
        refused = {key: known[key] for key in keys if key in known}
        fields: dict[str, dict[str, Any]] = {}
        views: dict[str, Views] = {}
        readable = self.readable(keys, known, columns)
        for key, result in zip(readable, islice(rendered, len(readable)), strict=True):
            if isinstance(result, str):
                refused[key] = result
            else:
                fields[key], views[key] = result
        covered = {name: [key for key in keys if self.covered(name, key)] for name in self.sources if name in columns}
        tokens = {
            name: self.forward(name, [views.get(key) for key in own])
            for name, own in covered.items()
            if not views.keys().isdisjoint(own)
        }
        for name, batch in tokens.items():
            for key, fine in zip(covered[name], batch.isfinite().flatten(1).all(1).tolist(), strict=True):
                if not fine and key in views:
                    refused.setdefault(key, f"{name} gives tokens that are not finite")
        for name, batch in tokens.items():
            rows = [row for row, key in enumerate(covered[name]) if key in views and key not in refused]
            tokens[name] = batch if len(rows) == len(batch) else batch[rows]
        kept = {name: [key for key in covered[name] if key in views and key not in refused] for name in tokens}
        records = {key: record_of(self.clips[key]) | fields[key] for key in fields if key not in refused}
        return Group(records, refused, kept, tokens)

    def covered(self, column: str, key: str) -> bool:
        return column not in self.covers or key in self.covers[column]

    def forward(self, name: str, views: Sequence[Views | None]) -> Tensor:
        """The tokens (b q d) of one column, float32. None: a black clip."""
        source = self.sources[name]
        rows = [None if view is None else view[source.frames, source.pixels] for view in views]
        black = torch.zeros_like(next(row for row in rows if row is not None))
        video = torch.stack([black if row is None else row for row in rows]).to(self.device)
        with torch.no_grad():
            tokens = source(video.float().div_(255)).float()
        if tokens.shape[1:] != source.layout.shape:
            raise ValueError(f"column {name}: tokens are {tuple(tokens.shape[1:])}, but layout {source.layout.shape}")
        return tokens

    def readable(self, keys: Sequence[str], known: Mapping[str, str], columns: Collection[str]) -> list[str]:
        """Those of the keys whose clips have to be rendered for these columns: a part leaves the others unread."""
        return [
            key
            for key in keys
            if key not in known and any(name == CLIPS or self.covered(name, key) for name in columns)
        ]

    def try_render(self, key: str) -> Rendered:
        """What the clip shows, or why it cannot be had."""
        try:
            return self.render(self.clips[key])
        except self.refusal as error:
            return str(error) or type(error).__name__


def record_of(clip: Clip) -> dict[str, Any]:
    """What the store says of a clip, whatever it was made from."""
    own = {"key": clip.key, "label": clip.label, "source": clip.source, "group": clip.group, "split": clip.split}
    return own | ({"factors": dict(clip.factors)} if clip.factors else {})
