"""What there is to choose from: the recipes, the groups and their options, each with the first line of its file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_type_hints

from recipes.keys import bare
from recipes.schema import Recipe

FOLDER = Path(__file__).resolve().parent
INDENT = " " * 4

Files = dict[str, Path]


def find_recipes(folder: Path = FOLDER) -> Files:
    """name -> file of every recipe."""
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}


def find_groups(folder: Path = FOLDER) -> dict[str, Files]:
    """group -> option -> file."""
    groups = {part.name: {file.stem: file for file in sorted(part.glob("*.yaml"))} for part in sorted(folder.iterdir())}
    return {name: options for name, options in groups.items() if options}


def purpose(file: Path) -> str:
    """The first comment line of a YAML file."""
    first = file.read_text(encoding="utf-8").partition("\n")[0]
    return first.lstrip("# ").strip() if first.startswith("#") else ""


def unknown(what: str, name: str, valid: Iterable[str]) -> str:
    """The message for a name that is not there: the nearest valid one first, then all of them."""
    names = sorted(valid)
    near = get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"unknown {what} {name!r}; {hint}valid: {', '.join(names)}"


def written(value: Any) -> str:
    """A value as it is typed on the command line: null, true, 0.5, [mean,ridge]."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).replace('"', "")


def help_text(program: str, folder: Path = FOLDER) -> str:
    """Usage, every recipe, every group with its options, and every key with its default."""
    lines = [f"usage: {program} recipe=NAME [group=option ...] [key=value ...]"]
    lines += [f"       {program} recipe=FILE.yaml [key=value ...]    FILE.yaml: the recipe.yaml of another run"]
    lines += ["", "Recipes:", *_table(find_recipes(folder)), "", "Groups:"]
    for group, options in find_groups(folder).items():
        lines += [f"  {group}=", *_table(options)]
    lines += ["", "Keys and their defaults (recipes/schema.py says what each means):"]
    for section, kind in get_type_hints(Recipe).items():
        if is_dataclass(inner := bare(kind)):
            lines += [f"{INDENT}{section}: {' '.join(_defaults(inner))}"]
    lines += [
        f"{INDENT}targets.NAME: as student",
        f"{INDENT}contest.NAME: as converter, and deficiency",
        "",
        "Examples:",
    ]
    lines += [f"{INDENT}{program} recipe=perceiver_videomae data=folder data.root=DIR"]
    lines += [f"{INDENT}{program} recipe=perceiver_all targets=[videomae,vivit] train.steps=200"]
    lines += [f"{INDENT}{program} recipe=contest_videomae contest=[perceiver,mamba] contest.mamba.skip=none"]
    return "\n".join(lines)


def _table(files: Mapping[str, Path]) -> list[str]:
    width = max((len(name) for name in files), default=0)
    return [f"{INDENT}{name:<{width}}  {purpose(file)}".rstrip() for name, file in files.items()]


def _defaults(kind: Any) -> list[str]:
    """`key=default` for every key of a section; a bare `key` where the recipe has to give it."""
    words = []
    for entry in fields(kind):
        default = entry.default_factory() if entry.default_factory is not MISSING else entry.default
        words.append(entry.name if default is MISSING else f"{entry.name}={written(default)}")
    return words
