"""Whose error it is, where several contestants or learners do the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

MASKED = " with the mask on"  # behind the name of a contestant, or of what it is converted to


@contextmanager
def named(name: str) -> Iterator[None]:
    """Puts a contestant's or a learner's name before a ValueError that is raised within."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
