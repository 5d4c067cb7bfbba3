"""The pixels themselves as a backbone: what lies under each token, averaged. No weights.

The floor of every comparison (what looks like understanding is often this), and a student or teacher of any small
geometry for tests of the machinery.

Axes: b clips, t h w token grid, f frames of a token, i j cells of a token, c colour.
"""

from __future__ import annotations

from collections.abc import Sequence

from einops import reduce
from torch import Tensor, nn

from teachers.backbone import Backbone
from teachers.layout import TokenLayout
from teachers.weights import WeightSource, origin


class AveragedPixels(nn.Module):
    """video (b, frames, 3, height, width) -> (b, (t h w), (f i j c)): exact area means of cells x cells per frame."""

    def __init__(self, *, grid: tuple[int, int, int], cells: int) -> None:
        super().__init__()
        self.grid, self.cells = grid, cells

    def forward(self, video: Tensor) -> Tensor:
        t, h, w = self.grid
        return reduce(
            video,
            "b (t f) c (h i p) (w j q) -> b (t h w) (f i j c)",
            "mean",
            t=t,
            h=h,
            w=w,
            i=self.cells,
            j=self.cells,
        )


def pixels(
    source: WeightSource,
    *,
    special: tuple[str, ...] = (),
    grid: Sequence[int] = (8, 14, 14),
    frames: int = 16,
    pixels: int = 224,
    cells: int = 4,
) -> Backbone:
    """Averaged pixels in [0, 1] on the grid (t, h, w).

    A token is (frames/t) x cells x cells x 3 values in the order (frame, cell y, cell x, colour). `source` is
    accepted for the common signature and ignored: there are no weights.
    Raises ValueError when the grid does not divide frames and pixels.
    """
    if special:
        raise ValueError(f"pixels has no special tokens, but {list(special)} are asked for; leave special empty")
    if len(grid) != 3 or min(*grid, frames, pixels, cells) < 1:
        raise ValueError(
            f"pixels: grid {tuple(grid)}, frames {frames}, pixels {pixels}, cells {cells} must be positive counts, "
            "the grid three of them (t, h, w)"
        )
    t, h, w = grid
    if frames % t:
        raise ValueError(f"pixels: {frames} frames do not divide into {t} time bins; set frames to a multiple of {t}")
    for axis, count in (("rows", h), ("columns", w)):
        if pixels % (count * cells):
            raise ValueError(
                f"pixels: {pixels} pixels do not divide into {count} {axis} of {cells} cells; set pixels to a "
                f"multiple of {count * cells}, or change cells"
            )
    layout = TokenLayout(grid=(t, h, w), dim=frames // t * cells**2 * 3)
    options = {"grid": [t, h, w], "frames": frames, "pixels": pixels, "cells": cells}
    return Backbone(
        AveragedPixels(grid=(t, h, w), cells=cells),
        name="pixels",
        layout=layout,
        frames=frames,
        pixels=pixels,
        mean=(0, 0, 0),
        std=(1, 1, 1),
        origin=origin("teachers.pixels:pixels", weights=None, options=options),
    )
