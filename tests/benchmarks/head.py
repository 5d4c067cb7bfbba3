"""Does a deliberate deficiency help the compensated head? Deficient + residual against undeficient + residual.

    python tests/benchmarks/head.py [key=value ...] [--seeds 0 1 2 3 4] [--dials low_rank masking] [--json FILE]
    python tests/benchmarks/head.py --runs RUN [RUN ...]        # finished contests instead, one of every seed

Contestants of one family and size, from one read of the miniatures' features (recipes/deficiency_miniature.yaml with
key=value changed): `whole`, every dial at every strength, and what controls are made of. One read is one seed. Beside
every deficient converter, masked ones also with the mask on, stand whole and three controls that come nearest to its
r2c on val without a deficiency:

noise      whole, plus noise that is the same for all tokens of a clip, so that pooling does not average it away
early      whole, or its like without a skip, at an earlier step; step 0 of whole is the ridge
narrower   less width and fewer latents, with and without a skip

Read by equal heads (mean pool, equal rank q, the same labels): accuracy over the tasks on test of converted tokens
alone, with a supervised residual, with q random directions of the residual; then deficient + residual minus this +
residual on the same clips, with its interval over clips (groups, of the mean over seeds) and over seeds (Student's t).
An answer needs both above 0. Finished contests have no early stop; there, whatever has no deficiency is the narrower.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from math import nan, sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor
from twins import STRENGTHS, Contest, blocks, finished, trained, with_contest

from distill.arms import run_arm
from distill.compensation import labels_of, set_benches
from distill.evaluate import Candidate, score
from distill.labelled import keep_few
from distill.metrics import group_weights
from distill.pooling import pool_means
from distill.survival import accuracy
from distill.table import format_table, number
from recipes.compose import load_recipe
from shards.ranks import Ranks

ARMS = ("converted", "converted_supervised", "random_residual")
STUDENT_T = (nan, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # 97.5%, by degrees of freedom

Told = dict[str, dict[str, dict[str, Tensor]]]  # converter -> task -> arm -> hits on test


def tell(contest: Contest, converters: Mapping[str, Any], asked: argparse.Namespace, ranks: Ranks) -> Told:
    """What equal heads tell from every converter's tokens."""
    store, found = contest.store, {name: {} for name in converters}
    pooled = pool_means(store, converters, device=ranks.device)
    train_clips = torch.tensor(store.indices("train"))
    for task in asked.tasks:
        labels, classes = labels_of(store, task, None)
        generator = torch.Generator().manual_seed(contest.seed)
        labels = keep_few(labels, train_clips, asked.per_class, generator=generator)
        for (name, target), bench in set_benches(store, pooled, labels, len(classes), seed=contest.seed).items():
            if target == contest.target:
                results = {arm: run_arm(arm, bench, rank=asked.rank, seed=contest.seed) for arm in ARMS}
                found[name][task] = {arm: result.hits for arm, result in results.items()}
    return found


def examine(contest: Contest, asked: argparse.Namespace, ranks: Ranks) -> dict[str, dict[str, dict[str, Any]]]:
    """deficient -> role -> name, r2c on test, and hits: task -> arm -> (test clips,)."""
    found = blocks(contest, ranks)
    players = {name: converter for roles in found.values() for name, converter in roles.values()}
    hits = tell(contest, players, asked, ranks)
    candidates = {name: [Candidate(converter)] for name, converter in players.items()}
    scores = score(contest.store, contest.store.indices("test"), candidates, ranks=ranks)
    r2c = {name: scores[name][contest.target].compute()["r2c"] for name in players}
    return {
        block: {role: {"name": name, "r2c": r2c[name], "hits": hits[name]} for role, (name, _) in roles.items()}
        for block, roles in found.items()
    }


# --- what is said


def over_tasks(entry: Mapping[str, Any], arm: str) -> Tensor:
    """(test clips,): the mean over tasks of what an arm told."""
    return torch.stack([arms[arm] for arms in entry["hits"].values()]).nanmean(0)


def row(seeds: Sequence[Mapping[str, Mapping[str, Any]]], role: str, weights: Tensor) -> dict[str, Any]:
    """One line of a block. seeds: of each, role -> entry."""
    entries = [roles[role] for roles in seeds]
    told = {arm: mean(float(over_tasks(entry, arm).nanmean()) for entry in entries) for arm in ARMS}
    differences = torch.stack(
        [over_tasks(roles["deficient"], ARMS[1]) - over_tasks(roles[role], ARMS[1]) for roles in seeds]
    )
    each = differences.nanmean(1).tolist()
    half = STUDENT_T[len(each) - 1] * stdev(each) / sqrt(len(each)) if 1 < len(each) <= len(STUDENT_T) else None
    return {
        "names": [entry["name"] for entry in entries],
        "r2c": mean(entry["r2c"] for entry in entries),
        **told,
        "tasks": {
            task: {arm: mean(float(entry["hits"][task][arm].nanmean()) for entry in entries) for arm in ARMS}
            for task in entries[0]["hits"]
        },
        "difference": accuracy(differences.nanmean(0), weights),
        "seeds": {"each": each, "low": half and mean(each) - half, "high": half and mean(each) + half},
    }


def print_block(block: str, rows: Mapping[str, Mapping[str, Any]]) -> None:
    lines = []
    for role, found in rows.items():
        name = {"deficient": block, "whole": "whole"}.get(role) or f"{role}: {found['names'][0].partition(' for ')[0]}"
        between = [
            f"{number(at['low'])} .. {number(at['high'])}" if role != "deficient" else ""
            for at in (found["difference"], found["seeds"])
        ]
        shown = [number(found[key]) for key in ("r2c", *ARMS)]
        lines.append([name, *shown, number(found["difference"]["value"]), *between])
    header = ["", "r2c", "converted", "+ residual", "+ random", "deficient - this", "95%, clips", "95%, seeds"]
    print("\n" + format_table(header, lines), flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="key=value", help="of the recipe")
    parser.add_argument("--runs", nargs="+", type=Path, default=[])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--dials", nargs="+", default=list(STRENGTHS), choices=STRENGTHS)
    parser.add_argument("--options", type=json.loads, default={"latents": 64}, help="of the perceiver, as JSON")
    parser.add_argument("--stops", type=int, default=7, help="earlier steps to choose the early stop from")
    parser.add_argument("--tasks", nargs="+", default=["texture", "size", "count", "speed"])
    parser.add_argument("--per-class", type=int, default=None, help="labels of a class; default: all")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args(argv)
    ranks, examined = Ranks.join(), []
    for source in asked.runs or asked.seeds:
        if asked.runs:
            contest = finished(source, ranks)
        else:
            recipe = load_recipe(["recipe=deficiency_miniature", f"train.seed={source}", *asked.words])
            contest = trained(with_contest(recipe, asked.dials, asked.options), ranks, stops=asked.stops)
        examined.append(examine(contest, asked, ranks))
        weights = group_weights([contest.store.groups[at] for at in contest.store.indices("test")], resamples=2000)
        roles = {block: found.keys() for block, found in examined[0].items()}
        rows = {
            block: {role: row([one[block] for one in examined], role, weights) for role in roles[block]}
            for block in roles
        }
        if asked.json:
            asked.json.write_text(json.dumps(rows, indent=1))
    print(f"target {contest.target}, {len(examined)} seed(s), tasks {', '.join(asked.tasks)}, rank {asked.rank}")
    for block, found in rows.items():
        print_block(block, found)


if __name__ == "__main__":
    main()
