"""What a pooled student holds beside the pooled converted tokens: the part that is not linearly predictable from them.

Axes: n clips, e width of the converted tokens, d of the student, q rank.

On the clips that it was fitted to, a ridge leaves nothing where clips are no more than dims, and a head would learn
from noise (measured: share 0.00 in sample, 0.34-0.82 out of it). So on train the prediction is cross-fitted: that of a
clip comes from clips of other folds, and a group never stands on both sides. Clips of val and test are predicted from
all of train.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from converters.ridge import NormalEquations, assign_folds
from distill.tokens import FLOOR

FOLDS = 10


@dataclass(frozen=True)
class Residual:
    """values: (n d) float64, in deviations of the student; rows outside the splits are 0. share: split -> of the
    student's sum of squares, before the correction. scale: what val's was divided by, see `residual`."""

    values: Tensor
    share: dict[str, float]
    scale: float


def standardise(features: Tensor, train: Tensor) -> Tensor:
    """(n f) -> float64, less the train clips' mean, by their deviation, floored as the probes floor it."""
    rows = features.double()
    mean, scale = rows[train].mean(0), rows[train].std(0, correction=0)
    return (rows - mean) / scale.maximum(FLOOR * scale.median() + 1e-5 * mean.abs() + 1e-12)


@torch.no_grad()
def residual(
    converted: Tensor, student: Tensor, *, splits: Mapping[str, Tensor], groups: Sequence[str], folds: int = FOLDS
) -> Residual:
    """Both (n e), (n d) standardised; splits: train, val, test -> places of their clips; groups: of all n.

    A fold's ridge has seen fewer clips than that of all of train, so its error may be larger, and a head fitted to the
    one would meet the other. One factor sets the root mean square of val equal to that of train, and serves val and
    test (no label enters it). Measured before it, val over train, 64 dims: 1.11 at 40 clips, 0.99-1.04 at 60 to 2000.
    Raises ValueError where train has a single group.
    """
    train = splits["train"]
    own = [groups[place] for place in train.tolist()]
    check_groups(own)
    fold = torch.tensor(assign_folds(own, folds))
    predicted, values = torch.zeros_like(student), torch.zeros_like(student)
    if bool(converted[train].any()):  # else they are the same for all clips, and predict nothing
        equations = NormalEquations(converted.shape[1], student.shape[1], folds=folds)
        for number in fold.unique().tolist():
            rows = train[fold == number]
            equations.add(converted[rows], {"true": student[rows]}, fold=number)
        found = equations.solve()["true"]
        predicted = converted @ found.weight.T
        for number in fold.unique().tolist():
            rows = train[fold == number]
            predicted[rows] = converted[rows] @ _without(equations, number, found.penalty)
    for rows in splits.values():
        values[rows] = student[rows] - predicted[rows]
    share = {split: float(values[rows].square().sum() / student[rows].square().sum()) for split, rows in splits.items()}
    scale = float((values[splits["val"]].square().mean() / values[train].square().mean().clamp_min(1e-24)).sqrt())
    for split in set(splits) - {"train"}:
        values[splits[split]] /= max(scale, 1e-12)
    return Residual(values, share, scale)


def check_groups(train: Sequence[str]) -> None:
    """Raises ValueError where all train clips are of one group."""
    if len(set(train)) < 2:
        raise ValueError(
            f"all {len(train)} train clips are of one group, {train[0]!r}: the residual is predicted from other "
            "groups; give groups of at least two sources"
        )


def _without(equations: NormalEquations, fold: int, penalty: float) -> Tensor:
    """(e d): the ridge of all folds but one."""
    xx, xy = (sums.sum(0) - sums[fold] for sums in (equations.xx, equations.xy[0]))
    loaded = xx + penalty * xx.diagonal().mean() * torch.eye(len(xx), dtype=xx.dtype)
    return torch.cholesky_solve(xy, torch.linalg.cholesky(loaded))


def principal_basis(values: Tensor, rank: int) -> Tensor:
    """(n d) -> (d q): the directions of largest variance, orthonormal."""
    centred = values - values.mean(0)
    return torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -rank:].flip(1)
