"""Runs that differ in their seed alone, as one: means of what was measured, and the widest of the intervals."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import yaml

Summary = dict[str, Any]
# Numbers that were set or counted, and not measured: a mean of them says nothing, so they stay where all runs agree.
SET = ("mlp_rate", "threads", "strength", "of", "masks", "tokens", "clips", "beyond")
ALL_SET = ("amounts", "clips")  # entries below which all numbers are of that kind


def by_recipe(runs: Sequence[Path]) -> list[list[Path]]:
    """The runs whose recipes are the same but for seed and folder, in groups, in the order of their first.

    Raises ValueError where a seed comes twice: that would be one run counted as two; and where a recipe is none.
    """
    groups: dict[str, dict[int, Path]] = {}
    for run in runs:
        recipe = read_recipe(run / "recipe.yaml")
        seed, _ = recipe["train"].pop("seed"), recipe.pop("run", None)
        digest = hashlib.sha256(yaml.safe_dump(recipe).encode()).hexdigest()
        others = groups.setdefault(digest, {})
        if seed in others:
            raise ValueError(f"{others[seed]} and {run} have the same recipe and the same seed {seed}; leave one out")
        others[seed] = run
    return [list(found.values()) for found in groups.values()]


def read_recipe(path: Path) -> dict[str, Any]:
    """Raises ValueError where a file is not the recipe of a run, whose seed an own entry tells."""
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not the recipe of a run ({' '.join(str(error).split())})") from None
    train = recipe.get("train") if isinstance(recipe, dict) else None
    if not isinstance(train, dict) or type(train.get("seed")) is not int:
        raise ValueError(f"{path} is not the recipe of a run (it has no train.seed); give folders that runs wrote")
    return recipe


def one_of(summaries: Sequence[Summary]) -> Summary:
    """One summary for those of several seeds: what was measured becomes its mean, `low` the lowest and `high` the
    highest of all seeds' bounds, so that what holds for this interval holds for every seed's. All else, booleans and
    what is SET or below ALL_SET among it, is kept where all agree, and None where they do not.

    Raises ValueError where one summary has an entry that another lacks.
    """
    return _one(list(summaries), "")


def _one(values: list[Any], name: str, *, intervals: bool = False, measured: bool = True) -> Any:
    """intervals: lists are such, not rows of numbers. measured: numbers are, and have a mean."""
    first = values[0]
    if isinstance(first, Mapping):
        if any(not isinstance(value, Mapping) or set(value) != set(first) for value in values):
            raise ValueError(f"the summaries differ in the entries of {name or 'their top'}; give runs of one version")
        how = {"measured": measured and name not in ALL_SET}
        return {
            key: _one([value[key] for value in values], key, intervals=intervals or key == "intervals", **how)
            for key in first
        }
    if name == "alarms":
        return sorted({alarm for value in values for alarm in value})
    if isinstance(first, list):
        lengths = [str(len(value)) if isinstance(value, list) else "none" for value in values]
        if len(set(lengths)) > 1:
            raise ValueError(f"the summaries differ in the length of {name}: {', '.join(lengths)}")
        columns = [list(each) for each in zip(*values, strict=True)]
        if intervals:
            return [pick(ends) for pick, ends in zip((lowest, highest), columns, strict=True)]
        return [_one(column, name, measured=measured) for column in columns]
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    if numbers and measured and name not in SET:
        return {"low": lowest, "high": highest}.get(name, mean)(values)
    return first if all(value == first for value in values) else None


def lowest(values: Sequence[float | None]) -> float | None:
    return None if None in values else min(values)  # type: ignore[type-var]


def highest(values: Sequence[float | None]) -> float | None:
    return None if None in values else max(values)  # type: ignore[type-var]
