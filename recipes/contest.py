"""Who trains in a run: the recipe's one converter, or all contestants of a contest.

A contestant is trained as if its converter stood alone in the recipe; what it shares with the others is the read of the
data, and the floors that are the same for them. A plain run is a contest of one, whose folder is the run's own.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from recipes.schema import ConverterSpec, Deficiency, Recipe, Run

CONTEST = "contest."  # before a contestant's name, the key at which it stands


def keyed_converters(recipe: Recipe) -> dict[str, ConverterSpec]:
    """Every converter of a recipe by the key at which it stands: `converter`, or `contest.NAME`."""
    alone = {"converter": recipe.converter} if recipe.converter else {}
    return alone | {CONTEST + name: spec for name, spec in recipe.contest.items()}


def keyed_deficiencies(recipe: Recipe) -> dict[str, Deficiency]:
    """Every deficiency of a recipe by the key at which it stands: `deficiency`, or `contest.NAME.deficiency`."""
    places = {"deficiency": recipe.deficiency}
    places |= {f"{CONTEST}{name}.deficiency": spec.deficiency for name, spec in recipe.contest.items()}
    return {place: found for place, found in places.items() if found is not None}


def contestants(recipe: Recipe) -> dict[str, Recipe]:
    """name -> the recipe that trains this contestant alone, to the same weights. A plain recipe's is named `converter`.

    A contestant of a named run says where it stands in it, so that its recipe can continue it; that of an unnamed run
    starts a new one.
    """
    if recipe.converter:
        return {"converter": recipe}
    run = recipe.run
    inside = str(run_base(recipe) / run.name) if run.name else None
    return {
        name: replace(
            recipe,
            recipe=f"{recipe.recipe}_{name}",
            converter=ConverterSpec(
                family=spec.family, skip=spec.skip, normaliser=spec.normaliser, options=spec.options
            ),
            deficiency=spec.deficiency or recipe.deficiency,
            contest={},
            run=Run(dir=inside, name=name) if inside else run,
        )
        for name, spec in recipe.contest.items()
    }


def run_base(recipe: Recipe) -> Path:
    """The folder that holds the recipe's runs."""
    return Path(recipe.run.dir or Path("runs") / recipe.recipe)
