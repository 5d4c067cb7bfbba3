"""The keys that a recipe may have: their types, their dotted paths, and the nearest one to a misspelling."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from difflib import SequenceMatcher
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from recipes.schema import Recipe

NAMED = {"targets": "backbone", "contest": "family"}  # sections whose entries a user names -> the key each must have


def kind_of(path: str) -> Any:
    """The schema's type at a dotted path, without `| None`; None where the schema has no such key."""
    kind: Any = Recipe
    for step in path.split("."):
        if is_dataclass(kind):
            kind = bare(get_type_hints(kind).get(step))
        elif get_origin(kind) is dict:
            kind = bare(get_args(kind)[1])
        else:
            return None
    return kind


def is_text(path: str) -> bool:
    """Whether the schema wants text at this path, so that what a user types is taken as it stands."""
    kind = kind_of(path)
    return kind is str or (get_origin(kind) is Literal and all(isinstance(option, str) for option in get_args(kind)))


def paths(tree: Mapping[str, Any], kind: Any = Recipe, prefix: str = "") -> list[str]:
    """All dotted paths that the schema knows, with the names of targets and contestants that this tree has."""
    found: list[str] = []
    hints = get_type_hints(kind)
    for entry in fields(kind):
        inner, path = bare(hints[entry.name]), f"{prefix}{entry.name}"
        found.append(path)
        if is_dataclass(inner):
            found += paths({}, inner, f"{path}.")
        elif entry.name in NAMED:
            for name in whole_entries(tree, entry.name):
                found += [f"{path}.{name}", *paths({}, get_args(inner)[1], f"{path}.{name}.")]
    return found


def whole_entries(tree: Mapping[str, Any], section: str) -> list[str]:
    """Names in a section of NAMED whose entries have the key that each must have; the others are misspelled or
    unfinished."""
    found = tree.get(section)
    entries = found.items() if isinstance(found, dict) else ()
    return [str(name) for name, entry in entries if isinstance(entry, dict) and NAMED[section] in entry]


def hint(name: str, valid: Iterable[str], *, prefix: str = "") -> str:
    """`; did you mean NEAREST?`, or nothing where nothing is near. `lr` means the keys of that name in any section.

    prefix: put before the names that are shown.
    """
    valid = list(valid)
    namesakes = [other for other in valid if other.rpartition(".")[2] == name]
    if namesakes:
        return f"; did you mean {' or '.join(prefix + other for other in namesakes)}?"

    def likeness(other: str) -> float:
        key, other_key = name.rpartition(".")[2], other.rpartition(".")[2]
        whole, key_alone = (SequenceMatcher(None, *pair).ratio() for pair in ((name, other), (key, other_key)))
        return max(whole, 0.9 * key_alone) + (key == other_key)

    near = max(valid, key=likeness, default="")
    return f"; did you mean {prefix}{near}?" if near and likeness(near) >= 0.6 else ""


def bare(kind: Any) -> Any:
    """The type without Annotated and without `| None`."""
    if get_origin(kind) is Annotated:
        return bare(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return bare(next(option for option in get_args(kind) if option is not NoneType))
    return kind
