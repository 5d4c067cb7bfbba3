"""Alignment metrics between converted and teacher tokens, streaming and distributed.

Axes: n clips, q tokens of a target, e teacher width, p positions that enter CKA.

All are taken in the teacher's standardised space, with statistics frozen from the train split: the per-position mean
mu (q e), the per-channel deviation sigma (e,) around it, and the global mean m (e,). Definitions, per target:

    r2c        1 - sum ((converted - y) / sigma)^2 / sum ((y - mu) / sigma)^2       copying the average clip scores 0
    r2         1 - sum ((converted - y) / sigma)^2 / sum ((y - m) / sigma)^2
    cos_std    mean over tokens of cos((converted - mu) / sigma, (y - mu) / sigma)
    cosine     mean over tokens of cos(converted, y), raw: a constant scores about 0.9 on real features
    nmse       mean ((converted - y) / sigma)^2
    smooth_l1  mean Huber loss of the same, corner at 1
    cka        unbiased linear CKA between clips at one position (tokens of a clip are not independent), HSIC averaged
               over positions and over minibatches of clips before the ratio (Nguyen et al. 2021; Song et al. 2012)

Sums are float64 and kept per clip, so that intervals can resample groups of clips afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from shards.ranks import Ranks

# Columns of the per-clip table.
ERROR, CENTRED, GLOBAL, COS_STD, COSINE, SMOOTH_L1, SEEN = range(7)
CKA_CLIPS = 128  # clips of one minibatch
CKA_MINIMUM = 4  # the unbiased estimator divides by n - 3
METRICS = ("r2c", "r2", "cos_std", "cosine", "nmse", "smooth_l1", "cka")
# Fewer clips than this, and a number is marked: its interval or its estimator cannot be trusted.
MINIMUM_CLIPS = {"r2c": 8, "r2": 8, "cos_std": 8, "cosine": 8, "nmse": 8, "smooth_l1": 8, "cka": 8}


@dataclass(frozen=True)
class Statistics:
    """The train split's statistics of one target: mean (q e), scale (e,), global_mean (e,), all float32."""

    mean: Tensor
    scale: Tensor
    global_mean: Tensor

    def to(self, device: torch.device) -> Statistics:
        return Statistics(self.mean.to(device), self.scale.to(device), self.global_mean.to(device))


class Alignment:
    """Accumulates one converter's alignment with one target over a known list of clips.

    num_clips: how many clips there are in all; `update` says which of them it brings, so that ranks may split them in
    any way and sum. cka_positions: evenly spaced tokens that enter CKA (they are kept: n * p * e floats, twice).
    """

    def __init__(self, statistics: Statistics, *, num_clips: int, cka_positions: int = 16) -> None:
        tokens, width = statistics.mean.shape
        self.statistics = statistics
        count = min(cka_positions, tokens)
        self.cka_tokens = torch.linspace(0, tokens - 1, count, device=statistics.mean.device).round().long()
        sums = {"dtype": torch.float64, "device": statistics.mean.device}
        self.clips = torch.zeros(num_clips, 7, **sums)
        self.channels = torch.zeros(2, width, **sums)
        self.positions = torch.zeros(2, tokens, **sums)
        self.kept = torch.zeros(2, num_clips, count, width, device=statistics.mean.device)

    def update(self, clips: Tensor, converted: Tensor, teacher: Tensor) -> None:
        """clips: (b,) places in the list; converted, teacher: (b q e) in the teacher's own units."""
        if converted.shape != teacher.shape:
            raise ValueError(f"converted tokens are {tuple(converted.shape)}, the teacher's {tuple(teacher.shape)}")
        stats, clips = self.statistics, clips.to(self.clips.device)
        ours, theirs = converted.float(), teacher.float()
        ours_std, theirs_std = (ours - stats.mean) / stats.scale, (theirs - stats.mean) / stats.scale
        error, centred = (ours_std - theirs_std).square(), theirs_std.square()
        offset = (stats.mean - stats.global_mean) / stats.scale
        rows = {
            ERROR: error.sum((1, 2), dtype=torch.float64),
            CENTRED: centred.sum((1, 2), dtype=torch.float64),
            GLOBAL: (theirs_std + offset).square().sum((1, 2), dtype=torch.float64),
            COS_STD: F.cosine_similarity(ours_std, theirs_std, dim=-1).mean(1, dtype=torch.float64),
            COSINE: F.cosine_similarity(ours, theirs, dim=-1).mean(1, dtype=torch.float64),
            SMOOTH_L1: F.smooth_l1_loss(ours_std, theirs_std, reduction="none").mean((1, 2), dtype=torch.float64),
            SEEN: torch.ones(len(clips), dtype=torch.float64, device=clips.device),
        }
        self.clips.index_add_(0, clips, torch.stack([rows[column] for column in range(7)], dim=1))
        for sums, axes in ((self.channels, (0, 1)), (self.positions, (0, 2))):
            sums += torch.stack([x.sum(axes, dtype=torch.float64) for x in (error, centred)])
        self.kept[0].index_add_(0, clips, ours_std[:, self.cka_tokens])
        self.kept[1].index_add_(0, clips, theirs_std[:, self.cka_tokens])

    def reduce(self, ranks: Ranks) -> Alignment:
        """Adds up what the ranks have seen, in place: all of it is sums."""
        for sums in (self.clips, self.channels, self.positions, self.kept):
            ranks.sum_(sums)
        return self

    def compute(self) -> dict[str, float]:
        """Every metric of METRICS. Raises ValueError where a clip was brought never, or twice."""
        seen = self.clips[:, SEEN]
        if not bool((seen == 1).all()):
            raise ValueError(f"clip {int((seen != 1).nonzero()[0])} of {len(seen)} was counted {int(seen.min())} times")
        found = {name: float(value) for name, value in self.resampled(torch.ones(1, len(seen))).items()}
        return found | {"cka": self.cka()}

    def resampled(self, weights: Tensor) -> dict[str, Tensor]:
        """The metrics that are sums over clips, for each row of weights (r n): name -> (r,) float64."""
        table = self.clips.cpu()
        sums = weights.to(table) @ table
        elements = self.statistics.mean.numel() * sums[:, SEEN]
        return {
            "r2c": 1 - sums[:, ERROR] / sums[:, CENTRED],
            "r2": 1 - sums[:, ERROR] / sums[:, GLOBAL],
            "cos_std": sums[:, COS_STD] / sums[:, SEEN],
            "cosine": sums[:, COSINE] / sums[:, SEEN],
            "nmse": sums[:, ERROR] / elements,
            "smooth_l1": sums[:, SMOOTH_L1] / sums[:, SEEN],
        }

    def cka(self) -> float:
        """Unbiased linear CKA; nan below CKA_MINIMUM clips."""
        return minibatch_cka(self.kept[0].transpose(0, 1), self.kept[1].transpose(0, 1))

    def r2c_by_channel(self) -> Tensor:
        """(e,) float64."""
        return 1 - self.channels[0] / self.channels[1]

    def r2c_by_position(self) -> Tensor:
        """(q,) float64."""
        return 1 - self.positions[0] / self.positions[1]


def minibatch_cka(x: Tensor, y: Tensor, *, clips: int = CKA_CLIPS) -> float:
    """Unbiased linear CKA over minibatches. x: (p n d), y: (p n e), rows of one position are independent clips.

    HSIC is averaged over positions and minibatches before the ratio is taken. nan for fewer than CKA_MINIMUM clips.
    """
    count = x.shape[1]
    if count < CKA_MINIMUM:
        return float("nan")
    batches = max(1, count // clips)
    sums = torch.zeros(3, dtype=torch.float64, device=x.device)
    for xs, ys in zip(x.double().tensor_split(batches, dim=1), y.double().tensor_split(batches, dim=1), strict=True):
        k, m = xs @ xs.transpose(1, 2), ys @ ys.transpose(1, 2)
        sums += torch.stack([unbiased_hsic(a, b).mean() for a, b in ((k, m), (k, k), (m, m))])
    cross, ours, theirs = (sums / batches).tolist()
    return cross / (ours * theirs) ** 0.5 if ours > 0 and theirs > 0 else 0.0


def unbiased_hsic(k: Tensor, m: Tensor) -> Tensor:
    """The unbiased HSIC estimator of two kernel matrices (... n n), n >= 4 (Song et al. 2012, eq. 5). Kernels must not
    be centred before: that biases it."""
    n = k.shape[-1]
    eye = torch.eye(n, dtype=torch.bool, device=k.device)
    k, m = k.masked_fill(eye, 0), m.masked_fill(eye, 0)
    trace = (k * m).sum((-2, -1))
    means = k.sum((-2, -1)) * m.sum((-2, -1)) / ((n - 1) * (n - 2))
    cross = 2 / (n - 2) * (k.sum(-2) * m.sum(-2)).sum(-1)
    return (trace + means - cross) / (n * (n - 3))


def group_weights(groups: list[str], *, resamples: int, seed: int = 0) -> Tensor:
    """Bootstrap weights of clips, drawn by group: (resamples, clips) float64 counts. The same for every converter, so
    that differences are paired (cluster bootstrap, Davison and Hinkley 1997)."""
    names = sorted(set(groups))
    place = {name: index for index, name in enumerate(names)}
    member = torch.tensor([place[group] for group in groups])
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(names), (resamples, len(names)), generator=generator)
    counts = torch.zeros(resamples, len(names), dtype=torch.float64)
    counts.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
    return counts[:, member]


def interval(values: Tensor, *, level: float = 0.95) -> tuple[float, float]:
    """The percentile interval of resampled values; resamples that gave nothing (nan) are left out."""
    values = values[values.isfinite()]
    if len(values) == 0:
        return float("nan"), float("nan")
    tail = (1 - level) / 2
    low, high = torch.quantile(values, torch.tensor([tail, 1 - tail], dtype=values.dtype)).tolist()
    return low, high
