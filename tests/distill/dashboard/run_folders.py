"""Run folders as runs write them, made up: for the dashboard, which only reads. Numbers are drawn by a seed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

METRICS = ("r2c", "r2", "cos_std", "cosine", "nmse", "smooth_l1", "cka")
TARGETS = ("videomae", "timesformer", "vivit")
FLOORS = {"position_mean": 0.0, "pixels": 0.2, "ridge": 0.5, "ridge_local": 0.51, "mlp": 0.55, "shuffled": 0.001}
DIGESTS = {name: name[0] * 64 for name in ("split", "view", "data", "normaliser")}


def summary(
    *, family: str = "perceiver", r2c: float = 0.6, targets: Sequence[str] = TARGETS, **entries: Any
) -> dict[str, Any]:
    """summary.json of a run that ended. entries: further ones, or others."""
    scores = {target: dict.fromkeys(METRICS, r2c - 0.1 * at) for at, target in enumerate(targets)}
    found = {
        "targets": scores,
        "intervals": {t: {m: [v - 0.01, v + 0.01] for m, v in of.items() if m != "cka"} for t, of in scores.items()},
        "marks": {},
        "floors": {name: {t: dict.fromkeys(METRICS, value) for t in targets} for name, value in FLOORS.items()},
        "references": {},
        "gain": {t: {"value": 0.1, "low": 0.09, "high": 0.11} for t in targets},
        "lead": {},
        "recipe": "made_up",
        "weights": "pretrained",
        "family": family,
        "chosen": {"weights": "last", "r2c": {t: of["r2c"] for t, of in scores.items()}},
        "probes": {},
        "deficiency": None,
        "cost": {
            "parameters": int(3e6 * r2c),
            "macs": int(2e9 * r2c),
            "latency_ms": 30 * r2c,
            "threads": 1,
            "device": "cpu",
        },
        "head": None,
        "clips": {"train": 600, "val": 100, "test": 200, "refused": 0},
        "digests": DIGESTS,
        "spaces": {target: f"space of {target}" for target in targets},
    }
    return found | entries


def recipe(*, family: str = "perceiver", steps: int = 100, seed: int = 0, lr: float = 0.001, name: str = "run") -> str:
    return (
        f"recipe: made_up\ntargets:\n  videomae:\n    backbone: videomae\nconverter:\n  family: {family}\n"
        f"  options: {{}}\nrun:\n  dir: runs\n  name: {name}\ntrain:\n  steps: {steps}\n  lr: {lr}\n  betas:\n"
        f"  - 0.9\n  - 0.99\n  seed: {seed}\n"
    )


def lines(
    steps: int, *, targets: Sequence[str] = TARGETS, every: int = 10, top: float = 0.6
) -> Iterator[dict[str, Any]]:
    """What a run logs: a falling loss at every step, what it has taken, and r2c on val at every tenth."""
    for step in range(1, steps + 1):
        left = np.exp(-3 * step / steps)
        yield {"step": step, "split": "train", "target": None, "metric": "loss", "value": 0.3 + left}
        for metric, each in (("seconds", 0.5), ("bytes", 1000)):
            yield {"step": step, "split": "train", "target": None, "metric": metric, "value": each * step}
        if step % every == 0:
            for target in targets:
                yield {"step": step, "split": "val", "target": target, "metric": "r2c", "value": top * (1 - left)}


def write_run(
    folder: Path,
    *,
    family: str = "perceiver",
    r2c: float = 0.6,
    steps: int = 100,
    seed: int = 0,
    finished: bool = True,
    where: bool = False,
    **entries: Any,
) -> Path:
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(recipe(family=family, steps=steps, seed=seed, name=folder.name))
    text = "".join(json.dumps(line) + "\n" for line in lines(steps, top=r2c))
    (folder / "metrics.jsonl").write_text(text)
    if finished:
        (folder / "summary.json").write_text(json.dumps(summary(family=family, r2c=r2c, **entries)))
    if where:
        write_where(folder, r2c=r2c)
    return folder


def write_deprived(folder: Path) -> None:
    """A twin and what low rank left of it, with heads."""
    for name, strength, r2c in (("whole", 0.0, 0.6), ("weak", 0.1, 0.55), ("strong", 1.0, 0.4)):
        left = {
            "rank_recovery": {"k": int(20 * r2c), "of": 30, "r2": [r2c - 0.02 * at for at in range(20)]},
            "effective_rank": {"converted": 30 * r2c, "teacher": 25.0},
            "jacobian": {"value": r2c, "standard_error": 0.01},
        }
        change = {"r2c": {"value": r2c - 0.6, "low": r2c - 0.61, "high": r2c - 0.59}}
        arms = {
            arm: {
                "accuracy": {"value": at, "low": at - 0.05, "high": at + 0.05},
                "difference": {"value": at - r2c, "low": at - r2c - 0.02, "high": at - r2c + 0.02},
                "chance": 0.25,
                "alarms": [f"the gate of {name} is shut"] if arm == "converted_supervised" and name == "weak" else [],
            }
            for arm, at in (("converted", r2c), ("converted_supervised", 0.62), ("student", 0.61), ("teacher", 0.8))
        }
        deficiency = {
            "kind": "low_rank" if strength else "none",
            "strength": strength,
            "amounts": {"nuclear": strength} if strength else {},
            "targets": {"videomae": left},
            "twin": "whole" if strength else None,
            "from_twin": {"videomae": change} if strength else {},
        }
        head = {"videomae": {"direction": {"all": arms}}}
        write_run(folder / name, r2c=r2c, deficiency=deficiency, head=head)


def write_where(
    folder: Path,
    *,
    r2c: float = 0.6,
    clips: int = 40,
    width: int = 32,
    grids: Mapping[str, Sequence[int]] | None = None,
) -> None:
    """where.json and where.safetensors of a run whose error grows towards the edges and with time."""
    draw = np.random.default_rng(0)
    grids = {"videomae": (8, 14, 14), "timesformer": (16, 14, 14), "vivit": ()} if grids is None else grids
    by_clip = (1 - r2c) * np.random.default_rng(1).gamma(9, 1 / 9, clips)
    order = np.argsort(-by_clip, kind="stable").tolist()
    shown, tensors, targets = [*order[:4], *order[-4:]], dict[str, np.ndarray](), dict[str, Any]()
    for target, grid in grids.items():
        error, kinds = np.full(1, 0.4), []
        if grid:
            t, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in grid), indexing="ij")
            error = ((1 - r2c) * (0.6 + 0.5 * (y**2 + x**2) + 0.2 * t)).ravel()
            shade, kinds = np.stack([128 + 100 * t, 128 + 100 * y, 128 + 100 * x], axis=-1), ["converted", "student"]
            noise = [draw.normal(0, scale, (len(shown), *shade.shape)) for scale in (0, 20, 40)]
            for what, at in zip(("teacher", *kinds), noise, strict=True):
                tensors[f"{target}/{what}"] = np.clip(shade + at, 0, 255).astype(np.uint8)
            tensors[f"{target}/thumbnails"] = draw.integers(0, 256, (len(shown), grid[0], 56, 56, 3), dtype=np.uint8)
        channels = (1 - r2c) * draw.gamma(4, 0.25, width)
        for axis, errors in (("positions", error), ("channels", channels), ("clips", by_clip)):
            tensors[f"{target}/spread/{axis}"] = np.ones_like(errors)
            tensors[f"{target}/error/converter/{axis}"] = errors
            tensors[f"{target}/error/ridge/{axis}"] = errors + 0.1
        targets[target] = {
            "grid": list(grid) or None,
            "special": [] if grid else ["cls"],
            "candidates": ["converter", "ridge"],
            "shown": [{"clip": clip, "r2c": float(1 - by_clip[clip])} for clip in shown],
            "shares": [0.4, 0.2, 0.1] if grid else None,
            "pictures": [*kinds, "teacher"] if grid else [],
            "thumbnails": bool(grid),
        }
    listed = [{"key": f"{n:06d}-clip", "source": f"{n}.mp4", "group": f"g{n // 2}", "label": "a"} for n in range(clips)]
    about = {"version": 1, "split": "test", "main": "converter", "clips": listed, "targets": targets}
    save_file(tensors, folder / "where.safetensors")
    (folder / "where.json").write_text(json.dumps(about))
