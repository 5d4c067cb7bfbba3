"""A small video ViT: patches or a few convolutions, then attention that is joint, divided, or within frames.

Axes: b clips, f frames, t h w token grid, s tokens of a sequence, d width.
"""

from __future__ import annotations

import itertools
import math
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

Attending = Literal["joint", "divided", "frames"]
# How the token grid is cut into the sequences that attend, one pattern per attention of a block.
SEQUENCES: dict[Attending, tuple[str, ...]] = {
    "joint": ("b (t h w)",),
    "divided": ("(b h w) t", "(b t) (h w)"),  # TimeSformer's order: time first (Bertasius et al., 2021)
    "frames": ("(b t) (h w)",),
}
STD = 0.02


class Attention(nn.Module):
    """Multi-head self-attention: (b s d) -> (b s d)."""

    def __init__(self, dim: int, *, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(self.qkv(x), "b s (n g d) -> n b g s d", n=3, g=self.num_heads)
        return self.out(rearrange(F.scaled_dot_product_attention(q, k, v), "b g s d -> b s (g d)"))


class Block(nn.Module):
    """Pre-norm attention along every one of `sequences`, then an MLP. The grid is (t, h, w)."""

    def __init__(self, dim: int, *, num_heads: int, mlp_ratio: float, sequences: tuple[str, ...]) -> None:
        super().__init__()
        self.sequences = sequences
        self.attention = nn.ModuleList(Attention(dim, num_heads=num_heads) for _ in sequences)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in sequences)
        hidden = int(dim * mlp_ratio)
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, x: Tensor, grid: tuple[int, int, int] | None) -> Tensor:
        """(b s d) -> (b s d). grid None: the tokens are no whole grid, and attend to each other all."""
        for pattern, norm, attention in zip(self.sequences, self.norms, self.attention, strict=True):
            if grid is None or pattern == "b (t h w)":
                x = x + attention(norm(x))
                continue
            t, h, w = grid
            y = rearrange(norm(x), f"b (t h w) d -> {pattern} d", t=t, h=h, w=w)
            x = x + rearrange(attention(y), f"{pattern} d -> b (t h w) d", b=len(x), t=t, h=h, w=w)
        return x + self.mlp(self.mlp_norm(x))


class ConvStem(nn.Module):
    """Convolutions that halve the sides until a cell is a pixel: (b f 3 height width) -> (b (t h w) d). A cell's frames
    are its channels. In place of one linear map of the patch, it learns edges much sooner (Xiao et al., "Early
    Convolutions Help Transformers See Better", 2021). Four pixels wide, the kernels look equally far over all edges of
    a cell; they start by looking over none, so that even untrained a cell's token is that of its pixels.

    patch: frames and pixels of a cell; pixels must be a power of two.
    """

    def __init__(self, patch: tuple[int, int], dim: int) -> None:
        super().__init__()
        self.frames, halvings = patch[0], patch[1].bit_length() - 1
        if patch[1] != 1 << halvings:
            raise ValueError(f"a stem of convolutions halves the sides; {patch[1]} pixels of a patch are no power of 2")
        widths = [3 * self.frames, *(3 * dim // 4 >> step for step in reversed(range(halvings)))]
        layers: list[nn.Module] = []
        for taken, given in itertools.pairwise(widths):
            layers += [nn.Conv2d(taken, given, 4, stride=2, padding=1), nn.GroupNorm(1, given), nn.GELU()]
        self.layers, self.out = nn.Sequential(*layers), nn.Linear(widths[-1], dim)

    def forward(self, video: Tensor) -> Tensor:
        x = rearrange(video, "b (t f) c y x -> (b t) (f c) y x", f=self.frames)
        x = self.layers(x.contiguous(memory_format=torch.channels_last))
        return self.out(rearrange(x, "(b t) d h w -> b (t h w) d", b=len(video)))


class VideoViT(nn.Module):
    """video (b, f, 3, height, width) -> (b, tokens, d): the grid in (t h w) order, or the CLS token alone.

    grid: (t, h, w). patch: frames and pixels of a token's cell, (frames, pixels). attending: joint, divided, frames.
        Within frames there is no embedding of time: a frame's tokens do not depend on its place in the clip, and fewer
        frames than grid[0] are as good.
    stem: convolutions in place of patches. They look over a cell's edge: nothing can be hidden from such a model.
    pooled: a CLS token attends with the others, and is all that `forward` returns.
    """

    def __init__(
        self,
        *,
        grid: tuple[int, int, int],
        patch: tuple[int, int],
        dim: int = 128,
        depth: int = 4,
        num_heads: int = 4,
        mlp_ratio: float = 4.0,
        attending: Attending = "joint",
        stem: bool = False,
        pooled: bool = False,
    ) -> None:
        super().__init__()
        if pooled and attending != "joint":
            raise ValueError(f"attending is {attending!r}, but a CLS token needs joint attention; set attending=joint")
        self.grid, self.patch, self.dim = grid, patch, dim
        self.cell_dim = patch[0] * patch[1] ** 2 * 3  # numbers of a cell
        self.embed = ConvStem(patch, dim) if stem else nn.Linear(self.cell_dim, dim)
        self.place = nn.Parameter(waves(*grid[1:], dim=dim).unsqueeze(0))
        self.moment = nn.Parameter(waves(grid[0], dim=dim).unsqueeze(1)) if attending != "frames" else None
        self.cls = nn.Parameter(torch.empty(1, 1, dim)) if pooled else None
        blocks = [
            Block(dim, num_heads=num_heads, mlp_ratio=mlp_ratio, sequences=SEQUENCES[attending]) for _ in range(depth)
        ]
        self.blocks, self.norm = nn.ModuleList(blocks), nn.LayerNorm(dim)
        if self.cls is not None:
            nn.init.trunc_normal_(self.cls, std=STD)
        self.apply(start)

    def patches(self, video: Tensor) -> Tensor:
        """(b f 3 height width) -> (b (t h w) (f y x c)), the pixels of every cell."""
        return rearrange(
            video, "b (t f) c (h y) (w x) -> b (t h w) (f y x c)", f=self.patch[0], y=self.patch[1], x=self.patch[1]
        )

    def positions(self) -> Tensor:
        """((t h w) d)"""
        return (self.place.expand(self.grid[0], -1, -1) + (0 if self.moment is None else self.moment)).flatten(0, 1)

    def tokens(self, video: Tensor, visible: Tensor | None = None) -> Tensor:
        """All output tokens, (b s d), CLS last. visible: (b s) indices of the grid's tokens to see; None: all."""
        return self.norm(self.stages(video, visible)[-1])

    def stages(self, video: Tensor, visible: Tensor | None = None) -> list[Tensor]:
        """The stream after every block, before the last norm; as `tokens`."""
        if visible is not None and isinstance(self.embed, ConvStem):
            raise ValueError("convolutions look over a cell's edge, so tokens cannot be hidden; set stem=False")
        x = self.embed(video if isinstance(self.embed, ConvStem) else self.patches(video))
        grid = (x.shape[1] // self.place.shape[1], *self.grid[1:])
        x = x + self.positions()[: x.shape[1]]
        if visible is not None:
            x = x.gather(1, visible.unsqueeze(-1).expand(-1, -1, self.dim))
        if self.cls is not None:
            x = torch.cat([x, self.cls.expand(len(x), -1, -1)], dim=1)
        stages = []
        for block in self.blocks:
            x = block(x, grid if visible is None else None)
            stages.append(x)
        return stages

    def forward(self, video: Tensor) -> Tensor:
        tokens = self.tokens(video)
        return tokens if self.cls is None else tokens[:, -1:]


def waves(*sides: int, dim: int) -> Tensor:
    """Where embeddings of place start: sines and cosines along each axis, (prod(sides), dim).

    From small random numbers a masked model does not find out for a long time which tokens are neighbours.
    """
    share = dim // (2 * len(sides))
    axes = []
    for side in sides:
        phases = torch.linspace(0, 0.5 * math.pi, side).unsqueeze(1) * torch.linspace(1, max(side - 1, 1), share)
        axes.append(torch.cat([phases.sin(), phases.cos()], dim=1))
    grids = torch.meshgrid(*(torch.arange(side) for side in sides), indexing="ij")
    return torch.cat([axis[places.flatten()] for axis, places in zip(axes, grids, strict=True)], dim=1)


def start(module: nn.Module) -> None:
    """The usual start of a ViT's maps: Xavier's, biases at zero; of a convolution the rim (see ConvStem)."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        module.weight.data = F.pad(module.weight.data[:, :, 1:-1, 1:-1], (1, 1, 1, 1))
