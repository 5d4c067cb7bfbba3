"""Runs that differ in their seed alone, as one: means of what was measured, and the widest of the intervals."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import yaml

Summary = dict[str, Any]


def by_recipe(runs: Sequence[Path]) -> list[list[Path]]:
    """The runs whose recipes are the same but for seed and folder, in groups, in the order of their first.

    Raises ValueError where a seed comes twice: that would be one run counted as two.
    """
    groups: dict[str, dict[int, Path]] = {}
    for run in runs:
        recipe = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
        seed, _ = recipe["train"].pop("seed"), recipe.pop("run", None)
        digest = hashlib.sha256(yaml.safe_dump(recipe).encode()).hexdigest()
        others = groups.setdefault(digest, {})
        if seed in others:
            raise ValueError(f"{others[seed]} and {run} have the same recipe and the same seed {seed}; leave one out")
        others[seed] = run
    return [list(found.values()) for found in groups.values()]


def one_of(summaries: Sequence[Summary]) -> Summary:
    """One summary for those of several seeds: numbers are means, `low` the lowest and `high` the highest of all seeds'
    bounds, so that what holds for this interval holds for every seed's.

    Raises ValueError where one summary has an entry that another lacks.
    """
    return _one(list(summaries), "")


def _one(values: list[Any], name: str, *, intervals: bool = False) -> Any:
    """intervals: lists are such, not rows of numbers."""
    first = values[0]
    if isinstance(first, Mapping):
        if any(set(value) != set(first) for value in values):
            raise ValueError(f"the summaries differ in the entries of {name or 'their top'}; give runs of one version")
        return {
            key: _one([value[key] for value in values], key, intervals=intervals or key == "intervals") for key in first
        }
    if name == "alarms":
        return sorted({alarm for value in values for alarm in value})
    if isinstance(first, list) and not intervals:
        return [_one(list(each), name) for each in zip(*values, strict=True)]
    if isinstance(first, list):
        return [pick(ends) for pick, ends in zip((lowest, highest), zip(*values, strict=True), strict=True)]
    if all(isinstance(value, int | float) for value in values):
        return {"low": lowest, "high": highest}.get(name, mean)(values)
    return first if all(value == first for value in values) else None


def lowest(values: Sequence[float | None]) -> float | None:
    return None if None in values else min(values)  # type: ignore[type-var]


def highest(values: Sequence[float | None]) -> float | None:
    return None if None in values else max(values)  # type: ignore[type-var]
