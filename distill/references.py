"""What a converter is held against where the best possible is not known: its teacher on other renderings of the clips.

student_frames  the teacher on the frames that the student sees
shift_K         the teacher on a view that is moved by K pixels of its input: a scale on which an error can be said in
                pixels. It is a scale and no bound: a converter may be better than the smallest shift.

Axes: b clips, q tokens of a target, e channels.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

from torch import Tensor

from distill.evaluate import Candidate, Scores, score
from distill.metrics import Alignment
from shards.ranks import Ranks
from shards.references import SHIFT, References
from shards.store import FeatureStore
from teachers.layout import TokenLayout

log = logging.getLogger(__name__)
Points = list[tuple[float, float]]  # (pixels, r2c) from 0 pixels on


@dataclass(frozen=True)
class Told:
    """A target's tokens as a column has them, as a candidate for scores: nothing is converted."""

    target: str
    layout: TokenLayout

    @property
    def targets(self) -> Mapping[str, TokenLayout]:
        return {self.target: self.layout}

    def __call__(self, tokens: Tensor, *, positions: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        if positions and self.target in positions:
            tokens = tokens.index_select(1, positions[self.target].to(tokens.device))
        return {self.target: tokens}


def score_references(store: FeatureStore, references: References, *, ranks: Ranks, cka_positions: int) -> Scores:
    """How well references tell each target, on the test clips of `store` that have them; nothing without any."""
    if references.store is None:
        return {}
    beside, test = references.store, {store.keys[index] for index in store.indices("test")}
    indices = [index for index in beside.indices("test") if beside.keys[index] in test]
    if len(indices) < len(test):
        log.warning("references: on %d of the %d test clips, the others have none", len(indices), len(test))
    candidates: dict[str, Sequence[Candidate]] = {
        name: [Candidate(Told(target, beside.layout(target)), column) for target, column in found.items()]  # type: ignore[arg-type]
        for name, found in references.columns.items()
    }
    return score(beside, indices, candidates, ranks=ranks, cka_positions=cka_positions, task="references")


def equivalent_pixels(
    references: Mapping[str, Mapping[str, Mapping[str, float | None]]], scores: Mapping[str, Alignment]
) -> dict[str, dict[str, Any]]:
    """target -> {value, beyond}: by how many pixels the teacher's view would have to be moved to differ from its own
    answer as much as the converter does, by r2c. Linear between 0 (1 by definition) and the shifts that were measured;
    past the largest, value is None and `beyond` is that shift. Targets without shifts are left out."""
    found = {}
    for target, alignment in scores.items():
        points: Points = [(0.0, 1.0)]
        for name, by_target in references.items():
            r2c = by_target.get(target, {}).get("r2c")
            if name.startswith(SHIFT) and r2c is not None:
                points.append((float(name.removeprefix(SHIFT)), r2c))
        if len(points) > 1:
            value = on_scale(sorted(points), alignment.compute()["r2c"])
            found[target] = {"value": value, "beyond": max(points)[0] if value is None else None}
    return found


def on_scale(points: Points, r2c: float) -> float | None:
    """The pixels at which the scale falls to this r2c; None where it never does. Where a larger shift does less, the
    scale stays level: it can only fall."""
    falling = list(zip((pixels for pixels, _ in points), accumulate((at for _, at in points), min), strict=True))
    if r2c >= falling[0][1]:
        return 0.0
    for (before, high), (after, low) in pairwise(falling):
        if low <= r2c < high:
            return before + (after - before) * (high - r2c) / (high - low)
    return None
