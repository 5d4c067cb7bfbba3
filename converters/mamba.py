"""Mamba: state-space blocks read the student's tokens both ways in two orders; their grid is resampled and refined.

Sources: Gu and Dao, Mamba (2023); Dao and Gu, Transformers are SSMs (Mamba-2, 2024); the report's design C.
Axes: b clips, s student tokens, g paths, q target tokens, w width, d inner width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from converters.attention import Attention, mlp
from converters.branch import (
    MAX_BLOCKS,
    check_choice,
    check_count,
    check_parts,
    default_heads,
    trunk_width,
    zero_linear,
)
from converters.decoder import Places, Sampler
from converters.mixers import MIXERS
from converters.resample import Queries, trilinear
from teachers.layout import TokenLayout

MAX_STATES, MAX_EXPAND = 256, 8
ORDERS = ("alternate", "parallel")
LOCALS = ("grid", "causal")
DECODES = ("resample", "queries")
TAPS = 4  # of the short causal convolution


def mamba(
    student: TokenLayout,
    targets: dict[str, TokenLayout],
    *,
    width: int | None = None,
    blocks: int = 2,
    expand: int = 1,
    states: int = 16,
    mixer: str = "ssd",
    local: str = "grid",
    orders: str = "alternate",
    decode: str = "resample",
    samples: int = 8,
) -> Mamba:
    """width: of the trunk (see branch.trunk_width).
    blocks: how many. expand: inner width of a block, in widths. states: per channel (pairs of them for s4d: half).
    mixer: ssd, selective, s4d or hyena. orders: "alternate" reads t-h-w and h-w-t in turn, block by block, half of the
    channels forwards and half backwards; "parallel" reads both orders in every block, a quarter of the channels each.
    decode: "resample" interpolates the trunk's grid; "queries" lets target places attend to it on top.
    samples: how many places near its own a target place reads, each a part of the width, at offsets that follow from
    what it holds (after Zhu et al., Deformable DETR, 2021): a scan cannot move content sideways; 0: none.
    """
    width = trunk_width(student, targets, width)
    check_count("blocks", blocks, MAX_BLOCKS)
    check_count("expand", expand, MAX_EXPAND)
    check_count("states", states, MAX_STATES)
    check_choice("mixer", mixer, MIXERS)
    check_choice("local", local, LOCALS)
    check_choice("orders", orders, ORDERS)
    check_choice("decode", decode, DECODES)
    paths = 4 if orders == "parallel" else 2
    if width * expand % paths:
        raise ValueError(f"width is {width} and expand is {expand}; their product must be a multiple of {paths} paths")
    if samples != 0 or isinstance(samples, bool):
        check_parts("samples", width, samples)
    settings = {"blocks": blocks, "expand": expand, "states": states, "mixer": mixer, "local": local, "orders": orders}
    return Mamba(student, targets, width=width, decode=decode, samples=samples, settings=settings)


class Mamba(nn.Module):
    """Cost at full geometry (2048 x 1024 -> 1568 x 768, width 224): 2.0 GMAC."""

    def __init__(
        self,
        student: TokenLayout,
        targets: dict[str, TokenLayout],
        *,
        width: int,
        decode: str,
        samples: int,
        settings: dict[str, Any],
    ) -> None:
        super().__init__()
        assert student.grid is not None
        self.student, self.width, self.settings = student, width, settings
        self.project = nn.Linear(student.dim, width)
        self.places = Places(student, targets, width)
        self.register = nn.Linear(width, width) if student.special else None
        orders = scan_orders(student.grid)
        if settings["orders"] == "alternate":
            chosen = [orders[at % 2 : at % 2 + 1] for at in range(settings["blocks"])]
        else:
            chosen = [orders] * settings["blocks"]
        self.blocks = nn.ModuleList(
            Block(
                width,
                grid=student.grid,
                orders=part,
                inner=width * settings["expand"],
                states=settings["states"],
                mixer=settings["mixer"],
                local=settings["local"],
                features=self.places.features.shape[1],
            )
            for part in chosen
        )
        # Row 0 belongs to the target, the others to its special tokens.
        self.kinds = nn.ParameterDict(
            {name: torch.randn(1 + len(layout.special), width) * 0.1 for name, layout in targets.items()}
        )
        heads = default_heads(width)
        has_grid = any(layout.grid for layout in targets.values())
        self.pool = Attention(width, heads) if any(layout.special for layout in targets.values()) else None
        self.attend = Attention(width, heads) if decode == "queries" and has_grid else None
        self.decode, self.samples = decode, samples
        self.sampler = Sampler(student, width, samples) if samples and has_grid else None
        self.refine = mlp(width)
        self.norm = nn.LayerNorm(width)
        self.outputs = nn.ModuleDict({name: zero_linear(width, layout.dim) for name, layout in targets.items()})

    def options(self) -> dict[str, Any]:
        return {"width": self.width, **self.settings, "decode": self.decode, "samples": self.samples}

    def forward(self, x: Tensor, queries: dict[str, Queries]) -> dict[str, Tensor]:
        trunk = self._trunk(x)
        asked = torch.cat([self._ask(trunk, name, which) for name, which in queries.items()], dim=1)  # (b q w)
        asked = self.norm(asked + self.refine(asked))
        parts = asked.split([len(which) for which in queries.values()], dim=1)
        return {name: self.outputs[name](part) for name, part in zip(queries, parts, strict=True)}

    def _trunk(self, x: Tensor) -> Tensor:
        """Student tokens (b s d) -> mixed tokens of its grid (b s w); special tokens reach all through their mean."""
        tokens = self.project(x)
        tokens = tokens + self.places.student().to(tokens.dtype)
        trunk = tokens[:, : self.student.num_grid_tokens]
        if self.register is not None:
            special = tokens[:, self.student.num_grid_tokens :]
            trunk = trunk + self.register(special.mean(dim=1, keepdim=True))
        for block in self.blocks:
            trunk = trunk + block(trunk, self.places.features)
        return trunk

    def _ask(self, trunk: Tensor, name: str, which: Queries) -> Tensor:
        """What the places and special tokens of one target read, (b q w)."""
        assert self.student.grid is not None
        kind = self.kinds[name].to(trunk.dtype)
        parts = []
        if len(which.coords):
            code = self.places(which.coords, name).to(trunk.dtype) + kind[0]
            asked = trilinear(trunk, self.student.grid, self.student.extent, which.coords) + code
            if self.sampler is not None:
                asked = asked + self.sampler(trunk, which.coords, F.layer_norm(asked, asked.shape[-1:]))
            if self.attend is not None:
                asked = asked + self.attend(asked, trunk)
            parts.append(asked)
        if len(which.special):
            assert self.pool is not None
            asked = trunk.mean(dim=1, keepdim=True) + kind[0] + kind[1 + which.special]
            parts.append(asked + self.pool(asked, trunk))
        return torch.cat(parts, dim=1)


class Block(nn.Module):
    """Norm, project, scan along every path (each with its run of channels), gate, project back: (b s w) -> (b s w).

    orders: one or two orders of the tokens; each is a path forwards and a path backwards. What a mixer is told beside
    its values (which states to write and read, how long a step is) depends on the token and on its place: so a scan
    can smooth over neighbours in all axes, though its sequence has but one.
    """

    walks: Tensor
    returns: Tensor

    def __init__(
        self,
        width: int,
        *,
        grid: tuple[int, int, int],
        orders: list[Tensor],
        inner: int,
        states: int,
        mixer: str,
        local: str,
        features: int,
    ) -> None:
        super().__init__()
        walks = torch.stack([walk for order in orders for walk in (order, order.flip(0))])  # (g s)
        self.register_buffer("walks", walks, persistent=False)
        self.register_buffer("returns", walks.argsort(dim=1), persistent=False)
        paths = len(walks)
        self.mixer = MIXERS[mixer](inner, paths=paths, states=states, length=walks.shape[1])
        told = paths * self.mixer.controls
        self.sizes = [inner, inner, told]
        self.norm = nn.LayerNorm(width)
        self.spread = nn.Linear(width, sum(self.sizes))
        self.where = nn.Linear(features, 2 * told, bias=False) if told else None
        self.local = local
        if local == "grid":
            self.taps: nn.Module = GridTaps(inner, grid)
        else:
            self.taps = nn.Conv1d(inner, inner, TAPS, groups=inner, padding=TAPS - 1)
        self.mixed = nn.LayerNorm(inner)
        self.out = nn.Linear(inner, width)

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        gate, values, controls = self.spread(self.norm(x)).split(self.sizes, dim=-1)
        if self.where is not None:
            scale, shift = self.where(features).to(controls.dtype).chunk(2, dim=-1)
            controls = controls * (1 + scale) + shift
        if self.local == "grid":
            values = self.taps(values)
        values, controls = self._along(values, self.walks), self._along(controls, self.walks)
        if self.local == "causal":
            values = self.taps(values.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2)
        mixed = self.mixer(F.silu(values), controls.unflatten(-1, (len(self.walks), -1)))
        mixed = self._along(mixed, self.returns)
        return self.out(self.mixed(mixed * F.silu(gate)))

    def _along(self, x: Tensor, index: Tensor) -> Tensor:
        """Every path's run of channels in its own order: (b s (g c)), (g s) -> (b s (g c))."""
        runs = x.chunk(len(index), dim=-1)
        return torch.cat([run.index_select(1, order) for run, order in zip(runs, index, strict=True)], dim=-1)


class GridTaps(nn.Conv3d):
    """Depthwise 3 x 3 x 3 convolution of a grid's tokens, zeros outside: (b s w) -> (b s w).

    As one 3 x 3 in channels-last order for each of three times: 10 ms a clip and training step at 8 x 16 x 16 x 224,
    where torch's convolution over three axes takes 31.
    """

    def __init__(self, width: int, grid: tuple[int, int, int]) -> None:
        super().__init__(width, width, 3, groups=width, padding=1)
        self.grid = grid

    def forward(self, x: Tensor) -> Tensor:
        t, h, w = self.grid
        frames = x.reshape(-1, h, w, x.shape[2]).permute(0, 3, 1, 2)
        taps = self.weight.to(x.dtype)
        before, now, after = (
            F.conv2d(frames, taps[:, :, at], padding=1, groups=len(taps))
            .permute(0, 2, 3, 1)
            .reshape(-1, t, h * w, len(taps))
            for at in range(3)
        )
        y = now + self.bias.to(x.dtype)  # type: ignore[union-attr]
        y = y + F.pad(before[:, :-1], (0, 0, 0, 0, 1, 0)) + F.pad(after[:, 1:], (0, 0, 0, 0, 0, 1))
        return y.flatten(1, 2)


def scan_orders(grid: tuple[int, int, int]) -> list[Tensor]:
    """Two orders of the tokens of a (t h w) grid, each (s,) long: t-h-w, as they come, and h-w-t."""
    index = torch.arange(grid[0] * grid[1] * grid[2])
    return [index, index.reshape(grid).permute(1, 2, 0).flatten()]
