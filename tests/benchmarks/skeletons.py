"""The report's designs A, B, C and D as they stand there, with only what could not run or could not be right put right.

Put right in all: places are those of the grids (t y x). A and D get sines of places for queries, and the same added to
the projected tokens, or they would answer alike however the tokens are shuffled; B and C interpolate in the grid, not
along the flattened sequence, where hardly a token lands in the right cell, and one token is the mean of all, not of the
two in the middle. The sines have no weights: with them A has the 5.61 M that its missing projections make of it.
Axes: b clips, s student tokens, l latents, k learned tokens, q target tokens, d width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from teachers.layout import TokenLayout

HALF_CYCLES = 14.0  # of the quickest sine: what 14 cells still carry


class AttentionResampler(nn.Module):
    """A: latents read the tokens and are read by queries, (b s d_in) -> (b q d).

    Put right: the two maps that are drawn anew in every forward there are learned, and latents start at a deviation of
    0.02, not 1.
    """

    queries: Tensor
    places: Tensor

    def __init__(
        self,
        student: TokenLayout,
        target: TokenLayout,
        *,
        d_latent: int = 384,
        latents: int = 256,
        layers: int = 1,
        heads: tuple[int, int] = (6, 8),
    ) -> None:
        super().__init__()
        d = target.dim
        self.register_buffer("queries", sines(target, d), persistent=False)
        self.register_buffer("places", sines(student, d), persistent=False)
        self.project = nn.Linear(student.dim, d, bias=False)
        self.latents = nn.Parameter(0.02 * torch.randn(latents, d_latent))
        self.to_latents = nn.Linear(d, d_latent, bias=False)
        self.encode = nn.MultiheadAttention(d_latent, heads[0], batch_first=True)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(d_latent, heads[0], dim_feedforward=2 * d_latent, batch_first=True)
            for _ in range(layers)
        )
        self.from_latents = nn.Linear(d_latent, d, bias=False)
        self.decode = nn.MultiheadAttention(d, heads[1], batch_first=True)
        self.norm = nn.LayerNorm(d)

    def forward(self, x: Tensor) -> Tensor:
        x = self.project(x)
        memory = self.to_latents(x + self.places.to(x.dtype))
        latents, _ = self.encode(self.latents.expand(len(x), -1, -1), memory, memory)  # (b l d_latent)
        for block in self.blocks:
            latents = block(latents)
        memory = self.from_latents(latents)
        y, _ = self.decode(self.queries.expand(len(x), -1, -1), memory, memory)
        return self.norm(y)


class LinearResampler(nn.Module):
    """B: project to full width, two separable 1-D convolutions over the flattened sequence, perceptron, norm."""

    def __init__(
        self, student: TokenLayout, target: TokenLayout, *, kernel: int = 7, hidden: int | None = None
    ) -> None:
        super().__init__()
        d = target.dim
        hidden = d * 3 // 2 if hidden is None else hidden
        self.student, self.target = student, target
        self.project = nn.Linear(student.dim, d, bias=False)
        self.depthwise = nn.ModuleList([nn.Conv1d(d, d, kernel, padding=kernel // 2, groups=d) for _ in range(2)])
        self.pointwise = nn.ModuleList([nn.Conv1d(d, d, 1) for _ in range(2)])
        self.mlp = nn.Sequential(nn.Linear(d, hidden), nn.GELU(), nn.Linear(hidden, d))
        self.norm = nn.LayerNorm(d)

    def forward(self, x: Tensor) -> Tensor:
        y = resample(self.project(x).transpose(1, 2), self.student, self.target)  # (b d q)
        for depthwise, pointwise in zip(self.depthwise, self.pointwise, strict=True):
            y = pointwise(F.gelu(depthwise(y)))
        y = y.transpose(1, 2)
        return self.norm(y + self.mlp(y))


class StateSpaceResampler(nn.Module):
    """C: project, blocks that read the flattened sequence forwards, resample, project.

    block: width -> a module (b s d) -> (b s d), which the report does not define (see mamba_block).
    """

    def __init__(
        self,
        student: TokenLayout,
        target: TokenLayout,
        *,
        block: Callable[[int], nn.Module],
        width: int = 512,
        layers: int = 2,
    ) -> None:
        super().__init__()
        self.student, self.target = student, target
        self.project = nn.Linear(student.dim, width, bias=False)
        self.blocks = nn.ModuleList(block(width) for _ in range(layers))
        self.out = nn.Linear(width, target.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.project(x)
        for block in self.blocks:
            x = block(x)
        return self.out(resample(x.transpose(1, 2), self.student, self.target).transpose(1, 2))


class TokenLearnerResampler(nn.Module):
    """D: softmax over all tokens pools them into k, which queries read, (b s d_in) -> (b q d).

    Put right: scores start with a deviation of about 1. As torch draws them the softmax is uniform to 99.8%, and every
    learned token is the mean of all.
    """

    queries: Tensor
    places: Tensor

    def __init__(
        self, student: TokenLayout, target: TokenLayout, *, tokens: int = 256, hidden: int = 256, heads: int = 8
    ) -> None:
        super().__init__()
        d = target.dim
        self.register_buffer("queries", sines(target, d), persistent=False)
        self.register_buffer("places", sines(student, d), persistent=False)
        self.score = nn.Sequential(nn.Linear(student.dim, hidden), nn.GELU(), nn.Linear(hidden, tokens))
        nn.init.normal_(self.score[0].weight, std=student.dim**-0.5)
        nn.init.normal_(self.score[2].weight, std=1.5 * hidden**-0.5)
        self.project = nn.Linear(student.dim, d, bias=False)
        self.decode = nn.MultiheadAttention(d, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.score(x).softmax(dim=1)  # (b s k)
        values = self.project(x)
        pooled = torch.einsum("bsd, bsk -> bkd", values + self.places.to(values.dtype), weights.to(values.dtype))
        y, _ = self.decode(self.queries.expand(len(x), -1, -1), pooled, pooled)
        return y


def mamba_block(width: int) -> nn.Module:
    """mambapy's Mamba-1 block with its norm and residual, as wide inside as outside: two of them have 1.7 M weights
    at 512, where the report counts 1.2-1.4 M. Raises ImportError where mambapy is not installed."""
    from mambapy.mamba import MambaConfig, ResidualBlock

    return ResidualBlock(MambaConfig(d_model=width, n_layers=1, expand_factor=1))


def resample(y: Tensor, student: TokenLayout, target: TokenLayout) -> Tensor:
    """(b d s) -> (b d q): trilinear in the grid, or the mean of all where the target is pooled."""
    if target.grid is None:
        return y.mean(dim=2, keepdim=True)
    volume = y.unflatten(2, student.grid)
    return F.interpolate(volume, size=target.grid, mode="trilinear", align_corners=False).flatten(2)


def sines(layout: TokenLayout, d: int) -> Tensor:
    """Sines and cosines of a layout's places, (q d); a pooled token stands in the middle of the view."""
    if d % 6:
        raise ValueError(f"width is {d}; sines of places need a multiple of 6: sine and cosine of three axes")
    places = layout.centres() if layout.grid else torch.full((1, 3), 0.5)
    half_cycles = HALF_CYCLES ** torch.linspace(0, 1, d // 6)
    angles = (places[:, :, None] * half_cycles * torch.pi).flatten(1)
    return torch.cat([angles.sin(), angles.cos()], dim=1)
