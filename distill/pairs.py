"""The training stream with wrong answers beside the right ones: what the `shuffled_converter` control learns from."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any

from distill.fit import apart
from shards.column import STUDENT
from shards.ranks import Ranks
from shards.reader import BatchReader
from shards.store import FeatureStore

WRONG = "wrong"  # of a batch: target -> tokens of clips of other groups


class PairedReader:
    """A BatchReader, and one of the same clips whose targets are other clips': each batch has these as WRONG. Closes
    both."""

    def __init__(self, right: BatchReader, wrong: BatchReader, targets: list[str]) -> None:
        self.right, self.wrong, self.targets = right, wrong, targets

    def steps(self, start: int = 0, stop: int | None = None) -> Generator[dict[str, Any], None, None]:
        """See BatchReader.steps."""
        for batch, other in zip(self.right.steps(start, stop), self.wrong.steps(start, stop), strict=True):
            assert batch["keys"] == other["keys"]
            yield batch | {WRONG: {name: other[name] for name in self.targets}}

    def __enter__(self) -> PairedReader:
        return self

    def __exit__(self, *error: object) -> None:
        self.right.close()
        self.wrong.close()


def training_stream(
    store: FeatureStore, *, targets: list[str], wrong: bool, batch: int, seed: int, accumulation: int, ranks: Ranks
) -> BatchReader | PairedReader:
    """A rank's part of the stream of train clips: student and targets. wrong: with wrong answers beside the right ones,
    for which every target is read twice. batch: clips of an optimizer step over all ranks."""
    train = store.indices("train")

    def reader(columns: Sequence[str], paired: Mapping[str, Sequence[int]]) -> BatchReader:
        return BatchReader(
            store,
            columns=columns,
            indices=train,
            batch=batch,
            seed=seed,
            rank=ranks.rank,
            world=ranks.world,
            accumulation=accumulation,
            device=ranks.device,
            paired=paired,
        )

    right = reader([STUDENT, *targets], {})
    if not wrong:
        return right
    partners = apart(train, [store.groups[index] for index in train])
    return PairedReader(right, reader(targets, dict.fromkeys(targets, partners)), targets)
