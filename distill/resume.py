"""What a run saves on its way, where a resumed one begins, and whether it is the same run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from distill.floors import Floors
from distill.naming import named
from distill.runfolder import RunFolder, newest_checkpoints
from distill.train import Learner
from shards.ranks import Ranks

States = Mapping[str, Mapping[str, Tensor]]  # learner -> its state
# what a resumed run may change
FREE = ("run", "train.resume", "train.checkpoint_every", "train.validate_every", "evaluate.probes", "head")


def resume_point(
    folders: Mapping[str, RunFolder], settings: Mapping[str, Mapping[str, Any]], *, resume: bool
) -> tuple[int, dict[str, States]]:
    """(steps done, {contestant: {learner: state}}) from the newest checkpoint that all contestants have; (0, {}) where
    there is none, or none is wanted.

    settings: of each contestant's run, see `flatten`. Raises ValueError where a checkpoint was written under others.
    """
    found = newest_checkpoints(list(folders.values())) if resume else None
    if found is None:
        return 0, {}
    for (name, folder), (record, _) in zip(folders.items(), found, strict=True):
        refuse_other_settings(folder, settings[name], record["settings"])
    return found[0][0]["step"], {name: states for name, (_, states) in zip(folders, found, strict=True)}


def refuse_other_settings(folder: RunFolder, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    theirs = flatten(theirs)  # empty mappings were once saved
    changed = [key for key in sorted({*ours, *theirs}) if ours.get(key) != theirs.get(key)]
    if changed:
        listed = "; ".join(f"{key} was {theirs.get(key)}, now {ours.get(key)}" for key in changed)
        raise ValueError(
            f"{folder.path} was started with other settings: {listed}. Give the old ones, or a new run.name"
        )


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A recipe's settings as {dotted key: value}, without those that a resumed run may change.

    An empty mapping is no setting, so that a checkpoint stands when recipes can say more.
    """
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if any(path == free or path.startswith(free + ".") for free in FREE):
            continue
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{path}.")
        else:
            flat[path] = value
    return flat


def saver(
    learners: Sequence[Learner],
    floors: Floors,
    folders: Mapping[str, RunFolder],
    settings: Mapping[str, Mapping[str, Any]],
    ranks: Ranks,
) -> Callable[[int], None]:
    """What writes a checkpoint into every folder, with all that its contestant needs to go on alone; every rank must
    call it."""

    def save(step: int) -> None:
        states = {}
        for learner in learners:
            with named(learner.name):
                states[learner.name] = learner.engine.state()

        def write() -> None:
            for name, folder in folders.items():
                record = {"settings": settings[name], "world": ranks.world}
                folder.save_checkpoint(step, floors.part(name, states), record)

        ranks.first(write)

    return save
