"""A store in whose tokens factors are planted, some in the student's, some in the teacher's, some in both."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from waves import Clip

from shards import FeatureStore
from shards.extraction import extract
from teachers.layout import TokenLayout

STUDENT, GRID = TokenLayout(grid=(2, 2, 2), dim=6), TokenLayout(grid=(2, 2, 2), dim=5, special=("cls",))
POOLED = TokenLayout(grid=None, dim=5)
TARGETS = {"dense": GRID, "pooled": POOLED}
SPLITS = ("train", "train", "train", "val", "test")
FACTORS = ("both", "student", "teacher")  # by whose tokens hold them
VALUES = ("no", "yes")


def sides(number: int) -> list[int]:
    """The value of every factor in a clip."""
    return torch.randint(2, (3,), generator=torch.Generator().manual_seed(number)).tolist()


class Planted:
    """Tokens of noise, in whose first channels some factors stand."""

    frames, pixels = 2, 4

    def __init__(self, layout: TokenLayout, factors: tuple[int, ...]) -> None:
        self.layout, self.factors = layout, factors
        self.origin = {"function": f"planted:{factors}", "revision": None, "licence": "none"}

    def __call__(self, video: Tensor) -> Tensor:
        return torch.stack([self.clip(int(number)) for number in (video.flatten(1)[:, 0] * 255).round()])

    def clip(self, number: int) -> Tensor:
        generator = torch.Generator().manual_seed(1000 + number + 500 * self.layout.num_tokens)
        found = torch.randn(*self.layout.shape, generator=generator)
        for channel, factor in enumerate(self.factors):
            found[:, channel] += 2 * sides(number)[factor] - 1
        return found


def held(factors: dict[str, str]) -> str:
    """The names of the factors that a clip has."""
    return "+".join(name for name, value in factors.items() if value == "yes") or "none"


def plant(path: Path, *, label: Callable[[dict[str, str]], str] = held, **teachers: Planted) -> FeatureStore:
    """240 clips in groups of two: 144 train, 48 val, 48 test."""
    clips = []
    for number in range(240):
        factors = {name: VALUES[side] for name, side in zip(FACTORS, sides(number), strict=True)}
        clips.append(Clip(number, SPLITS[number // 2 % 5], label(factors), factors))
    extract(
        path,
        clips=clips,
        columns={"student": Planted(STUDENT, (0, 1)), **teachers},
        render=lambda clip: ({}, {(2, 4): torch.full((2, 3, 4, 4), clip.number, dtype=torch.uint8)}),
        view={"clip_seconds": 2.0},
        refusal=RuntimeError,
        codec="fp16",
        clips_per_shard=100,
        say=lambda text: None,
    )
    return FeatureStore(path)


class Ideal(nn.Module):
    """What a converter would say that knows the student's first channel, `both`, and nothing else."""

    targets = TARGETS

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        first = F.pad(tokens[..., :1], (0, 4))
        return {"dense": torch.cat([first, 0 * first[:, :1]], dim=1), "pooled": 0 * first[:, :1]}
