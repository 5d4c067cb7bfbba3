"""Runs in sets within which all can be compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from distill.comparable import MUST_AGREE, differing


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
