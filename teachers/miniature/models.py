"""The five miniatures: what each looks at, how it attends, and what it is taught.

They mirror the real trio and its student in small, each on a grid of its own, and disagree for a reason: their
objectives differ. `teachers.miniature.objectives` says what each name of an objective is.
"""

from __future__ import annotations

from dataclasses import dataclass

from teachers.layout import TokenLayout
from teachers.miniature.vit import Attending, VideoViT

DIM = 128
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


@dataclass(frozen=True, kw_only=True)
class Miniature:
    """frames, pixels: of the input. patch: frames and pixels of a token. objective: a name of OBJECTIVES. factors: what
    labels it is taught by. steps, batch, lr: of the training that gave the shipped weights."""

    frames: int
    pixels: int
    patch: tuple[int, int]
    objective: str
    steps: int
    batch: int = 16
    lr: float = 2e-3
    factors: tuple[str, ...] = ()
    attending: Attending = "joint"
    mlp_ratio: float = 4.0
    stem: bool = False
    pooled: bool = False
    taught_frames: int | None = None  # of a clip in training; fewer are enough for a model that is blind to time

    @property
    def grid(self) -> tuple[int, int, int]:
        side = self.pixels // self.patch[1]
        return self.frames // self.patch[0], side, side

    @property
    def layout(self) -> TokenLayout:
        return TokenLayout(grid=None if self.pooled else self.grid, dim=DIM)

    def network(self) -> VideoViT:
        return VideoViT(
            grid=self.grid,
            patch=self.patch,
            dim=DIM,
            mlp_ratio=self.mlp_ratio,
            attending=self.attending,
            stem=self.stem,
            pooled=self.pooled,
        )


MINIATURES = {
    "miniature_student": Miniature(frames=8, pixels=48, patch=(4, 6), objective="latents", steps=6000),
    "miniature_masked": Miniature(frames=8, pixels=48, patch=(4, 8), objective="pixels", steps=8000),
    "miniature_motion": Miniature(
        frames=16,
        pixels=48,
        patch=(4, 8),
        objective="flow",
        steps=7000,
        batch=24,
        factors=("direction", "speed", "rotation", "scale", "pan"),
        attending="divided",
        stem=True,
        mlp_ratio=2.0,
    ),
    "miniature_frames": Miniature(
        frames=8,
        pixels=48,
        patch=(1, 8),
        objective="appearance",
        steps=2500,
        batch=128,
        taught_frames=1,
        factors=("shape", "colour", "texture"),
        attending="frames",
        stem=True,
    ),
    "miniature_pooled": Miniature(
        frames=8,
        pixels=48,
        patch=(4, 8),
        objective="action",
        steps=8000,
        batch=24,
        factors=("shape", "direction", "speed"),
        stem=True,
        pooled=True,
    ),
}
