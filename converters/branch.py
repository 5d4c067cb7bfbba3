"""What a converter family is: a module from the student's normalised tokens to those of every target."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn

from converters.resample import Queries


class Branch(Protocol):
    """x: normalised student tokens (b s d); returns normalised tokens (b q e) for every target asked for.

    Its last layer per target is linear and starts at zero, so that a converter starts exactly at its skip.
    """

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


def check_count(name: str, value: object, most: int) -> int:
    """An option that must be a whole number from 1 to `most` (a bundle from strangers must not ask for the moon)."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise ValueError(f"{name} is {value!r}; it must be a whole number from 1 to {most}")
    return value
