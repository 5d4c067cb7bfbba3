"""The world's labelled clips as video files with a CSV, read like anybody's.

Factors are the clips' further labels, the shape is their label.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from shards.rendered import encode, rendered_folder
from shards.task import prefixed
from shards.world import VERSION, clip_generator, draw_scenes, render

COMBINATION, RANDOM = "combination", "random"
SPLITTINGS = (COMBINATION, RANDOM)
FEWEST = 4  # clips that have a train, a val and a test clip among them
FRAMES, RATE, PIXELS = 32, 16, 96
LABEL = "shape"  # the factor that is also the label
ENCODER = {"preset": "superfast", "crf": "12"}
TABLE = "clips.csv"


def render_world(root: str | Path, *, clips: int, seed: int, split: str, difficulty: float) -> Path:
    """The CSV of `clips` videos of world `seed` under `root`, rendered unless they are there.

    split: combination: test clips hold pairings of factors that no other clip holds (world.HELD_OUT); random: left to
    the hash of the clip's name. difficulty: 0 to 1, see world.render. Raises ValueError on values that are none.
    """
    if split not in SPLITTINGS:
        raise ValueError(f"data.split is {split!r}; it is one of {', '.join(SPLITTINGS)}")
    if not 0 <= difficulty <= 1:
        raise ValueError(f"data.difficulty={difficulty} must be between 0 and 1")
    if split == COMBINATION and clips < FEWEST:
        raise ValueError(f"data.clips={clips} with data.split={split}: needs at least {FEWEST}; give more clips")
    marker = {"version": VERSION, "seed": seed, "clips": clips, "split": split, "difficulty": float(difficulty)}
    name = f"world-v{VERSION}-seed{seed}-{clips}-{split}-difficulty{float(difficulty)}"

    def write(folder: Path) -> None:
        rows = []
        for index in tqdm(range(clips), desc="render world clips", unit="clip", delay=1):
            side = side_of(index) if split == COMBINATION else None
            frames, factors = render_clip(index, seed=seed, side=side, difficulty=difficulty)
            path = f"clip-{index:06d}.mp4"
            encode(folder / path, frames, rate=RATE, options=ENCODER)
            rows.append(
                {"path": path, "label": factors[LABEL], **({"split": side} if side else {}), **prefixed(factors)}
            )
        with (folder / TABLE).open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            table.writeheader()
            table.writerows(rows)

    return rendered_folder(Path(root) / name, write, marker=marker) / TABLE


def render_clip(index: int, *, seed: int, side: str | None, difficulty: float) -> tuple[np.ndarray, dict[str, str]]:
    """Clip `index` of world `seed`, whatever the other clips are: (f, h, w, 3) uint8, and its factors in words.

    side: train, val or test, or None where held-out pairings may stand anywhere.
    """
    unseen = None if side is None else side == "test"
    scenes = draw_scenes(1, generator=clip_generator(seed, index), unseen=unseen)
    video = render(scenes, frames=FRAMES, pixels=PIXELS, difficulty=difficulty).video[0]  # (f 3 h w)
    return (video * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy(), scenes.names(0)


def side_of(index: int) -> str:
    """The side of a clip in the combination split: every fourth is a test clip, every seventh of the others val."""
    if index % 4 == 3:
        return "test"
    return "val" if (index - index // 4) % 7 == 2 else "train"
