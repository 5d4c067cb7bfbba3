"""Perceiver-IO: latents read the student's tokens, mix among themselves, and are read by one query per target token.

Source: Jaegle et al., Perceiver IO (2021), sections 3.1-3.2; the report's design A.
Axes: b clips, s student tokens, l latents, q target tokens (of all targets, one after the other), w width, h heads.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from converters.branch import check_count, zero_linear
from converters.resample import Queries, fourier, grid_bands, num_fourier, trilinear
from teachers.layout import TokenLayout

# The trunk narrows as targets (and special tokens, which have a skip of their own) claim the 5 M parameters: maps ->
# width.
WIDTHS = {1: 320, 2: 256, 3: 192, 4: 160}
NARROWEST = 128
MAX_WIDTH, MAX_LATENTS, MAX_BLOCKS = 4096, 8192, 64


def perceiver(
    student: TokenLayout,
    targets: dict[str, TokenLayout],
    *,
    width: int | None = None,
    latents: int = 256,
    heads: int | None = None,
    blocks: int = 2,
    direct: bool = False,
) -> Perceiver:
    """width: of the trunk. Default: 320 for one target down to 128, by the number of linear maps that the skips hold,
        so that 1024 -> 768 stays within 5 M parameters for up to four maps; never above the student's own width.
    latents: how many. heads: default one per 64 channels. blocks: of self-attention among the latents.
    direct: let queries attend to the student's tokens beside the latents (dearer; reads single tokens from afar).
    """
    if width is None:
        maps = sum((layout.grid is not None) + len(layout.special) for layout in targets.values())
        width = min(WIDTHS.get(maps, NARROWEST), -(-student.dim // 32) * 32)
    check_count("width", width, MAX_WIDTH)
    check_count("latents", latents, MAX_LATENTS)
    check_count("blocks", blocks, MAX_BLOCKS)
    if heads is None:
        heads = next(count for count in range(max(width // 64, 1), 0, -1) if width % count == 0)
    if width % check_count("heads", heads, MAX_WIDTH):
        raise ValueError(f"width is {width} and heads is {heads}; the width must be a multiple of the heads")
    if not isinstance(direct, bool):
        raise ValueError(f"direct is {direct!r}; it must be true or false")
    return Perceiver(student, targets, width=width, latents=latents, heads=heads, blocks=blocks, direct=direct)


class Perceiver(nn.Module):
    """Cost at full geometry (2048 x 1024 -> 1568 x 768, width 320): 3.8 GMAC a clip, beside 1.2 of the skip."""

    features: Tensor

    def __init__(
        self,
        student: TokenLayout,
        targets: dict[str, TokenLayout],
        *,
        width: int,
        latents: int,
        heads: int,
        blocks: int,
        direct: bool,
    ) -> None:
        super().__init__()
        self.student, self.width, self.heads, self.direct = student, width, heads, direct
        grids = {name: grid_bands(layout) for name, layout in targets.items() if layout.grid}
        own = grid_bands(student)
        t, h, w = (max(bands) for bands in zip(own, *grids.values(), strict=True))
        self.bands, self.caps = (t, h, w), grids
        self.register_buffer("features", fourier(student.centres(), self.bands, own), persistent=False)

        self.project = nn.Linear(student.dim, width)
        self.place = nn.Linear(num_fourier(self.bands), width, bias=False)
        self.student_special = nn.Parameter(torch.randn(len(student.special), width)) if student.special else None
        energy = sum(1 / band for cap in own for band in range(1, cap + 1))
        nn.init.normal_(self.place.weight, std=energy**-0.5)  # codes of variance 1, like the content beside them
        self.latents = nn.Parameter(self._first_latents(latents))
        self.read = Attention(width, heads)
        self.digest = mlp(width)
        self.mix = nn.ModuleList([Block(width, heads) for _ in range(blocks)])
        # Row 0 belongs to the target, the others to its special tokens.
        self.kinds = nn.ParameterDict(
            {name: torch.randn(1 + len(layout.special), width) * 0.1 for name, layout in targets.items()}
        )
        self.answer = Attention(width, heads)
        self.refine = mlp(width)
        self.norm = nn.LayerNorm(width)
        self.outputs = nn.ModuleDict({name: zero_linear(width, layout.dim) for name, layout in targets.items()})

    @torch.no_grad()
    def _first_latents(self, count: int) -> Tensor:
        """Latents start as the codes of places spread evenly over the view (additive recurrence), with some noise."""
        steps = torch.tensor([0.8191725, 0.6710436, 0.5497005])  # powers of 1 / 1.2207, the root of x^4 = x + 1
        places = (0.5 + torch.arange(1, count + 1)[:, None] * steps) % 1
        codes = self.place(fourier(places, self.bands))
        return codes + 0.1 * torch.randn_like(codes)

    def options(self) -> dict[str, Any]:
        return {
            "width": self.width,
            "latents": self.latents.shape[0],
            "heads": self.heads,
            "blocks": len(self.mix),
            "direct": self.direct,
        }

    def forward(self, x: Tensor, queries: dict[str, Queries]) -> dict[str, Tensor]:
        tokens = self.project(x)  # (b s w)
        placed = tokens + self._places().to(tokens.dtype)
        latents = self.latents.to(tokens.dtype)[None]  # their queries are projected once, not per clip
        latents = latents + self.read(latents, placed)  # (b l w)
        latents = latents + self.digest(latents)
        for block in self.mix:
            latents = block(latents)
        memory = torch.cat([latents, placed], dim=1) if self.direct else latents
        asked = torch.cat([self._ask(tokens, name, which) for name, which in queries.items()], dim=1)  # (b q w)
        asked = asked + self.answer(asked, memory)
        asked = self.norm(asked + self.refine(asked))
        parts = asked.split([len(which) for which in queries.values()], dim=1)
        return {name: self.outputs[name](part) for name, part in zip(queries, parts, strict=True)}

    def _places(self) -> Tensor:
        """Codes of the student's tokens by place, or by name for special ones: (s, w)."""
        codes = self.place(self.features)
        return codes if self.student_special is None else torch.cat([codes, self.student_special.to(codes.dtype)])

    def _ask(self, tokens: Tensor, name: str, which: Queries) -> Tensor:
        """Queries of one target: its embedding + place or special embedding + local content, (b q w)."""
        assert self.student.grid is not None
        on_grid = tokens[:, : self.student.num_grid_tokens]
        kind = self.kinds[name].to(tokens.dtype)
        parts = []
        if len(which.coords):
            code = self.place(fourier(which.coords, self.bands, self.caps[name])) + kind[0]
            parts.append(trilinear(on_grid, self.student.grid, self.student.extent, which.coords) + code)
        if len(which.special):
            parts.append(on_grid.mean(dim=1, keepdim=True) + kind[0] + kind[1 + which.special])
        return torch.cat(parts, dim=1)


class Attention(nn.Module):
    """Pre-norm multi-head cross-attention of `asking` (b or 1, q, w) over `memory` (b m w); returns (b q w).

    Query and key maps start equal and orthogonal, so that at the start like attends to like: places to their
    neighbours. With independent maps all logits start near zero, attention is uniform, and every latent is the same
    mean token.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.memory_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.keys_values = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        nn.init.orthogonal_(self.query.weight)
        with torch.no_grad():
            self.keys_values.weight[:width].copy_(self.query.weight)

    def forward(self, asking: Tensor, memory: Tensor) -> Tensor:
        b = memory.shape[0]
        q = self.query(self.norm(asking)).expand(b, -1, -1)
        k, v = self.keys_values(self.memory_norm(memory)).chunk(2, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))
        return self.out(attend(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Pre-norm self-attention and perceptron."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention, self.mlp = Attention(width, heads), mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x, x)
        return x + self.mlp(x)


def mlp(width: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k' / sqrt(c)) v for (b h q c), (b h m c), (b h m c).

    In bf16 on a CPU two matrix products by hand are 1.6-1.9x faster than the fused path; in fp32 the fused path is
    1.2-1.8x faster than by hand (256 x 2048 and 1568 x 256, five heads of 64, with backward).
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        with torch.autocast("cpu", enabled=False):  # which would widen the logits for the softmax
            logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
            return logits.softmax(dim=-1) @ v
    return F.scaled_dot_product_attention(q, k, v)
