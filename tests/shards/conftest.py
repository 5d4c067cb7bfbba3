"""A tiny world: clips whose pixels are their number, backbones that are arithmetic, and stores made of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from shards.extraction import extract
from shards.store import FeatureStore
from teachers.layout import TokenLayout

SPLIT = ("train", "train", "val", "train", "test")


class Unreadable(Exception):
    """What the tiny render raises."""


@dataclass(frozen=True)
class TinyClip:
    number: int
    split: str
    label: str | None = None
    start: float | None = None
    end: float | None = None
    factors: dict[str, str] = field(default_factory=dict, hash=False)

    @property
    def key(self) -> str:
        return f"{self.number:06d}-abc"

    @property
    def source(self) -> str:
        return f"{self.number}.mp4"

    @property
    def group(self) -> str:
        return f"g{self.number // 2}"


@dataclass
class TinyBackbone:
    """Tokens from a hash-like wave of the clip's pixels; `calls` counts clips, `poison` answers NaN for one clip."""

    seed: int = 0
    layout: TokenLayout = TokenLayout((2, 2, 2), 6)
    frames: int = 2
    pixels: int = 4
    poison: int | None = None
    stop_after: int | None = None
    calls: int = 0
    origin: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.origin = self.origin or {"function": f"tiny:{self.seed}", "revision": None, "licence": "none"}

    def __call__(self, video: Tensor) -> Tensor:
        assert video.shape[1:] == (self.frames, 3, self.pixels, self.pixels) and video.max() <= 1
        self.calls += len(video)
        if self.stop_after is not None and self.calls > self.stop_after:
            raise KeyboardInterrupt
        number = (video.flatten(1)[:, 0] * 255).round()
        wave = torch.arange(self.layout.num_tokens * self.layout.dim).float().reshape(self.layout.shape)
        tokens = torch.sin(wave * (1 + number.view(-1, 1, 1)) + self.seed) * 3 + 10 * self.layout.dim
        tokens[number == self.poison] = torch.nan
        return tokens


def render(clip: TinyClip) -> tuple[dict[str, Any], dict[tuple[int, int], Tensor]]:
    return {"span": [0.0, 2.0]}, {(2, 4): torch.full((2, 3, 4, 4), clip.number, dtype=torch.uint8)}


def broken(*numbers: int) -> Callable[[TinyClip], Any]:
    """A render that refuses some clips."""

    def refuse(clip: TinyClip) -> Any:
        if clip.number in numbers:
            raise Unreadable(f"{clip.source}: no video stream")
        return render(clip)

    return refuse


def tiny_clips(count: int = 10) -> list[TinyClip]:
    labels = ("run", None, "jump")
    return [TinyClip(number, SPLIT[number % 5], labels[number % 3]) for number in range(count)]


def tiny_extract(
    path: Path,
    *,
    clips: Sequence[TinyClip] | None = None,
    columns: dict[str, TinyBackbone] | None = None,
    **options: Any,
) -> None:
    defaults: dict[str, Any] = {
        "render": render,
        "view": {"clip_seconds": 2.0},
        "refusal": Unreadable,
        "clips_per_shard": 4,
        "say": lambda text: None,
    }
    extract(
        path,
        clips=clips or tiny_clips(),
        columns={"student": TinyBackbone(0), "videomae": TinyBackbone(1)} if columns is None else columns,
        **(defaults | options),
    )


@dataclass(frozen=True)
class Tiny:
    """What tests take from here."""

    clips: Any = staticmethod(tiny_clips)
    backbone: Any = TinyBackbone
    extract: Any = staticmethod(tiny_extract)
    broken: Any = staticmethod(broken)
    render: Any = staticmethod(render)


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    return Tiny()


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    """10 clips, 3 shards, int8 columns student and videomae."""
    tiny_extract(tmp_path / "store")
    return FeatureStore(tmp_path / "store")
