"""What a deficiency left: the spectrum of converted tokens, which of the teacher's components they hold, the Jacobian.

Of every contestant alike, so that a deficient one stands beside its twin. The teacher's components come from train
clips, everything else from test clips; tokens are standardised with the train split's statistics, as in the metrics.
Axes: b clips, q tokens of a target, e target width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from converters.converter import Converter
from converters.resample import stratified
from distill.deficiency import TEST, effective_rank, generator, jacobian_norm, recovered, variance
from distill.evaluate import Statistics, at, frozen_statistics, number_or_none
from shards.column import STUDENT
from shards.ranks import Ranks
from shards.reader import scan
from shards.store import FeatureStore

QUERIES = 128  # tokens of a target that are looked at per clip
TRAIN_CLIPS = 512  # from which the teacher's components come, at most
JACOBIAN = {"clips": 4, "queries": 16, "directions": 16}
SHOWN = 64  # leading values of a spectrum that a summary keeps
BIAS = (
    "effective ranks of few tokens are biased low (of_half shows by how much), tokens of a clip are alike, and noise "
    "raises them: compare only with the teacher's or a twin's, taken on the same tokens"
)
Found = dict[str, dict[str, Any]]  # target -> measure -> numbers


class Moments:
    """Sums over tokens of what was converted and of the teacher, in the basis of the teacher's components."""

    def __init__(self, basis: Tensor) -> None:
        width = len(basis)
        self.basis = basis
        self.rows = torch.zeros(1, dtype=torch.float64, device=basis.device)
        self.sums = torch.zeros(2, width, dtype=torch.float64, device=basis.device)
        self.products = torch.zeros(2, width, width, dtype=torch.float64, device=basis.device)
        self.error = torch.zeros(width, dtype=torch.float64, device=basis.device)

    def update(self, ours: Tensor, theirs: Tensor) -> None:
        """Standardised tokens (b q e)."""
        both = [rows.flatten(0, 1) @ self.basis for rows in (ours, theirs)]
        self.rows += len(both[0])
        self.error += (both[0] - both[1]).double().square().sum(dim=0)
        for at_, rows in enumerate(both):
            self.sums[at_] += rows.double().sum(dim=0)
            self.products[at_] += rows.T @ rows

    def reduce(self, ranks: Ranks) -> Moments:
        for sums in (self.rows, self.sums, self.products, self.error):
            ranks.sum_(sums)
        return self

    def __add__(self, other: Moments) -> Moments:
        both = Moments(self.basis)
        both.rows, both.sums = self.rows + other.rows, self.sums + other.sums
        both.products, both.error = self.products + other.products, self.error + other.error
        return both

    def spectrum(self, which: int) -> Tensor:
        """Singular values of the tokens around their mean, per token, falling: (e,). 0: converted, 1: the teacher's."""
        mean = self.sums[which] / self.rows
        covariance = self.products[which] / self.rows - mean[:, None] * mean
        return torch.linalg.eigvalsh(covariance).flip(0).clamp(min=0).sqrt()


@torch.inference_mode()
def measure(store: FeatureStore, converters: Mapping[str, Converter], *, seed: int, ranks: Ranks) -> dict[str, Found]:
    """Of every converter and target: effective_rank, rank_recovery, singular_values and jacobian.

    effective_rank: of converted and of the teacher's `tokens`, from `clips` test clips, and `of_half`, the mean of the
    same from every other clip and from the rest: what it falls short of the whole is a scale for the bias that is left.
    rank_recovery: `r2` of the teacher's leading components and `k`, how many of all exceed 0.5. singular_values: of the
    last maps by part. jacobian: |J|_F^2 per answered channel over the answer's variance on a few clips, with the
    standard error of the random directions.
    """
    test = store.indices("test")
    sums = moments(store, converters, test, seed=seed, ranks=ranks)
    steep = steepness(store, converters, test[: JACOBIAN["clips"]], seed=seed, ranks=ranks)
    return {
        label: {
            name: {
                **told([half.reduce(ranks) for half in halves], clips=len(test)),
                "singular_values": spectra(converters[label], name),
                "jacobian": steep[label][name],
            }
            for name, halves in by_target.items()
        }
        for label, by_target in sums.items()
    }


@torch.inference_mode()
def rank_recovery(
    store: FeatureStore, converters: Mapping[str, Converter], *, seed: int, ranks: Ranks
) -> dict[str, dict[str, Any]]:
    """That part of `measure` alone, by converter and target: it needs no gradient and half the time."""
    test = store.indices("test")
    return {
        label: {
            name: told([half.reduce(ranks) for half in halves], clips=len(test))["rank_recovery"]
            for name, halves in by_target.items()
        }
        for label, by_target in moments(store, converters, test, seed=seed, ranks=ranks).items()
    }


def moments(
    store: FeatureStore, converters: Mapping[str, Converter], test: Sequence[int], *, seed: int, ranks: Ranks
) -> dict[str, dict[str, list[Moments]]]:
    """By converter and target this rank's sums over every other clip, and over the rest."""
    layouts = next(iter(converters.values())).targets
    positions = {
        name: stratified(layout, QUERIES, generator(seed, TEST)) if layout.grid else torch.arange(layout.num_tokens)
        for name, layout in layouts.items()
    }
    statistics = {name: at(frozen_statistics(store, name), where).to(ranks.device) for name, where in positions.items()}
    bases, _ = components(store, positions, statistics, ranks)
    sums = {label: {name: [Moments(at_), Moments(at_)] for name, at_ in bases.items()} for label in converters}
    odd_clips, mine = set(test[1::2]), test[ranks.rank :: ranks.world]
    with tqdm(total=len(mine), desc="spectrum", unit="clip", disable=not ranks.main, dynamic_ncols=True) as progress:
        for batch in scan(store, indices=mine, columns=[STUDENT, *layouts], device=ranks.device):
            odd = torch.tensor([index in odd_clips for index in batch["indices"].tolist()], device=ranks.device)
            for label, converter in converters.items():
                for name, tokens in converter(batch[STUDENT], positions=positions).items():
                    theirs = batch[name].index_select(1, positions[name].to(ranks.device))
                    ours, theirs = (standardised(rows, statistics[name]) for rows in (tokens, theirs))
                    for half, clips in zip(sums[label][name], (~odd, odd), strict=True):
                        half.update(ours[clips], theirs[clips])
            progress.update(len(batch["indices"]))
    return sums


def standardised(tokens: Tensor, statistics: Statistics) -> Tensor:
    return (tokens.float() - statistics.mean) / statistics.scale


def components(
    store: FeatureStore,
    positions: Mapping[str, Tensor],
    statistics: Mapping[str, Statistics],
    ranks: Ranks,
    *,
    clips: int = TRAIN_CLIPS,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """target -> the teacher's principal components around the position means, (e e) float32, the strongest first, and
    the sums of squares that they hold, (e,) float64. clips: of train, at most."""
    train = store.indices("train")
    chosen = train[:: -(-len(train) // clips)]
    squares: dict[str, Tensor] = {}
    for batch in scan(store, indices=chosen[ranks.rank :: ranks.world], columns=[*positions], device=ranks.device):
        for name, where in positions.items():
            rows = standardised(batch[name].index_select(1, where.to(ranks.device)), statistics[name]).flatten(0, 1)
            squares[name] = squares.get(name, 0) + (rows.T @ rows).double()
    widths = {name: len(at_.scale) for name, at_ in statistics.items()}
    none = {name: torch.zeros(width, width, dtype=torch.float64, device=ranks.device) for name, width in widths.items()}
    found = {name: torch.linalg.eigh(ranks.sum_(squares.get(name, zero))) for name, zero in none.items()}
    vectors = {name: at_.eigenvectors.flip(1).float() for name, at_ in found.items()}
    return vectors, {name: at_.eigenvalues.flip(0).clamp(min=0) for name, at_ in found.items()}


def told(halves: Sequence[Moments], *, clips: int) -> dict[str, Any]:
    """What the sums over two halves of the clips say, in a summary's form."""
    whole = halves[0] + halves[1]
    r2, k = recovered(whole.error, whole.products[1].diagonal())
    ranks = effective_ranks([whole]) | {"tokens": int(whole.rows), "clips": clips, "note": BIAS}
    return {
        "effective_rank": ranks | {"of_half": effective_ranks([half for half in halves if half.rows > 0])},
        "rank_recovery": {"k": k, "of": len(r2), "r2": [number_or_none(value) for value in r2[:SHOWN].tolist()]},
    }


def effective_ranks(found: Sequence[Moments]) -> dict[str, float]:
    """Means over `found`."""
    return {
        name: fmean(effective_rank(sums.spectrum(which)) for sums in found)
        for which, name in enumerate(("converted", "teacher"))
    }


def spectra(converter: Converter, target: str) -> dict[str, list[float]]:
    """Leading singular values of the linear maps that end the converter's answer, by part."""
    maps = converter.effective_maps(target).items()
    return {part: torch.linalg.svdvals(weight.double())[:SHOWN].tolist() for part, weight in maps}


def map_ranks(converter: Converter) -> dict[str, float]:
    """By target the effective rank of the skip's first map; without a skip, of the branch's output."""
    maps = {name: converter.effective_maps(name) for name in converter.targets}
    return {name: effective_rank(torch.linalg.svdvals(next(iter(at_.values())).detach())) for name, at_ in maps.items()}


def steepness(
    store: FeatureStore, converters: Mapping[str, Converter], clips: Sequence[int], *, seed: int, ranks: Ranks
) -> dict[str, dict[str, dict[str, float | None]]]:
    """The Jacobian's relative norm and its standard error, on every rank the same clips."""
    tokens = torch.cat([batch[STUDENT] for batch in scan(store, indices=clips, columns=[STUDENT], device=ranks.device)])
    found: dict[str, dict[str, dict[str, float | None]]] = {}
    for label, converter in converters.items():
        draw = generator(seed, TEST)
        where = {
            name: stratified(layout, JACOBIAN["queries"], draw) if layout.grid else torch.arange(layout.num_tokens)
            for name, layout in converter.targets.items()
        }

        def answer(x: Tensor, converter: Converter = converter, where: dict[str, Tensor] = where) -> dict[str, Tensor]:
            return converter(x, positions=where, standardised=True)

        norms = jacobian_norm(
            answer,
            tokens,
            scale=converter.student_normaliser.scale,
            directions=JACOBIAN["directions"],
            generator=generator(seed, TEST, device=ranks.device),
        )
        found[label] = {}
        for name, y in answer(tokens).items():
            unit = y[0].numel() * float(variance(y)) or float("nan")
            norm, error = norms[name]
            found[label][name] = {"value": number_or_none(norm / unit), "standard_error": number_or_none(error / unit)}
    return found
