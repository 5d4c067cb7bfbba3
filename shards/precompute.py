"""Command: videos -> feature columns.

    python -m shards.precompute recipe=perceiver_videomae [group=option] [key=value ...]

Also under `deepspeed --module shards.precompute`, torchrun or srun: the unfinished shards are divided among the ranks.
As tasks that never meet, in an array of a cluster's queue: store.share=$SLURM_ARRAY_TASK_ID/16 with --array=0-15.
"""

from __future__ import annotations

import logging
import sys

from recipes.check import RecipeError
from recipes.compose import load_recipe
from shards.disk import StoreError
from shards.features import plan_features
from shards.launcher import follow_launcher
from shards.ranks import Ranks, is_first
from shards.team import Share, Unfinished


def main(argv: list[str]) -> int:
    """Returns the exit status: 0 done, 1 the work failed, 2 the recipe is wrong."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        recipe = load_recipe(argv, program="python -m shards.precompute")
    except RecipeError as error:
        if is_first():
            print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        follow_launcher()
        Share.parse(recipe.store.share)  # before anything is joined or read
        ranks = Ranks.join()
        if recipe.data.source == "store":
            raise ValueError("data=store has no videos to make features from; choose another data, or train with it")
        if recipe.data.source == "oracle":
            raise ValueError("data=oracle has no videos; the run itself draws its tokens: deepspeed distill/run.py")
        features = plan_features(recipe, ranks)
        store = features.extract()
        if ranks.main:
            splits = ", ".join(f"{len(store.indices(split))} {split}" for split in ("train", "val", "test"))
            print(f"features: {len(store)} clips ({splits}), columns {', '.join(store.columns)}, in {features.path}")
    except Unfinished as done:
        print(f"features: {done}; the last of them completes the store")
    except (StoreError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    ranks.leave()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
