"""Train, val and test, by group: what belongs to one group never stands on two sides."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

SPLITS = ("train", "val", "test")
FEWEST = {"train": 2, "val": 1, "test": 1}  # groups of a split; ridge holds train groups against each other
BOUNDS = {"train": (0.0, 0.70), "val": (0.70, 0.85), "test": (0.85, 1.0)}  # shares of the hash's range [0, 1)


def _place(group: str, seed: str) -> float:
    """The group's place in [0, 1): the first 8 bytes of a sha256, the same on every machine."""
    digest = hashlib.sha256(f"{seed}{group}".encode("utf-8", "surrogateescape")).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def split_of(group: str, seed: str = "") -> str:
    """The split that a hash of the group's name gives: 70% train, 15% val, 15% test."""
    place = _place(group, seed)
    return next(split for split, (_, high) in BOUNDS.items() if place < high)


def assign_splits(groups: Sequence[str], given: Sequence[str | None]) -> tuple[list[str], list[str]]:
    """The split of every clip, and notes on what had to be moved.

    groups: each clip's group. given: each clip's split as the user states it, or None. A given split holds for the
    whole group; the other groups are hashed. Where that leaves a split with too few groups, the hashed group that lies
    nearest to it moves there. Raises ValueError when a group is given two splits, when there are fewer than three
    groups, and when given splits leave one with too few that no hashed group can fill.
    """
    names = list(dict.fromkeys(groups))
    if len(names) < len(SPLITS):
        raise ValueError(
            f"{len(groups)} clips make {len(names)} group(s): {', '.join(map(repr, names)) or 'none'}; at least three "
            "are needed, one each for train, val and test, since a group never stands on two sides; add videos, or let "
            "data.group (or the CSV's group column) tell groups apart"
        )
    stated = _stated(groups, given)
    chosen = {name: stated.get(name) or split_of(name) for name in names}
    notes = []
    fewest = FEWEST if len(names) >= sum(FEWEST.values()) else dict.fromkeys(SPLITS, 1)
    for short in SPLITS:
        while (count := Counter(chosen.values()))[short] < fewest[short]:
            movable = [name for name in names if name not in stated and count[chosen[name]] > fewest[chosen[name]]]
            if not movable:
                held = ", ".join(f"{split} {count[split]}" for split in SPLITS)
                raise ValueError(
                    f"{short} has {count[short]} group(s) and needs {fewest[short]}: with the given splits the groups "
                    f"are {held}, and none is free to move; give more groups split={short}, or leave some open"
                )
            name = min(movable, key=lambda name: (_distance(name, short), name))
            notes.append(f"group {name!r} moved from {chosen[name]} to {short}, where the hash had put too few")
            chosen[name] = short
    return [chosen[group] for group in groups], notes


def _stated(groups: Sequence[str], given: Sequence[str | None]) -> dict[str, str]:
    """Group -> the split that the user gave it."""
    sides = defaultdict(set)
    for group, split in zip(groups, given, strict=True):
        if split is not None:
            if split not in SPLITS:
                raise ValueError(f"group {group!r} is given the split {split!r}; a split is one of {', '.join(SPLITS)}")
            sides[group].add(split)
    torn = {group: sorted(splits) for group, splits in sides.items() if len(splits) > 1}
    if torn:
        lines = "; ".join(f"group {group!r} is given {' and '.join(splits)}" for group, splits in torn.items())
        raise ValueError(f"{lines}: all clips of one group must stand on one side")
    return {group: splits.pop() for group, splits in sides.items()}


def _distance(group: str, split: str, seed: str = "") -> float:
    low, high = BOUNDS[split]
    place = _place(group, seed)
    return max(low - place, place - high, 0.0)


def split_digest(keys: Iterable[str], splits: Iterable[str]) -> str:
    """Identifies which clip stands on which side, whatever their order."""
    lines = sorted(f"{key} {split}\n" for key, split in zip(keys, splits, strict=True))
    return hashlib.sha256("".join(lines).encode()).hexdigest()
