"""What is solved rather than trained: normalisers from the store's statistics, linear maps by streaming ridge.

The ridge of the student is at once the `ridge` floor and the start of every trained skip. On wrongly paired clips the
same equations give the `shuffled` control, on averaged pixels the `pixels` floor; one pass over the train clips serves
them all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from converters.bottleneck import reduced_rank
from converters.converter import Converter
from converters.linear import LinearSkip
from converters.ridge import NormalEquations, Ridge, assign_folds
from shards.column import STUDENT
from shards.ranks import Ranks
from shards.reader import scan
from shards.store import FeatureStore

TRUE, SHUFFLED = "true", "shuffled"
Place = tuple[str, str, str]  # reader, target, part of the skip
Solutions = dict[Place, dict[str, Ridge]]
LOCAL = "student, cells around"  # the one reader that is not named after its column
BASIS_CLIPS = 64  # from which the basis of the local ridge is taken


def set_normalisers(converter: Converter, store: FeatureStore, *, column: str = "student") -> Converter:
    """Gives a converter the train split's statistics of the column it reads and of its targets. Returns it."""
    mean, scale = ("mean", "scale") if converter.normaliser == "position" else ("global_mean", "global_scale")
    normalisers = {column: converter.student_normaliser} | dict(converter.target_normalisers.items())
    for name, normaliser in normalisers.items():
        found = store.statistics(name)
        normaliser.set_(found[mean], found[scale])  # type: ignore[operator]
    return converter


def set_skips(converter: Converter, solutions: Solutions, *, reader: str = STUDENT, pairing: str = TRUE) -> Converter:
    """Gives a converter's skips the ridge solutions, with a bottleneck the best of its rank. Returns it."""
    for target, skip in converter.skips.items():
        assert isinstance(skip, LinearSkip)
        ridges = {part: solutions[reader, target, part][pairing] for part in skip.parts}
        weights = {part: ridge.weight for part, ridge in ridges.items()}
        if target in converter.bottlenecks:
            through = converter.bottlenecks[target]
            predictable = torch.stack([ridge.predictable for ridge in ridges.values()]).sum(dim=0)
            first, weights = reduced_rank(weights, predictable, through.in_features)
            through.set_(first.float())
        skip.set_({part: weight.float() for part, weight in weights.items()})
    return converter


@torch.no_grad()
def solve_ridges(
    store: FeatureStore,
    readers: Mapping[str, Converter],
    *,
    indices: Sequence[int],
    ranks: Ranks,
    shuffled: bool = True,
) -> Solutions:
    """Ridge solutions for the skips of linear converters, from all clips `indices`.

    readers: column -> the linear converter that reads it, and LOCAL -> one of LocalSkips that reads the student's;
    normalisers set, on the ranks' device. shuffled: also solve
    each clip's tokens against the targets of a clip of another group (see `apart`). Each rank accumulates its share;
    all solve the same sums.
    """
    pairings = (TRUE, SHUFFLED) if shuffled else (TRUE,)
    equations = open_equations(readers, pairings, ranks.device)
    groups = [store.groups[index] for index in indices]
    fold = dict(zip(indices, assign_folds(groups), strict=True))
    partner = dict(zip(indices, apart(indices, groups), strict=True))
    mine = list(indices)[ranks.rank :: ranks.world]
    targets = sorted({target for _, target, _ in equations})
    partners = {target: [partner[index] for index in mine] for target in targets}
    columns = sorted({*map(column_of, readers), *targets})
    right = scan(store, indices=mine, columns=columns, batch=1, device=ranks.device)
    wrong = scan(store, indices=mine, columns=targets, batch=1, device=ranks.device, paired=partners)
    pairs = zip(right, wrong, strict=True) if shuffled else ((batch, batch) for batch in right)
    bar = tqdm(pairs, total=len(mine), desc="ridge", unit="clip", disable=not ranks.main, dynamic_ncols=True)
    for batch, other in bar:
        index = int(batch["indices"])
        answers = {p: {TRUE: batch, SHUFFLED: other}[p] for p in pairings}
        for name, converter in readers.items():
            accumulate(equations, name, converter, batch[column_of(name)], answers, fold[index])
    for equation in equations.values():
        for sums in equation.tensors():
            ranks.sum_(sums)
    bar = tqdm(
        equations.items(), desc="ridge, solving", unit="map", delay=1, disable=not ranks.main, dynamic_ncols=True
    )
    return {place: equation.solve() for place, equation in bar}


def column_of(reader: str) -> str:
    return STUDENT if reader == LOCAL else reader


@torch.no_grad()
def principal_directions(store: FeatureStore, reader: Converter, *, count: int) -> Tensor:
    """The leading directions of the student's standardised tokens on BASIS_CLIPS train clips, evenly spread: (d, count)
    float32, orthonormal. The same on every rank."""
    train, device = store.indices("train"), reader.student_normaliser.scale.device
    chosen = train[:: -(-len(train) // BASIS_CLIPS)]
    square = torch.zeros(reader.student.dim, reader.student.dim, dtype=torch.float64, device=device)
    for batch in scan(store, indices=chosen, columns=[STUDENT], batch=1, device=device):
        x = reader.student_normaliser.standardise(batch[STUDENT])[0]
        square += (x.T @ x).double()
    return torch.linalg.eigh(square).eigenvectors.flip(1)[:, :count].float()


def open_equations(
    readers: Mapping[str, Converter], pairings: Sequence[str], device: torch.device
) -> dict[Place, NormalEquations]:
    """Empty normal equations for every part of every skip."""
    return {
        (column, target, part): NormalEquations(
            skip.maps[part].in_features,
            converter.targets[target].dim,
            pairings=pairings,
            device=device,  # type: ignore
        )
        for column, converter in readers.items()
        for target, skip in converter.skips.items()
        for part in skip.parts  # type: ignore[union-attr]
    }


def accumulate(
    equations: Mapping[Place, NormalEquations],
    column: str,
    converter: Converter,
    tokens: Tensor,
    answers: Mapping[str, Mapping[str, Tensor]],
    fold: int,
) -> None:
    """Adds one clip to the normal equations of every target and part. answers: pairing -> the clip that answers."""
    x = converter.student_normaliser.standardise(tokens)
    asked = converter.queries()
    for target, skip in converter.skips.items():
        assert isinstance(skip, LinearSkip)
        rows = skip.design(x, asked[target])
        wanted = {
            pairing: skip.split(converter.standardise_targets(target, batch[target]))
            for pairing, batch in answers.items()
        }
        for part, row in rows.items():
            equations[column, target, part].add(row, {p: split[part] for p, split in wanted.items()}, fold=fold)


def apart(indices: Sequence[int], groups: Sequence[str], *, seed: int = 0) -> list[int]:
    """A partner for every clip: the same clips in another order, such that a clip meets its own group only where that
    group is more than half of all clips, and then as rarely as can be.

    Groups stand in a random order, so that partners share a class, or a place in a folder, by chance only; each group
    moves on by the size of the largest one.
    """
    names = sorted(set(groups))
    turn = np.random.default_rng(seed).permutation(len(names))
    rank = {names[at]: place for place, at in enumerate(turn)}
    order = sorted(range(len(indices)), key=lambda at: rank[groups[at]])
    largest = max(Counter(groups).values())
    partners = list(indices)
    for at, other in zip(order, order[-largest:] + order[:-largest], strict=True):
        partners[at] = indices[other]
    return partners
