"""TokenLearner: each frame is pooled into a few learned tokens that keep their place; positional queries read them.

Source: Ryoo et al., TokenLearner (2021), version 1.1 (one softmax over a frame's cells per learned token, scored by a
small perceptron); merging instead: Bolya et al., Token Merging (2022). The report's design D.
Axes: b clips, t frames, s student tokens, p cells of a frame, n learned tokens of a frame, m all of a clip, w width.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from converters.attention import Block, Watch
from converters.branch import MAX_BLOCKS, check_choice, check_count, trunk_width, undecayed
from converters.decoder import Decoder, GridMix, Places
from converters.perceiver import check_heads_and_samples
from converters.precision import without_autocast
from converters.resample import Queries
from teachers.layout import TokenLayout

COMPRESSORS = ("learn", "tome")
HIDDEN = 64  # of the scorer


def tokenlearner(
    student: TokenLayout,
    targets: dict[str, TokenLayout],
    *,
    width: int | None = None,
    tokens: int | None = None,
    heads: int | None = None,
    blocks: int = 1,
    samples: int | None = None,
    compress: Literal["learn", "tome"] = "learn",
) -> TokenLearner:
    """width: of the trunk (see branch.trunk_width). tokens: that a frame is pooled into; default 32, or a quarter of
        the frame's cells where that is less. heads: default one per 64 channels. blocks: of self-attention among them.
    samples: places that a query reads beside its own. compress: "learn" them, or merge alike ones ("tome").
    """
    assert student.grid is not None
    cells = student.grid[1] * student.grid[2]
    width = trunk_width(student, targets, width)
    heads, samples = check_heads_and_samples(width, heads, samples)
    tokens = check_count("tokens", min(32, -(-cells // 4)) if tokens is None else tokens, cells)
    check_count("blocks", blocks, MAX_BLOCKS)
    check_choice("compress", compress, COMPRESSORS)
    return TokenLearner(
        student, targets, width=width, tokens=tokens, heads=heads, blocks=blocks, samples=samples, compress=compress
    )


class TokenLearner(nn.Module):
    """Cost at full geometry (2048 x 1024 -> 1568 x 768, width 224): 1.7 GMAC.

    Tokens are pooled before keys and values are made of them: 256 instead of 2048 rows.
    """

    places_of_cells: Tensor
    places_in_frame: Tensor

    def __init__(
        self,
        student: TokenLayout,
        targets: dict[str, TokenLayout],
        *,
        width: int,
        tokens: int,
        heads: int,
        blocks: int,
        samples: int,
        compress: str,
    ) -> None:
        super().__init__()
        assert student.grid is not None
        self.student, self.tokens = student, tokens
        self._options = {
            "width": width,
            "tokens": tokens,
            "heads": heads,
            "blocks": blocks,
            "samples": samples,
            "compress": compress,
        }
        self.register_buffer("places_of_cells", student.centres(), persistent=False)
        low, high = torch.tensor(student.extent)[1:].T
        frame = self.places_of_cells[: student.grid[1] * student.grid[2], 1:]
        self.register_buffer("places_in_frame", (frame - low) / (high - low), persistent=False)
        self.project = nn.Linear(student.dim, width)
        self.neighbours = nn.Sequential(GridMix(student.grid, width), GridMix(student.grid, width))
        self.places = Places(student, targets, width)
        self.score = Score(width, tokens) if compress == "learn" else None
        self.mix = nn.ModuleList([Block(width, heads) for _ in range(blocks)])
        self.decoder = Decoder(student, targets, width=width, heads=heads, samples=samples, lookup=0)

    @property
    def outputs(self) -> nn.ModuleDict:
        return self.decoder.outputs

    def options(self) -> dict[str, Any]:
        return dict(self._options)

    def forward(self, x: Tensor, queries: dict[str, Queries]) -> dict[str, Tensor]:
        tokens = self.neighbours(self.project(x))
        memory, places, sizes = self.compress(tokens)
        features = self.places.fourier(places.flatten(0, 1))
        memory = memory + self.places.code(features).unflatten(0, places.shape[:2]).to(memory.dtype)
        if self.places.special is not None:
            special = tokens[:, self.student.num_grid_tokens :] + self.places.special.to(tokens.dtype)
            memory = torch.cat([memory, special], dim=1)
            sizes = None if sizes is None else F.pad(sizes, (0, special.shape[1]), value=1)
        bias = None if sizes is None else sizes.log()[:, None, None]
        for block in self.mix:
            memory = block(memory, bias)
        return self.decoder(tokens, memory, self.places, queries, bias=bias)

    def compress(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """(b s w) -> the compressed (b m w), their mean places (b m 3) float32, how many tokens each holds (b m): None
        where they are learned, each of all cells."""
        assert self.student.grid is not None
        t, grid = self.student.grid[0], self.student.num_grid_tokens
        frames = tokens[:, :grid].unflatten(1, (t, -1)).flatten(0, 1)  # (b*t p w)
        places = self.places_of_cells.unflatten(0, (t, -1)).repeat(tokens.shape[0], 1, 1)  # (b*t p 3)
        if self.score is None:
            pooled, places, sizes = merge(frames, places, self.tokens)
        else:
            weights = self.score(frames, self.places_in_frame)  # (b*t n p)
            pooled, sizes = weights.to(frames.dtype) @ frames, None
            with without_autocast(places.device.type):
                places = weights @ places
        pooled, places = (part.unflatten(0, (-1, t)).flatten(1, 2) for part in (pooled, places))
        return pooled, places, None if sizes is None else sizes.unflatten(0, (-1, t)).flatten(1)


class Score(nn.Module):
    """Weights of a frame's cells for each learned token: softmax of content logits and of a bell around a centre.

    A perceptron alone starts 99.8% uniform, and the learned tokens stay copies of the mean token. Here centres start
    spread over the frame, bells about as wide as their distance, content logits with a deviation of about 1; all learn.
    """

    watch: Watch | None = None

    def __init__(self, width: int, tokens: int) -> None:
        super().__init__()
        hidden, logits = nn.Linear(width, HIDDEN), nn.Linear(HIDDEN, tokens, bias=False)
        nn.init.normal_(hidden.weight, std=width**-0.5)
        nn.init.normal_(logits.weight, std=1.5 * HIDDEN**-0.5)
        self.content = nn.Sequential(nn.LayerNorm(width), hidden, nn.GELU(), logits)
        steps = torch.tensor([0.7548777, 0.5698403])  # powers of 1 / 1.3247, the root of x^3 = x + 1: spread evenly
        self.centres = undecayed((0.5 + torch.arange(1, tokens + 1)[:, None] * steps) % 1)
        self.log_width = nn.Parameter(torch.full((tokens,), -0.5).mul_(torch.tensor(float(tokens)).log()))

    def forward(self, frames: Tensor, within: Tensor) -> Tensor:
        """frames (b p w), cells' places in the frame (p 2) from 0 to 1 -> (b n p) float32."""
        distance = (within - self.centres[:, None]).square().sum(dim=-1)  # (n p)
        bell = -0.5 * distance * (-2 * self.log_width).exp()[:, None]
        logits = self.content(frames).float().transpose(1, 2) + bell
        if self.watch is not None:
            self.watch(logits)
        return logits.softmax(dim=-1)


def merge(tokens: Tensor, places: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Merge alike tokens of (b p w) with places (b p 3) until `count` are left: (b n w), (b n 3), sizes (b n) float32.

    In rounds: every other token points at the most alike of the rest, and those that agree best are merged into it,
    at most half of all a round. A merged token is the mean of its members, and so is its place. Deterministic on a CPU
    (on a GPU sums differ in their last bits, which may tip a choice); the choice carries no gradient.
    """
    sizes = places.new_ones(places.shape[:2])
    while tokens.shape[1] > count:
        tokens, places, sizes = _merge_once(tokens, places, sizes, min(tokens.shape[1] - count, tokens.shape[1] // 2))
    return tokens, places, sizes


def _merge_once(tokens: Tensor, places: Tensor, sizes: Tensor, number: int) -> tuple[Tensor, Tensor, Tensor]:
    rows = torch.cat([tokens.float(), places, torch.ones_like(sizes)[..., None]], dim=-1) * sizes[..., None]
    with torch.no_grad(), without_autocast(tokens.device.type):
        alike = F.normalize(tokens.float(), dim=-1)
        agreement, partner = (alike[:, ::2] @ alike[:, 1::2].transpose(1, 2)).max(dim=-1)
        order = agreement.argsort(dim=1, descending=True, stable=True)
        gone, kept = order[:, :number], order[:, number:].sort(dim=1).values
        into = partner.gather(1, gone)
    width = rows.shape[-1]
    sources, rest = rows[:, ::2], rows[:, 1::2]
    moving = sources.gather(1, gone[..., None].expand(-1, -1, width))
    rest = rest.scatter_add(1, into[..., None].expand(-1, -1, width), moving)
    rows = torch.cat([sources.gather(1, kept[..., None].expand(-1, -1, width)), rest], dim=1)
    content, where, sizes = rows.split([width - 4, 3, 1], dim=-1)
    return (content / sizes).to(tokens.dtype), where / sizes, sizes[..., 0]
