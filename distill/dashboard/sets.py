"""Which runs can be compared: on the same clips, and on every target that they share in the same space.

The rules are those of distill.scoreboard, on which a test holds these two to each other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from distill.dashboard.summary import Summary, section

MUST_AGREE = ("split", "view", "data", "normaliser")
Values = tuple[Any, Any]


def held_together(ours: Summary, theirs: Summary) -> dict[str, Values]:
    """What two runs must agree in to be compared -> what each has: split, view, data, normaliser, and that of each
    target that they share.

    The normaliser is one of all targets, and says nothing of runs on other ones. Those must say in which space they
    scored every target that they share; runs of the same targets need not.
    """
    digests = section(ours, "digests"), section(theirs, "digests")
    alike = set(ours["targets"]) == set(theirs["targets"])
    found = {name: pair(*digests, name) for name in MUST_AGREE if alike or name != "normaliser"}
    for target in ours["targets"]:
        space = pair(section(ours, "spaces"), section(theirs, "spaces"), target)
        if target in theirs["targets"] and not (alike and None in space):
            found[f"normaliser of {target}"] = space
    return found


def differing(ours: Summary, theirs: Summary) -> dict[str, Values]:
    """Those of them that keep two runs from being compared."""
    found = held_together(ours, theirs)
    return {name: (a, b) for name, (a, b) in found.items() if a != b or (a is None and name not in MUST_AGREE)}


def pair(ours: Mapping[str, Any], theirs: Mapping[str, Any], name: str) -> Values:
    return ours.get(name), theirs.get(name)


def comparable_sets(briefs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Parts the finished runs into sets within which all can be compared, the largest first: writes the id of its set
    into each, and says of every set its digests, clips, targets, and in what it differs from the first.

    A set is known by each of its `kinds`, so that what was called after one is found when further runs have come.
    """
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
    first = [next(iter(one["kinds"].values())) for one in sets]
    found = [
        {
            "id": next(iter(one["kinds"])),
            "kinds": list(one["kinds"]),
            "digests": at["digests"],
            "clips": at["clips"],
            "differs": list(differing(at, first[0])),
            "runs": len(one["runs"]),
            "targets": sorted({target for brief in one["runs"] for target in brief["targets"]}),
        }
        for at, one in zip(first, sets, strict=True)
    ]
    for one, about in zip(sets, found, strict=True):
        for brief in one["runs"]:
            brief["set"] = about["id"]
    return found


def kind(brief: Mapping[str, Any]) -> str:
    """The same for runs that differ from no other run but together: a digest of all that `differing` looks at."""
    digests = [brief["digests"].get(name) for name in MUST_AGREE]
    told = [digests, sorted(brief["targets"]), sorted(brief["spaces"].items())]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:12]
