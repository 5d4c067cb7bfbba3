"""Tokens as probes read them: sources that can be read again, in memory or from a store.

Axes: b clips of a batch, n clips, s tokens of a clip, d channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor

from converters.converter import Converter
from shards.column import STUDENT
from shards.reader import scan
from shards.store import SPLITS, FeatureStore

Batch = tuple[Tensor, Tensor]  # tokens (b s d) float32; clips (b,) int64, places in the labels
Source = Callable[[int], Iterable[Batch]]  # the number of a pass -> that pass over all clips of a split
BATCH = 32  # clips that a probe learns from at a time
READ = 4  # clips that are read, and converted, at a time
FLOOR = 0.01  # of the median channel's deviation: a channel that hardly moves is rounding noise
HELD_BYTES = 2**31  # of tokens that are kept in memory; more are read, and converted, again in every pass


@dataclass(frozen=True)
class Held:
    """A source in memory: tokens (n s d), clips (n,). seed: each pass has an order of its own; None: as they stand."""

    tokens: Tensor
    clips: Tensor
    seed: int | None = None

    @classmethod
    def of(cls, source: Source, *, seed: int | None = None) -> Held:
        """What one pass of another source brings."""
        return cls(*join(list(source(0))), seed)

    def __call__(self, turn: int) -> Iterator[Batch]:
        for rows in torch.from_numpy(pass_order(len(self.clips), self.seed, turn)).split(BATCH):
            yield self.tokens[rows], self.clips[rows]


def open_sources(
    store: FeatureStore,
    columns: Sequence[str],
    *,
    converter: Converter | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> dict[str, dict[str, Source]]:
    """column -> split -> its tokens, clips as store indices; train in an order of its own in every pass.

    converter: the tokens are what it makes of the student's, and columns are targets of it; else they are the store's.
    What fits in HELD_BYTES is read once.
    """
    layouts = {name: converter.targets[name] if converter else store.layout(name) for name in columns}
    size = 4 * len(store) * sum(prod(layout.shape) for layout in layouts.values())
    found: dict[str, dict[str, Source]] = {name: {} for name in columns}
    for split in SPLITS:
        indices, turned = store.indices(split), seed if split == "train" else None
        if size > HELD_BYTES:
            for name in columns:
                found[name][split] = Streamed(store, name, indices, converter, turned, device)
            continue
        tokens = {name: torch.empty(len(indices), *layout.shape) for name, layout in layouts.items()}
        done = 0
        for batch, clips in read(store, columns, indices, converter, device):
            for name, rows in batch.items():
                tokens[name][done : done + len(rows)] = rows
            done += len(clips)
        for name, rows in tokens.items():
            found[name][split] = Held(rows, torch.tensor(indices), turned)
    return found


@dataclass(frozen=True)
class Streamed:
    """A source that is read from the store in every pass, and converted; for the arguments see open_sources."""

    store: FeatureStore
    column: str
    indices: Sequence[int]
    converter: Converter | None
    seed: int | None
    device: torch.device | str

    def __call__(self, turn: int) -> Iterator[Batch]:
        order = [self.indices[place] for place in pass_order(len(self.indices), self.seed, turn)]
        parts: list[Batch] = []
        for batch, clips in read(self.store, [self.column], order, self.converter, self.device):
            parts.append((batch[self.column], clips))
            if len(parts) * READ == BATCH:
                yield join(parts)
                parts = []
        if parts:
            yield join(parts)


def join(parts: Sequence[Batch]) -> Batch:
    tokens, clips = zip(*parts, strict=True)
    return torch.cat(tokens), torch.cat(clips)


def read(
    store: FeatureStore,
    columns: Sequence[str],
    indices: Sequence[int],
    converter: Converter | None,
    device: torch.device | str,
) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """One pass over some clips in their order: {column: (b s d)}, clips (b,)."""
    stored = [STUDENT] if converter else list(columns)
    for batch in scan(store, indices=indices, columns=stored, batch=READ, device=device):
        with torch.no_grad():
            tokens = converter(batch[STUDENT]) if converter else batch
        yield {name: tokens[name] for name in columns}, batch["indices"]


def pass_order(count: int, seed: int | None, turn: int) -> np.ndarray:
    """The order of pass `turn`, from (seed, turn) alone; without a seed, none."""
    return np.arange(count) if seed is None else np.random.default_rng([seed, turn]).permutation(count)


def survey(source: Source) -> tuple[Tensor, int, Tensor, Tensor]:
    """One pass: its clips (n,), how many batches, and mean and deviation of every channel, (d,)."""
    clips: list[Tensor] = []
    sums, rows = torch.zeros(()), 0
    for tokens, places in source(0):
        flat = tokens.flatten(0, 1).double()
        sums = sums.to(flat) + torch.stack([flat.sum(0), flat.square().sum(0)])
        rows += len(flat)
        clips.append(places.cpu())
    mean, square = (sums / rows).cpu()
    scale = (square - mean.square()).clamp_min(0).sqrt()
    floor = FLOOR * float(scale.median()) + 1e-5 * mean.abs() + 1e-12
    return torch.cat(clips), len(clips), mean.float(), scale.maximum(floor).float()


def check_finite(tokens: Tensor, clips: Tensor) -> None:
    """Raises ValueError naming the first clip whose tokens (b s d) are not all finite."""
    finite = tokens.isfinite().flatten(1).all(1)
    if not bool(finite.all()):
        bad = int((~finite).nonzero()[0])
        raise ValueError(
            f"clip {int(clips[bad])}: {int((~tokens[bad].isfinite()).sum())} of {tokens[bad].numel()} values of its "
            "tokens are not finite, and a probe needs all to be; audit the store, or look for what the converter does"
        )
