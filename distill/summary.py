"""What is said of every contestant once it is trained: the content of its summary.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from converters.converter import Converter
from distill.compensation import Asked, Heads, compensate
from distill.cost import measure_cost
from distill.deficiency import Dials
from distill.evaluate import Candidate, Scores, finite, paired_gain, score, space_digest, summarise
from distill.floors import MAIN, Floors
from distill.metrics import group_weights
from distill.selection import Choice
from distill.spectrum import Found, Masked, measure
from distill.survival import survival
from shards.ranks import Ranks
from shards.store import SPLITS

MASKED = " with the mask on"  # after a contestant's name, the label of its scores so


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
    store, contestants = floors.store, floors.contestants
    test, masked = store.indices("test"), with_masks(contestants, dials)
    candidates = floors.candidates() | {name: [Candidate(found)] for name, found in masked.items()}
    scores = score(store, test, candidates, ranks=ranks, cka_positions=cka_positions, task="evaluate on test")
    told = survival(store, contestants, kinds=probes, resamples=resamples, seed=floors.seed, ranks=ranks)
    left = measure(store, contestants, seed=floors.seed, ranks=ranks) if any(dials.values()) else {}
    heads = compensate(store, {**contestants, **masked}, head, resamples=resamples, seed=floors.seed, ranks=ranks)
    groups = [store.groups[index] for index in test]
    clips = {split: len(store.indices(split)) for split in SPLITS}
    summaries = {}
    for name, converter in contestants.items():
        own, rivals = floors.part(name, scores), {other: scores[other] for other in contestants if other != name}
        found = summarise(own, converter=MAIN, groups=groups, resamples=resamples, rivals=rivals)
        summaries[name] = {
            **found,
            **about[name],
            "family": converter.family,
            "chosen": {"weights": chosen[name].weights, "r2c": finite(chosen[name].r2c)},
            "probes": told[name],
            "deficiency": deficiency(name, dials[name], left, scores, groups, resamples),
            "cost": measure_cost(converter, device=ranks.device),
            "head": with_mask_on(name, heads),
            "clips": clips | {"refused": len(store.refused)},
            "digests": store.digests | {"normaliser": space_digest(store, converter.targets)},
        }
    return summaries


def with_masks(contestants: Mapping[str, Converter], dials: Mapping[str, Dials | None]) -> dict[str, Masked]:
    """The contestants whose deficiency has a mask, with it on."""
    masks = {name: at.mask(contestants[name].student, None) for name, at in dials.items() if at is not None}
    return {name + MASKED: Masked(contestants[name], mask) for name, mask in masks.items() if mask is not None}


def with_mask_on(name: str, heads: Mapping[str, Heads | None]) -> Heads | None:
    """A contestant's heads by target, and behind them those of its targets with the mask on, if it has one."""
    ours, masked = heads[name], heads.get(name + MASKED)
    return ours and ours | {target + MASKED: found for target, found in (masked or {}).items()}


def deficiency(
    name: str,
    dials: Dials | None,
    left: Mapping[str, Found],
    scores: Scores,
    groups: list[str],
    resamples: int,
) -> dict[str, Any] | None:
    """What a contestant was deprived of and what that left, by target; None where nobody was. `mask` is r2c with the
    mask on and off on the same clips, and their paired difference. A twin without the deficiency is a contestant beside
    it: `lead` has the paired difference to that."""
    if name not in left:
        return None
    targets = {target: dict(found) for target, found in left[name].items()}
    for target, masked in scores.get(name + MASKED, {}).items():
        whole = scores[name][target]
        targets[target]["mask"] = {
            "on": finite(masked.compute())["r2c"],
            "off": finite(whole.compute())["r2c"],
            "difference": paired_gain(masked, whole, group_weights(groups, resamples=resamples)),
        }
    kind, strength = (dials.kind, dials.strength) if dials else ("none", 0.0)
    settings = {"rank": dials.rank, "mask_ratio": dials.ratio} if dials else {}
    return {"kind": kind, "strength": strength, **settings, "targets": targets}
