"""The parameter-matched floor: a perceptron on the local content of every place. No place sees another.

Axes: b clips, s student tokens, q target tokens, d student width, e target width, f hidden width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from converters.branch import check_count, zero_linear
from converters.linear import resample_linear
from converters.resample import Queries
from teachers.layout import TokenLayout

DEFAULT_PARAMETERS = 1_800_000
MAX_HIDDEN = 1 << 16


def mlp(
    student: TokenLayout,
    targets: dict[str, TokenLayout],
    *,
    hidden: int | None = None,
    parameters: int | None = None,
) -> LocalMlp:
    """hidden: width of the hidden layer, the same for every target. parameters: what the branch (without skips) may
    have at most, from which `hidden` follows; 1.8 million by default."""
    if hidden is not None and parameters is not None:
        raise ValueError(f"hidden={hidden} and parameters={parameters} are both given; one follows from the other")
    if hidden is None:
        budget = check_count("parameters", DEFAULT_PARAMETERS if parameters is None else parameters, 10**9)
        hidden = hidden_units(student, targets, budget)
        if hidden < 1:
            takes = f"one hidden unit takes {unit_parameters(student, targets)} and the output biases on top"
            raise ValueError(f"parameters is {budget}; {takes}")
    return LocalMlp(student, targets, hidden=check_count("hidden", hidden, MAX_HIDDEN))


def hidden_units(student: TokenLayout, targets: Mapping[str, TokenLayout], parameters: int) -> int:
    """The hidden width of a branch of so many parameters; below 1 where they are too few for one."""
    return (parameters - sum(target.dim for target in targets.values())) // unit_parameters(student, targets)


def unit_parameters(student: TokenLayout, targets: Mapping[str, TokenLayout]) -> int:
    """Parameters of one hidden unit."""
    return sum(student.dim + 1 + target.dim + len(target.special) for target in targets.values())


class LocalMlp(nn.Module):
    """linear -> GELU -> linear on the trilinear local content, or on the mean token for special tokens."""

    def __init__(self, student: TokenLayout, targets: dict[str, TokenLayout], *, hidden: int) -> None:
        super().__init__()
        self.student, self.hidden = student, hidden
        self.inputs: Mapping[str, nn.Linear] = nn.ModuleDict(  # type: ignore[assignment]
            {name: nn.Linear(student.dim, hidden) for name in targets}
        )
        self.special = nn.ParameterDict(
            {name: torch.randn(len(at.special), hidden) * 0.02 for name, at in targets.items() if at.special}
        )
        self.outputs = nn.ModuleDict({name: zero_linear(hidden, layout.dim) for name, layout in targets.items()})

    def options(self) -> dict[str, int]:
        return {"hidden": self.hidden}

    def forward(self, x: Tensor, queries: dict[str, Queries]) -> dict[str, Tensor]:
        return {name: self.outputs[name](F.gelu(self._hidden(x, name, asked))) for name, asked in queries.items()}

    def _hidden(self, x: Tensor, name: str, asked: Queries) -> Tensor:
        parts = []
        if len(asked.coords):
            parts.append(resample_linear(self.inputs[name], x, self.student, asked.coords))
        if len(asked.special):
            mean = x[:, : self.student.num_grid_tokens].mean(dim=1, keepdim=True)
            content = self.inputs[name](mean)
            parts.append(content + self.special[name][asked.special].to(content.dtype))
        return torch.cat(parts, dim=1)
