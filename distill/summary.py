"""What is said of every contestant once it is trained: the content of its summary.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from distill.compensation import Asked, Heads, compensate
from distill.cost import measure_cost
from distill.deficiency import Dials
from distill.evaluate import finite, score, space_digest, summarise
from distill.floors import MAIN, Floors
from distill.selection import Choice
from distill.survival import mean_kappa, survival
from distill.twins import MASKED, blinded, deficiencies, with_masks
from shards.ranks import Ranks
from shards.store import SPLITS


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
) -> dict[str, dict[str, Any]]:
    """summary.json of every contestant: the converter beside its floors on the test clips, its lead over the others,
    which factors survive in its tokens, what heads tell from them, what was chosen on val, its cost, and what it all
    rests on.

    about: contestant -> entries that the caller adds. probes: kinds of them, see distill.survival. dials: what every
    contestant is deprived of; where one is, what that left is measured of all. head: see distill.compensation.
    """
    store, contestants, test = floors.store, floors.contestants, floors.store.indices("test")
    groups = [store.groups[index] for index in test]
    candidates = floors.candidates() | with_masks(contestants, dials)
    scores = score(store, test, candidates, ranks=ranks, cka_positions=cka_positions, task="evaluate on test")
    told = survival(store, contestants, kinds=probes, resamples=resamples, seed=floors.seed, ranks=ranks)
    deprived = deficiencies(floors, dials, scores, groups=groups, resamples=resamples)
    read = {**contestants, **blinded(contestants, dials)}
    heads = compensate(store, read, head, resamples=resamples, seed=floors.seed, ranks=ranks)
    clips = {split: len(store.indices(split)) for split in SPLITS} | {"refused": len(store.refused)}
    summaries = {}
    for name, converter in contestants.items():
        own, rivals = floors.part(name, scores), {other: scores[other] for other in contestants if other != name}
        found = summarise(own, converter=MAIN, groups=groups, resamples=resamples, rivals=rivals)
        for target, kappa in mean_kappa(told[name]).items():
            found["targets"][target]["probe_agreement"] = kappa
        summaries[name] = {
            **found,
            **about[name],
            "family": converter.family,
            "chosen": {"weights": chosen[name].weights, "r2c": finite(chosen[name].r2c)},
            "probes": told[name],
            "deficiency": deprived[name],
            "cost": measure_cost(converter, device=ranks.device),
            "head": with_mask_on(name, heads),
            "clips": clips,
            "digests": store.digests | {"normaliser": space_digest(store, converter.targets)},
        }
    return summaries


def with_mask_on(name: str, heads: Mapping[str, Heads | None]) -> Heads | None:
    """A contestant's heads by target, and behind them those of its targets with the mask on, if it has one."""
    ours, blinded = heads[name], heads.get(name + MASKED)
    return ours and ours | {target + MASKED: found for target, found in (blinded or {}).items()}
