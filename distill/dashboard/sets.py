"""Which runs can be compared: on the same clips, and on every target that they share in the same space.

The rules are those of distill.scoreboard, on which a test holds these two to each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from distill.dashboard.summary import Summary, section

MUST_AGREE = ("split", "view", "data", "normaliser")
Values = tuple[Any, Any]


def differing(ours: Summary, theirs: Summary) -> dict[str, Values]:
    """What keeps two runs from being compared: split, view, data, normaliser, or the normaliser of a target -> what
    each has.

    The normaliser is one of all targets, and says nothing of runs on other ones. Those must have scored every target
    that they share in the same space, and say so.
    """
    digests = section(ours, "digests"), section(theirs, "digests")
    alike = set(ours["targets"]) == set(theirs["targets"])
    found = {name: pair(*digests, name) for name in MUST_AGREE if alike or name != "normaliser"}
    for target in ours["targets"]:
        space = pair(section(ours, "spaces"), section(theirs, "spaces"), target)
        if target in theirs["targets"] and not (alike and None in space):
            found[f"normaliser of {target}"] = space
    return {name: (a, b) for name, (a, b) in found.items() if a != b or (a is None and name not in MUST_AGREE)}


def pair(ours: Mapping[str, Any], theirs: Mapping[str, Any], name: str) -> Values:
    return ours.get(name), theirs.get(name)


def comparable_sets(briefs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Parts the finished runs into sets within which all can be compared, the largest first: writes the number of its
    set into each, and says of every set its digests, clips, targets, and in what it differs from the first."""
    sets: list[dict[str, Any]] = []
    for brief in briefs:
        if "targets" not in brief:
            continue
        home = next((one for one in sets if not any(differing(brief, other) for other in one["kinds"].values())), None)
        if home is None:
            home = {"kinds": {}, "runs": []}
            sets.append(home)
        home["kinds"].setdefault(kind(brief), brief)
        home["runs"].append(brief)
    sets.sort(key=lambda one: -len(one["runs"]))
    for number, one in enumerate(sets):
        for brief in one["runs"]:
            brief["set"] = number
    first = [next(iter(one["kinds"].values())) for one in sets]
    return [
        {
            "digests": at["digests"],
            "clips": at["clips"],
            "differs": list(differing(at, first[0])),
            "runs": len(one["runs"]),
            "targets": sorted({target for brief in one["runs"] for target in brief["targets"]}),
        }
        for at, one in zip(first, sets, strict=True)
    ]


def kind(brief: Mapping[str, Any]) -> tuple[frozenset[str], frozenset[str]]:
    """Runs of one kind differ from no other run but together: they have the same targets, and say as much of them."""
    return frozenset(brief["targets"]), frozenset(brief["spaces"])
