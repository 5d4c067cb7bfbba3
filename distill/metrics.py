"""Alignment metrics between converted and teacher tokens, streaming and distributed.

Axes: n clips, b of them at a time, q tokens of a target, e teacher width.

All are taken in the teacher's standardised space, with statistics frozen from the train split: the per-position mean
mu (q e), the per-channel deviation sigma (e,) around it, and the global mean m (e,). Definitions, per target:

    r2c         1 - sum ((converted - y) / sigma)^2 / sum ((y - mu) / sigma)^2      copying the average clip scores 0
    r2          1 - sum ((converted - y) / sigma)^2 / sum ((y - m) / sigma)^2
    cos_std     mean over tokens of cos((converted - mu) / sigma, (y - mu) / sigma)
    cosine      mean over tokens of cos(converted, y), raw: a constant scores about 0.9 on real features
    nmse        mean ((converted - y) / sigma)^2
    smooth_l1   mean Huber loss of the same, corner at 1
    cka, knn, procrustes     see distill.similarity

Subtracting the frozen means first makes these shifted moments: nothing large cancels. Sums over a token, and those
over a batch that channels and clip means have, are float32; all beyond it is float64, and kept per clip, so that
intervals can resample groups of clips afterwards. docs/metrics.md has
references and pitfalls.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distill.similarity import Similarity
from shards.ranks import Ranks

# Columns of the per-clip table.
ERROR, CENTRED, GLOBAL, COS_STD, COSINE, SMOOTH_L1, SEEN = range(7)
SIMILARITIES = ("cka", "knn", "procrustes")
METRICS = ("r2c", "r2", "cos_std", "cosine", "nmse", "smooth_l1", *SIMILARITIES)
# Fewer clips than this, and a number is marked: its interval or its estimator cannot be trusted.
MINIMUM_CLIPS = {name: 8 for name in (*METRICS, "rank_recovery")} | {"knn": 100, "probe_agreement": 100}
MINIMUM_GROUPS = 10  # below, percentile intervals are too narrow: 95% ones hold the truth in 75% (3 groups) to 89% (8)
CACHED = 2**17  # elements of a piece on the CPU: what passes over it stays in the cache (30 ms for 450 at 3136 x 768)


@dataclass(frozen=True)
class Statistics:
    """The train split's statistics of one target: mean (q e), scale (e,), global_mean (e,), all float32."""

    mean: Tensor
    scale: Tensor
    global_mean: Tensor

    def to(self, device: torch.device) -> Statistics:
        return Statistics(self.mean.to(device), self.scale.to(device), self.global_mean.to(device))


@dataclass(frozen=True)
class Reference:
    """A batch of the teacher's tokens with all that does not depend on a converter, so that it is found once for all.

    tokens, standard: (b q e) raw and standardised. squares, lengths: (b q) squared norm of standard, norm of the raw.
    overall: (b,) sums around the global mean. channels: (e,) sums of squares. means: (b e) of standard.
    """

    tokens: Tensor
    standard: Tensor
    squares: Tensor
    lengths: Tensor
    overall: Tensor
    channels: Tensor
    means: Tensor

    @classmethod
    def of(cls, tokens: Tensor, statistics: Statistics) -> Reference:
        tokens = tokens.float()
        standard, squares = torch.empty_like(tokens), tokens.new_empty(tokens.shape[:2])
        channels, means = (
            torch.zeros(n, tokens.shape[2], dtype=torch.float64).to(tokens.device) for n in (1, len(tokens))
        )
        overall = torch.zeros(len(tokens), dtype=torch.float64, device=tokens.device)
        for rows, at in pieces(tokens):
            part = torch.sub(tokens[rows, at], statistics.mean[at], out=standard[rows, at]).div_(statistics.scale)
            square = part.square()
            squares[rows, at] = square.sum(-1)
            channels += square.sum((0, 1))
            means[rows] += part.sum(1)
            whole = (tokens[rows, at] - statistics.global_mean).div_(statistics.scale)
            overall[rows] += whole.square_().sum(-1).sum(1, dtype=torch.float64)
        lengths = torch.linalg.vector_norm(tokens, dim=-1)
        return cls(tokens, standard, squares, lengths, overall, channels[0], means.float() / tokens.shape[1])


class Alignment:
    """Accumulates one converter's alignment with one target over a known list of clips.

    num_clips: how many clips there are in all; `update` says which of them it brings, so that ranks may split them and
    sum; ValueError below 1. cka_positions: how many evenly spaced tokens enter CKA; with 0, cka, knn and procrustes are
    nan, else the clips have to be split, and should come, by similarity.reading_order.
    """

    def __init__(self, statistics: Statistics, *, num_clips: int, cka_positions: int = 16) -> None:
        if num_clips < 1:
            raise ValueError(f"num_clips={num_clips} must be at least 1: there is nothing to score")
        tokens, width = statistics.mean.shape
        self.statistics, device = statistics, statistics.mean.device
        count = min(cka_positions, tokens)
        self.cka_tokens = torch.linspace(0, tokens - 1, count, device=device).round().long()
        sums = {"dtype": torch.float64, "device": device}
        self.clips = torch.zeros(num_clips, 7, **sums)
        self.channels = torch.zeros(2, width, **sums)
        self.positions = torch.zeros(2, tokens, **sums)
        self.similarity = Similarity(num_clips=num_clips, width=width, device=device) if count else None

    def update(self, clips: Tensor, converted: Tensor, teacher: Tensor | Reference) -> None:
        """clips: (b,) places in the list; converted, teacher: (b q e) in the teacher's own units."""
        theirs = teacher if isinstance(teacher, Reference) else Reference.of(teacher, self.statistics)
        if converted.shape != theirs.tokens.shape:
            raise ValueError(
                f"converted tokens are {tuple(converted.shape)}, the teacher's {tuple(theirs.tokens.shape)}"
            )
        clips, converted = clips.to(self.clips.device), converted.float()
        found = converted.new_zeros(len(clips), 7, dtype=torch.float64)
        means = converted.new_zeros(len(clips), converted.shape[2], dtype=torch.float64)
        for rows, at in pieces(converted):
            self._add(found[rows], means[rows], rows, at, converted, theirs)
        found[:, CENTRED], found[:, GLOBAL] = theirs.squares.sum(1, dtype=torch.float64), theirs.overall
        found[:, SMOOTH_L1:SEEN] /= converted[0].numel()
        found[:, COS_STD : COSINE + 1] /= converted.shape[1]
        found[:, SEEN] = 1
        self.clips.index_add_(0, clips, found)
        self.channels[1] += theirs.channels
        self.positions[1] += theirs.squares.sum(0, dtype=torch.float64)
        if self.similarity is not None:
            ours = (converted[:, self.cka_tokens] - self.statistics.mean[self.cka_tokens]) / self.statistics.scale
            both = ours, theirs.standard[:, self.cka_tokens]
            self.similarity.update(clips, both, (means.float() / converted.shape[1], theirs.means))

    def _add(self, found: Tensor, means: Tensor, rows: slice, at: slice, converted: Tensor, theirs: Reference) -> None:
        """One piece of a batch: some clips (`rows`) at some tokens (`at`)."""
        raw, standard = converted[rows, at], theirs.standard[rows, at]
        ours = (raw - self.statistics.mean[at]).div_(self.statistics.scale)
        difference = ours - standard
        square = difference.square()
        error = square.sum(-1)
        found[:, ERROR] += error.sum(1, dtype=torch.float64)
        self.positions[0, at] += error.sum(0, dtype=torch.float64)
        self.channels[0] += square.sum((0, 1))
        small = difference.abs_().clamp(max=1)  # Huber: small^2 / 2 + |difference| - small
        found[:, SMOOTH_L1] += (difference - small).add_(small.square_(), alpha=0.5).sum(-1).sum(1, dtype=torch.float64)
        their_length = theirs.squares[rows, at].sqrt()
        found[:, COS_STD] += cosines(ours, standard, their_length).sum(1, dtype=torch.float64)
        found[:, COSINE] += cosines(raw, theirs.tokens[rows, at], theirs.lengths[rows, at]).sum(1, dtype=torch.float64)
        if self.similarity is not None:
            means += ours.sum(1)

    def reduce(self, ranks: Ranks) -> Alignment:
        """Adds up what the ranks have seen, in place: all of it is sums."""
        similar = self.similarity.tensors() if self.similarity else []
        for sums in (self.clips, self.channels, self.positions, *similar):
            ranks.sum_(sums)
        return self

    def compute(self) -> dict[str, float]:
        """Every metric of METRICS. Raises ValueError where a clip was brought never, or twice."""
        seen = self.clips[:, SEEN]
        if not bool((seen == 1).all()):
            wrong = int((seen != 1).nonzero()[0])
            raise ValueError(f"clip {wrong} of {len(seen)} was counted {int(seen[wrong])} times")
        found = {name: float(value) for name, value in self.resampled(torch.ones(1, len(seen))).items()}
        none = dict.fromkeys(SIMILARITIES, float("nan"))
        return found | (self.similarity.compute() if self.similarity else none)

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

    def r2c_by_channel(self) -> Tensor:
        """(e,) float64."""
        return 1 - self.channels[0] / self.channels[1]

    def r2c_by_position(self) -> Tensor:
        """(q,) float64."""
        return 1 - self.positions[0] / self.positions[1]


def cosines(ours: Tensor, theirs: Tensor, their_length: Tensor) -> Tensor:
    """Cosine of every token, (b q e) -> (b q); 0 where one of the two is 0."""
    lengths = torch.linalg.vector_norm(ours, dim=-1) * their_length
    return (ours * theirs).sum(-1) / lengths.clamp_min(1e-12)


def pieces(tokens: Tensor) -> list[tuple[slice, slice]]:
    """Slices (clips, tokens) that cut (b q e) into parts that fit a CPU's cache; a GPU takes all at once."""
    clips, count, width = tokens.shape
    if tokens.device.type != "cpu":
        return [(slice(0, clips), slice(0, count))]
    step = max(1, CACHED // width)
    return [(slice(c, c + 1), slice(at, at + step)) for c in range(clips) for at in range(0, count, step)]


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
