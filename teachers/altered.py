"""A teacher that sees the same clip otherwise: only the student's frames, or a view that is moved by a few pixels.

What it then says, held against what it says of the clip as it is, tells how much of its answer hangs on that. It is the
same network, not a copy. Axes: b clips, t frames, c colours, h w pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from teachers.backbone import Backbone


class Nearest(nn.Module):
    """(b t c h w) of `given` frames -> of `taken`, each the nearest in time; of two that are as near, the earlier one.

    Both are the centres of equal bins of one span (shards.view.frame_times)."""

    index: Tensor

    def __init__(self, given: int, taken: int) -> None:
        super().__init__()
        there, wanted = 2 * torch.arange(given) + 1, 2 * torch.arange(taken) + 1  # in 1 / (2 given), 1 / (2 taken)
        distance = (there[None] * taken - wanted[:, None] * given).abs()
        self.register_buffer("index", distance.argmin(dim=1), persistent=False)  # the first of equal ones

    def forward(self, video: Tensor) -> Tensor:
        return video.index_select(1, self.index)


class Shift(nn.Module):
    """(b t c h w) -> the same, what is seen moved to the right; the left edge is repeated into the gap."""

    def __init__(self, pixels: int) -> None:
        super().__init__()
        self.pixels = pixels

    def forward(self, video: Tensor) -> Tensor:
        moved = F.pad(video.flatten(0, 1), (self.pixels, 0, 0, 0), mode="replicate")[..., : video.shape[-1]]
        return moved.reshape(video.shape)


def on_frames(teacher: Backbone, frames: int) -> Backbone:
    """The teacher, shown the clip at so many frames: each of its own frames is the nearest of those."""
    told = f"{frames} frames of the view, for each of its {teacher.frames} the nearest"
    return _altered(teacher, Nearest(frames, teacher.frames), frames=frames, sees=told)


def on_shifted(teacher: Backbone, pixels: int) -> Backbone:
    """The teacher, shown the clip moved to the right by so many pixels of its own input. Raises ValueError where that
    is no part of it."""
    if not 0 < pixels < teacher.pixels:
        raise ValueError(f"a shift by {pixels} pixels; it must lie in 1..{teacher.pixels - 1}, within {teacher.name}'s")
    told = f"the view moved to the right by {pixels} of its {teacher.pixels} pixels, the edge repeated"
    return _altered(teacher, Shift(pixels), frames=teacher.frames, sees=told)


def _altered(teacher: Backbone, alteration: nn.Module, *, frames: int, sees: str) -> Backbone:
    return Backbone(
        nn.Sequential(alteration, teacher.network),
        name=teacher.name,
        layout=teacher.layout,
        frames=frames,
        pixels=teacher.pixels,
        mean=teacher.mean.flatten().tolist(),
        std=teacher.std.flatten().tolist(),
        origin={**teacher.origin, "sees": sees},
        autocast=teacher.autocast,
    )
