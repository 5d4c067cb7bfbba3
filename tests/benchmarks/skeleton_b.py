"""The report's design B as it stands there, with only what could not run or could not be right put right.

Kept: the projection to full width, two separable 1-D convolutions over the flattened sequence, the perceptron, the last
norm. Put right: positions are interpolated in the grid (t y x), not along the flattened sequence, where hardly a
token lands in the right cell; one token is the mean of all, not of the two in the middle.
Axes: b clips, s student tokens, q target tokens, d width.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

Grid = tuple[int, int, int]


class LinearResampler(nn.Module):
    """Student tokens (b s d_in) on `student_grid` -> (b q d) on `grid`, or (b 1 d) where that is None."""

    def __init__(
        self,
        d_in: int = 1024,
        *,
        d: int = 768,
        kernel: int = 7,
        hidden: int = 1152,
        student_grid: Grid,
        grid: Grid | None,
    ) -> None:
        super().__init__()
        self.student_grid, self.grid = student_grid, grid
        self.project = nn.Linear(d_in, d, bias=False)
        self.depthwise = nn.ModuleList([nn.Conv1d(d, d, kernel, padding=kernel // 2, groups=d) for _ in range(2)])
        self.pointwise = nn.ModuleList([nn.Conv1d(d, d, 1) for _ in range(2)])
        self.mlp = nn.Sequential(nn.Linear(d, hidden), nn.GELU(), nn.Linear(hidden, d))
        self.norm = nn.LayerNorm(d)

    def forward(self, x: Tensor) -> Tensor:
        y = self._resample(self.project(x).transpose(1, 2))  # (b d q)
        for depthwise, pointwise in zip(self.depthwise, self.pointwise, strict=True):
            y = pointwise(F.gelu(depthwise(y)))
        y = y.transpose(1, 2)
        return self.norm(y + self.mlp(y))

    def _resample(self, y: Tensor) -> Tensor:
        """(b d s) -> (b d q)."""
        if self.grid is None:
            return y.mean(dim=2, keepdim=True)
        volume = y.unflatten(2, self.student_grid)
        return F.interpolate(volume, size=self.grid, mode="trilinear", align_corners=False).flatten(2)
