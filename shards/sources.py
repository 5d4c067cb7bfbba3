"""Reading a source: class folders, a CSV, WebDataset tars of video files -> a list of `Video`s and notes.

Nothing is decoded. Every bad row or member of a source is reported in one error. Names are relative to the source's
root, so that they are the same on every machine.
"""

from __future__ import annotations

import csv
import glob
import json
import os
import re
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from tqdm import tqdm

from shards.split import SPLITS
from shards.task import FACTOR, factor_problem

EXTENSIONS = (
    *("3gp", "asf", "avi", "flv", "m2ts", "m4v", "mkv", "mov", "mp4", "mpeg"),
    *("mpg", "mts", "mxf", "ogv", "ts", "vob", "webm", "wmv", "y4m"),
)
COLUMNS = ("path", "label", "split", "group", "start", "end")
SHOWN = 50  # problems that one message lists
SIDECAR_BYTES = 2**20  # a .json, .cls or .txt beside a video in a tar is smaller


@dataclass
class Video:
    """A file, or a given span of one, before grouping. identity: the same for two names of one file. factors: further
    labels by name."""

    source: str
    name: str
    identity: str
    size: int
    label: str | None = None
    split: str | None = None
    group: str | None = None
    start: float | None = None
    end: float | None = None
    offset: int | None = None
    factors: dict[str, str] = field(default_factory=dict)


def _is_video(name: str) -> bool:
    return name.rpartition(".")[2].lower() in EXTENSIONS


def _text(name: str) -> str:
    """A file's name as text that can be written and printed; bytes that are not UTF-8 become \\xff."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _some(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def report(problems: Sequence[str], where: str) -> None:
    """All problems of a source in one error."""
    if problems:
        more = [f"... and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        raise ValueError("\n  ".join([f"{where}: {len(problems)} problem(s)", *problems[:SHOWN], *more]))


def _is_factor(name: str | None) -> bool:
    return name is not None and name.startswith(FACTOR)


def _fields(row: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """label, split, group, start, end and factors of a CSV row or a JSON object, and what is wrong with them."""
    names = [name for name in row if name in COLUMNS[1:] or _is_factor(name)]
    texts = {name: str(row[name]).strip() for name in names if row[name] is not None}
    values: dict[str, Any] = {name: text for name, text in texts.items() if text and name in COLUMNS}
    factors = {name.removeprefix(FACTOR): text for name, text in texts.items() if text and name not in COLUMNS}
    values |= {"factors": factors} if factors else {}
    problems = [
        f"{name} is {texts[name]}; it must be text or a number" for name in texts if isinstance(row[name], (dict, list))
    ]
    problems += [problem for name in factors if (problem := factor_problem(name))]
    if values.get("split", "train") not in SPLITS:
        problems.append(f"split is {values['split']!r}; it is one of {', '.join(SPLITS)}")
    for name in ("start", "end"):
        if name not in values:
            continue
        try:
            values[name] = float(texts[name])
            if not isfinite(values[name]) or values[name] < 0:
                problems.append(f"{name} is {texts[name]}; it must be seconds from the video's first frame")
        except ValueError:
            problems.append(f"{name} is {texts[name]!r}, not a number of seconds")
    if ("start" in values) != ("end" in values):
        problems.append("start and end go together; one of them is missing")
    elif not problems and "start" in values and values["end"] <= values["start"]:
        problems.append(f"end {values['end']:g} is not after start {values['start']:g}")
    return values, problems


def _files(folder: Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """Files under a folder, links that lead nowhere included, following links but never in circles; hidden ones are
    left out."""
    real = os.path.realpath(folder)
    if real in above:
        return
    for entry in os.scandir(folder):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _files(Path(entry.path), (*above, real))
        elif entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path)):
            yield Path(entry.path)


def read_folder(root: Path) -> tuple[list[Video], list[str]]:
    """DIR/<class>/**/video; a video directly in DIR has no label."""
    if not root.is_dir():
        raise FileNotFoundError(f"data.root={root} is not a folder; it should hold one folder of videos per class")
    try:
        found = list(tqdm(_files(root), desc="list", unit="file", delay=1))
    except OSError as error:
        why = f"{error.filename} cannot be listed ({error.strerror})"
        raise OSError(f"data.root={root}: {why}; allow it, or move it elsewhere") from error
    paths = {path.relative_to(root).as_posix(): path for path in found}
    videos, ignored, gone = [], [], []
    for name, path in sorted(paths.items()):
        text = _text(name)
        if not _is_video(name):
            ignored.append(text)
        elif not path.exists():
            gone.append(text)
        else:
            label = text.partition("/")[0] if "/" in text else None
            videos.append(Video(str(path), text, os.path.realpath(path), path.stat().st_size, label))
    notes = [f"{len(ignored)} files left out, no videos by their extension: {_some(ignored)}"] if ignored else []
    notes += [f"{len(gone)} links left out, they lead nowhere: {_some(gone)}"] if gone else []
    if not videos:
        why = "; ".join(notes) or "it is empty"
        raise ValueError(f"data.root={root} holds no video: {why}. Known extensions: {', '.join(EXTENSIONS)}")
    return videos, notes


def read_csv(path: Path, root: Path | None) -> tuple[list[Video], list[str]]:
    """path,label[,split,group,start,end,factor.NAME]; relative paths start at data.root, else at the CSV's folder."""
    if not path.is_file():
        raise FileNotFoundError(f"data.csv={path} is not a file")
    root = Path(os.path.abspath(root or path.parent))  # so that a name does not depend on how the folder is written
    videos, problems, seen = [], [], {}  # type: ignore[var-annotated]
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            columns = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = columns
            _check_header(path, columns)
            for row in reader:
                video, wrong = _csv_row(row, root)
                again = seen.setdefault((video.identity, video.start, video.end), reader.line_num)
                if again != reader.line_num:
                    wrong.append(f"the same clip as in line {again}")
                problems += [f"line {reader.line_num}, {video.name or 'no path'}: {problem}" for problem in wrong]
                videos.append(video)
    except OSError as error:
        raise OSError(f"data.csv={path} cannot be read: {error.strerror}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as CSV in UTF-8: {error}; save it as comma-separated UTF-8") from error
    report(problems, str(path))
    if not videos:
        raise ValueError(f"{path} has a header and no rows")
    unknown = [name for name in columns if name not in COLUMNS and not _is_factor(name)]
    return videos, [f"columns of {path.name} that mean nothing here: {', '.join(unknown)}"] if unknown else []


def _check_header(path: Path, columns: Sequence[str]) -> None:
    if missing := [name for name in COLUMNS[:2] if name not in columns]:
        raise ValueError(
            f"{path}: no column {' and no column '.join(missing)}; the header is {list(columns)}. The first line names "
            f"the columns, separated by commas: {','.join(COLUMNS[:2])}[,{','.join(COLUMNS[2:])},{FACTOR}NAME]"
        )
    factors = [name for name in columns if _is_factor(name)]
    if twice := [name for name in (*COLUMNS, *factors) if columns.count(name) > 1]:
        raise ValueError(f"{path}: the header has {twice[0]} {columns.count(twice[0])} times; rename one of them")
    report([problem for name in factors if (problem := factor_problem(name.removeprefix(FACTOR)))], f"{path}, header")


def _csv_row(row: dict[str, Any], root: Path) -> tuple[Video, list[str]]:
    values, problems = _fields(row)
    text = (row.get("path") or "").strip()
    path = Path(os.path.normpath(root / text))
    name = path.relative_to(root).as_posix() if path.is_relative_to(root) else Path(os.path.normpath(text)).as_posix()
    if None in row:
        problems.append("more fields than the header has columns")
    if not text or not path.is_file():
        problems.append(
            "the path is empty" if not text else f"{path} is a folder" if path.is_dir() else f"no file at {path}"
        )
        return Video(str(path), text, f"{text}:{id(row)}", 0), problems
    return Video(str(path), name, os.path.realpath(path), path.stat().st_size, **values), problems


def _tar_paths(pattern: str, root: Path | None) -> Iterator[Path]:
    """The files that a path, a glob or a brace pattern names, every one of them there."""
    import braceexpand  # type: ignore[import-untyped]

    try:
        parts = list(braceexpand.braceexpand(pattern))
    except ValueError as error:
        raise ValueError(f"data.tars={pattern}: {error}; write it as in clips-{{000..009}}.tar") from error
    for part in parts:
        text = str(root / part) if root else part
        matches = sorted(glob.glob(text, recursive=True)) if glob.has_magic(text) else [text]
        if not matches or not os.path.isfile(matches[0]):
            why = f"{text} is a folder; write {text}/*.tar" if os.path.isdir(text) else f"no file at {text}"
            if re.search(r"::|://|^pipe:", pattern):
                why += "; only files on this machine are read, as one path, glob or brace pattern"
            raise FileNotFoundError(f"data.tars={pattern}: {why}")
        yield from map(Path, matches)


def read_tars(pattern: str, root: Path | None) -> tuple[list[Video], list[str]]:
    """Tars of video files, each with an optional .json (the CSV's columns but the path), .cls or .txt (label)."""
    paths = list(_tar_paths(pattern, root))
    base = os.path.commonpath([path.absolute().parent for path in paths])
    videos, problems, left_out = [], [], Counter[str]()
    for path in tqdm(dict.fromkeys(paths), desc="index tars", unit="tar", delay=1):
        shard = Path(os.path.relpath(path, base)).as_posix()
        try:
            more, wrong = _index_tar(path, shard, left_out)
        except (tarfile.TarError, OSError) as error:
            raise ValueError(f"{path} is not a whole, uncompressed tar: {error}; copy or unpack it again") from error
        videos += more
        problems += wrong
    report(problems, f"data.tars={pattern}")
    if not videos:
        raise ValueError(f"data.tars={pattern}: no video in {len(paths)} tars; members: {dict(left_out)}")
    return videos, [f"members of the tars left out: {count} x {kind}" for kind, count in sorted(left_out.items())]


def _index_tar(path: Path, shard: str, left_out: Counter[str]) -> tuple[list[Video], list[str]]:
    """The samples of one tar: members that share their path up to the first dot of the file name."""
    samples: dict[str, Video] = {}
    fields: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    problems = []
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            text = _text(member.name).removeprefix("./")
            folder, _, file = text.rpartition("/")
            stem, _, suffix = file.partition(".")
            sample, kind = f"{folder}/{stem}", suffix.rpartition(".")[2].lower()
            if not stem or member.isdir():
                continue
            if not member.isfile() or member.issparse():
                left_out[f".{kind}, no plain file"] += 1
                continue
            if kind in EXTENSIONS:
                if sample in samples:
                    problems.append(
                        f"{shard}::{text}: a second video beside {samples[sample].name}: both have the key {stem!r}, "
                        "what stands before the first dot"
                    )
                name = f"{shard}::{text}"
                samples[sample] = Video(str(path), name, name, member.size, offset=member.offset_data)
            elif kind in ("json", "cls", "txt") and member.size <= SIDECAR_BYTES:
                try:
                    data = tar.extractfile(member).read().decode()  # type: ignore[union-attr]
                    fields[sample][kind] = json.loads(data) if kind == "json" else {"label": data}
                    if not isinstance(fields[sample][kind], dict):
                        raise ValueError("not a JSON object")
                except ValueError as error:
                    fields[sample].pop(kind, None)
                    problems.append(f"{shard}::{text}: {error}")
            else:
                left_out[f".{kind}"] += 1
    for sample, video in samples.items():
        beside = fields[sample]
        values, wrong = _fields(beside.get("txt", {}) | beside.get("cls", {}) | beside.get("json", {}))
        problems += [f"{video.name}: {problem}" for problem in wrong]
        for name, value in values.items():
            setattr(video, name, value)
    return list(samples.values()), problems
