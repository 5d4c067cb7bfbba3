"""What a converter family is: a module from the student's normalised tokens to those of every target."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from converters.resample import Queries
from teachers.layout import TokenLayout

# The trunk narrows as the skips' linear maps (one per grid and per special token) claim the 5 M parameters: maps ->
# width.
WIDTHS = {1: 224, 2: 224, 3: 192, 4: 160}
NARROWEST = 128
MAX_WIDTH, MAX_BLOCKS = 4096, 64


class Branch(Protocol):
    """x: normalised student tokens (b s d); returns normalised tokens (b q e) for every target asked for.

    Its last layer per target, in `outputs`, is linear and starts at zero, so that a converter starts exactly at its
    skip. Nothing else depends on a target's width.
    """

    @property
    def outputs(self) -> Mapping[str, nn.Linear]: ...

    def __call__(self, x: Tensor, queries: dict[str, Queries]) -> dict[str, Tensor]: ...

    def options(self) -> dict[str, Any]:
        """The resolved options: given to the family's factory again, they build the same modules."""
        ...


def zero_linear(d: int, e: int) -> nn.Linear:
    """A linear layer that answers zero until it has learned."""
    linear = nn.Linear(d, e)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def undecayed(value: Tensor) -> nn.Parameter:
    """A parameter that weight decay must not pull to 0, though it is a matrix: places, rates. (Mamba's mark for it.)"""
    parameter = nn.Parameter(value)
    parameter._no_weight_decay = True  # type: ignore[attr-defined]
    return parameter


def check_count(name: str, value: object, most: int) -> int:
    """An option that must be a whole number from 1 to `most` (a bundle from strangers must not ask for the moon)."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise ValueError(f"{name} is {value!r}; it must be a whole number from 1 to {most}")
    return value


def check_choice(name: str, value: object, valid: Collection[str]) -> None:
    """An option that must be one of a few words."""
    if not isinstance(value, str) or value not in valid:
        raise ValueError(f"{name} is {value!r}; valid: {', '.join(valid)}")


def check_parts(name: str, width: int, count: object) -> int:
    """An option that cuts the width into equal parts."""
    parts = check_count(name, count, MAX_WIDTH)
    if width % parts:
        raise ValueError(f"width is {width} and {name} is {parts}; the width must be a multiple of the {name}")
    return parts


def trunk_width(
    student: TokenLayout, targets: Mapping[str, TokenLayout], given: int | None = None, *, most: int = MAX_WIDTH
) -> int:
    """The width that was given, or 224 for one target down to 128, by the number of linear maps that the skips hold, so
    that 1024 -> 768 stays within 5 M parameters; then never above `most`, nor above the student's own width."""
    if given is not None:
        return check_count("width", given, MAX_WIDTH)
    maps = sum((layout.grid is not None) + len(layout.special) for layout in targets.values())
    return min(WIDTHS.get(maps, NARROWEST), most, -(-student.dim // 32) * 32)


def default_heads(width: int) -> int:
    """One per 64 channels, the last ones too, or the next smaller number that divides the width."""
    return largest_divisor(width, -(-width // 64))


def largest_divisor(number: int, most: int) -> int:
    return next(size for size in range(min(number, most), 0, -1) if number % size == 0)
