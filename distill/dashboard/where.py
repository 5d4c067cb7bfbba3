"""where.json and where.safetensors of a run folder: where a converter is wrong. Form: docs/metrics.md.

Axes: q tokens of a target, e its width, n test clips, k shown clips, t h w token grid, r resamples.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from distill.dashboard.journal import regular
from distill.dashboard.summary import read_text, rounded

RECORD, TENSORS = "where.json", "where.safetensors"
VERSION = 1
LISTED = 4  # clips at either end, as many as a run shows of its converter's
BINS = 40
PICTURES = ("student", "converted", "teacher", "thumbnails")
RESAMPLES = 2000


class Where:
    """Both files, opened. path: of the record; the tensors lie beside it. Raises ValueError where they are not of the
    form that they must have."""

    def __init__(self, path: Path) -> None:
        try:
            about = json.loads(read_text(path))
            if about["version"] != VERSION:
                raise ValueError(f"version {about['version']!r}, where this page knows {VERSION}")
            self.main = str(about["main"])
            self.clips = [{key: told(clip.get(key)) for key in ("key", "group", "label")} for clip in about["clips"]]
            self.targets = {str(name): dict(found) for name, found in about["targets"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{RECORD} cannot be read ({error!r}); docs/metrics.md has its form") from None
        tensors = path.with_name(TENSORS)
        try:
            if regular(tensors) is None:
                raise ValueError("there is no such file")
            self.file = safe_open(tensors, framework="np")
            self.names = set(self.file.keys())
        except (SafetensorError, OSError, ValueError) as error:
            raise ValueError(f"{TENSORS} cannot be read ({error}); docs/metrics.md has its form") from None

    @property
    def keys(self) -> list[str]:
        return [clip["key"] for clip in self.clips]

    @property
    def groups(self) -> list[str]:
        return [clip["group"] for clip in self.clips]

    def candidates(self, target: str) -> list[str]:
        """The converter, then the floors that have this target."""
        found = self.targets[target].get("candidates")
        if not isinstance(found, list) or not found or not all(isinstance(name, str) for name in found):
            raise ValueError(
                f"{RECORD}: the candidates of {target} are {found!r}; they must be names, and at least one"
            )
        return found

    def sums(self, target: str, candidate: str, axis: str, size: int | None = None) -> np.ndarray:
        """(2, size) float64: a candidate's squared errors, and the spread, by positions, channels or clips."""
        rows: list[np.ndarray] = []
        for name in (f"{target}/error/{candidate}/{axis}", f"{target}/spread/{axis}"):
            found = np.asarray(self.file.get_tensor(name), dtype=np.float64) if name in self.names else None
            if found is None or found.ndim != 1 or size not in (None, len(found)):
                shape = None if found is None else found.shape
                raise ValueError(f"{name} of {TENSORS} has shape {shape}; it must be ({size or 'any'},)")
            rows, size = [*rows, found], len(found)
        return np.stack(rows)

    def by_clip(self, target: str) -> np.ndarray:
        """(2, n): those of the converter."""
        return self.sums(target, self.main, "clips", len(self.clips))

    def told(self, target: str, candidate: str) -> dict[str, Any]:
        """r2c of a candidate by position and channel, and its worst and best clips, as the page shows them."""
        layout = self.targets[target]
        grid, special = shape_of(layout.get("grid"), target), [str(name) for name in layout.get("special") or ()]
        positions = r2c(self.sums(target, candidate, "positions", int(np.prod(grid)) * bool(grid) + len(special)))
        whole = len(positions) - len(special)
        by_clip = r2c(self.sums(target, candidate, "clips", len(self.clips)))
        order = np.argsort(np.nan_to_num(by_clip, nan=-np.inf), kind="stable")  # as the run orders those that it shows
        clips = [self.clips[at] | {"r2c": float(by_clip[at])} for at in order]
        best = [clip for clip in clips[LISTED:] if np.isfinite(clip["r2c"])]
        found = {
            "candidates": self.candidates(target),
            "grid": grid,
            "positions": positions[:whole].tolist(),
            "special": dict(zip(special, positions[whole:].tolist(), strict=True)),
            "channels": histogram(r2c(self.sums(target, candidate, "channels"))),
            "clips": {"worst": clips[:LISTED], "best": best[-LISTED:][::-1], "of": len(clips)},
            "main": candidate == self.main,
            "shares": layout.get("shares"),
        }
        return rounded(found)

    def pictures(self, target: str) -> list[dict[str, Any]]:
        """Of every shown clip what it is, its frames, and those of student, converted and teacher tokens. Empty where
        the run has no picture of this target."""
        shown = self.targets[target].get("shown") or []
        try:
            places = [entry["clip"] for entry in shown]
            if not all(type(place) is int and place >= 0 for place in places):
                raise IndexError(places)
            clips = [self.clips[place] | {"r2c": entry.get("r2c")} for place, entry in zip(places, shown, strict=True)]
        except (TypeError, KeyError, ValueError, IndexError, AttributeError):
            raise ValueError(
                f"{RECORD}: the shown clips of {target} are {str(shown)[:80]}; they must be places among its "
                f"{len(self.clips)} clips"
            ) from None
        parts = {kind: found for kind in PICTURES if (found := self.images(f"{target}/{kind}", len(shown))) is not None}
        return [
            clip | {kind: cut(found[at]) for kind, found in parts.items()} for at, clip in enumerate(clips) if parts
        ]

    def images(self, name: str, count: int) -> np.ndarray | None:
        """(k t h w 3) uint8, None where the file has none."""
        if name not in self.names:
            return None
        found = self.file.get_tensor(name)
        if found.dtype != np.uint8 or found.ndim != 5 or found.shape[-1] != 3 or len(found) != count:
            rule = f"it must be uint8 ({count}, t, h, w, 3)"
            raise ValueError(f"{name} of {TENSORS} is {found.dtype} {found.shape}; {rule}")
        return found


def told(name: Any) -> str:
    return "" if name is None else str(name)


def shape_of(grid: Any, target: str) -> tuple[int, ...]:
    """(t, h, w), or () for a pooled target."""
    sizes = grid if isinstance(grid, list) else [] if grid is None else [0]
    if len(sizes) not in (0, 3) or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise ValueError(f"{RECORD}: the grid of {target} is {grid!r}; it must be [t, h, w], or null")
    return tuple(sizes)


def r2c(sums: np.ndarray) -> np.ndarray:
    """1 - error / spread, nan where nothing is spread."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(sums[1] > 0, 1 - sums[0] / sums[1], np.nan)


def histogram(channels: np.ndarray) -> dict[str, Any]:
    """(e,) -> counts between bounds; what lies below -1 or is not a number is left out, and the former counted."""
    finite = channels[np.isfinite(channels)]
    low, high = (max(float(finite.min()), -1.0), max(float(finite.max()), -1.0)) if len(finite) else (0.0, 1.0)
    counts, bounds = np.histogram(finite, bins=BINS, range=(low, high))
    return {"counts": counts.tolist(), "bounds": bounds.tolist(), "below": int((channels < -1).sum())}


def cut(image: np.ndarray) -> dict[str, Any]:
    """One clip's frames: `shape`, and their bytes in base64."""
    return {"shape": image.shape, "bytes": base64.b64encode(image.tobytes()).decode()}


def paired(ours: np.ndarray, theirs: np.ndarray, groups: Sequence[str]) -> dict[str, float]:
    """r2c of one less that of another from their (2, n) sums over the same clips, with the 95% interval over groups.
    Raises ValueError where there is none: below two groups, or where a clip has no group or no number."""
    names, group = np.unique(groups, return_inverse=True)
    lost = int((~np.isfinite(ours) | ~np.isfinite(theirs)).any(0).sum())
    for what, count in (("group", sum(not name for name in groups)), ("number", lost)):
        if count:
            raise ValueError(f"{count} of {len(groups)} test clips have no {what}")
    if len(names) < 2:
        raise ValueError(
            f"the test clips are in {len(names)} group{'s' * (not len(names))}, and resampling groups needs 2"
        )
    draws = np.random.default_rng(0).integers(0, len(names), (RESAMPLES, len(names)))
    weights = np.stack([np.bincount(draw, minlength=len(names)) for draw in draws]).astype(np.float64)
    by_group = [np.stack([np.bincount(group, row, len(names)) for row in sums]) for sums in (ours, theirs)]
    drawn = [weights @ sums.T for sums in by_group]
    differences = r2c(drawn[0].T) - r2c(drawn[1].T)
    known = np.isfinite(differences).any()
    low, high = np.nanpercentile(differences, [2.5, 97.5]) if known else (float("nan"), float("nan"))
    return {"value": float(r2c(ours.sum(1)) - r2c(theirs.sum(1))), "low": low, "high": high}
