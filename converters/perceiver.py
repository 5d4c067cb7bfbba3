"""Perceiver-IO: latents read the student's tokens, mix among themselves, and are read by one query per target token.

Queries carry the global part to and from the latents; what lies near a query it reads on the student's own grid, mixed
there with its neighbours, and what lies afar but stands out by a look-up (converters.decoder).
Source: Jaegle et al., Perceiver IO (2021), sections 3.1-3.2; the report's design A.
Axes: b clips, s student tokens, l latents, q target tokens (of all targets, one after the other), w width.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from converters.approximation import Nystrom, Performer
from converters.attention import Attend, Attention, Block, attend, mlp
from converters.branch import MAX_BLOCKS, check_choice, check_count, check_parts, default_heads, trunk_width
from converters.decoder import Decoder, GridMix, Places, evenly
from converters.resample import Queries
from teachers.layout import TokenLayout

MAX_LATENTS = 8192
SIZES = {
    "base": {"width": 224, "latents": 192, "samples": 8, "lookup": 64},
    "small": {"width": 160, "latents": 128, "samples": 4, "lookup": 32},
}
MIXINGS = ("full", "nystrom", "performer")


def perceiver(
    student: TokenLayout,
    targets: dict[str, TokenLayout],
    *,
    width: int | None = None,
    latents: int | None = None,
    heads: int | None = None,
    blocks: int = 1,
    samples: int | None = None,
    lookup: int | None = None,
    mixing: Literal["full", "nystrom", "performer"] = "full",
    landmarks: int = 32,
    features: int | None = None,
    size: Literal["base", "small"] = "base",
) -> Perceiver:
    """width: of the trunk (see branch.trunk_width).
    latents: how many; default 192. heads: default one per 64 channels. blocks: of self-attention among the latents.
    samples: places that a query reads beside its own, each a part of the channels; default 8, or one per head.
    lookup: finders of the look-up by content over all student tokens; default 64; 0: none.
    mixing: how the latents attend to each other: "full", exactly, the fastest at 192 latents; "nystrom", through
        `landmarks` means of them, faster from about 512 on; "performer", through random `features` (default 4 per
        channel of a head), faster from about 1024 on. Both are coarse: see tests/benchmarks/mixing.py.
    size: "small" lowers the defaults to at most 160 wide, 128 latents, 4 samples and 32 finders: half the time.
    """
    check_choice("size", size, SIZES)
    check_choice("mixing", mixing, MIXINGS)
    defaults = SIZES[size]
    width = trunk_width(student, targets, width, most=defaults["width"])
    heads, samples = check_heads_and_samples(width, heads, samples, usual=defaults["samples"])
    latents = check_count("latents", defaults["latents"] if latents is None else latents, MAX_LATENTS)
    check_count("blocks", blocks, MAX_BLOCKS)
    lookup = defaults["lookup"] if lookup is None else lookup
    if lookup != 0 or isinstance(lookup, bool):
        check_count("lookup", lookup, MAX_LATENTS)
    check_count("landmarks", landmarks, MAX_LATENTS)
    features = min(4 * width // heads, MAX_LATENTS) if features is None else features
    check_count("features", features, MAX_LATENTS)
    return Perceiver(
        student,
        targets,
        width=width,
        latents=latents,
        heads=heads,
        blocks=blocks,
        samples=samples,
        lookup=lookup,
        mixing=mixing,
        landmarks=landmarks,
        features=features,
    )


def check_heads_and_samples(width: int, heads: int | None, samples: int | None, *, usual: int = 8) -> tuple[int, int]:
    """Both, by default a head per 64 channels and `usual` samples. Raises ValueError unless both divide the width."""
    heads = check_parts("heads", width, default_heads(width) if heads is None else heads)
    if samples is None:
        samples = usual if width % usual == 0 else heads
    return heads, check_parts("samples", width, samples)


def _mixer(mixing: str, channels: int, landmarks: int, features: int) -> Attend:
    if mixing == "nystrom":
        return Nystrom(landmarks)
    return Performer(channels, features) if mixing == "performer" else attend


def along_a_curve(places: Tensor) -> Tensor:
    """An order (n) of places (n 3) in which neighbours mostly follow each other: along a Z-curve.

    Nystrom's landmarks are means of runs. At the start, with 32 landmarks of 2048 latents, this order lowers its
    relative error from 0.75 to 0.40; of 192, from 0.75 to 0.55.
    """
    bits = (places * 16).long()[:, None] >> torch.arange(4)[:, None] & 1  # (n 4 3), the finest first
    return (bits.flatten(1) << torch.arange(12)).sum(dim=1).argsort(stable=True)


class Perceiver(nn.Module):
    """Cost at full geometry (2048 x 1024 -> 1568 x 768, width 224): 2.2 GMAC."""

    def __init__(
        self,
        student: TokenLayout,
        targets: dict[str, TokenLayout],
        *,
        width: int,
        latents: int,
        heads: int,
        blocks: int,
        samples: int,
        lookup: int,
        mixing: str,
        landmarks: int,
        features: int,
    ) -> None:
        super().__init__()
        assert student.grid is not None
        self._options = {
            "width": width,
            "latents": latents,
            "heads": heads,
            "blocks": blocks,
            "samples": samples,
            "lookup": lookup,
            "mixing": mixing,
            "landmarks": landmarks,
            "features": features,
        }
        self.project = nn.Linear(student.dim, width)
        self.neighbours = nn.Sequential(GridMix(student.grid, width), GridMix(student.grid, width))
        self.places = Places(student, targets, width)
        self.latents = nn.Parameter(self._first_latents(latents))
        self.read = Attention(width, heads)
        self.digest = mlp(width)
        self.mix = nn.ModuleList(
            [Block(width, heads, attend=_mixer(mixing, width // heads, landmarks, features)) for _ in range(blocks)]
        )
        self.decoder = Decoder(student, targets, width=width, heads=heads, samples=samples, lookup=lookup)

    @torch.no_grad()
    def _first_latents(self, count: int) -> Tensor:
        """Latents start as the codes of places spread evenly over the view, with some noise."""
        places = evenly(count)
        if self._options["mixing"] == "nystrom":
            places = places[along_a_curve(places)]
        codes = self.places.code(self.places.fourier(places))
        return codes + 0.1 * torch.randn_like(codes)

    @property
    def outputs(self) -> nn.ModuleDict:
        return self.decoder.outputs

    def options(self) -> dict[str, Any]:
        return dict(self._options)

    def forward(self, x: Tensor, queries: dict[str, Queries]) -> dict[str, Tensor]:
        single = self.project(x)  # (b s w)
        tokens = self.neighbours(single)
        latents = self.latents.to(tokens.dtype)[None]  # their queries are projected once, not per clip
        latents = latents + self.read(latents, tokens + self.places.student().to(tokens.dtype))  # (b l w)
        latents = latents + self.digest(latents)
        for block in self.mix:
            latents = block(latents)
        return self.decoder(tokens, latents, self.places, queries, looked=single)
