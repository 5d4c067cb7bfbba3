"""The linear skip: trilinear resample onto the target's places and one linear map. Floor and starting point of all.

Axes: b clips, s student tokens, g grid places, q target tokens, d student width, e target width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from converters.branch import zero_linear
from converters.resample import Queries, trilinear
from teachers.layout import TokenLayout

GRID = "grid"


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
            rows[GRID] = trilinear(grid_tokens, self.student.grid, self.student.extent, queries.coords)
        return rows

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
            answers.append(resample_linear(self.maps[GRID], x, self.student, queries.coords))
        if len(queries.special):
            mean = x[:, : self.student.num_grid_tokens].mean(dim=1)
            special = torch.stack([self.maps[name](mean) for name in self.target.special], dim=1)
            answers.append(special.index_select(1, queries.special))
        return torch.cat(answers, dim=1)
