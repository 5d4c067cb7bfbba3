"""What is taken down while training, and what is chosen after it, on val only: the last weights or their average."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch

from converters.converter import Converter
from converters.resample import stratified
from distill.cost import stored_bytes
from distill.evaluate import Candidate, finite, score
from distill.floors import MAIN, Floors
from distill.runfolder import RunFolder
from distill.spectrum import map_ranks
from distill.train import Learner, Report
from shards.column import STUDENT
from shards.ranks import Ranks
from shards.store import FeatureStore

ByTarget = dict[str, float]


@dataclass(frozen=True)
class Choice:
    """weights: "last" or "averaged". r2c: of these on val, by target."""

    weights: str
    r2c: ByTarget


def validation_r2c(
    converters: Mapping[str, Converter], store: FeatureStore, *, queries: int | None, ranks: Ranks
) -> dict[str, ByTarget]:
    """r2c on the val clips at a fixed sample of `queries` tokens per target (None: all), by converter and target."""
    layouts = next(iter(converters.values())).targets
    generator = torch.Generator().manual_seed(0)
    positions = {
        name: stratified(layout, queries, generator)
        for name, layout in layouts.items()
        if queries and layout.num_grid_tokens > queries
    }
    candidates = {name: [Candidate(converter)] for name, converter in converters.items()}
    scores = score(store, store.indices("val"), candidates, ranks=ranks, positions=positions, task="validate")
    return {name: {target: at.compute()["r2c"] for target, at in found.items()} for name, found in scores.items()}


def choose_weights(
    learners: Sequence[Learner],
    converters: Mapping[str, Converter],
    store: FeatureStore,
    *,
    queries: int | None,
    ranks: Ranks,
) -> dict[str, Choice]:
    """Gives every learner's converter the weights with the better mean r2c on val. Returns the choices, by learner."""
    last = validation_r2c(converters, store, queries=queries, ranks=ranks)
    with ExitStack() as stack:
        for learner in learners:
            stack.enter_context(learner.engine.averaged())
        averaged = validation_r2c(converters, store, queries=queries, ranks=ranks)
    chosen: dict[str, Choice] = {}
    for learner in learners:
        ours, theirs = last[learner.name], averaged[learner.name]
        if sum(theirs.values()) > sum(ours.values()):
            learner.engine.keep_average()
            chosen[learner.name] = Choice("averaged", theirs)
        else:
            chosen[learner.name] = Choice("last", ours)
    return chosen


def log_choices(
    chosen: Mapping[str, Choice], floors: Floors, folders: Mapping[str, RunFolder], *, step: int, ranks: Ranks
) -> None:
    """Takes down what was chosen, in every contestant's folder and on the terminal."""
    for contestant, folder in folders.items():
        for name, choice in floors.part(contestant, chosen).items():
            learner = None if name == MAIN else name
            folder.log_scores(step, "val", "r2c", finite(choice.r2c), converter=learner, weights=choice.weights)
    if ranks.main:
        print(*(f"{name}: {choice.weights} weights, chosen on val" for name, choice in chosen.items()), sep="\n")


def logs(
    floors: Floors,
    folders: Mapping[str, RunFolder],
    *,
    queries: int | None,
    batch: int,
    ranks: Ranks,
) -> tuple[Report, Callable[[int], None]]:
    """What takes down a step's losses and what a run has taken by then, and what validates. batch: clips of a step,
    over all ranks.

    `seconds` is the wall time of training since step 0, validating and saving included, for all contestants together;
    a resumed run counts on from its checkpoint. `bytes` is what these steps have read, as it lies in the store.
    """
    store, deficient = floors.store, floors.twins()
    columns = {STUDENT}.union(*(converter.targets for converter in floors.contestants.values()))
    step_bytes = batch * sum(stored_bytes(store.columns[name]) for name in columns)
    spent = {name: folder.last("train", "seconds") or 0.0 for name, folder in folders.items()}
    started = time.perf_counter()

    def report(step: int, losses: dict[str, dict[str, float]]) -> None:
        passed = time.perf_counter() - started
        for name, folder in folders.items():
            folder.log_losses(step, floors.part(name, losses), main=MAIN)
            folder.log(step, "train", "seconds", round(spent[name] + passed, 3))
            folder.log(step, "train", "bytes", step * step_bytes)

    def validate(step: int) -> None:
        found = validation_r2c(floors.contestants, store, queries=queries, ranks=ranks)
        for name, folder in folders.items():
            folder.log_scores(step, "val", "r2c", finite(found[name]))
            if name in deficient:  # follow its maps' ranks
                folder.log_scores(step, "val", "map_rank", map_ranks(floors.contestants[name]))

    return report, validate
