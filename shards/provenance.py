"""How a store was made on this machine, beside it: so that an audit can run its backbones again.

recipe.json is no part of the format: it names places of this machine, and a store without it is whole.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shards.disk import read_inside, write_atomically

RECIPE = "recipe.json"
SECTIONS = ("recipe", "data", "student", "targets", "backbones", "converter", "contest")


def remember(root: Path, recipe: Any) -> None:
    """Writes what the columns follow from; targets of an earlier recipe stay."""
    told = {name: value for name, value in asdict(recipe).items() if name in SECTIONS}
    before = recall(root) or {}
    told["targets"] = before.get("targets", {}) | told["targets"]
    if told != before:
        write_atomically(root / RECIPE, [json.dumps(told, indent=1, ensure_ascii=False).encode() + b"\n"])


def recall(root: Path) -> dict[str, Any] | None:
    """What was remembered, or None where nothing (readable) was."""
    try:
        told = json.loads(read_inside(root, RECIPE))
        return told if isinstance(told, dict) and isinstance(told.get("targets", {}), dict) else None
    except (FileNotFoundError, ValueError, RecursionError):
        return None
