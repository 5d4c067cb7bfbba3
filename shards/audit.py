"""Command: verifies a feature store; exits 0 only if everything verifies.

    python -m shards.audit STORE [--rerun N] [--damage [--bundle BUNDLE]]

It reads everything: manifest, sums, joins, shapes, finite values, counts. --rerun runs the backbones again on N clips
drawn by chance and compares. --damage prints what the codec cost; with --bundle, also what it costs that converter.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from recipes.check import validate
from shards.column import STUDENT
from shards.damage import Damage, damage_of, effect_on
from shards.disk import StoreError
from shards.features import Features, plan_features
from shards.functions import references_of
from shards.manifest import digest
from shards.provenance import RECIPE, recall
from shards.ranks import Ranks
from shards.store import FeatureStore
from shards.tensorfile import sizes
from shards.verify import MOST, problems_of
from shards.view import render_views

SAME = 0.99  # cosine in standardised space below which a clip's tokens are other ones; int8 alone gives 0.99997
SHOWN = 50  # problems that are printed


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, 1 with what does not verify, 2 where the audit itself could not be done."""
    lines = str(__doc__).splitlines()
    parser = argparse.ArgumentParser(prog="python -m shards.audit", description=lines[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("--rerun", type=int, default=0, metavar="N", help="clips to run the backbones on again")
    parser.add_argument("--damage", action="store_true", help="what the codec costs, by column")
    parser.add_argument("--bundle", help="with --damage: a converter, and what the codec costs its alignment")
    arguments = parser.parse_args(argv)
    try:
        problems = list(problems_of(arguments.store))
        if not problems:
            describe(FeatureStore(arguments.store, []))
            if arguments.damage:
                tell_damage(arguments.store, arguments.bundle)
            if arguments.rerun:
                problems = rerun(arguments.store, arguments.rerun)
    except StoreError as error:
        problems = [str(error)]
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for problem in problems[:SHOWN]:
        print(f"wrong: {problem}")
    if len(problems) > SHOWN:
        print(f"  and {len(problems) - SHOWN} more")
    count = f"{len(problems)} problem(s){', where the search stopped' if len(problems) == MOST else ''}"
    print(f"{arguments.store}: {count if problems else 'everything verifies'}")
    return 1 if problems else 0


def describe(store: FeatureStore) -> None:
    """Clips, splits and columns."""
    splits = ", ".join(f"{len(store.indices(split))} {split}" for split in ("train", "val", "test"))
    print(f"clips: {len(store)} ({splits}), {len(store.refused)} refused")
    for name, column in store.manifest.columns.items():
        counts = ", ".join(f"{count} {what}" for what, count in column.coverage.items() if what != "complete")
        state = counts if column.complete else "incomplete"
        print(f"{name}: {column.layout.describe()}, {column.codec}, {sum(sizes(column.spec).values())} bytes; {state}")


def tell_damage(root: Path, bundle: str | None) -> None:
    """A line for every complete column, and for every target of a converter."""
    store = FeatureStore(root, [])
    total = 0
    for name, column in store.manifest.columns.items():
        held = FeatureStore(root, [name]) if column.complete else None
        if held and held.indices("train"):  # a reference has none, and so no space of its own
            total += sum(sizes(column.spec).values())
            print(f"damage: {name}: {in_words(damage_of(held, name))}")
    print(f"damage: {total / 1e6:.3f} MB a clip in all")
    if bundle is None:
        print("damage: say --bundle BUNDLE for the effect on a converter's alignment")
        return
    from converters import load_converter

    converter = load_converter(bundle)
    both = FeatureStore(root, [STUDENT, *converter.targets])
    for target, (stored, again) in effect_on(both, converter, student=STUDENT).items():
        print(
            f"damage: r2c of {target}: {stored:.5f} as stored, {again - stored:+.6f} with the codec's error once more"
        )


def in_words(damage: Damage) -> str:
    """One column's damage, for people."""
    how = "int8 on the stored fp16" if damage.measured else "from the sizes of its steps"
    return (
        f"relative error {damage.relative:.3%}, worst channel {damage.worst:.3%} (number {damage.channel}), "
        f"cosine {damage.cosine:.6f}; standardised, {damage.clips} clips, {how}"
    )


def rerun(root: Path, count: int) -> list[str]:
    """Computes clips drawn by chance again, in every column of a backbone. Returns what differs."""
    features = features_of(root)
    _ = features.there  # raises where clips or view are not those of the store
    asked = {name: digest(spec) for name, spec in features.columns.items()}
    there = FeatureStore(root, []).manifest.columns
    names = [name for name in there if there[name].complete and there[name].origin.get("asked") == asked.get(name)]
    if not names:
        raise ValueError(f"{root}: no column of its backbones is there as {RECIPE} asks for it; re-run precompute")
    if skipped := sorted(there.keys() - names):
        print(f"rerun: not of a backbone of {RECIPE}, left out: {', '.join(skipped)}")
    of_target = references_of(features.recipe)  # whose space is that of their teacher
    clips = {clip.key: clip for clip in features.found.clips}
    stores = {name: FeatureStore(root, [name]) for name in names}  # each on the clips that it covers
    places = {name: {key: index for index, key in enumerate(store.keys)} for name, store in stores.items()}
    keys = sorted({*chain.from_iterable(places.values())})
    problems = []
    for key in random.sample(keys, min(count, len(keys))):
        sources = {name: features.sources[name] for name in names if key in places[name]}
        requests = sorted({(source.frames, source.pixels) for source in sources.values()})
        _, views, _ = render_views(clips[key], requests, clip_seconds=features.recipe.data.clip_seconds)
        for name, source in sources.items():
            video = views[source.frames, source.pixels][None].to(features.ranks.device)
            again = source(video.float() / 255)[0].float().cpu()
            space = stores[of_target.get(name, name)].statistics(of_target.get(name, name))
            cosine = standardised_cosine(stores[name][places[name][key]][name], again, space)
            print(f"rerun: {key}, {name}: cosine {cosine:.6f}")
            if not cosine > SAME:
                problems.append(f'{name}, clip "{key}": run again, its tokens have cosine {cosine:.4f} with the stored')
    return problems


def features_of(root: Path) -> Features:
    """The plan of the recipe that made a store. Raises ValueError where it is not known or not possible any more."""
    told = recall(root)
    if told is None:
        raise ValueError(
            f"{root} has no {RECIPE}, which tells where its videos are; precompute with its recipe writes it"
        )
    recipe, problems = validate(told)
    if recipe is None or problems:
        raise ValueError(f"{root}/{RECIPE} is no recipe of this version: {'; '.join(problems)}")
    columns = FeatureStore(root, []).manifest
    codecs = {column.codec for column in columns.columns.values()}
    store = replace(
        recipe.store, path=str(root), codec=sorted(codecs)[-1], clips_per_shard=columns.partition.clips_per_shard
    )
    store.extend = True  # keeps the numbers that the store gave its clips
    train = replace(recipe.train, batch=1)
    return plan_features(replace(recipe, store=store, train=train), Ranks(), say=lambda text: None)


def standardised_cosine(one: Tensor, other: Tensor, statistics: dict[str, Tensor]) -> float:
    """Mean cosine of tokens (q d), each relative to its position's mean."""
    mean, scale = statistics["mean"], statistics["scale"]
    return float(F.cosine_similarity((one - mean) / scale, (other - mean) / scale, dim=-1).mean())


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    sys.exit(main())
