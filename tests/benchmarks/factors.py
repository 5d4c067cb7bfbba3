"""Did the miniatures learn, and do they differ: what probes read of each factor from each model's tokens.

    python tests/benchmarks/factors.py [--models NAME ...] [--seeds 5] [--weights miniature]

Every model beside its own random start and the pixels under its tokens (2 x 2 a frame and cell). Probes are fitted on
clips without a held-out pairing and scored on clips that all have one. Rows are means over the seeds of the probe, the
last column is the largest deviation among them; --json adds a file with every number.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import mean, stdev

import torch
from torch import Tensor
from tqdm import tqdm

from distill.probe import fit_probe
from distill.tokens import Held
from shards.world import FACTORS, Scenes, draw_scenes, render
from teachers import create_backbone
from teachers.backbone import Backbone
from teachers.miniature.models import MINIATURES

KINDS = ("linear", "attentive")
SEEDS_OF_WORLD = {"train": 101, "val": 102, "test": 103}
BATCH = 25


def draw(split: str, clips: int) -> Scenes:
    generator = torch.Generator().manual_seed(SEEDS_OF_WORLD[split])
    return draw_scenes(clips, generator=generator, unseen=split == "test")


def parts(scenes: Scenes) -> Iterator[Scenes]:
    for start in range(0, len(scenes), BATCH):
        rows = slice(start, start + BATCH)
        yield Scenes({name: values[rows] for name, values in scenes.factors.items()}, scenes.details[rows])


def tokens_of(scenes: Scenes, model: Backbone, read: Callable[[Tensor], Tensor]) -> Tensor:
    """(n s d)"""
    views = (render(part, frames=model.frames, pixels=model.pixels).video for part in parts(scenes))
    return torch.cat([read(view) for view in views])


def pixels_under(name: str) -> Backbone:
    """2 x 2 averages a frame and cell: of the grid, for the pooled model too."""
    model = MINIATURES[name]
    options = {"grid": list(model.grid), "frames": model.frames, "pixels": model.pixels, "cells": 2}
    return create_backbone("pixels", options=options)


def accuracies(model: Backbone, scenes: dict[str, Scenes], kinds: Sequence[str], seeds: int) -> dict[str, list[dict]]:
    """kind -> a seed's {factor: accuracy}, for every seed."""
    held, labels, start = {}, {}, 0
    for split, those in scenes.items():
        clips = torch.arange(start, start + len(those))
        held[split] = tokens_of(those, model, model), clips
        start += len(those)
    for factor in FACTORS:
        labels[factor] = torch.cat([those.factors[factor] for those in scenes.values()])
    found: dict[str, list[dict]] = {kind: [] for kind in kinds}
    for kind in kinds:
        for seed in range(seeds):
            sources = {split: Held(*pair, seed if split == "train" else None) for split, pair in held.items()}
            probe = fit_probe(
                kind,
                train=sources["train"],
                val=sources["val"],
                labels=labels,
                layout=model.layout,
                generator=torch.Generator().manual_seed(seed),
            )
            hits = probe.hits(sources["test"], labels)[0]
            found[kind].append({factor: float(right.nanmean()) for factor, right in hits.items()})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MINIATURES), choices=list(MINIATURES))
    parser.add_argument("--weights", default="miniature", help="as of create_backbone")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--clips", type=int, nargs=3, default=(1500, 250, 1000), metavar=("TRAIN", "VAL", "TEST"))
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    scenes = {split: draw(split, count) for split, count in zip(SEEDS_OF_WORLD, asked.clips, strict=True)}
    rows: dict[str, dict[str, list[dict]]] = {}
    for name in tqdm(asked.models):
        for label, model in {
            name: create_backbone(name, weights=asked.weights),
            f"{name}, random": create_backbone(name),
            f"{name}, pixels": pixels_under(name),
        }.items():
            rows[label] = accuracies(model, scenes, asked.kinds, asked.seeds)
            if asked.json:
                asked.json.write_text(json.dumps(rows, indent=1))
            print_rows({label: rows[label]})
    chance = [f"{1 / len(values):.2f}" for values in FACTORS.values()]
    print(f"| chance | | {' | '.join(chance)} |")


def print_rows(rows: dict[str, dict[str, list[dict]]]) -> None:
    for label, kinds in rows.items():
        for kind, seeds in kinds.items():
            cells = [f"{mean(seed[factor] for seed in seeds):.2f}" for factor in FACTORS]
            spread = max(stdev(seed[factor] for seed in seeds) if len(seeds) > 1 else 0.0 for factor in FACTORS)
            print(f"| {label} | {kind} | {' | '.join(cells)} | {spread:.3f} |", flush=True)


if __name__ == "__main__":
    main()
