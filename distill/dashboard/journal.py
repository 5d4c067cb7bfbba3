"""metrics.jsonl as columns of numbers. A reading goes on where the last one ended, so that a run can be watched.

Nothing in such a file stops a reading: what cannot be understood is counted, and said with the number of its line.
"""

from __future__ import annotations

import errno
import json
import math
import os
import stat
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

import numpy as np

BUDGET = 2**26  # bytes that one reading goes on by
CHUNK = 2**20  # bytes read at a time, and the longest line that is looked at
MARK = 4096  # bytes at the start of what was read, and at its end, by which the file is known again
SERIES = 2000  # of one run; further ones are not kept
POINTS = 200_000  # of one series; beyond that every series is thinned, extremes kept
AXES = ("seconds", "bytes")  # metrics of the split train that say how far a run is at a step, beside the step itself
NO_FILE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO)  # nothing there, nothing below, a link, a socket
HALF = "the last line is half written"
NUMBER, NUMBER_OR_NONE, TEXT_OR_NONE = (int, float), (int, float, type(None)), (str, type(None))


@dataclass
class Series:
    """One metric against its steps."""

    split: str
    target: str | None
    metric: str
    converter: str | None
    step: array[float] = field(default_factory=lambda: array("d"))
    value: array[float] = field(default_factory=lambda: array("d"))
    seen: int = 0

    def about(self) -> dict[str, Any]:
        last = self.value[-1]
        return {
            "split": self.split,
            "target": self.target,
            "metric": self.metric,
            "converter": self.converter,
            "points": self.seen,
            "last": last if np.isfinite(last) else None,
        }

    def add(self, step: float, value: float) -> None:
        self.step.append(step)
        self.value.append(value)
        self.seen += 1
        if len(self.step) >= POINTS:
            chosen = thin(np.asarray(self.value), POINTS // 2)
            self.step, self.value = pick(self.step, chosen), pick(self.value, chosen)

    def ordered(self) -> tuple[np.ndarray, np.ndarray]:
        """Steps, and the value at each, in the order of the steps."""
        order = np.argsort(np.asarray(self.step), kind="stable")
        return np.asarray(self.step)[order], np.asarray(self.value)[order]

    def points(self, count: int) -> dict[str, list[float | None]]:
        """About `count` points in the order of their steps: `step`, and `value` (None: not finite)."""
        step, value = self.ordered()
        chosen = thin(value, count)
        values = [float(f"{v:.6g}") if np.isfinite(v) else None for v in value[chosen]]
        return {"step": step[chosen].tolist(), "value": values}


@dataclass(frozen=True)
class State:
    """series: what is known of each, in the order in which they came. problems: what is wrong with the file, in words.
    read: the share of it that was read."""

    series: list[dict[str, Any]]
    problems: list[str]
    read: float


class Journal:
    """The metrics of one run, as far as they have been read."""

    def __init__(self, path: Path) -> None:
        self.path, self.lock = path, Lock()
        self.closed: str | None = None  # why it cannot be read
        self._start_over()

    def _start_over(self) -> None:
        self.series: dict[tuple[str | None, ...], Series] = {}
        self.problems: dict[str, tuple[int, int]] = {}  # what is wrong -> the first line that has it, how many have
        self.offset = self.size = self.lines = 0
        self.rest, self.skipping, self.inode = b"", False, 0
        self.head = self.tail = b""

    def read_on(self, budget: int | None = None) -> None:
        """Reads what was appended, at most `budget` bytes (None: BUDGET); anew where the file was replaced."""
        budget = BUDGET if budget is None else budget
        with self.lock:
            try:
                file, self.closed = opened(self.path), None
            except OSError as error:
                file, self.closed = None, unread("metrics.jsonl", error)
            if file is None:
                return self._start_over()
            with file:
                found = os.fstat(file.fileno())
                if found.st_ino != self.inode or not self._goes_on(file):
                    self._start_over()
                    file.seek(0)
                while budget > 0 and (chunk := file.read(min(CHUNK, budget))):
                    budget -= len(chunk)
                    self.offset += len(chunk)
                    self.head = (self.head + chunk[:MARK])[:MARK]
                    self.tail = (self.tail + chunk[-MARK:])[-MARK:]
                    self._take(chunk)
                self.inode, self.size = found.st_ino, max(found.st_size, self.offset)
        return None

    def _goes_on(self, file: BinaryIO) -> bool:
        """Whether a file begins with what was read, as far as its ends tell: the number of a file that is gone is given
        to another. Leaves the file where the reading ended."""
        file.seek(0)
        head = file.read(len(self.head))
        file.seek(self.offset - len(self.tail))
        return (head, file.read(len(self.tail))) == (self.head, self.tail)

    def _take(self, chunk: bytes) -> None:
        *lines, rest = (self.rest + chunk).split(b"\n")
        if self.skipping and lines:
            self.skipping, lines = False, [b"", *lines[1:]]
        if len(rest) > CHUNK or self.skipping:
            if not self.skipping:
                self._blame(f"longer than {CHUNK} bytes", self.lines + len(lines) + 1)
            self.skipping, rest = True, b""
        self.rest = rest
        for number, entry in enumerate(parse(lines), self.lines + 1):
            self._enter(number, entry)
        self.lines += len(lines)

    def _enter(self, number: int, entry: Any) -> None:
        problem = wrong(entry)
        if problem is not None:
            if problem:
                self._blame(problem, number)
            return
        try:  # before there is a series: one without a point has no last value
            step, value = float(entry["step"]), float("nan" if entry["value"] is None else entry["value"])
        except OverflowError:
            return self._blame("a number that is too large", number)
        names = names_of(entry)
        if names not in self.series:
            if len(self.series) == SERIES:
                return self._blame(f"of more than {SERIES} metrics, which are not shown", number)
            self.series[names] = Series(*names)
        self.series[names].add(step, value)
        if not math.isfinite(value):
            self._blame("without a finite value", number)
        return None

    def _blame(self, problem: str, number: int) -> None:
        first, count = self.problems.get(problem, (number, 0))
        self.problems[problem] = (first, count + 1)

    def state(self) -> State:
        """What is known of the file, of one moment."""
        with self.lock:
            found = [
                f"metrics.jsonl: {count} line{'s' * (count > 1)} {problem} (the first is line {first})"
                for problem, (first, count) in self.problems.items()
            ]
            half = [f"metrics.jsonl: {HALF} ({len(self.rest)} bytes)"] if self.rest else []
            closed = [self.closed] if self.closed else []
            share = self.offset / self.size if self.size else 1.0
            return State([series.about() for series in self.series.values()], closed + found + half, share)

    def listed(self) -> list[dict[str, Any]]:
        return self.state().series

    def complaints(self) -> list[str]:
        return self.state().problems

    def points(self, number: int, count: int) -> dict[str, Any] | None:
        """Series `number` of the list, thinned to about `count` points, and at each the `seconds` and `bytes` that the
        run had taken by then, where it took them down; None where there are not so many series."""
        with self.lock:
            found = list(self.series.values())[number : number + 1]
            if not found:
                return None
            points = found[0].points(count)
            known = {name: self.series.get(("train", None, name, None)) for name in AXES}
            axes = {name: at(points["step"], axis) for name, axis in known.items() if axis is not None}
            return found[0].about() | points | axes


def at(steps: Sequence[float | None], axis: Series) -> list[float | None]:
    """What an axis was at some steps: between two that it has in proportion, from 0 at step 0, None past its last."""
    known, value = axis.ordered()
    known, value = (np.concatenate([[0.0], column[np.isfinite(value)]]) for column in (known, value))
    found = np.interp(np.asarray(steps, dtype=float), known, value, right=np.nan)
    return [float(f"{v:.6g}") if np.isfinite(v) else None for v in found]


def opened(path: Path) -> BinaryIO | None:
    """A file, None where there is none, or something else: a pipe would block, a link lead elsewhere. It is looked at
    once it is open: a name may come to stand for something else in between."""
    try:
        number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in NO_FILE:
            return None
        raise
    if stat.S_ISREG(os.fstat(number).st_mode):
        return open(number, "rb")
    os.close(number)
    return None


def regular(path: Path) -> os.stat_result | None:
    """The state of a file, None where there is none, or something else, as in `opened`."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found if stat.S_ISREG(found.st_mode) else None


def unread(name: str, error: OSError) -> str:
    """Without its path, which an exported file would carry elsewhere."""
    return f"{name} cannot be read ({error.strerror})"


def parse(lines: Sequence[bytes]) -> Iterator[Any]:
    """What each line holds; ValueError's instance where it is no JSON. All at once where that goes: twice as fast."""
    texts = [line.decode(errors="replace") for line in lines]
    try:
        together = json.loads(f"[{','.join(texts)}]")
        if len(together) == len(texts):
            yield from together
            return
    except (ValueError, RecursionError):
        pass
    for text in texts:
        try:
            yield json.loads(text) if text.strip() else None
        except (ValueError, RecursionError) as error:
            yield ValueError(str(error))


def names_of(entry: dict[str, Any]) -> tuple[Any, Any, Any, Any]:
    """What tells one series from another."""
    get = entry.get
    return get("split"), get("target"), get("metric"), get("converter")


def wrong(entry: Any) -> str | None:
    """What is wrong with an entry: "" for an empty line, None for nothing."""
    if entry is None:
        return ""
    if isinstance(entry, ValueError):
        return "not JSON"
    if not isinstance(entry, dict):
        return "not an object"
    split, target, metric, converter = names_of(entry)
    if not (isinstance(split, str) and isinstance(metric, str)):
        return "without split and metric"
    if not (isinstance(target, TEXT_OR_NONE) and isinstance(converter, TEXT_OR_NONE)):
        return "without split and metric"
    if not isinstance(entry.get("step"), NUMBER) or isinstance(entry["step"], bool):
        return "without a step"
    if "value" not in entry or not isinstance(entry["value"], NUMBER_OR_NONE):
        return "without a number as value"
    return None


def pick(column: array[float], chosen: np.ndarray) -> array[float]:
    return array("d", np.asarray(column)[chosen].tobytes())


def thin(value: np.ndarray, count: int) -> np.ndarray:
    """Indices of about `count` of (n,) values, increasing: first, last, least and greatest of pieces whose bounds are
    half of them evenly, half of them logarithmically spaced, so that a start is as clear as an end."""
    n = len(value)
    if n <= count:
        return np.arange(n)
    pieces = max(count // 6, 1)
    bounds = np.unique(np.concatenate([np.linspace(0, n, pieces + 1), np.geomspace(1, n, pieces + 1)]).astype(int))
    starts = bounds[:-1]
    chosen = [np.array([0, n - 1]), starts]
    for start, end in zip(starts, bounds[1:], strict=True):
        piece = value[start:end]
        if np.isfinite(piece).any():
            chosen.append(start + np.array([np.nanargmin(piece), np.nanargmax(piece)]))
    return np.unique(np.concatenate(chosen))
