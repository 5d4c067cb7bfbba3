"""Scores of trained converters beside their floors: one pass over a split, everything paired on its clips.

Axes: n clips, r resamples.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from converters.converter import Converter
from distill.metrics import MINIMUM_CLIPS, MINIMUM_GROUPS, Alignment, Reference, Statistics, group_weights, interval
from distill.similarity import PROCRUSTES_CLIPS, reading_order
from shards.ranks import Ranks
from shards.reader import scan
from shards.store import FeatureStore

Scores = dict[str, dict[str, Alignment]]  # candidate -> target -> its sums
REFERENCES = ("large",)  # candidates that are none to beat


@dataclass(frozen=True)
class Candidate:
    """A converter and the column that it reads."""

    converter: Converter
    column: str = "student"


def frozen_statistics(store: FeatureStore, target: str) -> Statistics:
    """The train split's statistics of a target, as the headline metrics use them."""
    found = store.statistics(target)
    return Statistics(found["mean"], found["scale"], found["global_mean"])


def space_digest(store: FeatureStore, targets: Iterable[str]) -> str:
    """Identifies the space in which targets are scored: runs with another cannot be compared, those of another student
    can."""
    digest = hashlib.sha256()
    for name in sorted(targets):
        for tensor in astuple(frozen_statistics(store, name)):
            digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


@torch.inference_mode()
def score(
    store: FeatureStore,
    indices: Sequence[int],
    candidates: Mapping[str, Sequence[Candidate]],
    *,
    ranks: Ranks,
    positions: Mapping[str, Tensor] | None = None,
    cka_positions: int = 0,
    task: str = "evaluate",
) -> Scores:
    """Alignment of every candidate on the clips `indices` of the store; each rank reads its share.

    A candidate is a list of converters, each for the targets that it has. positions: only these tokens of a target.
    cka_positions: see Alignment.
    """
    positions = dict(positions or {})
    names = sorted({target for parts in candidates.values() for part in parts for target in part.converter.targets})
    columns = sorted({part.column for parts in candidates.values() for part in parts} | set(names))
    statistics = {name: at(frozen_statistics(store, name), positions.get(name)).to(ranks.device) for name in names}
    scores = open_scores(candidates, statistics, num_clips=len(indices), cka_positions=cka_positions)
    shared = range(ranks.rank, len(indices), ranks.world)
    whole = reading_order(len(indices), rank=ranks.rank, world=ranks.world)
    mine = [indices[place] for place in (whole if cka_positions else shared)]
    place = {index: number for number, index in enumerate(indices)}
    with tqdm(total=len(mine), desc=task, unit="clip", disable=not ranks.main, dynamic_ncols=True) as progress:
        for batch in scan(store, indices=mine, columns=columns, device=ranks.device):
            clips = torch.tensor([place[index] for index in batch["indices"].tolist()])
            wanted = {name: batch[name] for name in names}
            wanted |= {name: wanted[name].index_select(1, index.to(ranks.device)) for name, index in positions.items()}
            teachers = {name: Reference.of(tokens, statistics[name]) for name, tokens in wanted.items()}
            for label, parts in candidates.items():
                for part in parts:
                    chosen = {name: index for name, index in positions.items() if name in part.converter.targets}
                    converted = part.converter(batch[part.column], positions=chosen or None)
                    for target, tokens in converted.items():
                        scores[label][target].update(clips, tokens, teachers[target])
            progress.update(len(clips))
    for by_target in scores.values():
        for alignment in by_target.values():
            alignment.reduce(ranks)
    return scores


def open_scores(
    candidates: Mapping[str, Sequence[Candidate]],
    statistics: Mapping[str, Statistics],
    *,
    num_clips: int,
    cka_positions: int,
) -> Scores:
    """Empty sums for every candidate and target."""
    return {
        label: {
            target: Alignment(statistics[target], num_clips=num_clips, cka_positions=cka_positions)
            for part in parts
            for target in part.converter.targets
        }
        for label, parts in candidates.items()
    }


def at(statistics: Statistics, positions: Tensor | None) -> Statistics:
    """The same statistics at some tokens only."""
    if positions is None:
        return statistics
    return Statistics(statistics.mean[positions.cpu()], statistics.scale, statistics.global_mean)


def summarise(
    scores: Scores,
    *,
    converter: str,
    groups: list[str],
    resamples: int,
    rivals: Scores | None = None,
    references: Scores | None = None,
) -> dict[str, Any]:
    """The numbers of summary.json: targets, intervals, marks, floors, references, and the converter's r2c minus that of
    others, paired: `above` what stands beside it, `gain` over ridge alone, `lead` over rivals.

    converter: which candidate is the headline; the others are floors, or references that train. groups: of the scored
    clips, in their order. rivals: other converters. references: further ones; only those of all the clips are paired.
    """
    weights = group_weights(groups, resamples=resamples)
    targets = {name: finite(alignment.compute()) for name, alignment in scores[converter].items()}
    widths = {name: len(alignment.statistics.scale) for name, alignment in scores[converter].items()}
    marks = {name: few_clips(len(groups), len(set(groups)), width=width) for name, width in widths.items()}
    beside = {name: found for name, found in ((references or {}) | scores).items() if name != converter}
    told = {name: {target: finite(at.compute()) for target, at in found.items()} for name, found in beside.items()}
    apart = {*REFERENCES, *(references or {})}
    above = differences(scores[converter], beside, weights)
    return {
        "targets": targets,
        "intervals": {name: intervals(alignment, weights) for name, alignment in scores[converter].items()},
        "marks": {name: found for name, found in marks.items() if found},
        "floors": {name: found for name, found in told.items() if name not in apart},
        "references": {name: found for name, found in told.items() if name in apart},
        "above": above,
        "gain": above.get("ridge", {}),
        "lead": differences(scores[converter], rivals or {}, weights),
    }


def differences(
    ours: Mapping[str, Alignment], others: Scores, weights: Tensor
) -> dict[str, dict[str, dict[str, float | None]]]:
    """other -> target -> the paired gain over it, where it was scored on the same clips."""
    return {
        name: {
            target: paired_gain(ours[target], at, weights)
            for target, at in found.items()
            if target in ours and len(at.clips) == weights.shape[1]
        }
        for name, found in others.items()
    }


def intervals(alignment: Alignment, weights: Tensor) -> dict[str, list[float | None]]:
    """95% intervals of the metrics that are sums over clips, resampled by group."""
    found = {name: interval(values) for name, values in alignment.resampled(weights).items()}
    return {name: [number_or_none(low), number_or_none(high)] for name, (low, high) in found.items()}


def paired_gain(ours: Alignment, other: Alignment, weights: Tensor) -> dict[str, float | None]:
    """r2c of one minus r2c of the other on the same clips, with the interval of that difference."""
    once = torch.ones(1, weights.shape[1])
    value = float(ours.resampled(once)["r2c"] - other.resampled(once)["r2c"])
    low, high = interval(ours.resampled(weights)["r2c"] - other.resampled(weights)["r2c"])
    return {"value": number_or_none(value), "low": number_or_none(low), "high": number_or_none(high)}


def few_clips(clips: int, groups: int, *, width: int) -> dict[str, str]:
    """A mark for every metric that has fewer clips than it needs. width: of the target."""
    marks, needed = {}, MINIMUM_CLIPS | {"procrustes": PROCRUSTES_CLIPS * width}
    for name, least in needed.items():
        if clips < least:
            marks[name] = f"{clips} test clips, {least} needed"
        elif groups < MINIMUM_GROUPS:
            marks[name] = f"{groups} test groups, too few for an interval"
    return marks


def finite(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: number_or_none(value) for name, value in values.items()}


def number_or_none(value: float) -> float | None:
    """JSON has no nan."""
    return value if math.isfinite(value) else None
