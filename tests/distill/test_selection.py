"""What is chosen after training: the better of two sets of weights on val, for every learner by itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from distill import selection
from distill.selection import Choice, choose_weights


class Engine:
    """Remembers which weights it carries."""

    carries = "last"

    @contextmanager
    def averaged(self) -> Iterator[None]:
        self.carries = "averaged"
        yield
        self.carries = "last"

    def keep_average(self) -> None:
        self.carries = "averaged"


R2C: dict[tuple[str, str], dict[str, float]] = {
    ("converter", "last"): {"a": 0.5, "b": 0.1},
    ("converter", "averaged"): {"a": 0.4, "b": 0.3},  # better in the mean
    ("skip", "last"): {"a": 0.5, "b": 0.1},
    ("skip", "averaged"): {"a": 0.5, "b": 0.1},  # no better
    ("mlp", "last"): {"a": 0.2, "b": 0.2},
    ("mlp", "averaged"): {"a": 0.3, "b": 0.0},
}


def test_every_learner_keeps_its_better_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    engines = {name: Engine() for name in ("converter", "skip", "mlp")}
    learners: Any = [SimpleNamespace(name=name, engine=engine) for name, engine in engines.items()]

    def scored(*args: object, **options: object) -> dict:
        return {name: R2C[name, engine.carries] for name, engine in engines.items()}

    monkeypatch.setattr(selection, "validation_r2c", scored)
    chosen = choose_weights(learners, {}, None, queries=None, ranks=None)  # type: ignore[arg-type]
    assert chosen == {
        "converter": Choice("averaged", {"a": 0.4, "b": 0.3}),
        "skip": Choice("last", {"a": 0.5, "b": 0.1}),
        "mlp": Choice("last", {"a": 0.2, "b": 0.2}),
    }
    assert {name: engine.carries for name, engine in engines.items()} == {
        "converter": "averaged",
        "skip": "last",
        "mlp": "last",
    }
