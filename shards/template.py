"""Path templates: `features/{label}/{group}/{name}.npy`, and `file.h5::clips/{name}` for arrays inside a file.

A field stands for a part of a path without a slash; `{stem}` alone may hold slashes. Fields that mean something: label,
group, split, factor.NAME; name, stem, source and key tell clips apart.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from shards.arrays import INSIDE, list_entries
from shards.sources import Video, report
from shards.split import SPLITS
from shards.task import FACTOR, factor_problem, prefixed

FIELD = re.compile(r"\{([A-Za-z0-9_.-]+)\}")
FIELDS = ("label", "group", "split", "key", "source", "stem", "name")


def check_template(template: str) -> None:
    """Raises ValueError on a template without a field, or with one that means nothing."""
    fields = FIELD.findall(template)
    if not fields:
        raise ValueError(
            f"--files {template}: no field; write it as in features/{{label}}/{{name}}.npy, or give a .csv"
        )
    unknown = [field for field in fields if field not in FIELDS and not field.startswith(FACTOR)]
    problems = [f"no field {field!r}; there are {', '.join(FIELDS)}, {FACTOR}NAME" for field in unknown]
    factors = [field.removeprefix(FACTOR) for field in fields if field.startswith(FACTOR)]
    problems += [problem for factor in factors if (problem := factor_problem(factor))]
    report(problems, f"--files {template}")


def fixed_root(template: str) -> Path:
    """The folder before the first field."""
    return Path(os.path.dirname(FIELD.split(template, maxsplit=1)[0].partition(INSIDE)[0]) or ".")


def place_of(template: str, record: Mapping[str, Any]) -> str | None:
    """The place of a clip's array by its record, or None where the record lacks a field."""
    stem = record.get("stem", os.path.splitext(str(record["source"]))[0])
    values = {name: record.get(name) for name in ("key", "label", "group", "split", "source")}
    values |= {"stem": stem, "name": record.get("name", PurePosixPath(stem.rpartition(INSIDE)[2]).name)}
    values |= prefixed(record.get("factors", {}))
    needed = FIELD.findall(template)
    if any(values.get(name) is None for name in needed):
        return None
    return FIELD.sub(lambda match: str(values[match[1]]), template)


def find_places(template: str) -> list[Video]:
    """Every array that a template names, with what its fields say, sorted by name.

    Raises ValueError where there is none, or one whose fields make no sense.
    """
    check_template(template)
    for field in ("key", "source"):
        if f"{{{field}}}" in template:
            raise ValueError(f"--files {template}: a new store has no {field}s yet; use {{name}} or {{stem}}")
    file, _, entry = template.partition(INSIDE)
    root, videos, problems = fixed_root(template), [], []
    for path, outer in _matching_files(file):
        for inner in list_entries(Path(path)) if entry else [""]:
            fields = match_fields(entry, inner)
            if fields is None or any(outer.get(field, value) != value for field, value in fields.items()):
                continue
            fields = outer | fields
            place = f"{path}{INSIDE}{inner}" if entry else path
            name = Path(os.path.relpath(path, root)).as_posix() + (f"{INSIDE}{inner}" if entry else "")
            video = Video(
                place, name, name, os.path.getsize(path), label=fields.get("label"), group=fields.get("group")
            )
            video.split = fields.get("split")
            video.factors = {k.removeprefix(FACTOR): v for k, v in fields.items() if k.startswith(FACTOR)}
            if video.split not in (None, *SPLITS):
                problems.append(f"{name}: split is {video.split!r}; it is one of {', '.join(SPLITS)}")
            videos.append(video)
    report(problems, f"--files {template}")
    if not videos:
        raise ValueError(f"--files {template}: nothing is there of that name")
    return videos


def _matching_files(template: str) -> list[tuple[str, dict[str, str]]]:
    """Files with the values of a template's fields."""
    parts = FIELD.split(template)
    wild = ["**/*" if part == "stem" else "*" if place % 2 else glob.escape(part) for place, part in enumerate(parts)]
    paths = sorted(path for path in glob.glob("".join(wild), recursive=True) if os.path.isfile(path))
    return [(path, fields) for path in paths if (fields := match_fields(template, path)) is not None]


def match_fields(template: str, text: str) -> dict[str, str] | None:
    """The fields' values where a text fits; a field that stands twice has one value."""
    names: list[str] = []
    pattern = ""
    for place, part in enumerate(FIELD.split(template)):
        if place % 2 == 0:
            pattern += re.escape(part)
        elif part in names:
            pattern += f"(?P=f{names.index(part)})"
        else:
            pattern += f"(?P<f{len(names)}>{'.+' if part == 'stem' else '[^/]+'})"
            names.append(part)
    match = re.fullmatch(pattern, text)
    return {name: match[f"f{number}"] for number, name in enumerate(names)} if match else None
