"""Command: features that a user already has -> a column, without the videos.

    python -m shards.importer STORE --column NAME --layout FILE.yaml --files TEMPLATE

TEMPLATE: features/{label}/{group}/{name}.npy, or FILE.h5::clips/{name} for arrays inside a file; .npy, .pt (weights
only), .safetensors and HDF5 are read. In a new store the files are the clips, and the fields say their label, group,
split and factor.NAME; or TEMPLATE is a CSV, path,label[,split,group,factor.NAME], of such files. In a store that is
there the fields are filled from the records of its clips; a clip without a file is declared as not covered.

FILE.yaml: grid: [t, h, w] (or null), dim, and where needed special: [cls], extent: [[0, 1], [0, 1], [0, 1]] (the box
that the grid spans, as fractions of the view), origin: {function, revision, licence, ...}.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import xxhash
from torch import Tensor
from tqdm import tqdm

from shards.addition import add_column
from shards.arrays import INSIDE, ArrayError, LastFile, list_entries, read_tokens
from shards.codec import CODECS, check_codec
from shards.column import check_column
from shards.manifest import MANIFEST, Column, Manifest, digest
from shards.plan import default_clips_per_shard
from shards.prefetch import prefetch
from shards.records import is_finished, write_records
from shards.sources import read_csv
from shards.store import FeatureStore
from shards.template import check_template, find_places, fixed_root, match_fields, place_of
from shards.videos import Clip, make_clips
from teachers.layout import TokenLayout

VIEW = {"imported": "features made elsewhere: a clip's view is what they were made from"}
CHUNK = 2**22  # bytes read at a time
NAMED = 5  # refused clips that are printed


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 1 with a message."""
    lines = str(__doc__).splitlines()
    parser = argparse.ArgumentParser(
        prog="python -m shards.importer",
        description=lines[0],
        epilog="\n".join(lines[4:]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("store", type=Path, help="a feature store, or a new folder")
    parser.add_argument("--column", required=True, help="name of the new column; converters read 'student'")
    parser.add_argument("--layout", required=True, type=Path, help="YAML: what the tokens mean")
    parser.add_argument("--files", required=True, help="template of the files' paths, or a CSV of them")
    parser.add_argument("--codec", choices=CODECS, default="int8")
    arguments = parser.parse_args(argv)
    try:
        layout, origin = read_layout(arguments.layout)
        import_column(
            arguments.store,
            column=arguments.column,
            files=arguments.files,
            layout=layout,
            origin=origin,
            codec=arguments.codec,
        )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def read_layout(path: Path) -> tuple[TokenLayout, dict[str, str]]:
    """The layout and the origin that a YAML file declares. Raises ValueError naming the file and the entry."""
    import yaml

    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(document, dict):
            raise ValueError(f"holds {document!r}, no entries")
        origin = document.pop("origin", None) or {}
        if not isinstance(origin, dict) or not all(isinstance(text, str) for text in [*origin, *origin.values()]):
            raise ValueError(f"origin is {origin!r}; it has names and texts")
        return TokenLayout.from_dict(document), origin
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: {error}") from error


def import_column(
    root: Path,
    *,
    column: str,
    files: str,
    layout: TokenLayout,
    origin: dict[str, str],
    codec: str = "int8",
    say: Callable[[str], None] = print,
) -> Column:
    """Adds a column from files; makes the store where there is none. What a killed start has done stays.

    A file that is damaged, of another shape or not finite refuses its clip by name. Raises ValueError and its kin on a
    template that names nothing, contradicts the store, or a column that was made otherwise.
    """
    check_column(column)
    blank = Column(column, layout, check_codec(codec), {})
    if not has_records(root):
        clips = find_arrays(files, say)
        per_shard = default_clips_per_shard(blank, len(clips))
        named = [replace(clip, source=clip.name) for clip in clips]  # no path of this machine
        places = {clip.key: clip.source for clip in clips}

        def more(clip: Any) -> dict[str, Any]:
            return {"size": clip.size, **names_in(files, places[clip.key])}

        write_records(root, named, view=VIEW, clips_per_shard=per_shard, more=more)
    else:
        places = match_records(root, files)
    base = fixed_root(files) if not files.endswith(".csv") else Path(files).parent
    names = {key: os.path.relpath(place, base) for key, place in places.items()}
    made_by = {"function": "shards.importer", **origin, "files": os.path.relpath(files, base)}
    made_by["content"] = digest_of_files(places, names)
    check_origin(root, column, made_by)
    store, last = FeatureStore(root, []), LastFile()

    def tokens(keys: Sequence[str]) -> Iterator[tuple[str, Tensor | str]]:
        def read(key: str) -> Tensor | str:
            try:
                return read_tokens(places[key], layout, last)
            except (ArrayError, OSError) as error:
                return f"{names[key]} {error}"

        yield from zip(keys, prefetch(keys, read, threads=1), strict=True)

    away = [key for key in store.keys if key not in places]
    made = add_column(store, replace(blank, origin=made_by), tokens, uncovered=away)
    for line in told(FeatureStore(root, [column]), made):
        say(line)
    return made


def has_records(root: Path) -> bool:
    """Whether a store is there that knows all its clips."""
    if not (root / MANIFEST).exists():
        return False
    return all(is_finished(root, shard) for shard in range(Manifest.read(root).partition.shards))


def names_in(files: str, place: str) -> dict[str, str]:
    """What the fields {name} and {stem} were, for the record: from the source alone they cannot be told."""
    fields = match_fields(files, place) or {}
    return {field: fields[field] for field in ("name", "stem") if field in fields}


def digest_of_files(places: Mapping[str, str], names: Mapping[str, str]) -> str:
    """Identifies what is imported: keys, names, and the bytes of the files, each of which is read once."""
    paths = sorted({place.partition(INSIDE)[0] for place in places.values()})
    sums = {}
    for path in tqdm(paths, desc="digest of the files", unit="file", leave=False, delay=1):
        summed = xxhash.xxh3_64()
        with open(path, "rb") as file:
            while chunk := file.read(CHUNK):
                summed.update(chunk)
        sums[path] = summed.hexdigest()
    return digest([[key, names[key], sums[places[key].partition(INSIDE)[0]]] for key in sorted(places)])


def check_origin(root: Path, column: str, origin: Mapping[str, str]) -> None:
    """Raises ValueError where a column, finished or not, was imported from other files, with what differs."""
    there = Manifest.read(root).columns.get(column)
    old: Mapping[str, Any] = there.origin if there else origin
    differ = [name for name in sorted({*old, *origin}) if old.get(name) != origin.get(name)]
    if differ:
        said = "; ".join(
            f"{name}: there {str(old.get(name))[:80]}, here {origin.get(name, '')[:80]}" for name in differ
        )
        hint = "the files' bytes have changed: restore them, or " if "content" in differ else ""
        raise ValueError(
            f"{root}: column {column!r} was made otherwise ({said}); {hint}choose another --column or another STORE"
        )


def find_arrays(files: str, say: Callable[[str], None]) -> list[Clip]:
    """The clips of a new store: an array each."""
    videos, notes = read_csv(Path(files), None) if files.endswith(".csv") else (find_places(files), [])
    found = make_clips(videos, notes)
    for note in found.notes:
        say(f"import: {note}")
    return found.clips


def match_records(root: Path, files: str) -> dict[str, str]:
    """key -> place of the clips of a store that have a file. Raises ValueError where none has."""
    records = FeatureStore(root, []).clips
    if files.endswith(".csv"):
        by_name = {video.name: video.source for video in read_csv(Path(files), None)[0]}
        places = {record["key"]: by_name.get(record["source"]) for record in records}
    else:
        check_template(files)
        places = {record["key"]: place_of(files, record) for record in records}
    is_there = _Lookup()
    found = {key: place for key, place in places.items() if place and is_there(place)}
    if not found:
        some = next((place for place in places.values() if place), None)
        looked = f"the first that is looked for is {some}" if some else "its records lack the template's fields"
        raise ValueError(f"--files {files}: no file for any of the {len(records)} clips of {root}; {looked}")
    return found


class _Lookup:
    """Whether a place is there; the entries of a file are listed once."""

    def __init__(self) -> None:
        self._entries: dict[str, set[str]] = {}

    def __call__(self, place: str) -> bool:
        path, _, entry = place.partition(INSIDE)
        if not entry or not os.path.isfile(path):
            return os.path.isfile(path)
        if path not in self._entries:
            self._entries[path] = set(list_entries(Path(path)))
        return entry in self._entries[path]


def told(store: FeatureStore, column: Column) -> list[str]:
    """What came of it, for people."""
    counts: dict[str, Any] = column.coverage
    away = f", {counts['uncovered']} clips without a file" if counts.get("uncovered") else ""
    text = f"{store.path}: column {column.name}, {column.layout.describe()}, {counts['clips']} clips{away}"
    lines = [text, *(f"  refused: {key}: {reason}" for key, reason in list(store.refused.items())[:NAMED])]
    return lines + ([f"  and {len(store.refused) - NAMED} more"] if len(store.refused) > NAMED else [])


if __name__ == "__main__":
    sys.exit(main())
