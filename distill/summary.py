"""What is said of every contestant once it is trained: the content of its summary.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from converters.converter import Converter
from distill.compensation import Asked, Heads, compensate
from distill.cost import measure_cost, stored_bytes
from distill.deficiency import Dials
from distill.evaluate import finite, score, space_digest, summarise
from distill.floors import MAIN, MLP, Floors
from distill.naming import MASKED
from distill.references import equivalent_pixels, score_references
from distill.runfolder import RunFolder
from distill.selection import Choice
from distill.spectrum import rank_recovery
from distill.survival import Survival, mean_kappa, survival
from distill.twins import blinded, deficiencies, with_masks
from distill.where import look
from shards.column import STUDENT
from shards.ranks import Ranks
from shards.references import References
from shards.store import SPLITS, FeatureStore


def evaluate(
    floors: Floors,
    chosen: Mapping[str, Choice],
    about: Mapping[str, Mapping[str, Any]],
    ranks: Ranks,
    *,
    resamples: int,
    cka_positions: int,
    probes: Sequence[str],
    dials: Mapping[str, Dials | None],
    head: Asked,
    references: References,
    folders: Mapping[str, RunFolder],
) -> dict[str, dict[str, Any]]:
    """summary.json of every contestant: the converter beside its floors on the test clips, its lead over the others,
    which factors survive in its tokens, what heads tell from them, what was chosen on val, its cost, and what it all
    rests on.

    about: contestant -> entries that the caller adds. probes: kinds of them, see distill.survival. dials: what every
    contestant is deprived of; where one is, what that left is measured of all. head: see distill.compensation.
    references: of the test clips. folders: each takes where its contestant is wrong.
    """
    store, contestants, test = floors.store, floors.contestants, floors.store.indices("test")
    groups = [store.groups[index] for index in test]
    candidates = floors.candidates() | with_masks(contestants, dials)
    scores = score(store, test, candidates, ranks=ranks, cka_positions=cka_positions, task="evaluate on test")
    beside = score_references(store, references, ranks=ranks, cka_positions=cka_positions)
    told = survival(store, contestants, kinds=probes, resamples=resamples, seed=floors.seed, ranks=ranks)
    deprived = deficiencies(floors, dials, scores, groups=groups, resamples=resamples)
    recovered = recoveries(floors, deprived)
    heads = tell_heads(floors, dials, head, resamples=resamples, ranks=ranks)
    clips = {split: len(store.indices(split)) for split in SPLITS} | {"refused": len(store.refused)}
    summaries = {}
    for name, converter in contestants.items():
        own, rivals = floors.part(name, scores), {other: scores[other] for other in contestants if other != name}
        how = {"groups": groups, "resamples": resamples, "rivals": rivals, "references": beside}
        found = summarise(own, converter=MAIN, **how)
        add_scores(found["targets"], told[name], recovered[name])
        if ranks.main:
            folders[name].write_where(*look(floors, name, own))
        summaries[name] = {
            **found,
            **about[name],
            "equivalent_pixels": equivalent_pixels(found["references"], own[MAIN]),
            "mlp_rate": floors.tuned.get(floors.labels[name].get(MLP, "")),
            "family": converter.family,
            "chosen": {"weights": chosen[name].weights, "r2c": finite(chosen[name].r2c)},
            "probes": told[name],
            "deficiency": deprived[name],
            "rank_recovery": recovered[name],
            "head": with_mask_on(name, heads),
            "clips": clips,
            **rests_on(converter, store, ranks),
        }
    return summaries


def tell_heads(
    floors: Floors, dials: Mapping[str, Dials | None], asked: Asked, *, resamples: int, ranks: Ranks
) -> dict[str, Heads | None]:
    """What heads tell from every contestant, from the deficient ones with their mask on, and from their twins."""
    twins, hidden = floors.twins(), blinded(floors.contestants, dials)
    read = {**floors.contestants, **hidden, **{twin: floors.trained[twin] for twin in twins.values()}}
    twins |= {name + MASKED: twin for name, twin in twins.items() if name + MASKED in hidden}
    return compensate(floors.store, read, asked, twins=twins, resamples=resamples, seed=floors.seed, ranks=ranks)


def rests_on(converter: Converter, store: FeatureStore, ranks: Ranks) -> dict[str, Any]:
    """What a converter costs, which rank 0 alone measures (others beside it would slow it down), and what identifies
    the data and the spaces in which it is scored."""
    cost = measure_cost(converter, device=ranks.device) if ranks.main else {}
    return {
        "cost": cost | {"bytes_read": stored_bytes(store.columns[STUDENT])},
        "digests": store.digests | {"normaliser": space_digest(store, converter.targets)},
        "spaces": {target: space_digest(store, [target]) for target in converter.targets},
    }


def add_scores(targets: dict[str, dict[str, Any]], told: Survival, recovered: Mapping[str, Mapping[str, Any]]) -> None:
    """Puts beside a contestant's metrics what came of other passes over the clips."""
    for target, kappa in mean_kappa(told).items():
        targets[target]["probe_agreement"] = kappa
    for target, recovery in recovered.items():
        targets[target]["rank_recovery"] = recovery["k"]


def recoveries(floors: Floors, deprived: Mapping[str, Mapping[str, Any] | None]) -> dict[str, dict[str, Any]]:
    """By contestant and target how many of the teacher's components are recovered; what deficiencies have measured is
    not measured again."""
    known = {name: found["targets"] for name, found in deprived.items() if found}
    rest = {name: converter for name, converter in floors.contestants.items() if name not in known}
    fresh = rank_recovery(floors.store, rest, seed=floors.seed, ranks=floors.ranks) if rest else {}
    return fresh | {
        name: {target: at["rank_recovery"] for target, at in targets.items()} for name, targets in known.items()
    }


def with_mask_on(name: str, heads: Mapping[str, Heads | None]) -> Heads | None:
    """A contestant's heads by target, and behind them those of its targets with the mask on, if it has one."""
    ours, blinded = heads[name], heads.get(name + MASKED)
    return ours and ours | {target + MASKED: found for target, found in (blinded or {}).items()}
