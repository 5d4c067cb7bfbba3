"""DS-conv: gated depthwise-separable 3-D blocks on the student's grid, resampled onto the target's, refined by place.

Sources: the report's design B, in three dimensions; depthwise-separable convolution, Chollet, Xception (2017); the
spatial gate, Liu et al., Pay Attention to MLPs (2021), section 2.1, with a convolution for the matrix over all
positions; its global term, Hu et al., Squeeze-and-Excitation Networks (2018).
Axes: b clips, s student tokens, t y x their grid, g target places, k special tokens, q target tokens, w width,
f hidden width, h heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from converters.attention import Watch
from converters.branch import (
    MAX_BLOCKS,
    check_choice,
    check_count,
    check_parts,
    default_heads,
    trunk_width,
    zero_linear,
)
from converters.precision import without_autocast
from converters.resample import Queries, fourier, grid_bands, num_fourier, trilinear
from converters.upsample import Upsample, finer_by
from teachers.layout import TokenLayout

Grid = tuple[int, int, int]
MAX_KERNEL = 63
# Deviation of the codes of places at the start, beside content of about 0.6: at 1 they fill the gates, and the share of
# the Bayes R2 after 200 steps falls from 0.77 to 0.66 (routed oracle) and from 0.86 to 0.67 (nonlinear).
CODE = 0.3
RESAMPLINGS = ("trilinear", "transposed")


def dsconv(
    student: TokenLayout,
    targets: dict[str, TokenLayout],
    *,
    width: int | None = None,
    blocks: int = 3,
    kernel: int = 5,
    kernel_time: int = 3,
    heads: int | None = None,
    resample: str = "trilinear",
) -> DsConv:
    """width: of the trunk (see branch.trunk_width).
    blocks: of convolution and gating. kernel, kernel_time: taps on y and x, and on t; odd.
    heads: of the attention that pools for special tokens; default one per 64 channels.
    resample: "trilinear", or "transposed": axes on which a target's grid is finer than the student's are first
        upsampled by a learned transposed convolution, which starts as linear interpolation.
    """
    width = trunk_width(student, targets, width)
    check_count("blocks", blocks, MAX_BLOCKS)
    for name, taps in (("kernel", kernel), ("kernel_time", kernel_time)):
        if check_count(name, taps, MAX_KERNEL) % 2 == 0:
            raise ValueError(f"{name} is {taps}; it must be odd, so that a token stands in the middle of its taps")
    heads = check_parts("heads", width, default_heads(width) if heads is None else heads)
    check_choice("resample", resample, RESAMPLINGS)
    kernels = (kernel_time, kernel, kernel)
    return DsConv(student, targets, width=width, blocks=blocks, kernels=kernels, heads=heads, resample=resample)


class DsConv(nn.Module):
    """Project, convolve on the student's grid, read every target place trilinearly, refine each by itself.

    Nothing mixes target tokens, so any subset of them is answered as the whole would be.
    Cost at full geometry (2048 x 1024 -> 1568 x 768, width 224): 2.0 GMAC.
    """

    features: Tensor

    def __init__(
        self,
        student: TokenLayout,
        targets: dict[str, TokenLayout],
        *,
        width: int,
        blocks: int,
        kernels: Grid,
        heads: int,
        resample: str,
    ) -> None:
        super().__init__()
        assert student.grid is not None
        self.student, self.width, self.heads = student, width, heads
        self.kernels, self.resample = kernels, resample
        grids = {name: grid_bands(layout) for name, layout in targets.items() if layout.grid}
        t, y, x = (max(bands) for bands in zip(grid_bands(student), *grids.values(), strict=True))
        self.bands, self.caps = (t, y, x), grids
        own = fourier(student.centres(), self.bands, grid_bands(student))
        self.register_buffer("features", own, persistent=False)

        self.project = nn.Linear(student.dim, width)
        self.place = nn.Linear(num_fourier(self.bands), width, bias=False)
        energy = sum(1 / band for cap in grid_bands(student) for band in range(1, cap + 1))
        nn.init.normal_(self.place.weight, std=CODE * energy**-0.5)
        self.student_special = nn.Parameter(torch.randn(len(student.special), width)) if student.special else None
        self.blocks = nn.ModuleList([Block(width, student.grid, kernels) for _ in range(blocks)])
        finer = {name: finer_by(student, layout) for name, layout in targets.items() if layout.grid}
        finer = {name: by for name, by in finer.items() if resample == "transposed" and max(by) > 1}
        self.upsample: Mapping[str, Upsample] = nn.ModuleDict(  # type: ignore[assignment]
            {name: Upsample(width, student.grid, by) for name, by in finer.items()}
        )
        special = {name: len(layout.special) for name, layout in targets.items() if layout.special}
        self.pool = nn.ModuleDict({name: AttentionPool(width, heads, count) for name, count in special.items()})
        # Row 0 belongs to the target, the others to its special tokens.
        self.kinds = nn.ParameterDict(
            {name: torch.randn(1 + len(layout.special), width) * 0.1 for name, layout in targets.items()}
        )
        self.refine = GatedMlp(width)
        self.outputs = nn.ModuleDict({name: zero_linear(width, layout.dim) for name, layout in targets.items()})

    def options(self) -> dict[str, Any]:
        return {
            "width": self.width,
            "blocks": len(self.blocks),
            "kernel": self.kernels[1],
            "kernel_time": self.kernels[0],
            "heads": self.heads,
            "resample": self.resample,
        }

    def forward(self, x: Tensor, queries: dict[str, Queries]) -> dict[str, Tensor]:
        tokens = self.project(x)  # (b s w)
        grid, special = tokens.split([self.student.num_grid_tokens, len(self.student.special)], dim=1)
        grid = grid + self.place(self.features).to(tokens.dtype)
        if self.student_special is not None:
            special = special + self.student_special.to(tokens.dtype)
        for block in self.blocks:
            grid = block(grid, special)
        return {name: self._answer(grid, special, name, which) for name, which in queries.items()}

    def _answer(self, grid: Tensor, special: Tensor, name: str, which: Queries) -> Tensor:
        """Tokens of one target, (b q e), from the trunk's (b s w) on the grid and (b k w) beside it."""
        assert self.student.grid is not None
        kind = self.kinds[name].to(grid.dtype)
        content, codes = [], []
        if len(which.coords):
            cells, fine = self.student.grid, grid
            if name in self.upsample:
                cells, fine = self.upsample[name].grid, self.upsample[name](grid)
            content.append(trilinear(fine, cells, self.student.extent, which.coords))
            codes.append(self.place(fourier(which.coords, self.bands, self.caps[name])) + kind[0])
        if len(which.special):
            content.append(self.pool[name](torch.cat([grid, special], dim=1)).index_select(1, which.special))
            codes.append(kind[0] + kind[1 + which.special])
        return self.outputs[name](self.refine(torch.cat(content, dim=1), torch.cat(codes)))


class Block(nn.Module):
    """x + out(gate * conv(value)): value linear in the tokens, gate a function of the token and of the whole clip.

    The value is not normed: smoothing is linear, and a norm per token would weight tokens by their noise. A product of
    a gate with shifted values is a kernel chosen by content. The gate is linear, as in gMLP: with GELU the share after
    200 steps is 0.73 against 0.77 on the routed oracle, 0.77 against 0.86 on the nonlinear one.
    """

    def __init__(self, width: int, grid: Grid, kernels: Grid) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.value, self.gate = nn.Linear(width, width), nn.Linear(width, width)
        self.context = nn.Linear(width, width, bias=False)
        self.conv = DepthwiseConv(width, grid, kernels)
        self.out = nn.Linear(width, width)
        nn.init.ones_(self.gate.bias)

    def forward(self, x: Tensor, special: Tensor) -> Tensor:
        """(b s w) tokens of the grid and (b k w) beside it -> (b s w)."""
        normed = self.norm(x).to(x.dtype)
        clip = normed.mean(dim=1, keepdim=True)
        if special.shape[1]:
            clip = clip + special.mean(dim=1, keepdim=True)
        gate = self.gate(normed) + self.context(clip)
        return x + self.out(gate * self.conv(self.value(x)))


class GatedMlp(nn.Module):
    """x + out(gate * value) for places of their own: the gate sees content and place."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.value, self.gate, self.out = (nn.Linear(width, width) for _ in range(3))
        nn.init.ones_(self.gate.bias)

    def forward(self, x: Tensor, codes: Tensor) -> Tensor:
        """Content (b q w) and the codes of its places (q w) -> (b q w)."""
        placed = self.norm(x).to(x.dtype) + codes.to(x.dtype)
        return x + self.out(self.gate(placed) * self.value(x))


class DepthwiseConv(nn.Module):
    """One kernel per channel and axis, one axis after the other, on tokens (b s w) in (t y x) order.

    Where taps fall outside the grid, the token itself takes the missing weight, so a constant stays constant up to the
    border; with zeros there, the border would be darker than the field. Tokens stay channels last.
    """

    def __init__(self, width: int, grid: Grid, kernels: Grid) -> None:
        super().__init__()
        self.grid = grid
        self.taps = nn.ParameterList([torch.randn(width, taps) * taps**-0.5 for taps in kernels])

    def forward(self, x: Tensor) -> Tensor:
        b, s, w = x.shape
        t, height, wide = self.grid
        taps = [one.to(x.dtype) for one in self.taps]
        y = along(x.reshape(b, t, height * wide, w), taps[0][:, :, None])
        y = along(y.reshape(b * t, height, wide, w), taps[1][:, :, None])
        y = along(y, taps[2][:, None, :])
        missing = self._missing().to(x.dtype)
        return torch.addcmul(y.reshape(b, s, w), x, missing)

    def _missing(self) -> Tensor:
        """What zeros outside the grid take from a constant 1, per token and channel: (s w), in (t y x) order."""
        kept = whole = torch.ones(1, self.taps[0].shape[0], device=self.taps[0].device)
        for taps, cells in zip(self.taps, self.grid, strict=True):
            ones = torch.ones(1, 1, cells, device=taps.device)
            with without_autocast(taps.device.type):
                sums = F.conv1d(ones, taps[:, None], padding=taps.shape[1] // 2)[0].T  # (cells w)
            kept = (kept[:, None] * sums).flatten(0, 1)
            whole = whole * taps.sum(dim=1)
        return whole - kept


def along(x: Tensor, taps: Tensor) -> Tensor:
    """Depthwise convolution of images (n, rows, columns, w) with taps (w, rows, columns), zeros outside."""
    padding = (taps.shape[1] // 2, taps.shape[2] // 2)
    y = F.conv2d(x.permute(0, 3, 1, 2), taps[:, None], padding=padding, groups=taps.shape[0])
    return y.permute(0, 2, 3, 1)


class AttentionPool(nn.Module):
    """Special tokens as weighted means of all tokens, one weighting per head: (b s w) -> (b k w).

    The queries do not depend on the clip, so they act as keys' weights; values are projected after pooling, which is
    the same and costs a row per head instead of one per token.
    """

    watch: Watch | None = None

    def __init__(self, width: int, heads: int, count: int) -> None:
        super().__init__()
        self.count = count
        self.norm = nn.LayerNorm(width)
        self.queries = nn.Linear(width, count * heads, bias=False)
        self.values = nn.Parameter(torch.randn(heads, width, width // heads) * width**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x).to(x.dtype)
        logits = self.queries(normed).float()
        if self.watch is not None:
            self.watch(logits.transpose(1, 2))
        weights = logits.softmax(dim=1).to(x.dtype)
        pooled = rearrange(weights.transpose(1, 2) @ normed, "b (k h) w -> b k h w", k=self.count)
        return torch.einsum("bkhw, hwc -> bkhc", pooled, self.values.to(x.dtype)).flatten(2)
