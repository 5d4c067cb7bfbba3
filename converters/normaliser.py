"""Backbone units <-> standardised space: subtract the per-position mean, divide by the per-channel deviation.

Axes: b clips, q tokens, d width.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from converters.resample import Queries, trilinear
from teachers.layout import TokenLayout

Mode = Literal["position", "global"]
MODES = ("position", "global")


class Normaliser(nn.Module):
    """Standardise the tokens of one layout, and restore them.

    mode "position": `mean` is (num_tokens, dim), a small grid of means that can be read between its centres, so that
    other grids of the same view work. mode "global": `mean` is (1, dim). `scale` is (dim,), floored by whoever measured
    it. Both are buffers; a new normaliser is the identity.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, layout: TokenLayout, mode: Mode = "position") -> None:
        super().__init__()
        if mode not in MODES:
            raise ValueError(f"normaliser is {mode!r}; valid: {', '.join(MODES)}")
        self.layout, self.mode = layout, mode
        rows = layout.num_tokens if mode == "position" else 1
        self.register_buffer("mean", torch.zeros(rows, layout.dim))
        self.register_buffer("scale", torch.ones(layout.dim))

    @torch.no_grad()
    def set_(self, mean: Tensor, scale: Tensor) -> None:
        """Take statistics in backbone units. Raises ValueError naming the first bad channel."""
        for label, value, own in (("mean", mean, self.mean), ("scale", scale, self.scale)):
            value = value[None] if label == "mean" and self.mode == "global" and value.ndim == 1 else value
            if value.shape != own.shape:
                raise ValueError(
                    f"{label} has shape {tuple(value.shape)}, but the {self.mode} normaliser of "
                    f"{self.layout.describe()} takes {tuple(own.shape)}"
                )
            bad = ~value.isfinite() if label == "mean" else ~(value.isfinite() & (value > 0))
            channels = bad.reshape(-1, bad.shape[-1]).any(dim=0).nonzero().flatten()
            if len(channels):
                at = int(channels[0])
                worst = value.reshape(-1, value.shape[-1])[:, at][bad.reshape(-1, bad.shape[-1])[:, at]][0]
                rule = "finite" if label == "mean" else "finite and above 0: floor it where it is measured"
                raise ValueError(
                    f"{label} of channel {at} is {float(worst)} ({len(channels)} such channels); it must be {rule}"
                )
            own.copy_(value)

    def standardise(self, tokens: Tensor, queries: Queries | None = None) -> Tensor:
        """Tokens (b q d) in backbone units -> standardised. `queries`: which tokens these are, if not all."""
        return (tokens - self._mean(queries)) / self.scale

    def restore(self, tokens: Tensor, queries: Queries | None = None) -> Tensor:
        """The inverse of standardise."""
        return torch.addcmul(self._mean(queries), tokens, self.scale)

    def _mean(self, queries: Queries | None) -> Tensor:
        if queries is None or self.mode == "global":
            return self.mean
        parts = []
        if self.layout.grid is not None and len(queries.coords):
            means = self.mean[None, : self.layout.num_grid_tokens]
            parts.append(trilinear(means, self.layout.grid, self.layout.extent, queries.coords)[0])
        if len(queries.special):
            parts.append(self.mean[self.layout.num_grid_tokens + queries.special])
        return torch.cat(parts)
