"""The bottleneck of a low-rank converter: skip and branch answer in k channels, which one map per target spreads to e.

All that is converted passes through that map U, so that its rank bounds the whole answer: a rank kept from the branch
alone would leak through the skip. With the maps V that end skip and branch it factorises each of them, W = U V; with
what passes through it, it factorises the answer, and a penalty on both is one on the answer's singular values
(distill.deficiency.nuclear).
Axes: b clips, q target tokens, e target width, k rank, n inputs of a map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from converters.branch import check_count
from teachers.layout import TokenLayout

Rank = int | Literal["full"]
MAX_RANK = 1 << 16
DEAD = 0.01  # of the largest singular value: a factor of less than its root would hardly learn, and one of 0 never


class Bottleneck(nn.Linear):
    """U (e k), with a bias. It starts with orthonormal columns, so that V learns although it starts at zero."""

    def __init__(self, rank: int, width: int) -> None:
        super().__init__(rank, width)
        nn.init.orthogonal_(self.weight)
        nn.init.zeros_(self.bias)

    @torch.no_grad()
    def set_(self, weight: Tensor) -> None:
        """Take a weight (e k)."""
        assert weight.shape == self.weight.shape
        self.weight.copy_(weight)


def check_rank(rank: object, targets: Mapping[str, TokenLayout]) -> None:
    """Raises ValueError unless every target has that many channels."""
    if rank is None or rank == "full":
        return
    number = check_count("rank", rank, MAX_RANK)
    for name, layout in targets.items():
        if number > layout.dim:
            raise ValueError(
                f"rank is {number}, but target {name!r} has {layout.dim} channels; give a rank from 1 to {layout.dim}, "
                'or "full"'
            )


def narrowed(targets: Mapping[str, TokenLayout], rank: Rank | None) -> dict[str, TokenLayout]:
    """The targets as skip and branch see them: with as many channels as the bottleneck has. None: there is none."""
    if rank is None or rank == "full":
        return dict(targets)
    return {name: replace(layout, dim=rank) for name, layout in targets.items()}


def new_bottlenecks(targets: Mapping[str, TokenLayout], rank: Rank | None) -> dict[str, Bottleneck]:
    """One for every target; none where no rank was asked for."""
    if rank is None:
        return {}
    return {name: Bottleneck(layout.dim if rank == "full" else rank, layout.dim) for name, layout in targets.items()}


@contextmanager
def passing(bottlenecks: Mapping[str, Bottleneck], found: dict[str, Tensor]) -> Iterator[None]:
    """Within it, `found` takes what goes into each bottleneck, (b q k)."""

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor]], None]:
        return lambda module, inputs: found.update({name: inputs[0]})

    handles = [at.register_forward_pre_hook(keep(name)) for name, at in bottlenecks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def reduced_rank(weights: Mapping[str, Tensor], predictable: Tensor, rank: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Factors U (e k) and V (k n) of the best maps of that rank, all with the same U.

    weights: part -> (e n) float64, the unrestricted least squares. predictable: (e e), the covariance of what they
    answer, summed over parts. The best is to keep its leading components (reduced-rank regression: Izenman 1975; in the
    metric of what can be predicted it is Eckart and Young's truncation). Factors are balanced, |u_i| = |v_i|, but for
    dead ones: at zero both would stay there.
    """
    width = len(predictable)
    whole = torch.cat(list(weights.values()), dim=1)
    if rank < width:
        leading = torch.linalg.eigh(predictable).eigenvectors[:, width - rank :]
        whole = leading @ (leading.T @ whole)
    left = torch.linalg.eigh(whole @ whole.T).eigenvectors.flip(1)[:, :rank]
    right = left.T @ whole
    sizes = right.norm(dim=1)
    largest = float(sizes.max())
    gain = sizes.clamp(min=DEAD * largest).sqrt() if largest > 0 else torch.ones_like(sizes)
    parts = (right / gain[:, None]).split([weight.shape[1] for weight in weights.values()], dim=1)
    return left * gain, dict(zip(weights, parts, strict=True))
