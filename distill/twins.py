"""What every contestant was deprived of, what that left, and how it differs from its twin: `deficiency` of a summary.

The twin is the same converter, trained without the deficiency on the same seed, split and data (distill.floors).
Axes: s student tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from converters.converter import Converter
from distill.deficiency import Dials
from distill.evaluate import Candidate, Scores, number_or_none, paired_gain
from distill.floors import Floors
from distill.metrics import Alignment, group_weights
from distill.naming import MASKED
from distill.spectrum import measure

MASKS = 4  # over which r2c with the mask on is averaged: it depends on which places are hidden
Left = Mapping[str, Any]  # what distill.spectrum measures of a target, and `mask`


@dataclass(frozen=True)
class Masked:
    """A converter to which part of the clip is hidden, as a candidate for scores. mask: (s,) bool."""

    converter: Converter
    mask: Tensor

    @property
    def targets(self) -> Mapping[str, Any]:
        return self.converter.targets

    def __call__(self, tokens: Tensor, *, positions: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        return self.converter(tokens, positions=positions, mask=self.mask.to(tokens.device))


def with_masks(
    contestants: Mapping[str, Converter], dials: Mapping[str, Dials | None]
) -> dict[str, Sequence[Candidate]]:
    """The contestants whose deficiency has a mask, with it on: a candidate for each of several masks."""
    masks = {name: at.test_masks(contestants[name].student, MASKS) for name, at in dials.items() if at is not None}
    return {
        masked(name, number): [Candidate(Masked(contestants[name], mask))]  # type: ignore[arg-type]
        for name, found in masks.items()
        for number, mask in enumerate(found)
    }


def blinded(contestants: Mapping[str, Converter], dials: Mapping[str, Dials | None]) -> dict[str, Converter]:
    """The same with the first of their masks on, each under its name + MASKED."""
    hidden = with_masks(contestants, dials)
    return {name + MASKED: hidden[masked(name, 0)][0].converter for name in contestants if masked(name, 0) in hidden}


def masked(name: str, number: int) -> str:
    """The label of a contestant's scores with a mask on."""
    return f"{name} with mask {number}"


def deficiencies(
    floors: Floors, dials: Mapping[str, Dials | None], scores: Scores, *, groups: list[str], resamples: int
) -> dict[str, dict[str, Any] | None]:
    """Of every contestant; None where nobody was deprived of anything.

    kind, strength and amounts: what was taken. targets: what is left, see distill.spectrum; `mask`: r2c with the mask
    on, the mean over `masks` of them and their deviation, off, and the paired difference. twin: its name. from_twin:
    differences from it by target, see `differences`.
    """
    if not any(dials.values()):
        return dict.fromkeys(floors.contestants)
    twins, weights = floors.twins(), group_weights(groups, resamples=resamples)
    beside = {label: floors.trained[label] for label in twins.values()}
    left = measure(floors.store, floors.contestants | beside, seed=floors.seed, ranks=floors.ranks)
    found: dict[str, dict[str, Any] | None] = {}
    for name, targets in ((name, left[name]) for name in floors.contestants):
        hidden = {target: over_masks(scores, name, target) for target in targets if masked(name, 0) in scores}
        for target, at in hidden.items():
            targets[target]["mask"] = mask_effect(at, scores[name][target], weights)
        at_, twin = dials[name], twins.get(name)
        found[name] = {
            "kind": at_.kind if at_ else "none",
            "strength": at_.strength if at_ else 0.0,
            "amounts": at_.amounts() if at_ else {},
            "targets": targets,
            "twin": twin,
            "from_twin": {
                target: paired(scores[name][target], scores[twin][target], hidden.get(target), weights)
                | differences(targets[target], left[twin][target])
                for target in (targets if twin else ())
            },
        }
    return found


def over_masks(scores: Scores, name: str, target: str) -> list[Alignment]:
    return [scores[masked(name, number)][target] for number in range(MASKS)]


def mean_of(found: Sequence[Alignment]) -> Alignment:
    """One whose sums over a clip are the means of theirs, and so its r2c: for `resampled` alone."""
    whole = copy(found[0])
    whole.clips = torch.stack([at.clips for at in found]).mean(dim=0)
    return whole


def mask_effect(hidden: Sequence[Alignment], whole: Alignment, weights: Tensor) -> dict[str, Any]:
    values = torch.cat([at.resampled(torch.ones(1, weights.shape[1]))["r2c"] for at in hidden])
    return {
        "on": number_or_none(float(values.mean())),
        "off": number_or_none(whole.compute()["r2c"]),
        "masks": len(values),
        "deviation": number_or_none(float(values.std())),
        "difference": paired_gain(mean_of(hidden), whole, weights),
    }


def paired(
    ours: Alignment, twin: Alignment, hidden: Sequence[Alignment] | None, weights: Tensor
) -> dict[str, dict[str, float | None]]:
    """r2c: on the same clips, with the interval over groups. r2c_masked: ours with the mask on; the twin sees all."""
    found = {"r2c": paired_gain(ours, twin, weights)}
    return found | ({"r2c_masked": paired_gain(mean_of(hidden), twin, weights)} if hidden else {})


def differences(ours: Left, twin: Left) -> dict[str, dict[str, float | None]]:
    """k, effective_rank and jacobian, ours less the twin's.

    effective_rank: `of_half` is the same from half of the clips. jacobian: the standard error is that of independent
    directions; both were asked along the same ones, so it is rather too large.
    """
    ranks, halves = ([at["effective_rank"], at["effective_rank"]["of_half"]] for at in (ours, twin)), {}
    for key, mine, other in zip(("value", "of_half"), *ranks, strict=True):
        halves[key] = mine["converted"] - other["converted"]
    value, error = (ours["jacobian"][key] for key in ("value", "standard_error"))
    its_value, its_error = (twin["jacobian"][key] for key in ("value", "standard_error"))
    known = None not in (value, its_value)
    return {
        "k": {"value": ours["rank_recovery"]["k"] - twin["rank_recovery"]["k"]},
        "effective_rank": halves,
        "jacobian": {
            "value": value - its_value if known else None,
            "standard_error": (error**2 + its_error**2) ** 0.5 if known else None,
        },
    }
