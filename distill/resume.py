"""Where a resumed run begins, and whether it is the same run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from distill.runfolder import RunFolder

FREE = ("run", "train.resume", "train.checkpoint_every", "train.validate_every")  # what a resumed run may change


def resume_point(
    folder: RunFolder, settings: Mapping[str, Any], *, resume: bool
) -> tuple[int, dict[str, dict[str, Tensor]]]:
    """(steps done, {learner: state}) from the newest checkpoint; (0, {}) where there is none, or none is wanted.

    settings: of this run, see `flatten`. Raises ValueError where the checkpoint was written under others.
    """
    found = folder.newest_checkpoint() if resume else None
    if found is None:
        return 0, {}
    record, states = found
    theirs = record["settings"]
    changed = [key for key in sorted({*settings, *theirs}) if settings.get(key) != theirs.get(key)]
    if changed:
        listed = "; ".join(f"{key} was {theirs.get(key)}, now {settings.get(key)}" for key in changed)
        raise ValueError(
            f"{folder.path} was started with other settings: {listed}. Give the old ones, or a new run.name"
        )
    return record["step"], states


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A recipe's settings as {dotted key: value}, without those that a resumed run may change."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if any(path == free or path.startswith(free + ".") for free in FREE):
            continue
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{path}.")
        else:
            flat[path] = value
    return flat
