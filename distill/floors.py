"""Floors: what a converter must beat, through the same interface.

mean       the teacher's global mean            position_mean  its mean at each position
pixels     ridge from the averaged pixels       ridge          ridge from the student's tokens
ridge_local  ridge from 3 x 3 x 3 cells' leading components; a pooled target has no places and gets the plain ridge
skip       the ridge, trained further           mlp            skip + per-token MLP of the converter's size, trained
shuffled   ridge on wrongly paired clips: a control, near 0 where nothing leaks
shuffled_converter   the same control with the whole converter, trained so

The mlp is trained at several rates, and the one that is best on val stands in the report. `large`, a reference, learns
beside them (distill.large).
Beside a deficient converter stands, in the same manner, its twin: the same converter, trained without the deficiency.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor, nn

from converters import Converter, create_converter
from converters.linear import LocalSkip
from converters.mlp import hidden_units
from converters.normaliser import Mode
from distill.evaluate import Candidate
from distill.fit import LOCAL, SHUFFLED, TRUE, Solutions, principal_directions, set_normalisers, set_skips, solve_ridges
from distill.large import enlarged
from shards.column import PIXELS, STUDENT
from shards.ranks import Ranks
from shards.store import FeatureStore

MAIN = "converter"
TWIN, MLP, LARGE, CONTROL = "twin", "mlp", "large", "shuffled_converter"
TRAINED = {"skip": "linear", MLP: "mlp"}  # floors that learn beside the converter -> their family
LEARN = (TWIN, LARGE, CONTROL, *TRAINED)
LOCAL_COMPONENTS = 32  # of a cell; 27 cells of them are as many inputs as a large student has channels
MLP_QUERIES = 128  # tokens that the per-token MLP trains on per clip: more cost 4 times as much and teach it no more
log = logging.getLogger(__name__)
T = TypeVar("T")


class Floors:
    """The floors of one or several contestants on one store; what is the same for several is solved and trained once.

    Building it fits the contestants' own normalisers and, if they have them, skips: the ridge is a skip's start.

    contestants: name -> converter, of one student and the same targets. asked: names of floors, in the order of the
    report; LARGE and CONTROL may be among them. seed: of the MLP. rates: at which the MLP is trained, as multiples of
    the others'; the first is its own name's, the others' are behind it. deficient: contestants that are to have a twin;
    it may be one of the others.
    trained: the contestants and the floors that need training beside them, from the same read of the data, by label: a
        contestant's is its name, a floor's is its own name where it is one for all, else CONTESTANT/FLOOR, after the
        first contestant that it is for.
    """

    def __init__(
        self,
        contestants: Mapping[str, Converter],
        store: FeatureStore,
        *,
        asked: Sequence[str],
        seed: int,
        ranks: Ranks,
        rates: Sequence[float] = (1.0,),
        deficient: Collection[str] = (),
    ) -> None:
        self.rates = {MLP if number == 0 else f"{MLP}@{rate:g}": rate for number, rate in enumerate(rates)}
        self.tuned: dict[str, float] = {}  # label of an mlp -> the rate that was chosen, see `tune`
        self.contestants, self.store, self.seed, self.ranks = contestants, store, seed, ranks
        self.bases: dict[Mode, Tensor] = {}  # of the local ridge
        spaces = {converter.normaliser: converter for converter in contestants.values()}
        self.ridges = {space: self._solve(converter, asked) for space, converter in spaces.items()}
        for converter in contestants.values():
            set_skips(set_normalisers(converter, store), self.ridges[converter.normaliser])
        self.floors: dict[str, tuple[str, Converter]] = {}  # label -> which floor, of which contestant
        self.labels: dict[str, dict[str, str]] = {name: {MAIN: name} for name in contestants}
        for floor in asked:
            for name in self.rates if floor == MLP else (floor,):
                self._share(name)
        self._pair(deficient)
        self.trained = dict(contestants) | {
            label: self._start(floor, converter)
            for label, (floor, converter) in self.floors.items()
            if kind(floor) in LEARN
        }

    def part(self, contestant: str, found: Mapping[str, T]) -> dict[str, T]:
        """What of `found`, by label, is a contestant's: its own as MAIN, its floors by their names, as if it were
        alone."""
        return {name: found[label] for name, label in self.labels[contestant].items() if label in found}

    def twins(self) -> dict[str, str]:
        """Every deficient contestant's twin, by its label."""
        return {name: labels[TWIN] for name, labels in self.labels.items() if TWIN in labels}

    def joined(self, found: Mapping[str, Mapping[str, T]]) -> dict[str, T]:
        """What `part` has taken apart, by label again. found: by contestant."""
        names = ((contestant, name) for contestant, parts in found.items() for name in parts)
        return {self.labels[contestant][name]: found[contestant][name] for contestant, name in names}

    def queries(self, label: str, default: int | None) -> int | None:
        """How many tokens of a target something in `trained` learns from per clip; None: all."""
        return MLP_QUERIES if self._kind(label) == MLP else default

    def rate(self, label: str) -> float:
        """The rate of something in `trained`, as a multiple of the recipe's."""
        return self.rates.get(self.floors[label][0], 1.0) if label in self.floors else 1.0

    def wrongly_paired(self, label: str) -> bool:
        """Whether something in `trained` learns from wrongly paired clips."""
        return self._kind(label) == CONTROL

    def _kind(self, label: str) -> str | None:
        return kind(self.floors[label][0]) if label in self.floors else None

    def tune(self, on_val: Mapping[str, float]) -> None:
        """Puts in every MLP's place the one whose rate was best. on_val: r2c of all in `trained`, by label."""
        for labels in self.labels.values():
            rates = {labels[name]: rate for name, rate in self.rates.items() if name in labels}
            if rates and labels[MLP] not in self.tuned:
                best = max(rates, key=lambda label: -math.inf if math.isnan(on_val[label]) else on_val[label])
                self.trained[labels[MLP]], self.tuned[labels[MLP]] = self.trained[best], rates[best]

    def candidates(self) -> dict[str, list[Candidate]]:
        """The contestants, then every floor that was asked for; a pixel floor is one converter per target."""
        floors = {
            label: self._candidate(label, *entry)
            for label, entry in self.floors.items()
            if entry[0] == kind(entry[0])  # of the MLPs the tuned one
        }
        return {name: [Candidate(converter)] for name, converter in self.contestants.items()} | floors

    def ridge(self, converter: Converter) -> Converter:
        """The ridge in a converter's space: where its skip starts."""
        return set_skips(self._build("linear", converter), self.ridges[converter.normaliser])

    def _share(self, floor: str) -> None:
        """Gives every contestant that can have it a floor: the same where all that makes it is the same."""
        made_of = {name: self._ingredients(floor, converter) for name, converter in self.contestants.items()}
        first: dict[Hashable, str] = {}
        for name, ingredients in made_of.items():
            if ingredients is not None:
                first.setdefault(ingredients, name)
        for name, ingredients in made_of.items():
            if ingredients is None:
                parameters = self.contestants[name].num_parameters()
                if floor != kind(floor):
                    continue  # it was said of the first rate
                log.warning("%s: no %s floor: a converter of %d parameters leaves it none", name, floor, parameters)
                continue
            owner = first[ingredients]
            label = floor if len(set(made_of.values())) == 1 else f"{owner}/{floor}"
            self.labels[name][floor] = label
            self.floors[label] = floor, self.contestants[owner]

    def _pair(self, deficient: Collection[str]) -> None:
        """Gives every deficient contestant its twin: a contestant that lacks nothing and else is the same, or one that
        is trained for all who are the same."""
        made_of = {name: json.dumps(plain(converter), sort_keys=True) for name, converter in self.contestants.items()}
        twins = {key: name for name, key in made_of.items() if name not in deficient}
        for name in (name for name in self.contestants if name in deficient):
            label = twins.setdefault(made_of[name], TWIN if len(self.contestants) == 1 else f"{name}/{TWIN}")
            self.labels[name][TWIN] = label
            if label not in self.contestants:
                self.floors.setdefault(label, (TWIN, self.contestants[name]))

    def _ingredients(self, floor: str, converter: Converter) -> Hashable:
        """What a floor depends on beside store and seed; None where the converter's size leaves it nothing."""
        if floor in ("mean", "position_mean"):
            return floor
        if floor in (LARGE, CONTROL):
            return json.dumps(plain(converter), sort_keys=True)
        if kind(floor) != MLP:
            return converter.normaliser
        spare = self._spare(converter)
        units = hidden_units(self.store.layout(STUDENT), converter.targets, spare)
        return (converter.normaliser, spare) if units > 0 else None

    def _spare(self, converter: Converter) -> int:
        """Parameters that an MLP may have beside its skip."""
        return converter.num_parameters() - self._build("linear", converter).num_parameters()

    def _solve(self, converter: Converter, asked: Sequence[str]) -> Solutions:
        """The ridge solutions in a converter's space, from one pass over the train clips."""
        readers = {STUDENT: self._build("linear", converter)}
        if "pixels" in asked:
            readers |= self._pixel_readers(converter)
        if "ridge_local" in asked:
            readers[LOCAL] = self._local_reader(converter)
        train = self.store.indices("train")
        return solve_ridges(
            self.store, readers, indices=train, ranks=self.ranks, shuffled=bool({"shuffled", CONTROL} & {*asked})
        )

    def _start(self, floor: str, converter: Converter) -> Converter:
        """A floor that needs training, at its start: the ridge."""
        if floor in (TWIN, LARGE, CONTROL):
            whole = enlarged(converter, plain(converter)) if floor == LARGE else without_deficiency(converter)
            start = set_normalisers(whole.to(self.ranks.device), self.store)
            pairing = SHUFFLED if floor == CONTROL else TRUE
            return set_skips(start, self.ridges[converter.normaliser], pairing=pairing)
        options = {"parameters": self._spare(converter)} if kind(floor) == MLP else None
        start = self._build(TRAINED[kind(floor)], converter, options=options)
        return set_skips(start, self.ridges[converter.normaliser])

    def _candidate(self, label: str, floor: str, converter: Converter) -> list[Candidate]:
        ridges = self.ridges[converter.normaliser]
        if floor in LEARN:
            return [Candidate(self.trained[label])]
        if floor == "mean":
            return [Candidate(self._build("constant", converter, normaliser="global"))]
        if floor == "position_mean":
            return [Candidate(self._build("constant", converter, normaliser="position"))]
        if floor == "ridge":
            return [Candidate(self.ridge(converter))]
        if floor == "ridge_local":
            return [Candidate(set_skips(self._local_reader(converter), ridges, reader=LOCAL))]
        if floor == "shuffled":
            return [Candidate(set_skips(self._build("linear", converter), ridges, pairing=SHUFFLED))]
        assert floor == "pixels", floor
        readers = self._pixel_readers(converter)
        return [Candidate(set_skips(reader, ridges, reader=column), column) for column, reader in readers.items()]

    def _local_reader(self, converter: Converter) -> Converter:
        """The linear converter of the cells around a place, still at zero."""
        reader = self._build("linear", converter)
        if converter.normaliser not in self.bases:
            directions = principal_directions(self.store, reader, count=LOCAL_COMPONENTS)
            self.bases[converter.normaliser] = directions
        basis = self.bases[converter.normaliser]
        skips = {name: LocalSkip(reader.student, layout, basis) for name, layout in reader.targets.items()}
        reader.skips = nn.ModuleDict(skips).to(self.ranks.device)  # type: ignore[assignment]
        return reader

    def _pixel_readers(self, converter: Converter) -> dict[str, Converter]:
        """column -> the linear converter that reads it, one per target."""
        return {
            PIXELS + target: self._build("linear", converter, PIXELS + target, [target]) for target in converter.targets
        }

    def _build(
        self,
        family: str,
        like: Converter,
        column: str = STUDENT,
        targets: Sequence[str] | None = None,
        *,
        normaliser: Mode | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Converter:
        """Another family from a column to some of a converter's targets, normalisers set. normaliser: None takes the
        converter's own, so that ridge is solved in the space in which its skip starts."""
        other = create_converter(
            family,
            student=self.store.layout(column),
            targets={name: like.targets[name] for name in targets or like.targets},
            normaliser=normaliser or like.normaliser,
            options=options,
            seed=self.seed,
        )
        return set_normalisers(other.to(self.ranks.device), self.store, column=column)


def kind(floor: str) -> str:
    """What a floor is, whatever its rate."""
    return floor.partition("@")[0]


def plain(converter: Converter) -> dict[str, Any]:
    """What makes a converter, apart from what a deficiency does to it."""
    return {key: value for key, value in converter.config().items() if key not in ("rank", "mask_token")}


def without_deficiency(converter: Converter) -> Converter:
    """The same converter, new."""
    made_of = plain(converter)
    return create_converter(
        converter.family,
        student=converter.student,
        targets=converter.targets,
        skip=made_of["skip"],
        normaliser=converter.normaliser,
        options=made_of["options"],
        seed=converter.seed,
    )
