"""Which clips a head learns from, and of which classes.

Axes: n clips, c classes. labels: (n,) int64, -1 for none; or, of several labels, (n c), 1 where one holds, 0 where not,
-1 where unknown.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def has_label(labels: Tensor) -> Tensor:
    """(n,) bool; of several labels: whether any is known."""
    return (labels >= 0).view(len(labels), -1).any(1)


def draw_labelled(labels: Tensor, train: Tensor, per_class: int | None, *, generator: torch.Generator) -> Tensor:
    """The places of `per_class` train clips of every class (fewer where it has fewer), or of all that have a label.

    One order is drawn, whatever their number, and the first of each class are taken: the 5 are among the 10. Of several
    labels, a class's clips are those where it holds; a clip counts for all of its classes.
    """
    if per_class is not None and per_class < 1:
        raise ValueError(f"per_class is {per_class}; a class needs at least one label, or none for all")
    order = train[torch.randperm(len(train), generator=generator)]
    if per_class is None:
        return order[has_label(labels[order])]
    classes = range(labels.shape[1]) if labels.ndim == 2 else labels[train].unique().clamp_min(0).unique().tolist()
    holds = [order[labels[order, c] > 0 if labels.ndim == 2 else labels[order] == c][:per_class] for c in classes]
    return torch.cat(holds).unique()


def keep_few(labels: Tensor, train: Tensor, per_class: int | None, *, generator: torch.Generator) -> Tensor:
    """The labels without those of the train clips that `draw_labelled` does not draw."""
    drawn = draw_labelled(labels, train, per_class, generator=generator)
    found = labels.index_fill(0, train, -1)
    found[drawn] = labels[drawn]
    return found


def permuted(labels: Tensor, splits: Sequence[Tensor], *, generator: torch.Generator) -> Tensor:
    """The labels with those of the labelled clips of every split in another order."""
    found = labels.clone()
    for rows in splits:
        rows = rows[has_label(labels[rows])]
        found[rows] = labels[rows[torch.randperm(len(rows), generator=generator)]]
    return found


def known_classes(labels: Tensor, num_classes: int, train: Tensor, val: Tensor) -> Tensor:
    """(c,) bool: the classes that train has; of several labels, those that hold somewhere.

    Raises ValueError where train has none or one only, or val none of them.
    """
    found = labels[train]
    if labels.ndim == 2:
        known = (found > 0).any(0)
        enough = bool((known & (found == 0).any(0)).any())
        have = "no label that holds in some and not in others"
        in_val = bool((labels[val][:, known] >= 0).any())
    else:
        known = torch.zeros(num_classes, dtype=torch.bool).index_fill_(0, found[found >= 0], True)
        enough, have = int(known.sum()) > 1, "one class only" if bool(known.any()) else "no label"
        in_val = bool(known[labels[val].clamp_min(0)][labels[val] >= 0].any())
    if not enough:
        raise ValueError(f"{len(train)} train clips have {have}; a head needs two classes: label more")
    if not in_val:
        raise ValueError(f"none of {len(val)} val clips has a label that a train clip has, too; label some")
    return known


def class_weights(truth: Tensor, kind: str) -> Tensor | None:
    """(c,) float64: none, or balanced: each class weighs the same in all, clips / (classes * clips of the class); of
    several labels, what holds weighs as much as what does not."""
    if kind == "none":
        return None
    if kind != "balanced":
        raise ValueError(f"class weights are {kind!r}; there are none, balanced")
    if truth.ndim == 2:
        return (truth == 0).sum(0).double() / (truth > 0).sum(0)
    counts = truth[truth >= 0].bincount().double()
    return counts.sum() / (len(counts) * counts)
