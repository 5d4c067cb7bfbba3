"""Heads from pooled columns of a store: 2 kB a clip are read, no converter runs, no token is seen.

    python -m shards.derive STORE student --column student_mean
    python -m distill.apply BUNDLE STORE --column converted
    python -m shards.derive STORE converted --column converted_mean
    python -m distill.pooled STORE --student student_mean --converted converted_mean [--teacher videomae_mean]
        [--task label ...] [--per-class 5 ...] [--rank 8] [--seed 0] [--out heads.json]
    python -m distill.pooled --oracle product     # or linear: clips of a task whose best accuracies are known

The same arms, splits and intervals as a run's own heads (distill.arms), whose pooling these columns are.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from distill.arms import Bench, run_arms, set_bench, tell
from distill.compensation import ALL, labels_of
from distill.head_oracles import LinearOracle, ProductOracle
from distill.head_table import head_lines
from distill.labelled import keep_few
from distill.metrics import group_weights
from distill.naming import named
from distill.table import number
from shards.column import check_column
from shards.disk import StoreError, write_atomically
from shards.reader import scan
from shards.store import SPLITS, FeatureStore

BATCH = 256  # clips that are read at once
RESAMPLES = 2000  # of groups, for the intervals
RANK = 8
# oracle -> its class, clips, and rank of the residual that suffices
ORACLES: dict[str, tuple[Any, int, int]] = {"product": (ProductOracle, 10_000, 2), "linear": (LinearOracle, 34_000, 4)}

Told = dict[str, dict[str, dict[str, dict[str, Any]]]]  # task -> labels of a class -> arm -> its numbers


def read_pooled(store: FeatureStore, column: str) -> Tensor:
    """A pooled column of all clips, (n d) float32. Raises StoreError for one that has a grid."""
    layout = store.layout(column)
    if layout.shape[0] != 1:
        raise StoreError(
            f"column {column!r} has {layout.shape[0]} tokens a clip; a head reads one: "
            f"python -m shards.derive {store.path} {column} --column {column}_mean"
        )
    batches = scan(store, indices=range(len(store)), columns=[column], batch=BATCH)
    with tqdm(total=len(store), desc=column, unit="clip", dynamic_ncols=True) as bar:
        found = []
        for batch in batches:
            found.append(batch[column][:, 0].clone())
            bar.update(len(found[-1]))
    return torch.cat(found)


def tell_heads(
    store: FeatureStore,
    columns: Mapping[str, str],
    *,
    tasks: Sequence[str],
    per_class: Sequence[int | None] = (None,),
    rank: int = RANK,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Told:
    """What the heads of distill.arms tell. columns: student, converted and, if there is one, teacher -> their columns.

    Raises ValueError on a task that the store does not have, and as distill.arms.set_bench and run_arm do.
    """
    if unknown := [task for task in tasks if task not in store.tasks]:
        raise ValueError(f"{store.path} has no task {unknown[0]!r}; there are {', '.join(store.tasks) or 'none'}")
    pooled = {role: read_pooled(store, column) for role, column in columns.items()}
    splits = {split: store.indices(split) for split in SPLITS}
    resampled = group_weights([store.groups[index] for index in splits["test"]], resamples=resamples)
    found: Told = {}
    bench: Bench | None = None
    for task in tasks:
        labels, classes = labels_of(store, task, None)
        bench = bench or set_bench(
            **pooled, labels=labels, num_classes=len(classes), groups=store.groups, splits=splits, seed=seed
        )
        for count in per_class:
            few = keep_few(labels, torch.tensor(splits["train"]), count, generator=torch.Generator().manual_seed(seed))
            with named(f"task {task}"):
                results = run_arms(replace(bench, labels=few, num_classes=len(classes)), rank=rank, seed=seed)
            found.setdefault(task, {})[str(count or ALL)] = tell(results, resampled)
    return found


def oracle_heads(kind: str, *, rank: int | None = None, seed: int = 0) -> tuple[Told, dict[str, float]]:
    """What the heads tell of an oracle's clips (see distill.head_oracles), and the best accuracies that there are."""
    make, clips, known_rank = ORACLES[kind]
    oracle = make(seed=seed)
    pooled = oracle.sample(clips, torch.Generator().manual_seed(seed))
    groups, ends = [str(clip) for clip in range(clips)], [0, int(0.7 * clips), int(0.85 * clips), clips]
    splits = {split: range(*at) for split, at in zip(SPLITS, pairwise(ends), strict=True)}
    rows = pooled._asdict()
    bench = set_bench(**rows, num_classes=int(pooled.labels.max()) + 1, groups=groups, splits=splits, seed=seed)
    results = run_arms(bench, rank=rank or known_rank, seed=seed)
    resampled = group_weights([groups[clip] for clip in splits["test"]], resamples=RESAMPLES)
    return {kind: {ALL: tell(results, resampled)}}, oracle.optimum()


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 1 with a message."""
    parser = argparse.ArgumentParser(prog="python -m distill.pooled", description="Heads from pooled columns.")
    parser.add_argument("store", type=Path, nargs="?")
    parser.add_argument("--oracle", choices=list(ORACLES), help="instead of a store")
    parser.add_argument("--student", help="column of the pooled student")
    parser.add_argument("--converted", help="column of the pooled converted tokens")
    parser.add_argument("--teacher", help="column of the teacher's pooled tokens")
    parser.add_argument("--task", nargs="+", default=["label"], help="label, or factors by name")
    parser.add_argument("--per-class", nargs="+", type=int, default=[None], help="labels of a class; else all")
    parser.add_argument(
        "--rank", type=int, help=f"of the residual; default: {RANK}, or what the oracle's teacher lacks"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON of all numbers")
    asked = parser.parse_args(argv)
    if asked.oracle and asked.store:
        parser.error("give a store or --oracle, not both")
    if not asked.oracle and not (asked.store and asked.student and asked.converted):
        parser.error("give a store with --student and --converted, or --oracle")
    given = {"student": asked.student, "converted": asked.converted, "teacher": asked.teacher}
    columns = {role: check_column(column) for role, column in given.items() if column}
    best: dict[str, float] = {}
    try:
        if asked.oracle:
            found, best = oracle_heads(asked.oracle, rank=asked.rank, seed=asked.seed)
        else:
            store = FeatureStore(asked.store, list(dict.fromkeys(columns.values())))
            how = {"tasks": asked.task, "per_class": asked.per_class, "rank": asked.rank or RANK, "seed": asked.seed}
            found = tell_heads(store, columns, **how)
        if asked.out:
            write_atomically(asked.out, [json.dumps(found, indent=1).encode()])
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    lines = head_lines({"heads": {"head": {asked.converted or asked.oracle: found}, "marks": {}}})
    lines += (
        [f"the best there is: {', '.join(f'{name} {number(value)}' for name, value in best.items())}"] if best else []
    )
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
