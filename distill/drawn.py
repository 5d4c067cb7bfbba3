"""The features of a recipe that names an oracle: tokens are drawn, not made from videos."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

from distill.oracle_store import oracle_features
from recipes.schema import Recipe
from shards.ranks import Ranks
from shards.stored import Stored


def drawn(recipe: Recipe, ranks: Ranks, say: Callable[[str], None]) -> Stored:
    """Draws what is not there yet, and returns it."""
    return oracle_features(
        asdict(recipe.oracle),  # type: ignore[call-overload]
        path=recipe.store.path,
        clips=recipe.data.clips,
        seed=recipe.data.seed,
        codec=recipe.store.codec,
        target=next(iter(recipe.targets)),
        floors=recipe.evaluate.floors,
        ranks=ranks,
        say=say,
    )
