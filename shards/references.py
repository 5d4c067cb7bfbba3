"""References of an evaluation as columns: the teacher on other renderings of the test clips.

student_frames   the teacher on the frames that the student sees
shift_1, 2, 4    on a view that is moved by so many pixels of its input: a scale of errors

They are ordinary columns of a store, REFERENCE_TARGET, over the test clips alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from shards.store import FeatureStore

FRAMES, SHIFT = "student_frames", "shift_"
SHIFTS = (1, 2, 4)  # pixels
RENDERED = {FRAMES: (FRAMES,), "shifts": tuple(f"{SHIFT}{pixels}" for pixels in SHIFTS)}  # as a recipe asks for them


def reference_names(asked: Collection[str]) -> list[str]:
    """Of those that are other renderings, among what a recipe asks for."""
    return [name for kind, names in RENDERED.items() if kind in asked for name in names]


def reference_column(reference: str, target: str) -> str:
    return f"{reference}_{target}"


@dataclass(frozen=True)
class References:
    """store: of the targets and their references, on the clips that have all. columns: reference -> target -> column.
    missing: sentences on what was asked for and is not there."""

    store: FeatureStore | None
    columns: Mapping[str, Mapping[str, str]]
    missing: Sequence[str] = ()


def find_references(store: FeatureStore, targets: Mapping[str, Sequence[str]], asked: Collection[str]) -> References:
    """Those of a store's references that a recipe asks for and that are whole. targets: name -> special tokens that are
    converted."""
    columns: dict[str, dict[str, str]] = {}
    for reference in reference_names(asked):
        for target in targets:
            column = store.manifest.columns.get(reference_column(reference, target))
            if column is not None and column.complete:
                columns.setdefault(reference, {})[target] = column.name
    missing = list(_missing(columns, targets, asked))
    if not columns:
        return References(None, {}, missing)
    special = dict(targets) | {name: targets[target] for found in columns.values() for target, name in found.items()}
    return References(FeatureStore(store.mirror or store.path, list(special), special=special), columns, missing)


def _missing(
    columns: Mapping[str, Mapping[str, str]], targets: Collection[str], asked: Collection[str]
) -> Iterator[str]:
    for kind, names in RENDERED.items():
        lacking = [target for target in targets if any(target not in columns.get(name, {}) for name in names)]
        if kind in asked and lacking:
            yield (
                f"references: no {kind} of {', '.join(lacking)}: these are made with the videos, and the store has none"
            )
