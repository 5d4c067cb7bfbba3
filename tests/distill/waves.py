"""A tiny world: the command line of a whole run, its videos of moving squares, and clips and backbones of made-up
waves.

Pixels on two grids take the place of the backbones, so that a whole run costs seconds and the right answer is known to
be nearly linear. Nothing in the path from the command to the bundle is otherwise different.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from teachers.layout import TokenLayout

TINY = [
    "recipe=perceiver_videomae",
    "data=folder",
    "student.backbone=pixels",
    "student.options={grid: [4, 8, 8], frames: 8, pixels: 32, cells: 2}",
    "targets.videomae.backbone=pixels",
    "targets.videomae.options={grid: [4, 4, 4], frames: 8, pixels: 16, cells: 2}",
    "converter.options={width: 32, latents: 8, heads: 2, blocks: 1}",
    "store.clips_per_shard=5",
    "train.steps=12",
    "train.batch=4",
    "train.queries=24",
    "train.validate_every=5",
    "train.checkpoint_every=5",
    "evaluate.bootstrap=200",
    "run.tensorboard=false",
]


def write_clip(path: Path, *, seed: int, frames: int = 16, size: int = 32) -> None:
    """A bright square on a coloured ground, moving in the direction that the seed gives."""
    draw = np.random.default_rng(seed)
    place, motion, colours = draw.uniform(4, 20, 2), draw.uniform(-0.8, 0.8, 2), draw.integers(0, 256, (2, 3))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8, options={"preset": "ultrafast", "crf": "18"})
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for number in range(frames):
            image = np.broadcast_to(colours[0], (size, size, 3)).astype(np.uint8).copy()
            y, x = (int(v) for v in np.clip(place + number * motion, 0, size - 10))
            image[y : y + 10, x : x + 10] = colours[1]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


STUDENT = TokenLayout(grid=(2, 2, 2), dim=6)
TEACHER = TokenLayout(grid=(2, 2, 2), dim=4, special=("cls",))
CLIPS = 24


@dataclass(frozen=True)
class Clip:
    number: int
    split: str
    label: str | None = None
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
class Wave:
    """Tokens drawn from the clip's number; the teacher's grid is a linear map of the student's tokens, plus noise."""

    layout: TokenLayout
    teaches: bool = False
    frames: int = 2
    pixels: int = 4

    @property
    def origin(self) -> dict[str, Any]:
        return {"function": f"wave:{self.teaches}", "revision": None, "licence": "none"}

    def __call__(self, video: torch.Tensor) -> torch.Tensor:
        return torch.stack([self.tokens(int(number)) for number in (video.flatten(1)[:, 0] * 255).round()])

    def tokens(self, number: int) -> torch.Tensor:
        student = torch.randn(*STUDENT.shape, generator=torch.Generator().manual_seed(number))
        if not self.teaches:
            return student + 3
        generator = torch.Generator().manual_seed(10**6)
        reading = torch.randn(STUDENT.dim, TEACHER.dim, generator=generator)
        noise = 0.3 * torch.randn(*TEACHER.shape, generator=generator.manual_seed(number + 999))
        grid = student @ reading
        return torch.cat([grid, grid.mean(0, keepdim=True)]) + noise
