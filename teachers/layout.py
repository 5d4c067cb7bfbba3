"""TokenLayout: what a sequence of tokens means. The shared vocabulary of the whole house.

Axes: t h w token grid, q tokens of a layout, d width of a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite, prod
from typing import Any

import torch
from torch import Tensor

Span = tuple[float, float]
FULL_VIEW: tuple[Span, Span, Span] = ((0.0, 1.0), (0.0, 1.0), (0.0, 1.0))
POOLED = "pooled"


@dataclass(frozen=True)
class TokenLayout:
    """Geometry of one backbone's tokens: first a grid in (t h w) order, then special tokens.

    grid: cells per axis (t, h, w), or None for a model that answers with pooled tokens only.
    dim: width of a token.
    special: names of the tokens after the grid ("cls"); a pooled layout has the one token "pooled".
    extent: the box that the grid spans, per axis (t, y, x), as fractions of the clip's view. (0, 1) is the whole
        view; features extracted elsewhere from a centre crop of 224 out of 256 pixels span (1/16, 15/16).

    A token's place is a fraction of the view, never an index: cell i of n on an axis with extent (low, high)
    stands at low + (i + 1/2) / n * (high - low).
    """

    grid: tuple[int, int, int] | None
    dim: int
    special: tuple[str, ...] = ()
    extent: tuple[Span, Span, Span] = FULL_VIEW

    def __post_init__(self) -> None:
        grid = None if self.grid is None else tuple(self.grid)
        if grid is not None and (len(grid) != 3 or not all(map(_is_count, grid))):
            raise ValueError(f"grid is {self.grid!r}; it must be three positive counts (t, h, w), or None for pooled")
        if not _is_count(self.dim):
            raise ValueError(f"dim is {self.dim!r}; a token has a whole number of channels, at least one")
        special: Any = self.special
        if isinstance(special, str) or not all(isinstance(name, str) for name in special):
            raise ValueError(f"special is {special!r}; it must be a sequence of names")
        special = tuple(special) or ((POOLED,) if grid is None else ())
        if len(set(special)) != len(special):
            raise ValueError(f"special tokens {special} repeat a name; each needs its own")
        extent = tuple((float(low), float(high)) for low, high in self.extent)
        if len(extent) != 3 or not all(low < high and isfinite(high - low) for low, high in extent):
            raise ValueError(f"extent is {self.extent!r}; it must be three spans (low, high) with low < high, finite")
        object.__setattr__(self, "grid", grid)
        object.__setattr__(self, "special", special)
        object.__setattr__(self, "extent", extent)

    @property
    def num_grid_tokens(self) -> int:
        return prod(self.grid) if self.grid else 0

    @property
    def num_tokens(self) -> int:
        return self.num_grid_tokens + len(self.special)

    @property
    def pooled(self) -> bool:
        return self.grid is None

    @property
    def shape(self) -> tuple[int, int]:
        """(tokens, dim) of one clip."""
        return self.num_tokens, self.dim

    def centres(self) -> Tensor:
        """Places of the grid's tokens in the view, (q, 3) float32 in the order (t, y, x); (0, 3) when pooled."""
        if self.grid is None:
            return torch.zeros(0, 3)
        axes = [
            low + (torch.arange(n, dtype=torch.float64) + 0.5) / n * (high - low)
            for n, (low, high) in zip(self.grid, self.extent, strict=True)
        ]
        return torch.cartesian_prod(*axes).reshape(-1, 3).float()

    def keeping(self, special: Sequence[str]) -> TokenLayout:
        """This layout with only some of its special tokens; a pooled one keeps its own. Raises ValueError on others."""
        if self.grid is None:
            return self
        unknown = [name for name in special if name not in self.special]
        if unknown:
            raise ValueError(f"special tokens {unknown} are not among {list(self.special)}")
        return replace(self, special=tuple(name for name in self.special if name in special))

    def describe(self) -> str:
        grid = " x ".join(map(str, self.grid)) if self.grid else ""
        parts = [part for part in (grid, *self.special) if part]
        return f"{' + '.join(parts)} = {self.num_tokens} tokens of {self.dim}"

    def to_dict(self) -> dict[str, Any]:
        return {
            "grid": list(self.grid) if self.grid else None,
            "dim": self.dim,
            "special": list(self.special),
            "extent": [list(span) for span in self.extent],
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TokenLayout:
        """The inverse of to_dict. Raises ValueError on missing or unknown entries."""
        known = {"grid", "dim", "special", "extent"}
        if not isinstance(data, dict) or "dim" not in data or "grid" not in data or set(data) - known:
            raise ValueError(f"a layout has the entries {sorted(known)} (grid and dim required), got {data!r}")
        extent = data.get("extent") or FULL_VIEW
        return cls(
            grid=None if data["grid"] is None else tuple(data["grid"]),
            dim=data["dim"],
            special=data.get("special") or (),
            extent=extent,
        )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
