"""The order of training samples: an endless stream, the concatenation of the epochs' permutations.

Each permutation is a function of (seed, epoch) alone: not of ranks, workers, or where a run began.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class SampleOrder:
    """The endless stream of samples 0 .. num_clips - 1.

    shards: of every sample; with them an epoch goes through the shards in a random order, `window` of them at a time,
    and shuffles within those: a window is fetched once, and 16 mix 14 shards into a batch of 32. Without, the whole
    epoch is one permutation.
    """

    def __init__(self, num_clips: int, *, seed: int, shards: Sequence[int] | None = None, window: int = 16) -> None:
        if num_clips < 1 or seed < 0:
            raise ValueError(f"the order of {num_clips} clips with seed {seed}: needs clips, and a seed of at least 0")
        self.num_clips, self.seed = num_clips, seed
        self._epochs: dict[int, np.ndarray] = {}
        self._shards, self._window = None if shards is None else np.asarray(shards), window

    def epoch(self, epoch: int) -> np.ndarray:
        """The permutation of one epoch, from (seed, epoch) alone."""
        order = self._epochs.get(epoch)
        if order is None:
            order = self._permute(np.random.default_rng([self.seed, epoch]))
            recent = {e: kept for e, kept in self._epochs.items() if e >= epoch - 1}
            self._epochs = {**recent, epoch: order}  # rebound, not changed: several threads read it
        return order

    def _permute(self, draw: np.random.Generator) -> np.ndarray:
        if self._shards is None:
            return draw.permutation(self.num_clips)
        names, shard_of = np.unique(self._shards, return_inverse=True)
        window_of = (draw.permutation(len(names)) // self._window)[shard_of]
        return np.lexsort((draw.random(self.num_clips), window_of))

    def samples(self, start: int, stop: int) -> list[int]:
        """Samples [start, stop) of the stream."""
        places = (divmod(position, self.num_clips) for position in range(start, stop))
        return [int(self.epoch(epoch)[place]) for epoch, place in places]


def sample_indices(step: int, *, seed: int, batch: int, num_clips: int) -> list[int]:
    """The samples of one optimizer step over all ranks, as positions in 0 .. num_clips - 1."""
    return SampleOrder(num_clips, seed=seed).samples(step * batch, (step + 1) * batch)
