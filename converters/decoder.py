"""What the families with queries share: codes of places, mixing on the student's grid, and the answer to a query.

Axes: b clips, s student tokens, g places on a grid, q target tokens (of all targets, one after the other), m tokens of
a memory, k samples of a query, w width, c channels, (t y x) a place.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from converters.attention import Attention, Watch, attend, mlp, some_logits
from converters.branch import zero_linear
from converters.precision import without_autocast
from converters.resample import Queries, fourier, grid_bands, num_fourier, trilinear
from teachers.layout import TokenLayout

KEY_CHANNELS, FOUND_CHANNELS, TABLE_WIDTH = 32, 64, 256  # of the look-up


class Places(nn.Module):
    """Codes of width w for places in the view: one map for student and targets, so that like attends to like."""

    features: Tensor

    def __init__(self, student: TokenLayout, targets: dict[str, TokenLayout], width: int) -> None:
        super().__init__()
        assert student.grid is not None
        own = grid_bands(student)
        self.caps = {name: grid_bands(layout) for name, layout in targets.items() if layout.grid}
        t, h, w = (max(bands) for bands in zip(own, *self.caps.values(), strict=True))
        self.own, self.bands = own, (t, h, w)
        self.register_buffer("features", self.fourier(student.centres()), persistent=False)
        self.code = nn.Linear(num_fourier(self.bands), width, bias=False)
        energy = sum(1 / band for cap in own for band in range(1, cap + 1))
        nn.init.normal_(self.code.weight, std=energy**-0.5)  # codes of variance 1, like the content beside them
        self.special = nn.Parameter(torch.randn(len(student.special), width)) if student.special else None

    def fourier(self, coords: Tensor) -> Tensor:
        """Features of the student's places (g, 3): (g, f)."""
        return fourier(coords, self.bands, self.own)

    def student(self) -> Tensor:
        """Codes of the student's tokens by place, or by name for special ones: (s, w)."""
        codes = self.code(self.features)
        return codes if self.special is None else torch.cat([codes, self.special.to(codes.dtype)])

    def forward(self, coords: Tensor, target: str) -> Tensor:
        """Codes of a target's places (g, 3), without the bands that its own grid cannot resolve: (g, w)."""
        return self.code(fourier(coords, self.bands, self.caps[target]))


def evenly(count: int) -> Tensor:
    """`count` places spread evenly over the view (additive recurrence): (count, 3)."""
    steps = torch.tensor([0.8191725, 0.6710436, 0.5497005])  # powers of 1 / 1.2207, the root of x^4 = x + 1
    return (0.5 + torch.arange(1, count + 1)[:, None] * steps) % 1


class GridMix(nn.Module):
    """Adds to a grid's tokens a mixture of their neighbours: depthwise over 5 x 5 in (y, x), then over 3 in t.

    Special tokens pass. In channels-last order, where 5 x 5 takes 11 ms a clip and training step at 8 x 16 x 16 x 320;
    one convolution over 3 x 3 x 3 takes 23.
    """

    def __init__(self, grid: tuple[int, int, int], width: int) -> None:
        super().__init__()
        self.grid = grid
        self.over_space = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.over_time = nn.Conv2d(width, width, (3, 1), padding=(1, 0), groups=width)

    def forward(self, x: Tensor) -> Tensor:
        """(b s w) -> (b s w)."""
        t, h, w = self.grid
        on_grid, special = x[:, : t * h * w], x[:, t * h * w :]
        y = on_grid.unflatten(1, (t, h, w)).flatten(0, 1).permute(0, 3, 1, 2)
        y = self.over_space(y).permute(0, 2, 3, 1).reshape(-1, t, h * w, x.shape[2])
        y = self.over_time(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        y = on_grid + y.reshape(on_grid.shape)
        return torch.cat([y, special], dim=1) if special.shape[1] else y


def sample(tokens: Tensor, grid: tuple[int, int, int], cells: Tensor) -> Tensor:
    """Trilinear interpolation at places of each clip's own: tokens (b s w) of a grid, cells (b q k 3) -> (b q w).

    Sample k reads the k-th part of the channels. Places are in cells, 0 at the first centre; beyond the outermost
    centres the border holds. Differentiable in the places too. One fused gather: 12 ms a clip and training step for
    1568 x 5 samples of 64 channels.
    """
    b, s, w = tokens.shape
    q, k = cells.shape[1:3]
    rows = torch.zeros(b, q, k, 1, dtype=torch.long, device=tokens.device)
    weights = torch.ones(b, q, k, 1, dtype=cells.dtype, device=tokens.device)
    for axis, count in enumerate(grid):
        place = cells[..., axis].clamp(0, count - 1)
        below = place.detach().floor().clamp(max=max(count - 2, 0))
        share = place - below
        near = below.long()
        pair = torch.stack([near, (near + 1).clamp(max=count - 1)], dim=-1)
        share = torch.stack([1 - share, share], dim=-1)
        rows = (rows[..., None] * count + pair[..., None, :]).flatten(-2)
        weights = (weights[..., None] * share[..., None, :]).flatten(-2)
    first = torch.arange(b, device=tokens.device) * s
    rows = (rows + first[:, None, None, None]) * k + torch.arange(k, device=tokens.device)[:, None]
    found = F.embedding_bag(
        rows.reshape(b * q * k, 8),
        tokens.reshape(b * s * k, w // k),
        mode="sum",
        per_sample_weights=weights.to(tokens.dtype).reshape(b * q * k, 8),
    )
    return found.reshape(b, q, w)


class Sampler(nn.Module):
    """Reads the student's grid near each query at `samples` places, each a part of the channels.

    Their offsets, in cells, follow from what the query holds (after Zhu et al., Deformable DETR, 2021): exactly what
    lies beside it, wherever the clip says. They start spread over the cells around.
    """

    low: Tensor
    span: Tensor
    cells: Tensor

    def __init__(self, student: TokenLayout, width: int, samples: int) -> None:
        super().__init__()
        assert student.grid is not None
        self.grid, self.samples = student.grid, samples
        low, high = torch.tensor(student.extent).T
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("span", high - low, persistent=False)
        self.register_buffer("cells", torch.tensor(student.grid), persistent=False)
        self.where = zero_linear(width, 3 * samples)
        with torch.no_grad():
            self.where.bias.copy_((2 * evenly(samples) - 1).flatten())

    def forward(self, tokens: Tensor, coords: Tensor, content: Tensor) -> Tensor:
        """tokens (b s w) of the grid; queries at coords (q 3) with content (b q w) -> (b q w)."""
        own = (coords - self.low) / self.span * self.cells - 0.5  # in cells, 0 at the first centre
        offsets = self.where(content).float().unflatten(-1, (self.samples, 3))
        return sample(tokens, self.grid, own[:, None] + offsets)


class Lookup(nn.Module):
    """Finds tokens by what they hold, wherever they stand, and hands each query the ones that its place asks for.

    Finders attend to all of the student's tokens; keys hold no places. Each query then mixes what they found, by
    weights that follow from its own code alone: they are the same for every clip and computed once. Finders' logits
    start wide (deviation about 1.5), or a token's value comes through as its s-th part, too little to learn from.
    """

    watch: Watch | None = None

    def __init__(self, width: int, finders: int) -> None:
        super().__init__()
        self.finders = nn.Parameter(torch.randn(finders, KEY_CHANNELS) * 2.5)
        self.keys, self.values = nn.Linear(width, KEY_CHANNELS), nn.Linear(width, FOUND_CHANNELS)
        nn.init.normal_(self.keys.weight, std=1.5 * width**-0.5)
        nn.init.normal_(self.values.weight, std=1.5 * width**-0.5)
        self.names = nn.Parameter(torch.randn(finders, FOUND_CHANNELS) * 0.6)
        hidden, asked = nn.Linear(width, TABLE_WIDTH), nn.Linear(TABLE_WIDTH, FOUND_CHANNELS)
        nn.init.normal_(hidden.weight, std=width**-0.5)
        nn.init.normal_(asked.weight, std=3 * TABLE_WIDTH**-0.5)
        self.table = nn.Sequential(nn.LayerNorm(width), hidden, nn.GELU(), asked)
        self.out = nn.Linear(FOUND_CHANNELS, width)

    def forward(self, codes: Tensor, tokens: Tensor) -> Tensor:
        """codes (q w) of the queries, tokens (b s w) -> (b q w)."""
        b = tokens.shape[0]
        finders = self.finders.to(tokens.dtype).expand(b, 1, -1, -1)
        keys = self.keys(tokens)[:, None]
        found = attend(finders, keys, self.values(tokens)[:, None])[:, 0]  # (b f c)
        q, k = (x.unflatten(-1, (2, -1)).transpose(0, 1) for x in (self.table(codes), self.names))
        with without_autocast(q.device.type):
            logits = q.float() @ k.float().transpose(1, 2) / k.shape[-1] ** 0.5  # (2 q f)
        if self.watch is not None:
            self.watch(some_logits(finders, keys))
            self.watch(logits)
        picked = logits.softmax(dim=-1).to(found.dtype) @ found.unflatten(-1, (2, -1)).transpose(1, 2)  # (b 2 q c/2)
        return self.out(picked.transpose(1, 2).flatten(2))


class Decoder(nn.Module):
    """One query per target token: place + target + local content, what it samples nearby, and a memory's answer.

    samples: places that a query reads on the student's grid beside its own (see Sampler). lookup: finders of a look-up
    by content over all student tokens; 0: none.
    """

    def __init__(
        self,
        student: TokenLayout,
        targets: dict[str, TokenLayout],
        *,
        width: int,
        heads: int,
        samples: int,
        lookup: int,
    ) -> None:
        super().__init__()
        self.student = student
        # Row 0 belongs to the target, the others to its special tokens.
        self.kinds = nn.ParameterDict(
            {name: torch.randn(1 + len(layout.special), width) * 0.1 for name, layout in targets.items()}
        )
        self.sampler = Sampler(student, width, samples)
        self.lookup = Lookup(width, lookup) if lookup else None
        self.answer = Attention(width, heads)
        self.refine = mlp(width)
        self.outputs = nn.ModuleDict({name: zero_linear(width, layout.dim) for name, layout in targets.items()})

    def forward(
        self,
        tokens: Tensor,
        memory: Tensor,
        places: Places,
        queries: dict[str, Queries],
        *,
        bias: Tensor | None = None,
        looked: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """tokens (b s w): the student's, projected, mixed. memory (b m w), with `bias` (b 1 1 m) on its logits. looked
        (b s w): what the look-up reads. Returns {target: (b q e)}."""
        asked_of = [self._ask(tokens, places, name, which) for name, which in queries.items()]
        codes = torch.cat([codes for codes, _ in asked_of])  # the same for all clips
        asked = torch.cat([content for _, content in asked_of], dim=1)
        if self.lookup is not None and looked is not None:
            asked = asked + self.lookup(codes, looked)
        asked = asked + self.answer(asked, memory, bias)
        asked = asked + self.refine(asked)
        parts = asked.split([len(which) for which in queries.values()], dim=1)
        return {name: self.outputs[name](part) for name, part in zip(queries, parts, strict=True)}

    def _ask(self, tokens: Tensor, places: Places, name: str, which: Queries) -> tuple[Tensor, Tensor]:
        """Codes of one target's queries (q w), and with their local content (b q w)."""
        grid, extent = self.student.grid, self.student.extent
        assert grid is not None
        on_grid = tokens[:, : self.student.num_grid_tokens]
        kind = self.kinds[name].to(tokens.dtype)
        codes, contents = [], []
        if len(which.coords):
            codes.append(places(which.coords, name) + kind[0])
            content = trilinear(on_grid, grid, extent, which.coords) + codes[-1]
            # the content as it is: a norm would bend a linear displacement
            contents.append(content + self.sampler(on_grid, which.coords, content))
        if len(which.special):
            codes.append(kind[0] + kind[1 + which.special])
            contents.append(on_grid.mean(dim=1, keepdim=True) + codes[-1])
        return torch.cat(codes), torch.cat(contents, dim=1)
