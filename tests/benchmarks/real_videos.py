"""Heads on real clips of two classes, beside what needs no model: the file's metadata, and its mean colour.

    python tests/benchmarks/real_videos.py ../shared/videos/labelled --out runs/real [--folds 6] [--weights miniature]

DIR holds a folder of clips for each class, named by ids. Neighbouring ids may come from one source video, so the clips
of a class are cut into blocks of neighbours: block k of every class is the test split of fold k, the next one val, the
rest train. Every fold is a run of its own (features, converter, heads), so that nothing fitted has seen its test block.
Every clip is in one test block, and intervals are by bootstrap over blocks. With 48 clips that is some +-13 points: a
smoke test of the path from video files to heads, no measurement of any model. Stand-ins know nothing, and the
miniatures know rendered shapes: the honest expectation is near the baselines.
"""

from __future__ import annotations

import argparse
import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from converters import load_converter
from distill import run
from distill.arms import Bench, run_arm, set_bench
from distill.compensation import Asked, fit_heads
from distill.metrics import group_weights
from distill.survival import accuracy
from distill.table import format_table, number
from recipes.compose import load_recipe
from shards.decode import read_frames, scan
from shards.ranks import Ranks
from shards.store import SPLITS, FeatureStore

RECIPES = {"miniature": ("miniature", "miniature_masked"), "standin": ("perceiver_videomae", "videomae")}
ARMS = ("converted", "student", "converted_pca", "converted_supervised", "teacher", "permuted_labels")
WORDS = ("converter.options={width: 32, latents: 16}", "evaluate.floors=[ridge]", "evaluate.probes=[]")


def blocks_of(root: Path, count: int) -> dict[Path, tuple[str, int]]:
    """video -> its class, and its block of neighbouring ids."""
    found = {}
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        videos = sorted(folder.glob("*.mp4"), key=lambda path: int(re.findall(r"\d+", path.stem)[-1]))
        found |= {video: (folder.name, place * count // len(videos)) for place, video in enumerate(videos)}
    return found


def split_of(block: int, fold: int, folds: int) -> str:
    return {fold: "test", (fold + 1) % folds: "val"}.get(block, "train")


def write_fold(path: Path, blocks: dict[Path, tuple[str, int]], fold: int, folds: int) -> None:
    with open(path, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "label", "split", "group"])
        for video, (label, block) in blocks.items():
            table.writerow([video.resolve(), label, split_of(block, fold, folds), f"{label}-{block}"])


def model_free(video: Path) -> tuple[list[float], list[float]]:
    """Metadata: seconds, height, width, frames a second, bytes. Colour: mean red, green, blue of 8 frames."""
    found, images = scan(str(video), name=video.name), []
    read_frames(
        found, [found.duration * (n + 0.5) / 8 for n in range(8)], sink=lambda due, image: images.append(image.copy())
    )
    metadata = [found.duration, *images[0].shape[:2], found.rate, video.stat().st_size]
    return metadata, np.mean([image.mean((0, 1)) for image in images], axis=0).tolist()


def baselines(blocks: dict[Path, tuple[str, int]], fold: int, folds: int, seen: dict[Path, Any]) -> Bench:
    """`student` reads the metadata, `converted` the colour."""
    classes = sorted({label for label, _ in blocks.values()})
    metadata, colour = (torch.tensor([seen[video][part] for video in blocks]) for part in range(2))
    places: dict[str, list[int]] = {split: [] for split in SPLITS}
    for place, (_, block) in enumerate(blocks.values()):
        places[split_of(block, fold, folds)].append(place)
    return set_bench(
        student=metadata,
        converted=colour,
        labels=torch.tensor([classes.index(label) for label, _ in blocks.values()]),
        num_classes=len(classes),
        groups=[f"{label}-{block}" for label, block in blocks.values()],
        splits=places,
    )


def fold_hits(
    words: Sequence[str], recipe: str, target: str, bench: Bench, *, rank: int, ranks: Ranks
) -> dict[str, Tensor]:
    """reader -> (test clips of the fold,), in the order of the CSV."""
    asked = load_recipe([f"recipe={recipe}", "data=csv", f"targets=[{target}]", *WORDS, *words])
    run.distill(asked, ranks)
    store = FeatureStore(asked.store.path, ["student", target])
    converter = load_converter(Path(asked.run.dir) / asked.run.name / "bundle").to(ranks.device)
    ((_, _, _, results),) = fit_heads(
        store, {"converter": converter}, Asked(("label",), rank=rank), seed=0, device=ranks.device
    )
    own = {arm: results[arm].hits for arm in ARMS}
    free = {"mean colour": "converted", "metadata": "student"}
    return own | {name: run_arm(arm, bench, rank=1).hits for name, arm in free.items()}


def main(argv: Sequence[str] | None = None) -> dict[str, dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="a new folder: runs, stores and lists of clips")
    parser.add_argument("--folds", type=int, default=6, help="blocks of a class, at least 3")
    parser.add_argument("--weights", default="miniature", choices=RECIPES)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rank", type=int, default=4)
    asked = parser.parse_args(argv)
    asked.out.mkdir(parents=True)
    blocks, ranks = blocks_of(asked.root, asked.folds), Ranks.join()
    seen = {video: model_free(video) for video in blocks}
    hits: dict[str, list[Tensor]] = {}
    groups: list[str] = []
    for fold in range(asked.folds):
        table = asked.out / f"fold-{fold}.csv"
        write_fold(table, blocks, fold, asked.folds)
        words = [f"data.csv={table}", f"store.path={asked.out / f'store-{fold}'}", f"train.steps={asked.steps}"]
        words += [f"run.dir={asked.out / 'runs'}", f"run.name=fold-{fold}"]
        bench = baselines(blocks, fold, asked.folds, seen)
        for name, found in fold_hits(words, *RECIPES[asked.weights], bench, rank=asked.rank, ranks=ranks).items():
            hits.setdefault(name, []).append(found)
        groups += [f"{label}-{block}" for label, block in blocks.values() if block == fold]
    weights = group_weights(groups, resamples=2000)
    all_hits = {name: torch.cat(parts) for name, parts in hits.items()}
    rows = {name: accuracy(right, weights) for name, right in all_hits.items()}
    leads = {name: accuracy(right - all_hits["metadata"], weights) for name, right in all_hits.items()}
    cells = [[name, *map(between, (rows[name], leads[name]))] for name in rows]
    print(f"\n{len(groups)} clips in {len(set(groups))} blocks, {asked.folds} folds, weights {asked.weights}\n")
    print(format_table(["accuracy of heads on", "95%, over blocks", "minus metadata, paired"], cells))
    return rows


def between(found: dict[str, float | None]) -> str:
    return f"{number(found['value'], 2)} ({number(found['low'], 2)} .. {number(found['high'], 2)})"


if __name__ == "__main__":
    main()
