"""Learned upsampling of a token grid, for targets whose grid is finer than the student's.

Axes: b clips, s student tokens, g cells of the finer grid, w width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from teachers.layout import TokenLayout

Grid = tuple[int, int, int]
MOST = 4  # times finer, per axis; beyond it a learned part of a cell has too few examples and the rest is interpolated


def finer_by(student: TokenLayout, target: TokenLayout) -> Grid:
    """How many times finer the target's grid is than the student's, per axis, in whole times, 1 to 4; (t y x).

    Up to a quarter finer counts as equal: 14 cells on the centre 7/8 of a view are as fine as 16 on the whole.
    """
    assert student.grid and target.grid
    factors = []
    for axis in range(3):
        (low, high), (start, stop) = target.extent[axis], student.extent[axis]
        ratio = target.grid[axis] / (high - low) * (stop - start) / student.grid[axis]
        factors.append(min(max(math.ceil(ratio - 0.25), 1), MOST))
    t, y, x = factors
    return t, y, x


class Upsample(nn.Module):
    """Transposed convolution, depthwise and per axis: every token becomes `by` of them, from itself and its neighbours.

    Starts as linear interpolation; at the border the outermost token is its own neighbour.
    """

    def __init__(self, width: int, grid: Grid, by: Grid) -> None:
        super().__init__()
        self.source, self.by = grid, by
        t, y, x = (cells * times for cells, times in zip(grid, by, strict=True))
        self.grid: Grid = (t, y, x)
        self.taps = nn.ParameterDict(
            {str(axis): lerp_taps(times)[:, :, None].repeat(1, 1, width) for axis, times in enumerate(by) if times > 1}
        )

    def forward(self, x: Tensor) -> Tensor:
        """(b s w) on the student's grid -> (b g w) on the finer one."""
        x = x.unflatten(1, self.source)
        for key, taps in self.taps.items():
            axis = int(key) + 1
            cells = x.shape[axis]
            at = torch.arange(cells, device=x.device)
            near = [x.index_select(axis, (at + step).clamp(0, cells - 1)) for step in (-1, 0, 1)]
            parts = [sum(one * tap for one, tap in zip(near, row, strict=True)) for row in taps.to(x.dtype)]
            x = torch.stack(parts, dim=axis + 1).flatten(axis, axis + 1)
        return x.flatten(1, 3)


def lerp_taps(times: int) -> Tensor:
    """Weights of the previous, own and next token in each of `times` parts of a cell: (times, 3)."""
    offset = (torch.arange(times) + 0.5) / times - 0.5
    return torch.stack([(-offset).clamp(min=0), 1 - offset.abs(), offset.clamp(min=0)], dim=1)
