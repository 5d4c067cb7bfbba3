"""The linear skip: trilinear resample onto the target's places and one linear map. Floor and starting point of all.
And, as a floor only, a linear map of the cells around.

Axes: b clips, s student tokens, g grid places, q target tokens, d student width, e target width, k components, n cells
around.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch
from einops import rearrange
from torch import Tensor, nn

from converters.branch import zero_linear
from converters.resample import Queries, trilinear
from teachers.layout import TokenLayout

GRID = "grid"
AROUND = tuple(itertools.product((-1, 0, 1), repeat=3))  # cells, on (t, y, x)


def resample_linear(linear: nn.Linear, tokens: Tensor, layout: TokenLayout, coords: Tensor) -> Tensor:
    """`linear` of the tokens (b s d) of a grid, at places `coords` (g, 3); (b g e).

    Interpolation and an affine map commute (the weights of a place sum to 1), so the map goes where rows are fewer:
    before the resample for 3136 places out of 2048 tokens, after it for 1568.
    """
    assert layout.grid is not None
    tokens = tokens[:, : layout.num_grid_tokens]
    if coords.shape[0] > layout.num_grid_tokens:
        return trilinear(linear(tokens), layout.grid, layout.extent, coords)
    return linear(trilinear(tokens, layout.grid, layout.extent, coords))


class LinearSkip(nn.Module):
    """Grid tokens by resample + linear; every special or pooled token by a linear map of the student's mean token.

    Maps normalised space to normalised space; starts at zero, that is at the position mean; `set_` takes ridge weights.
    """

    def __init__(self, student: TokenLayout, target: TokenLayout) -> None:
        super().__init__()
        self.student, self.target = student, target
        parts = ((GRID,) if target.grid else ()) + target.special
        self.maps: Mapping[str, nn.Linear] = nn.ModuleDict(  # type: ignore[assignment]
            {part: zero_linear(student.dim, target.dim) for part in parts}
        )

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the maps: "grid" if there is one, then the special tokens."""
        return tuple(self.maps)

    @torch.no_grad()
    def set_(self, weights: Mapping[str, Tensor]) -> None:
        """Take a weight (e, d) for every part (normalised targets have mean 0: the bias stays). Raises ValueError."""
        if set(weights) != set(self.parts):
            raise ValueError(f"weights are given for {sorted(weights)}, but the skip has {sorted(self.parts)}")
        for part, weight in weights.items():
            own = self.maps[part].weight
            if weight.shape != own.shape or not bool(weight.isfinite().all()):
                raise ValueError(
                    f"the weight of {part!r} is {tuple(weight.shape)}, "
                    f"{int((~weight.isfinite()).sum())} entries not finite; give {tuple(own.shape)}, all finite"
                )
            own.copy_(weight)

    def design(self, x: Tensor, queries: Queries) -> dict[str, Tensor]:
        """What each part's map reads, (b n d): the rows of the ridge's normal equations."""
        assert self.student.grid is not None
        grid_tokens = x[:, : self.student.num_grid_tokens]
        rows = {part: grid_tokens.mean(dim=1, keepdim=True) for part in self.target.special}
        if GRID in self.maps:
            rows[GRID] = self.at_places(grid_tokens, queries.coords)
        return rows

    def at_places(self, grid_tokens: Tensor, coords: Tensor) -> Tensor:
        """What a place of the grid reads, (b g d)."""
        assert self.student.grid is not None
        return trilinear(grid_tokens, self.student.grid, self.student.extent, coords)

    def split(self, y: Tensor) -> dict[str, Tensor]:
        """All target tokens (b q e) by part, (b n e): what stands opposite of `design`."""
        grid = self.target.num_grid_tokens
        rows = {part: y[:, grid + at : grid + at + 1] for at, part in enumerate(self.target.special)}
        if GRID in self.maps:
            rows[GRID] = y[:, :grid]
        return rows

    def forward(self, x: Tensor, queries: Queries) -> Tensor:
        """Normalised student tokens (b s d) -> normalised target tokens (b q e)."""
        answers = []
        if len(queries.coords):
            answers.append(self.answer_at_places(x, queries.coords))
        if len(queries.special):
            mean = x[:, : self.student.num_grid_tokens].mean(dim=1)
            special = torch.stack([self.maps[name](mean) for name in self.target.special], dim=1)
            answers.append(special.index_select(1, queries.special))
        return torch.cat(answers, dim=1)

    def answer_at_places(self, x: Tensor, coords: Tensor) -> Tensor:
        """The grid's part of the answer, (b g e)."""
        return resample_linear(self.maps[GRID], x, self.student, coords)


class LocalSkip(LinearSkip):
    """As LinearSkip, but a place of the grid reads the 3 x 3 x 3 cells around it, each by its components on a basis.

    basis: (d, k), orthonormal. Beyond the border the outermost cell is read again.
    """

    basis: Tensor

    def __init__(self, student: TokenLayout, target: TokenLayout, basis: Tensor) -> None:
        super().__init__(student, target)
        self.register_buffer("basis", basis)
        if GRID in self.maps:
            assert isinstance(self.maps, nn.ModuleDict)
            self.maps[GRID] = zero_linear(len(AROUND) * basis.shape[1], target.dim)

    def at_places(self, grid_tokens: Tensor, coords: Tensor) -> Tensor:
        """(b g (n k))"""
        assert self.student.grid is not None
        sides = zip(self.student.grid, self.student.extent, strict=True)
        cell = coords.new_tensor([(high - low) / cells for cells, (low, high) in sides])
        places = (coords + coords.new_tensor(AROUND)[:, None] * cell).flatten(0, 1)
        found = trilinear(grid_tokens @ self.basis, self.student.grid, self.student.extent, places)
        return rearrange(found, "b (n g) k -> b g (n k)", n=len(AROUND))

    def answer_at_places(self, x: Tensor, coords: Tensor) -> Tensor:
        return self.maps[GRID](self.at_places(x[:, : self.student.num_grid_tokens], coords))
