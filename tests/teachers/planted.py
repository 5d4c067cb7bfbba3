"""The planted signal: one bright cell at one time, and the token that answers."""

from __future__ import annotations

import torch
from torch import Tensor

from teachers.backbone import Backbone


def plant(backbone: Backbone, grid: tuple[int, int, int], cells: list[tuple[int, int, int]]) -> Tensor:
    """A grey video, then one per cell (t, y, x) where exactly that cell of that time is bright."""
    frames, side = backbone.frames // grid[0], backbone.pixels // grid[1]
    video = torch.full((1 + len(cells), backbone.frames, 3, backbone.pixels, backbone.pixels), 0.4)
    for clip, (t, y, x) in enumerate(cells, start=1):
        video[clip, t * frames : (t + 1) * frames, :, y * side : (y + 1) * side, x * side : (x + 1) * side] = 1
    return video


def brightest(tokens: Tensor, grid: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    """The grid cell whose token moved most from the first clip's, for every other clip."""
    t, h, w = grid
    moved = (tokens[1:, : t * h * w] - tokens[:1, : t * h * w]).norm(dim=-1).argmax(dim=1).tolist()
    return [(place // (h * w), place // w % h, place % w) for place in moved]
