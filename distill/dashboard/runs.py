"""The run folders below some folders, what each says of itself in short, and which of them can be compared."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.dashboard.journal import Journal, parse, regular, unread, wrong
from distill.dashboard.summary import Summary, read_short, read_summary, read_text, rounded

FILES = ("summary.json", "metrics.jsonl", "recipe.yaml")  # a folder with one of them is a run's
INSIDE = ("checkpoints", "bundle")  # of a run, where no further runs are
TAIL = 2**18  # bytes of a run's metrics that tell how far it is
QUIET = 600  # seconds without a line after which a run that has not ended no longer counts as running


class Run:
    """A run folder. id: stands for it in addresses, in which no name of a file ever comes."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        self.id = hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:12]
        self.journal = Journal(path / "metrics.jsonl")
        self._read: dict[tuple[str, Any], tuple[tuple[int, ...], Any]] = {}
        self._closed: dict[str, str] = {}  # file -> why it cannot be read

    def cached(self, name: str, read: Callable[[Path], Any]) -> Any:
        """read(path) of a file of the folder, again when the file is another; None where there is none that may be
        read."""
        found = regular(self.path / name)
        if found is None:
            return None
        state = (found.st_ino, found.st_mtime_ns, found.st_size)
        known = self._read.get((name, read))
        if known is None or known[0] != state:
            try:
                known = self._read[name, read] = (state, read(self.path / name))
            except OSError as error:
                self._closed[name] = unread(name, error)
                return None
            self._closed.pop(name, None)
        return known[1]

    def summary(self) -> tuple[Summary | None, str | None]:
        """summary.json and what is wrong with it. It is not kept: with heads and probes it is large."""
        if regular(self.path / "summary.json") is None:
            return None, None
        try:
            return read_summary(self.path / "summary.json")
        except OSError as error:
            return None, unread("summary.json", error)

    def short(self) -> tuple[dict[str, Any] | None, str | None]:
        """What the list of runs needs of it, and what is wrong with it."""
        return self.cached("summary.json", read_short) or (None, None)

    def recipe(self) -> str:
        return self.cached("recipe.yaml", read_text) or ""

    def settings(self) -> dict[str, str]:
        return self.cached("recipe.yaml", read_settings) or {}

    def problems(self, of_metrics: list[str] | None = None) -> list[str]:
        wrong_with_summary = self.short()[1]
        of_metrics = self.journal.complaints() if of_metrics is None else of_metrics
        closed = [why for why in self._closed.values() if why not in of_metrics]
        return ([wrong_with_summary] if wrong_with_summary else []) + closed + of_metrics

    def stamp(self) -> str:
        """Another one whenever metrics, summary or where.json are."""
        states = [regular(self.path / name) for name in (*FILES[:2], "where.json")]
        told = [(state.st_ino, state.st_mtime_ns, state.st_size) if state else None for state in states]
        return hashlib.sha256(repr(told).encode()).hexdigest()[:12]

    def brief(self) -> dict[str, Any]:
        """What the list of runs shows."""
        (short, _), found = self.short(), regular(self.path / "metrics.jsonl")
        if found and found.st_size <= TAIL:
            self.journal.read_on()
        if short:  # then the journal alone reads the metrics, and says what is wrong with them
            self._closed.pop("metrics.jsonl", None)
        results = short or self.cached("metrics.jsonl", progress) or {}
        changed = found.st_mtime if found else 0.0
        told = self.settings()
        state = "finished" if short else "running" if time.time() - changed < QUIET else "quiet"
        brief = {
            "id": self.id,
            "name": self.name,
            "state": state,
            "changed": round(changed),
            "stamp": self.stamp(),
            "steps": whole(told.get("train.steps")),
            "seed": whole(told.get("train.seed")),
            "family": told.get("converter.family"),
            "recipe": digest(told),
            "problems": self.problems(),
            "where": regular(self.path / "where.json") is not None,
        }
        return brief | results


class Runs:
    """All runs below `roots`. A name is the path below its root, behind the root's own where there are several."""

    def __init__(self, roots: Sequence[Path]) -> None:
        self.roots = roots
        self.known: dict[Path, Run] = {}

    def scan(self) -> list[Run]:
        """The runs that there are now, in the order of their names."""
        found = {}
        short = len({root.resolve().name for root in self.roots}) == len(self.roots)
        for root in self.roots:
            above = "" if len(self.roots) == 1 else root.resolve().name if short else root.as_posix()
            for path in run_folders(root):
                name = "/".join(filter(None, [above, *path.relative_to(root).parts])) or root.resolve().name
                found[path] = self.known.get(path) or Run(path, name)
        self.known = found
        return sorted(found.values(), key=lambda run: run.name)


def run_folders(root: Path) -> Iterable[Path]:
    """Links are not followed: they may lead in circles."""
    for folder, inside, files in os.walk(root):
        is_run = any(name in files for name in FILES)
        inside[:] = sorted(name for name in inside if not (is_run and name in INSIDE) and not name.startswith("."))
        if is_run:
            yield Path(folder)


def progress(path: Path) -> dict[str, Any]:
    """The last step of a run that has not ended, and its last r2c on val by target, from the end of its metrics."""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL))
        lines = file.read().split(b"\n")[:-1]
    step, validated = None, {}
    for entry in parse(lines):
        if wrong(entry) is None:
            step = entry["step"]
            if (entry["split"], entry["metric"]) == ("val", "r2c") and not entry.get("converter"):
                validated[str(entry.get("target"))] = rounded(entry["value"])
    return {"step": step, "validated": validated}


# --- recipes


def read_settings(path: Path) -> dict[str, str]:
    return settings(read_text(path))


def settings(text: str) -> dict[str, str]:
    """A recipe.yaml as dotted key -> text of its value. It knows the form in which runs write them: a key or an item a
    line, by indentation. Any other line belongs to the value before it."""
    found: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    for line in text.splitlines():
        body = line.strip()
        key, colon, value = body.partition(":")
        depth = len(line) - len(line.lstrip())
        if colon and not body.startswith("- ") and (not value or value.startswith(" ")):
            above = [(at, name) for at, name in above if at < depth] + [(depth, key)]
            value = value.strip()
            if value:
                found[dotted(above)] = value
        elif body and above:
            found[dotted(above)] = " ".join(filter(None, (found.get(dotted(above)), body)))
    return found


def dotted(above: Sequence[tuple[int, str]]) -> str:
    return ".".join(name for _, name in above)


def digest(told: Mapping[str, str]) -> str:
    """The same for recipes that differ in their seed and folder alone."""
    kept = sorted((key, value) for key, value in told.items() if key != "train.seed" and not key.startswith("run."))
    return hashlib.sha256(repr(kept).encode(errors="surrogatepass")).hexdigest()[:12] if kept else ""


def whole(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() and len(text) < 16 else None
