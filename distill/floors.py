"""Floors: what a converter must beat, through the same interface.

mean       the teacher's global mean            position_mean  its mean at each position
pixels     ridge from the averaged pixels       ridge          ridge from the student's tokens
skip       the ridge, trained further           mlp            skip + per-token MLP of the converter's size, trained
shuffled   ridge on wrongly paired clips: a control, near 0 where nothing leaks
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from converters import Converter, create_converter
from converters.normaliser import Mode
from distill.evaluate import Candidate
from distill.fit import SHUFFLED, set_normalisers, set_skips, solve_ridges
from shards.column import PIXELS, STUDENT
from shards.ranks import Ranks
from shards.store import FeatureStore

MAIN = "converter"
MLP_QUERIES = 128  # tokens that the per-token MLP trains on per clip: more cost 4 times as much and teach it no more
log = logging.getLogger(__name__)


class Floors:
    """The floors of one converter on one store.

    Building it fits the converter's own normalisers and, if it has one, its skip: the ridge is the skip's start.

    asked: names of floors, in the order of the report. seed: of the MLP.
    trained: the converter and the floors that need training beside it, from the same read of the data.
    """

    def __init__(
        self, converter: Converter, store: FeatureStore, *, asked: Sequence[str], seed: int, ranks: Ranks
    ) -> None:
        self.converter, self.store, self.asked, self.ranks = converter, store, list(asked), ranks
        readers = {STUDENT: self.build("linear")}
        if "pixels" in asked:
            readers |= {PIXELS + name: self.build("linear", PIXELS + name, [name]) for name in converter.targets}
        train = store.indices("train")
        self.ridges = solve_ridges(store, readers, indices=train, ranks=ranks, shuffled="shuffled" in asked)
        self.trained = {MAIN: set_normalisers(converter, store)}
        if "skip" in asked:
            self.trained["skip"] = self.build("linear")
        spare = converter.num_parameters() - readers[STUDENT].num_parameters()  # what the MLP may have beside its skip
        if "mlp" in asked and spare > 0:
            self.trained["mlp"] = self.build("mlp", options={"parameters": spare}, seed=seed)
        elif "mlp" in asked:
            log.warning("no mlp floor: a converter of %d parameters leaves it none", converter.num_parameters())
            self.asked.remove("mlp")
        for start in self.trained.values():
            set_skips(start, self.ridges)

    def build(
        self,
        family: str,
        column: str = STUDENT,
        targets: Sequence[str] | None = None,
        *,
        normaliser: Mode | None = None,
        options: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> Converter:
        """Another family from a column to some of the converter's targets, normalisers set. normaliser: None takes the
        converter's own, so that ridge is solved in the space in which its skip starts."""
        other = create_converter(
            family,
            student=self.store.layout(column),
            targets={name: self.converter.targets[name] for name in targets or self.converter.targets},
            normaliser=normaliser or self.converter.normaliser,
            options=options,
            seed=seed,
        )
        return set_normalisers(other.to(self.ranks.device), self.store, column=column)

    def candidates(self) -> dict[str, list[Candidate]]:
        """The converter, then every floor that was asked for; a pixel floor is one converter per target."""
        return {name: self._candidate(name) for name in (MAIN, *self.asked)}

    def _candidate(self, name: str) -> list[Candidate]:
        if name in self.trained:
            return [Candidate(self.trained[name])]
        if name == "mean":
            return [Candidate(self.build("constant", normaliser="global"))]
        if name == "position_mean":
            return [Candidate(self.build("constant", normaliser="position"))]
        if name == "ridge":
            return [Candidate(set_skips(self.build("linear"), self.ridges))]
        if name == "shuffled":
            return [Candidate(set_skips(self.build("linear"), self.ridges, pairing=SHUFFLED))]
        assert name == "pixels", name
        readers = {
            PIXELS + target: self.build("linear", PIXELS + target, [target]) for target in self.converter.targets
        }
        return [Candidate(set_skips(reader, self.ridges, column=column), column) for column, reader in readers.items()]
