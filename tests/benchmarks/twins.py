"""What the question of head.py sets side by side: deficient converters, their whole twin, and controls of equal r2c."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import sqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from converters import Converter, load_converter
from distill import run
from distill.floors import Floors
from distill.selection import choose_weights, validation_r2c
from distill.train import train
from distill.twins import blinded
from recipes.compose import from_yaml
from recipes.contest import contestants
from recipes.schema import Contestant, Deficiency, Recipe
from shards.features import plan_features
from shards.ranks import Ranks
from shards.store import FeatureStore

STRENGTHS = {
    "low_rank": (0.3, 1.0, 3.0),
    "masking": (0.5, 1.0, 1.6),
    "jacobian": (0.1, 1.0, 10.0),
    "combined": (1.0,),
}
NARROW = {"narrow": {"width": 64, "latents": 16}, "thin": {"width": 32, "latents": 8}}
BARE = "bare"  # whole without a skip


@dataclass
class Contest:
    """What one seed has trained. deficient, early, narrower: by name."""

    seed: int
    store: FeatureStore
    target: str
    whole: Converter
    deficient: dict[str, Any]
    narrower: dict[str, Converter]
    early: dict[str, Converter] = field(default_factory=dict)


@dataclass(frozen=True)
class Noisy:
    """A converter, plus noise of `size` deviations, the same for all tokens of a clip."""

    converter: Converter
    size: float
    generator: torch.Generator

    @property
    def targets(self) -> Mapping[str, Any]:
        return self.converter.targets

    def __call__(self, tokens: Tensor, *, positions: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        found = self.converter(tokens, positions=positions)
        for target, made in found.items():
            drawn = torch.randn(len(made), 1, made.shape[2], generator=self.generator).to(made)
            found[target] = made + self.size * drawn * self.converter.target_normalisers[target].scale
        return found


# --- what is trained, or was


def with_contest(recipe: Recipe, dials: Sequence[str], options: dict[str, Any]) -> Recipe:
    """The recipe with the contestants of this question."""
    found = {"whole": Contestant(family="perceiver", options=options)}
    for kind in dials:
        for strength in STRENGTHS[kind]:
            spec = Deficiency(kind=kind, strength=strength)  # type: ignore[arg-type]
            found[f"{kind}-{strength:g}".replace(".", "_")] = replace(found["whole"], deficiency=spec)
    found[BARE] = replace(found["whole"], skip="none")
    for name, smaller in NARROW.items():
        found[name] = replace(found["whole"], options=options | smaller)
        found[f"{BARE}-{name}"] = replace(found[name], skip="none")
    return replace(recipe, contest=found)


def trained(recipe: Recipe, ranks: Ranks, *, stops: int) -> Contest:
    """Trains all contestants from one read, and keeps whole and BARE at `stops` earlier steps."""
    recipes, setting = contestants(recipe), recipe.train
    features = plan_features(recipe, ranks)
    converters = run.build_converters(recipes, features)
    store = features.extract()
    floors = Floors(converters, store, asked=[], seed=setting.seed, ranks=ranks)
    learners, kept = run.build_learners(recipes, floors, {}, ranks), {}

    def keep(step: int) -> None:
        for name in ("whole", BARE):
            kept[f"{name}, step {step}"] = {
                key: value.detach().clone() for key, value in converters[name].state_dict().items()
            }

    keep(0)
    with run.read_batches(recipe, store, ranks) as reader:
        train(
            learners,
            reader.steps(0, setting.steps),
            start=0,
            steps=setting.steps,
            accumulation=setting.accumulation,
            ranks=ranks,
            report=lambda step, losses: None,
            save=lambda step: None,
            save_every=setting.steps,
            validate=keep,
            validate_every=max(1, setting.steps // (stops + 1)),
            asked_to_stop=lambda: False,
        )
    choose_weights(learners, floors.trained, store, queries=setting.queries, ranks=ranks)
    early = {}
    for label, state in kept.items():
        name = label.partition(",")[0]
        early[label] = run.build_converters({name: recipes[name]}, features)[name]
        early[label].load_state_dict(state)
    return sorted_out(recipes, converters, store, early)


def finished(folder: Path, ranks: Ranks) -> Contest:
    """The contest of a run folder; its store is found, or made again, where its recipe puts it."""
    recipes = {part.parent.name: from_yaml(part.read_text()) for part in sorted(folder.glob("*/recipe.yaml"))}
    if not any(recipe.deficiency is None for recipe in recipes.values()):
        raise SystemExit(f"{folder} holds no contestant without a deficiency: {', '.join(recipes) or 'none at all'}")
    converters = {name: load_converter(folder / name / "bundle").to(ranks.device) for name in recipes}
    store = plan_features(next(iter(recipes.values())), ranks).extract()
    return sorted_out(recipes, converters, store, {})


def sorted_out(
    recipes: Mapping[str, Recipe], converters: dict[str, Converter], store: FeatureStore, early: dict[str, Converter]
) -> Contest:
    dials = {name: run.deficiency_of(recipe) for name, recipe in recipes.items()}
    plain = [name for name, found in dials.items() if found is None]
    whole = "whole" if "whole" in plain else plain[0]
    deficient = {name: converters[name] for name, found in dials.items() if found is not None}
    narrower = {name: converters[name] for name in plain if name != whole}
    first = next(iter(recipes.values()))
    target = next(iter(first.targets))
    deficient |= blinded(converters, dials)
    return Contest(first.train.seed, store, target, converters[whole], deficient, narrower, early)


# --- what is compared


def blocks(contest: Contest, ranks: Ranks) -> dict[str, dict[str, tuple[str, Any]]]:
    """deficient -> role -> the name and converter that plays it: itself, whole, and the controls nearest to its r2c on
    val."""

    def on_val(converters: Mapping[str, Any]) -> dict[str, float]:
        found = validation_r2c(converters, contest.store, queries=None, ranks=ranks) if converters else {}
        return {name: by_target[contest.target] for name, by_target in found.items()}

    def noisy(size: float) -> Noisy:
        return Noisy(contest.whole, size, torch.Generator().manual_seed(contest.seed))

    pools = {"early": contest.early, "narrower": contest.narrower}
    r2c = {role: on_val(pool) for role, pool in pools.items()}
    ours, whole = on_val(contest.deficient), on_val({"whole": contest.whole, "noisy": noisy(1.0)})
    found: dict[str, dict[str, tuple[str, Any]]] = {}
    for name, converter in contest.deficient.items():
        lost = max(0.0, (whole["whole"] - ours[name]) / (whole["whole"] - whole["noisy"]))  # noise costs its square
        found[name] = {"deficient": (name, converter), "whole": ("whole", contest.whole)}
        found[name]["noise"] = f"noise {sqrt(lost):.2f} for {name}", noisy(sqrt(lost))
        for role, pool in pools.items():
            if pool:
                nearest = min(pool, key=lambda other: abs(r2c[role][other] - ours[name]))
                found[name][role] = nearest, pool[nearest]
    return found
