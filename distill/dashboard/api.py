"""Path -> what it stands for, as JSON. The server serves it, the export records it.

runs                       all runs in short, the sets that can be compared, what is broken
runs/ID                    summary of one, as far as it is known (distill.dashboard.summary), and its recipe
runs/ID/series             its metrics, without points
runs/ID/series/N           one of them, about 600 points
runs/ID/where              the targets of its where.json, and the candidates of each
runs/ID/where/N            pictures of target N: frames and tokens of the clips that the run shows
runs/ID/where/N/M          errors of candidate M on target N by place, channel and clip
compare/ID/ID              the second minus the first
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

from safetensors import SafetensorError

from distill.dashboard.compare import compare, where_of
from distill.dashboard.runs import Run, Runs
from distill.dashboard.sets import comparable_sets
from distill.dashboard.summary import rounded

POINTS = 600
SCAN_EVERY = 1.0  # seconds


class Api:
    """Answers of the runs below `roots`. A part of a path is looked up among what there is, and names no file."""

    def __init__(self, roots: Sequence[Path]) -> None:
        self.runs, self.lock = Runs(roots), Lock()
        self.scanned, self.found = 0.0, dict[str, Run]()

    def known(self) -> Mapping[str, Run]:
        """id -> run, looked for again every second."""
        with self.lock:
            if time.monotonic() - self.scanned > SCAN_EVERY or not self.scanned:
                self.found = {run.id: run for run in self.runs.scan()}
                self.scanned = time.monotonic()
            return self.found

    def answer(self, path: str) -> bytes | None:
        """JSON, or None for a path that stands for nothing."""
        found = self.find(path.split("/"))
        return None if found is None else encode(found)

    def find(self, parts: Sequence[str]) -> Any:
        known = self.known()  # once: a run may be gone at a second look
        match parts:
            case ["runs"]:
                return self.list(known)
            case ["runs", name, *rest] if name in known:
                return about(known[name], rest)
            case ["compare", a, b] if a in known and b in known:
                return compare(known[a], known[b])
        return None

    def list(self, known: Mapping[str, Run] | None = None) -> dict[str, Any]:
        briefs = [run.brief() for run in (self.known() if known is None else known).values()]
        return {"runs": briefs, "sets": comparable_sets(briefs), "roots": [str(root) for root in self.runs.roots]}


def about(run: Run, parts: Sequence[str]) -> Any:
    """What stands below runs/ID; None for anything else."""
    match parts:
        case []:
            summary, _ = run.summary()
            return {"name": run.name, "summary": rounded(summary), "recipe": run.recipe(), "problems": run.problems()}
        case ["series"]:
            run.journal.read_on()
            state = run.journal.state()
            return {
                "series": state.series,
                "problems": run.problems(state.problems),
                "read": int(1000 * state.read) / 1000,
            }
        case ["series", number] if number.isdecimal() and len(number) < 7:
            run.journal.read_on()
            return run.journal.points(int(number), POINTS)
        case ["where", *rest] if len(rest) < 3:
            return where(run, *rest)
    return None


def where(run: Run, *numbers: str) -> dict[str, Any] | None:
    """`targets`, the `pictures` of one, or what is told of a candidate on it; `problem` where the files are damaged."""
    try:
        file = where_of(run)
        if file is None:
            return None if numbers else {"targets": {}}
        if not numbers:
            return {"targets": {target: file.candidates(target) for target in file.targets}}
        target = chosen(numbers[0], [*file.targets])
        if target is None or len(numbers) == 1:
            return target and {"pictures": file.pictures(target)}  # type: ignore[return-value]
        candidate = chosen(numbers[1], file.candidates(target))
        return None if candidate is None else file.told(target, candidate)
    except (ValueError, TypeError, AttributeError, SafetensorError) as error:
        return {"targets": {}, "problem": str(error)}


def chosen(number: str, among: Sequence[str]) -> str | None:
    known = number.isdecimal() and len(number) < 7 and int(number) < len(among)
    return among[int(number)] if known else None


def encode(found: Any) -> bytes:
    """JSON without nan: what is left of it, in a summary that someone wrote by hand, becomes null."""
    try:
        text = json.dumps(found, separators=(",", ":"), allow_nan=False)
    except ValueError:
        text = json.dumps(rounded(found), separators=(",", ":"), allow_nan=False)
    return text.encode()
