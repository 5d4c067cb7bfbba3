"""where.safetensors of a run folder: where a converter is wrong. Runs need not write it. Form: docs/dashboard.md.

Axes: q tokens of a target, e its width, n test clips, k pictured clips, t h w token grid, r resamples.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from distill.dashboard.runs import rounded

SHOWN = 8  # clips at either end
BINS = 40
PICTURES = ("student", "converted", "teacher")
RESAMPLES = 2000


class Where:
    """The file, opened. Raises ValueError where it is not of the form that it must have."""

    def __init__(self, path: Path) -> None:
        try:
            self.file = safe_open(path, framework="np")
            self.names = set(self.file.keys())
            about = json.loads((self.file.metadata() or {})["where"])
            self.targets: dict[str, Any] = dict(about["targets"])
            self.keys, self.groups = ([str(name) for name in about["clips"][part]] for part in ("keys", "groups"))
            self.pictured = [int(clip) for clip in about.get("pictured", [])]
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path.name} cannot be read ({error!r}); docs/dashboard.md has its form") from None
        if len(self.keys) != len(self.groups) or any(not 0 <= clip < len(self.keys) for clip in self.pictured):
            raise ValueError(f"{path.name}: {len(self.keys)} keys, {len(self.groups)} groups, pictured {self.pictured}")

    def sums(self, target: str, what: str, size: int | None = None) -> np.ndarray:
        """(2, size) float64: squared errors and spread, by positions, channels or clips."""
        name = f"{target}.{what}"
        found = np.asarray(self.file.get_tensor(name), dtype=np.float64) if name in self.names else None
        if found is None or found.ndim != 2 or len(found) != 2 or size not in (None, found.shape[1]):
            shape = None if found is None else found.shape
            raise ValueError(f"{name} of where.safetensors has shape {shape}; it must be (2, {size or '..'})")
        return found

    def clips(self, target: str) -> np.ndarray:
        return self.sums(target, "clips", len(self.keys))

    def told(self, target: str) -> dict[str, Any]:
        """r2c by position and channel, the worst and best clips, and pictures, as the page shows them."""
        layout = self.targets[target]
        grid = tuple(int(size) for size in layout.get("grid") or ())
        if len(grid) not in (0, 3) or min(grid, default=1) < 1:
            raise ValueError(f"where.safetensors: the grid of {target} is {grid}; it must be (t, h, w), or none")
        special = [str(name) for name in layout.get("special", [])]
        positions = r2c(self.sums(target, "positions", int(np.prod(grid) if grid else 0) + len(special)))
        channels = r2c(self.sums(target, "channels"))
        by_clip = r2c(self.clips(target))
        order = np.argsort(np.nan_to_num(by_clip, nan=np.inf), kind="stable")
        clip = [{"key": self.keys[at], "group": self.groups[at], "r2c": float(by_clip[at])} for at in order]
        low, high = float(np.nanmin(channels)), float(np.nanmax(channels))
        counts, bounds = np.histogram(channels[np.isfinite(channels)], bins=BINS, range=(max(low, -1.0), high))
        found = {
            "grid": grid,
            "positions": positions[: len(positions) - len(special)].tolist(),
            "special": dict(zip(special, positions[len(positions) - len(special) :].tolist(), strict=True)),
            "channels": {"counts": counts.tolist(), "bounds": bounds.tolist(), "below": int((channels < -1).sum())},
            "clips": {"worst": clip[:SHOWN], "best": clip[::-1][:SHOWN], "of": len(clip)},
        }
        return rounded(found) | {"pictures": self.pictures(target)}

    def pictures(self, target: str) -> list[dict[str, Any]]:
        """Of every pictured clip its key, its thumbnail, and the frames of student, converted and teacher tokens."""
        parts = {what: self.image(f"{target}.{what}", 5) for what in PICTURES}
        thumbnails = self.image("thumbnails", 4)
        return [
            {"key": self.keys[clip], "thumbnail": cut(thumbnails, at)}
            | {what: cut(found, at) for what, found in parts.items()}
            for at, clip in enumerate(self.pictured)
        ]

    def image(self, name: str, axes: int) -> np.ndarray | None:
        """(k .. h w 3) uint8, None where the file has none."""
        if name not in self.names:
            return None
        found = self.file.get_tensor(name)
        if found.dtype != np.uint8 or found.ndim != axes or found.shape[-1] != 3 or len(found) != len(self.pictured):
            rule = f"it must be {axes} axes of uint8, {len(self.pictured)} clips first, 3 colours last"
            raise ValueError(f"{name} of where.safetensors is {found.dtype} {found.shape}; {rule}")
        return found


def r2c(sums: np.ndarray) -> np.ndarray:
    """1 - error / spread, nan where nothing is spread."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(sums[1] > 0, 1 - sums[0] / sums[1], np.nan)


def cut(images: np.ndarray | None, at: int) -> dict[str, Any] | None:
    """One clip's images: `shape`, and its bytes in base64."""
    if images is None:
        return None
    return {"shape": images[at].shape, "bytes": base64.b64encode(images[at].tobytes()).decode()}


def paired(ours: np.ndarray, theirs: np.ndarray, groups: list[str]) -> dict[str, float]:
    """r2c of one less that of another from their (2, n) sums over the same clips, with the 95% interval over groups."""
    names, group = np.unique(groups, return_inverse=True)
    draws = np.random.default_rng(0).integers(0, len(names), (RESAMPLES, len(names)))
    weights = np.stack([np.bincount(draw, minlength=len(names)) for draw in draws]).astype(np.float64)
    by_group = [np.stack([np.bincount(group, row, len(names)) for row in sums]) for sums in (ours, theirs)]
    drawn = [weights @ sums.T for sums in by_group]
    differences = r2c(drawn[0].T) - r2c(drawn[1].T)
    low, high = np.nanpercentile(differences, [2.5, 97.5])
    return {"value": float(r2c(ours.sum(1)) - r2c(theirs.sum(1))), "low": low, "high": high}
