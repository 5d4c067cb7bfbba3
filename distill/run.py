"""The command: recipe -> features -> train -> evaluate -> bundle.

deepspeed distill/run.py recipe=perceiver_videomae [group=option] [key=value ...]
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from converters import Converter, create_converter, list_converters
from distill.compensation import Asked
from distill.deficiency import Dials
from distill.demands import check_store
from distill.drawn import drawn
from distill.engine import Engine, choose_precision, load_parameters
from distill.floors import CONTROL, LARGE, Floors
from distill.naming import named
from distill.objective import TERMS, Objective
from distill.oracle_store import make_oracle, with_optimum
from distill.pairs import PairedReader, training_stream
from distill.report import end_table, model_card
from distill.resume import States, flatten, resume_point, saver
from distill.runfolder import RunFolder, timestamp
from distill.selection import Choice, choose_weights, log_choices, logs
from distill.summary import evaluate
from distill.train import Learner, NotFinite, Stopped, StopRequest, sampled_positions, train
from recipes.check import RecipeError
from recipes.compose import load_recipe, to_yaml
from recipes.contest import contestants, keyed_converters, run_base
from recipes.schema import Evaluate, Recipe
from shards.column import STUDENT
from shards.features import Features, features_for
from shards.launcher import follow_launcher
from shards.notices import notices
from shards.ranks import Ranks, is_first
from shards.reader import BatchReader
from shards.references import find_references
from shards.store import FeatureStore
from shards.stored import Stored
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


def distill(recipe: Recipe, ranks: Ranks) -> dict[str, dict[str, Any]]:
    """The whole job, for all contestants of a recipe; a plain one is a contest of one. Returns their summaries."""
    say = print if ranks.main else (lambda text: None)
    say(f"{recipe.recipe}: {ranks.world} rank(s) on {ranks.device}, {torch.get_num_threads()} threads each")
    folders, recipes = open_folders(recipe, ranks), contestants(recipe)
    features = drawn(recipe, ranks, say) if recipe.oracle else features_for(recipe, ranks, say=say)
    converters = build_converters(recipes, features)  # before the work, so that a wrong option costs nothing
    store = features.extract()
    check_store(store, probes=recipe.evaluate.probes, head=Asked(**asdict(recipe.head)), say=say)
    # what a resumed run must agree in
    settings = {name: flatten(asdict(own)) | flatten(store.digests, "features.") for name, own in recipes.items()}
    start, states = resume_point(folders, settings, resume=recipe.train.resume == "auto")
    for name, folder in folders.items():
        folder.rewind(start, events=recipe.run.tensorboard)
        folder.write("recipe.yaml", to_yaml(recipes[name]))

    measures, deficient = recipe.evaluate, [name for name, own in recipes.items() if own.deficiency]
    how = {"seed": recipe.train.seed, "rates": measures.mlp_rates, "deficient": deficient}
    floors = Floors(converters, store, asked=learned_beside(measures), ranks=ranks, **how)
    learners = build_learners(recipes, floors, states, ranks)
    save = saver(learners, floors, folders, settings, ranks)
    try:
        chosen = train_converters(recipes, learners, floors, folders, ranks, start=start, save=save)
    except Stopped as stopped:
        name = next(iter(folders.values())).run
        say(f"{stopped}; continue with the same command and train.resume=auto run.name={name}")
        raise

    summaries = summarise_all(recipes, floors, chosen, folders, ranks)
    if recipe.oracle:
        oracle = make_oracle(asdict(recipe.oracle), seed=recipe.data.seed)
        how = {name: deficiency_of(own) for name, own in recipes.items()}
        summaries = {name: with_optimum(summaries[name], oracle, dials=how[name]) for name in summaries}
    if ranks.main:
        for name, folder in folders.items():
            converters[name].cpu().save(folder.bundle, card=model_card(summaries[name], store))
            folder.write("summary.json", summaries[name])
        print(end_table(summaries, folders, store=features.path, notices=notices(store)))
    for folder in folders.values():
        folder.close()
    return summaries


def learned_beside(measures: Evaluate) -> list[str]:
    """The floors, and what learns beside the converters for other reasons."""
    return [*measures.floors, *[LARGE] * (LARGE in measures.references), *[CONTROL] * (measures.controls == "full")]


def open_folders(recipe: Recipe, ranks: Ranks) -> dict[str, RunFolder]:
    """The run's folder, named by rank 0, or in it one for every contestant."""
    path, resume = run_base(recipe) / ranks.text(recipe.run.name or timestamp()), recipe.train.resume == "auto"
    parts = {name: name if recipe.contest else None for name in contestants(recipe)}
    return {name: RunFolder.open(path, part=part, resume=resume, ranks=ranks) for name, part in parts.items()}


def build_converters(recipes: Mapping[str, Recipe], features: Features | Stored) -> dict[str, Converter]:
    """The contestants' converters, not yet fitted, on this rank's device."""
    layouts, found = features.layouts, {}
    for name, recipe in recipes.items():
        spec, dials = recipe.converter, deficiency_of(recipe)
        assert spec is not None, name
        with named(name):
            converter = create_converter(
                spec.family,
                student=layouts[STUDENT],
                targets={target: layouts[target].keeping(at.special) for target, at in recipe.targets.items()},
                skip=spec.skip,
                normaliser=spec.normaliser,
                options=spec.options,
                rank=dials and dials.rank,
                mask_token=dials is not None and dials.ratio is not None,
                seed=recipe.train.seed,
            )
        found[name] = converter.to(features.ranks.device)
    return found


def deficiency_of(recipe: Recipe) -> Dials | None:
    """What the converter of a recipe is deprived of, in the terms of distill.deficiency."""
    spec, setting = recipe.deficiency, recipe.train
    return Dials.of(asdict(spec), steps=setting.steps, seed=setting.seed) if spec else None


def build_learners(
    recipes: Mapping[str, Recipe], floors: Floors, saved: Mapping[str, States], ranks: Ranks
) -> list[Learner]:
    """A learner for every converter, from its state in a checkpoint where there is one; floors lack nothing. recipes,
    saved: by contestant."""
    recipe = next(iter(recipes.values()))
    setting = recipe.train
    weights = {term: getattr(recipe.objective, term) for term in TERMS}
    states, precision = floors.joined(saved), choose_precision(setting.precision, ranks.device)
    learners = []
    for name, converter in floors.trained.items():
        dials = deficiency_of(recipes[name]) if name in recipes else None
        objective = Objective(converter, weights=weights, gram_tokens=recipe.objective.gram_tokens, dials=dials)
        with named(name):
            if name in states:
                load_parameters(objective, states[name])
            engine = build_engine(recipe, objective, precision, ranks, rate=floors.rate(name))
            if name in states:
                engine.restore(states[name])
        count = floors.queries(name, setting.queries)
        positions = sampled_positions(converter.targets, count=count, seed=setting.seed)
        learners.append(Learner(name, engine, positions, wrong=floors.wrongly_paired(name)))
    return learners


def train_converters(
    recipes: Mapping[str, Recipe],
    learners: Sequence[Learner],
    floors: Floors,
    folders: Mapping[str, RunFolder],
    ranks: Ranks,
    *,
    start: int,
    save: Callable[[int], None],
) -> dict[str, Choice]:
    """Trains all converters from one read of the data, and leaves each with the weights that are better on val. Returns
    by label which these were, and their r2c there."""
    recipe, store = next(iter(recipes.values())), floors.store
    setting = recipe.train
    report, validate = logs(floors, folders, queries=setting.queries, batch=setting.batch, ranks=ranks)
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
    chosen = choose_weights(learners, floors.trained, store, queries=setting.queries, ranks=ranks)
    log_choices(chosen, floors, folders, step=setting.steps, ranks=ranks)
    floors.tune({name: sum(choice.r2c.values()) for name, choice in chosen.items()})
    return chosen


def read_batches(recipe: Recipe, store: FeatureStore, ranks: Ranks) -> BatchReader | PairedReader:
    """This rank's part of the training stream."""
    setting, wrong = recipe.train, recipe.evaluate.controls == "full"
    how = {"batch": setting.batch, "seed": setting.seed, "accumulation": setting.accumulation}
    return training_stream(store, targets=list(recipe.targets), wrong=wrong, ranks=ranks, **how)


def build_engine(recipe: Recipe, objective: Objective, precision: str, ranks: Ranks, *, rate: float = 1.0) -> Engine:
    """rate: a multiple of the recipe's."""
    setting = recipe.train
    return Engine(
        objective,
        device=ranks.device,
        steps=setting.steps,
        micro_batch=setting.batch // (ranks.world * setting.accumulation),
        accumulation=setting.accumulation,
        lr=setting.lr * rate,
        min_lr=min(setting.min_lr, setting.lr * rate),
        warmup=setting.warmup,
        slow={"skips": setting.skip_lr, "bottlenecks": setting.skip_lr},  # both start at the ridge
        weight_decay=setting.weight_decay,
        betas=(setting.betas[0], setting.betas[1]),
        clip_norm=setting.clip_norm,
        ema=setting.ema,
        precision=precision,
        zero=recipe.engine.zero,
    )


def summarise_all(
    recipes: Mapping[str, Recipe],
    floors: Floors,
    chosen: Mapping[str, Choice],
    folders: Mapping[str, RunFolder],
    ranks: Ranks,
) -> dict[str, dict[str, Any]]:
    """The summary of every contestant, with what its recipe alone knows."""
    first = next(iter(recipes.values()))
    weights = "oracle" if first.oracle else first.backbones.weights
    special = {name: at.special for name, at in first.targets.items()}
    references = find_references(floors.store, special, first.evaluate.references)
    if ranks.main and references.missing:
        print(*references.missing, sep="\n")
    about = {name: {"recipe": recipe.recipe, "weights": weights} for name, recipe in recipes.items()}
    return evaluate(
        floors,
        chosen,
        about,
        ranks,
        resamples=first.evaluate.bootstrap,
        cka_positions=first.evaluate.cka_positions,
        probes=first.evaluate.probes,
        dials={name: deficiency_of(recipe) for name, recipe in recipes.items()},
        head=Asked(**asdict(first.head)),
        references=references,
        folders=folders,
    )


def unknown_names(recipe: Recipe) -> list[str]:
    """What only the registries know to be wrong with a recipe."""
    asked = {f"{key}.family": (at.family, list_converters()) for key, at in keyed_converters(recipe).items()}
    if recipe.data.source not in ("store", "oracle"):  # those have columns without a backbone
        models = {"student": recipe.student, **{f"targets.{name}": at for name, at in recipe.targets.items()}}
        asked |= {f"{key}.backbone": (at.backbone, list_backbones()) for key, at in models.items()}
    return [
        f"{key}: {name!r} is no {key.rpartition('.')[2]}; there are {', '.join(known)}"
        for key, (name, known) in asked.items()
        if name not in known
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
