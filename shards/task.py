"""Tasks: what the clips of a store are labelled by, their label and further labels (factors) by name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LABEL = "label"  # the task that is no factor
FACTOR = "factor."  # before the name: a CSV's column, a sidecar's key
_NAME = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class Task:
    """values: distinct names, sorted. indices: into `values`, one per clip of the store, -1 where it has no value."""

    values: list[str]
    indices: list[int]

    @classmethod
    def of(cls, values: Sequence[str | None]) -> Task:
        """From every clip's value or None."""
        names = sorted({value for value in values if value is not None})
        index = {name: number for number, name in enumerate(names)}
        return cls(names, [-1 if value is None else index[value] for value in values])


def factor_problem(name: str) -> str | None:
    """What is wrong with a factor's name, or None."""
    if name == LABEL:
        return f"{FACTOR}{name}: no factor can have this name, {LABEL} is a column of its own; rename it"
    if not _NAME.fullmatch(name):
        return f"{FACTOR}{name} names the factor {name!r}; a name is letters, digits, _ and -; rename it"
    return None


def are_factors(value: Any) -> bool:
    """Whether a record's entry is what a writer puts there: names -> texts."""
    return isinstance(value, dict) and all(
        not factor_problem(name) and isinstance(text, str) for name, text in value.items()
    )


def prefixed(factors: Mapping[str, str]) -> dict[str, str]:
    """Factors under the names of their columns."""
    return {FACTOR + name: value for name, value in factors.items()}


def tasks_of(records: Sequence[Mapping[str, Any]]) -> dict[str, Task]:
    """Every factor of a store's clips, in the order of their names."""
    names = sorted({name for record in records for name in record.get("factors", {})})
    return {name: Task.of([record.get("factors", {}).get(name) for record in records]) for name in names}
