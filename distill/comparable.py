"""Which runs can be compared: on the same clips, and on every target that they share in the same space."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MUST_AGREE = ("split", "view", "data", "normaliser")
Values = tuple[Any, Any]


def held_together(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Values]:
    """What two runs must agree in to be compared -> what each has: split, view, data, normaliser, and that of each
    target that they share.

    The normaliser is one of all targets, and says nothing of runs on other ones. Those must say in which space they
    scored every target that they share; runs of the same targets need not.
    """
    digests = ours.get("digests", {}), theirs.get("digests", {})
    alike = set(ours["targets"]) == set(theirs["targets"])
    found = {name: pair(*digests, name) for name in MUST_AGREE if alike or name != "normaliser"}
    for target in ours["targets"]:
        space = pair(ours.get("spaces", {}), theirs.get("spaces", {}), target)
        if target in theirs["targets"] and not (alike and None in space):
            found[f"normaliser of {target}"] = space
    return found


def differing(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Values]:
    """Those of them that keep two runs from being compared."""
    found = held_together(ours, theirs)
    return {name: (a, b) for name, (a, b) in found.items() if a != b or (a is None and name not in MUST_AGREE)}


def pair(ours: Mapping[str, Any], theirs: Mapping[str, Any], name: str) -> Values:
    return ours.get(name), theirs.get(name)
