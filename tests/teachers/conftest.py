"""Tiny networks, saved as a user would save them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import build_tiny


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Any, Path]]:
    """tiny(name, **changes of its configuration) -> (transformers model, folder that holds it)."""
    cache: dict[tuple[str, str], tuple[Any, Path]] = {}

    def make(name: str, **changes: Any) -> tuple[Any, Path]:
        key = (name, repr(sorted(changes.items())))
        if key not in cache:
            model, folder = build_tiny(name, **changes), tmp_path_factory.mktemp(name)
            model.save_pretrained(folder)
            cache[key] = (model, folder)
        return cache[key]

    return make
