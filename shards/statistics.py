"""Statistics of a column over the train clips: what the normaliser subtracts and divides by.

On disk: mean and deviation of every position, (q d). In use, for the positions that are asked for: mean (q d), scale
(d,) the per-channel deviation around the position means, global_mean (d,) and global_scale (d,) the same without regard
to positions. Both scales are floored at 1% of the median channel's.

Axes: q tokens of a clip, d channels.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from shards.codec import floor_deviation, load_tensors
from shards.disk import StoreError, read_inside, write_atomically
from shards.tensorfile import metadata_of, pack_alone

STATISTICS_FILE = "stats.safetensors"
NAMES = ("mean", "deviation")


class Moments:
    """Streaming first and second moments of clips' tokens (q d), shifted by the first clip, summed in float64.

    Only element-wise sums: the result does not depend on the number of threads. 4 ms a clip of 2048 x 1024 on one
    core; memory three float64 clips.
    """

    def __init__(self) -> None:
        self.count = 0
        self._shift = self._sum = self._squares = self._work = torch.zeros(0)

    def update(self, tokens: Tensor) -> None:
        if self.count == 0:
            self._shift, self._work = tokens.clone(), torch.empty_like(tokens)
            self._sum, self._squares = (torch.zeros_like(tokens, dtype=torch.float64) for _ in range(2))
        torch.sub(tokens, self._shift, out=self._work)
        self._sum.add_(self._work)
        self._squares.add_(self._work.square_())
        self.count += 1

    def finish(self) -> dict[str, Tensor]:
        """mean and deviation of every position, (q d) float32. Raises ValueError without a clip."""
        if self.count == 0:
            raise ValueError("statistics need at least one train clip, there is none")
        moved = self._sum / self.count
        variance = (self._squares / self.count - moved.square()).clamp_min(0)
        return {"mean": (self._shift.double() + moved).float(), "deviation": variance.sqrt().float()}


def summarise(positions: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the normaliser uses (see above), from mean and deviation of some positions."""
    mean = positions["mean"].double()
    within = positions["deviation"].double().square().mean(0)
    global_mean = mean.mean(0)
    between = (mean - global_mean).square().mean(0)
    return {
        "mean": positions["mean"],
        "scale": floor_deviation(within.sqrt()).float(),
        "global_mean": global_mean.float(),
        "global_scale": floor_deviation((within + between).sqrt()).float(),
    }


def compute_statistics(clips: Iterable[Tensor]) -> dict[str, Tensor]:
    """mean and deviation (q d) from the tokens (q d) of the train clips, in one pass."""
    moments = Moments()
    for tokens in clips:
        moments.update(tokens)
    return moments.finish()


def save_statistics(root: Path, column: str, statistics: dict[str, Tensor], *, split: str) -> None:
    """split: the digest of the split whose train clips were read; it stands in the file's metadata."""
    pieces = pack_alone({name: statistics[name] for name in NAMES}, metadata={"column": column, "split": split})
    write_atomically(root / column / STATISTICS_FILE, pieces)


def are_current(root: Path, column: str, *, split: str) -> bool:
    """Whether the file is there and of this split's train clips."""
    try:
        metadata, _ = metadata_of(read_inside(root, column, STATISTICS_FILE))
        return metadata.get("split") == split
    except (FileNotFoundError, ValueError, TypeError, AttributeError, RecursionError):
        return False


def load_statistics(root: Path, column: str, *, shape: tuple[int, int], rows: Tensor) -> dict[str, Tensor]:
    """mean, scale, global_mean, global_scale of these positions of a column whose clips are `shape` (q, d).

    Raises StoreError naming the file and the entry where it is missing, of another shape, or not finite.
    """
    tensors = load_tensors(root, column, STATISTICS_FILE)
    for name in NAMES:
        tensor = tensors.get(name)
        if tensor is None or tensor.shape != shape or tensor.dtype != torch.float32 or not tensor.isfinite().all():
            raise StoreError(
                f"{root}/{column}/{STATISTICS_FILE}: {name} must be finite float32 of shape {shape}; delete the file "
                "and re-run precompute"
            )
    return summarise({name: tensors[name][rows] for name in NAMES})
