"""The command: recipe -> features -> train -> evaluate -> bundle.

deepspeed distill/run.py recipe=perceiver_videomae [group=option] [key=value ...]
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from converters import Converter, create_converter, list_converters
from distill.cost import measure_cost
from distill.engine import Engine, load_parameters
from distill.evaluate import score, space_digest, summarise
from distill.floors import MAIN, MLP_QUERIES, Floors
from distill.objective import TERMS, Objective
from distill.report import end_table, model_card
from distill.resume import flatten, resume_point
from distill.runfolder import RunFolder, timestamp
from distill.selection import choose_weights, validation_r2c
from distill.train import Learner, NotFinite, Stopped, StopRequest, sampled_positions, train
from recipes.check import RecipeError
from recipes.compose import load_recipe, to_yaml
from recipes.schema import Recipe
from shards.column import STUDENT
from shards.features import Features, notices, plan_features
from shards.launcher import follow_launcher
from shards.ranks import Ranks, is_first
from shards.reader import BatchReader
from shards.store import FeatureStore
from teachers import list_backbones

RESUMABLE = 75  # exit status of a run that was asked to stop and can be continued (EX_TEMPFAIL)


def main(argv: list[str]) -> int:
    """Returns the exit status: 0 done, 1 the work failed, 2 the recipe is wrong, 75 stopped and resumable."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        recipe = load_recipe(argv, also=unknown_names)
    except RecipeError as error:
        if is_first():
            print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        follow_launcher()
        ranks = Ranks.join()
        distill(recipe, ranks)
    except Stopped:
        ranks.leave()
        return RESUMABLE
    except (ValueError, OSError, NotFinite) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    ranks.leave()
    return 0


def distill(recipe: Recipe, ranks: Ranks) -> dict[str, Any]:
    """The whole job, top to bottom. Returns the summary."""
    say = print if ranks.main else (lambda text: None)
    say(f"{recipe.recipe}: {ranks.world} rank(s) on {ranks.device}, {torch.get_num_threads()} threads each")
    folder = open_folder(recipe, ranks)

    features = plan_features(recipe, ranks, say=say)
    converter = build_converter(recipe, features)  # before the work, so that a wrong option costs nothing
    store = features.extract()
    check_splits(store)
    settings = flatten(asdict(recipe)) | flatten(store.digests, "features.")  # what a resumed run must agree in
    start, states = resume_point(folder, settings, resume=recipe.train.resume == "auto")
    folder.rewind(start)
    folder.write("recipe.yaml", to_yaml(recipe))

    floors = Floors(converter, store, asked=recipe.evaluate.floors, seed=recipe.train.seed, ranks=ranks)
    learners = build_learners(recipe, floors.trained, states, ranks)
    save = saver(learners, folder, {"settings": settings, "world": ranks.world}, ranks)
    try:
        train_converters(recipe, learners, floors.trained, store, folder, ranks, start=start, save=save)
    except Stopped as stopped:
        say(f"{stopped}; continue with the same command and train.resume=auto run.name={folder.path.name}")
        raise

    summary = evaluate(recipe, floors, store, ranks)
    if ranks.main:
        converter.cpu().save(folder.bundle, card=model_card(summary, store))
        folder.write("summary.json", summary)
        print(end_table(summary, folder=folder.path, store=features.path, notices=notices(store)))
    folder.close()
    return summary


def open_folder(recipe: Recipe, ranks: Ranks) -> RunFolder:
    """The run's folder, named by rank 0."""
    base = Path(recipe.run.dir or Path("runs") / recipe.recipe)
    path = base / ranks.text(recipe.run.name or timestamp())
    return RunFolder.open(path, resume=recipe.train.resume == "auto", ranks=ranks)


def build_converter(recipe: Recipe, features: Features) -> Converter:
    """The converter of the recipe, not yet fitted, on this rank's device."""
    layouts = features.layouts
    return create_converter(
        recipe.converter.family,
        student=layouts[STUDENT],
        targets={name: layouts[name].keeping(spec.special) for name, spec in recipe.targets.items()},
        skip=recipe.converter.skip,
        normaliser=recipe.converter.normaliser,
        options=recipe.converter.options,
        seed=recipe.train.seed,
    ).to(features.ranks.device)


def build_learners(
    recipe: Recipe, converters: Mapping[str, Converter], states: Mapping[str, Mapping[str, Tensor]], ranks: Ranks
) -> list[Learner]:
    """A learner for every converter, from its state in a checkpoint where there is one."""
    setting = recipe.train
    weights = {term: getattr(recipe.objective, term) for term in TERMS}
    learners = []
    for name, converter in converters.items():
        objective = Objective(converter, weights=weights, gram_tokens=recipe.objective.gram_tokens)
        if name in states:
            load_parameters(objective, states[name])
        engine = build_engine(recipe, objective, ranks)
        if name in states:
            engine.restore(states[name])
        count = MLP_QUERIES if name == "mlp" else setting.queries
        positions = sampled_positions(converter.targets, count=count, seed=setting.seed)
        learners.append(Learner(name, engine, positions))
    return learners


def saver(
    learners: Sequence[Learner], folder: RunFolder, record: Mapping[str, Any], ranks: Ranks
) -> Callable[[int], None]:
    """What writes a checkpoint; every rank must call it."""

    def save(step: int) -> None:
        states = {learner.name: learner.engine.state() for learner in learners}
        ranks.first(lambda: folder.save_checkpoint(step, states, record))

    return save


def train_converters(
    recipe: Recipe,
    learners: Sequence[Learner],
    converters: Mapping[str, Converter],
    store: FeatureStore,
    folder: RunFolder,
    ranks: Ranks,
    *,
    start: int,
    save: Callable[[int], None],
) -> None:
    """Trains all converters from one read of the data, and leaves each with the weights that are better on val."""
    setting = recipe.train

    def report(step: int, losses: dict[str, dict[str, float]]) -> None:
        folder.log_losses(step, losses, main=MAIN)

    def validate(step: int) -> None:
        found = validation_r2c({MAIN: converters[MAIN]}, store, queries=setting.queries, ranks=ranks)
        folder.log_scores(step, "val", "r2c", found[MAIN])

    with read_batches(recipe, store, ranks) as reader, StopRequest() as asked_to_stop:
        train(
            learners,
            reader.steps(start, setting.steps),
            start=start,
            steps=setting.steps,
            accumulation=setting.accumulation,
            ranks=ranks,
            report=report,
            save=save,
            save_every=setting.checkpoint_every,
            validate=validate,
            validate_every=setting.validate_every,
            asked_to_stop=asked_to_stop,
        )
    chosen = choose_weights(learners, converters, store, queries=setting.queries, ranks=ranks)
    for name, (which, found) in chosen.items():
        folder.log_scores(setting.steps, "val", "r2c", found, converter=None if name == MAIN else name, weights=which)
        if ranks.main:
            print(f"{name}: {which} weights, chosen on val")


def read_batches(recipe: Recipe, store: FeatureStore, ranks: Ranks) -> BatchReader:
    """This rank's part of the training stream."""
    setting = recipe.train
    return BatchReader(
        store,
        columns=[STUDENT, *recipe.targets],
        indices=store.indices("train"),
        batch=setting.batch,
        seed=setting.seed,
        rank=ranks.rank,
        world=ranks.world,
        accumulation=setting.accumulation,
        device=ranks.device,
    )


def build_engine(recipe: Recipe, objective: Objective, ranks: Ranks) -> Engine:
    setting = recipe.train
    precision = setting.precision
    if precision == "auto":
        precision = "bf16" if ranks.device.type == "cuda" else "fp32"
    return Engine(
        objective,
        device=ranks.device,
        steps=setting.steps,
        micro_batch=setting.batch // (ranks.world * setting.accumulation),
        accumulation=setting.accumulation,
        lr=setting.lr,
        min_lr=setting.min_lr,
        warmup=setting.warmup,
        slow={"skips": setting.skip_lr},
        weight_decay=setting.weight_decay,
        betas=(setting.betas[0], setting.betas[1]),
        clip_norm=setting.clip_norm,
        ema=setting.ema,
        precision=precision,
        zero=recipe.engine.zero,
    )


def evaluate(recipe: Recipe, floors: Floors, store: FeatureStore, ranks: Ranks) -> dict[str, Any]:
    """summary.json: the converter beside its floors on the test clips, its cost, and what it all rests on."""
    test, asked = store.indices("test"), recipe.evaluate
    candidates = floors.candidates()
    scores = score(store, test, candidates, ranks=ranks, cka_positions=asked.cka_positions, task="evaluate on test")
    groups = [store.groups[index] for index in test]
    clips = {split: len(store.indices(split)) for split in ("train", "val", "test")}
    return summarise(scores, converter=MAIN, groups=groups, resamples=asked.bootstrap) | {
        "recipe": recipe.recipe,
        "family": recipe.converter.family,
        "weights": recipe.backbones.weights,
        "cost": measure_cost(floors.converter, device=ranks.device),
        "head": None,
        "clips": clips | {"refused": len(store.refused)},
        "digests": store.digests | {"normaliser": space_digest(store, floors.converter.targets)},
    }


def unknown_names(recipe: Recipe) -> list[str]:
    """What only the registries know to be wrong with a recipe."""
    problems = []
    if recipe.converter.family not in list_converters():
        families = ", ".join(list_converters())
        problems.append(f"converter.family: {recipe.converter.family!r} is no family; there are {families}")
    for key, spec in {"student": recipe.student, **{f"targets.{n}": t for n, t in recipe.targets.items()}}.items():
        if spec.backbone not in list_backbones():
            problems.append(
                f"{key}.backbone: {spec.backbone!r} is no backbone; there are {', '.join(list_backbones())}"
            )
    return problems


def check_splits(store: FeatureStore) -> None:
    """Raises ValueError where refusals have emptied a split."""
    for split in ("train", "val", "test"):
        if not store.indices(split):
            raise ValueError(
                f"no {split} clip is left of {len(store)}: {len(store.refused)} were refused; give more videos"
            )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
