"""From a recipe to its feature store: which clips, which columns, where, and what of it is already there.

The joint between recipes, backbones and the store, used by the two commands that need features.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from recipes.schema import Backbone as BackboneSpec
from recipes.schema import Recipe
from recipes.schema import Store as StoreSpec
from shards.agreement import check_clips, describe_clips
from shards.column import PIXELS, STUDENT
from shards.decode import Refusal
from shards.extension import after_those_of, choose_part
from shards.extraction import Views, extract
from shards.manifest import MANIFEST, Manifest, digest
from shards.notices import notices, split_lines
from shards.plan import check_place, is_whole
from shards.provenance import remember
from shards.ranks import Ranks
from shards.split import FEWEST
from shards.store import FeatureStore
from shards.stored import Stored
from shards.team import Share
from shards.videos import Clip, Found, find_clips
from shards.view import render_views, view_digest
from teachers import create_backbone
from teachers.backbone import Backbone
from teachers.layout import TokenLayout

if TYPE_CHECKING:
    from shards.remote import Mirror

RENDERED = Path("features")  # demo/ and world/ stand there
log = logging.getLogger(__name__)


@dataclass
class Features:
    """The features that a recipe asks for. `path` is the store; `columns` says what each column was asked to be."""

    recipe: Recipe
    ranks: Ranks
    found: Found
    path: Path
    view: dict[str, Any]
    columns: dict[str, dict[str, Any]]
    say: Callable[[str], None] = field(default=print, repr=False)

    @cached_property
    def there(self) -> Manifest | None:
        """The manifest of a store that already has every column as asked for; the backbones are then not needed."""
        if not (self.path / MANIFEST).exists():
            return None
        manifest = Manifest.read(self.path)
        self._check(manifest)
        if len(self.found.clips) > manifest.partition.clips:
            return None
        for name, asked in self.columns.items():
            column = manifest.columns.get(name)
            if column is None or not column.complete or column.origin.get("asked") != digest(asked):
                return None
            part = self.covers.get(name, self.found.clips)
            if column.coverage.get("uncovered", 0) != len(self.found.clips) - len(part):
                return None  # what differs is said by the plan
        return manifest if is_whole(self.path, manifest, self.columns) else None

    @cached_property
    def covers(self) -> dict[str, frozenset[str]]:
        """column -> the keys that it shall have, of the columns that are asked for a part of the clips."""
        keys = [clip.key for clip in self.found.clips]
        asked = {name: spec.clips for name, spec in self.recipe.targets.items()}
        parts = {name: choose_part(keys, clips) for name, clips in asked.items() if clips and clips < len(keys)}
        return parts | {PIXELS + name: part for name, part in parts.items() if PIXELS + name in self.columns}

    def _check(self, manifest: Manifest) -> None:
        """Raises ValueError where the store at this place is another one."""
        wanted = self.recipe.store
        clips = self.found.clips[: manifest.partition.clips] if wanted.extend else self.found.clips
        check_clips(self.path, manifest, clips=clips, view=self.view, clips_per_shard=wanted.clips_per_shard)
        for name in self.columns.keys() & manifest.columns.keys():
            if manifest.columns[name].codec != wanted.codec:
                raise ValueError(
                    f"the store {self.path} has column {name} in codec {manifest.columns[name].codec}, not "
                    f"{wanted.codec}; choose another store.path, or store.codec={manifest.columns[name].codec}"
                )

    @cached_property
    def sources(self) -> dict[str, Backbone]:
        """The backbones, built."""
        recipe = self.recipe
        sources = {STUDENT: self._build(recipe.student)}
        for name, spec in recipe.targets.items():
            sources[name] = self._build(spec)
        for name in recipe.targets:
            if PIXELS + name in self.columns:
                sources[PIXELS + name] = pixels_under(sources[name], sources[STUDENT])
        for name, source in sources.items():
            source.origin = source.origin | {"asked": digest(self.columns[name])}
            source.to(self.ranks.device)
        return sources

    def _build(self, spec: BackboneSpec) -> Backbone:
        return create_backbone(
            spec.backbone,
            weights=weights_of(spec, self.recipe),
            checkpoint=spec.checkpoint,
            revision=spec.revision,
            licence=spec.licence,
            special=tuple(stored_special(spec)),
            options=spec.options,
            autocast=torch.bfloat16 if precision(self.recipe, self.ranks) == "bf16" else None,
        )

    @property
    def layouts(self) -> dict[str, TokenLayout]:
        """Of every column, as the store has it."""
        made: Mapping[str, Any] = self.there.columns if self.there else self.sources
        return {name: made[name].layout for name in self.columns}

    def extract(self) -> FeatureStore:
        """Brings the store to completion and opens it."""
        clip_seconds = self.recipe.data.clip_seconds
        requests = [] if self.there else sorted({(each.frames, each.pixels) for each in self.sources.values()})

        def render(clip: Clip) -> tuple[dict[str, Any], Views]:
            view, views, notes = render_views(clip, requests, clip_seconds=clip_seconds)
            return {"source": clip.name, "size": clip.size, "view": asdict(view), "notes": notes}, views

        if self.there:
            if self.ranks.main:
                self.say(f"features: already in {self.path}")
        else:
            self._announce()
            extract(
                self.path,
                clips=self.found.clips,
                columns=self.sources,
                render=render,
                view=self.view,
                refusal=Refusal,
                codec=self.recipe.store.codec,
                clips_per_shard=self.recipe.store.clips_per_shard,
                covers=self.covers,
                extend=self.recipe.store.extend,
                ranks=self.ranks,
                share=Share.parse(self.recipe.store.share),
                batch=self.recipe.backbones.batch or (16 if self.ranks.device.type == "cuda" else 1),
                device=self.ranks.device,
                max_refused=self.recipe.data.max_refused,
                say=self.say,
            )
        store = self.open()
        if self.ranks.main:
            remember(self.path, self.recipe)
            for line in notices(store):
                self.say(line)
        return store

    def open(self) -> FeatureStore:
        """The store with this recipe's columns; a target has the special tokens that the recipe converts."""
        special = {name: spec.special for name, spec in self.recipe.targets.items()}
        return FeatureStore(self.path, list(self.columns), special=special)

    def _announce(self) -> None:
        if self.ranks.main:
            names = ", ".join(f"{name} ({source.layout.describe()})" for name, source in self.sources.items())
            where = f"{self.ranks.device}, {precision(self.recipe, self.ranks)}"
            self.say(f"features: {names} on {where} into {self.path}")


def features_for(recipe: Recipe, ranks: Ranks, *, say: Callable[[str], None] = print) -> Features | Stored:
    """What a recipe trains on: features that are made from videos, or with data=store those of a store as it is."""
    if recipe.store.share:
        raise ValueError(
            f"store.share={recipe.store.share}: shares are for shards.precompute; train on the whole store"
        )
    if recipe.data.source != "store":
        return plan_features(recipe, ranks, say=say)
    special = {name: spec.special for name, spec in recipe.targets.items()}
    return Stored(store_place(recipe.store), special, recipe.evaluate.floors, ranks, say)


def store_place(store: StoreSpec) -> Path | Mirror:
    """The folder of a store that is there, or what stands for one behind a URL."""
    path = store.path or ""
    if "://" not in path:
        return Path(path)
    from shards.remote import Mirror  # fsspec, which a local store does not need

    limit = None if store.cache_gb is None else int(store.cache_gb * 1e9)
    return Mirror(path, cache=store.cache, limit=limit)


def plan_features(recipe: Recipe, ranks: Ranks, *, say: Callable[[str], None] = print) -> Features:
    """Finds the clips and the place of the store; runs no backbone.

    Raises ValueError and its kin on data that cannot be found, too few clips for the ranks, or missing weights.
    """
    found = ranks.first(lambda: find_recipe_clips(recipe))
    for note in [*found.notes, *split_lines(found.clips)]:
        if ranks.main:
            say(f"data: {note}")
    data = recipe.data
    view, view_hash = view_digest(clip_seconds=data.clip_seconds, clips_per_video=data.clips_per_video)
    shared = {"precision": precision(recipe, ranks)}
    columns = {STUDENT: asked_of(recipe.student, recipe) | shared}
    for name, spec in recipe.targets.items():
        columns[name] = asked_of(spec, recipe) | shared
        if "pixels" in recipe.evaluate.floors:
            columns[PIXELS + name] = {"pixels_under": asked_of(spec, recipe), "student": columns[STUDENT]}
    identity: list[Any] = [describe_clips(found.clips), view_hash, columns[STUDENT], recipe.backbones.weights]
    identity += [recipe.store.codec, recipe.store.clips_per_shard]
    path = Path(recipe.store.path) if recipe.store.path else Path("features") / digest(identity)[:16]
    check_place(path)
    if recipe.store.extend and (path / MANIFEST).exists():
        found = replace(found, clips=after_those_of(path, found.clips))
    if len({clip.group for clip in found.clips if clip.split == "train"}) < FEWEST["train"]:
        raise ValueError(
            f"train holds one group of the {len(found.clips)} clips, and ridge needs {FEWEST['train']} to hold against "
            "each other; give more videos, or tell groups apart by data.group (or the CSV's group column)"
        )
    train = sum(clip.split == "train" for clip in found.clips)
    if ranks.world > train:
        raise ValueError(f"{ranks.world} ranks for {train} train clips; start fewer ranks, or give more clips")
    if recipe.train.batch % (ranks.world * recipe.train.accumulation):
        raise ValueError(
            f"train.batch={recipe.train.batch} does not divide by {ranks.world} ranks x train.accumulation="
            f"{recipe.train.accumulation}"
        )
    return Features(recipe, ranks, found, path, view, columns, say)


def find_recipe_clips(recipe: Recipe) -> Found:
    """The clips that the recipe's data section names; demo and world are rendered where they are not there yet."""
    data = recipe.data
    return find_clips(
        source=data.source,
        root=data.root,
        csv=data.csv,
        tars=data.tars,
        clips=data.clips,
        seed=data.seed,
        clip_seconds=data.clip_seconds,
        clips_per_video=data.clips_per_video,
        group=data.group,
        split=data.split,
        difficulty=data.difficulty,
        rendered_dir=RENDERED / data.source,
    )


def asked_of(spec: BackboneSpec, recipe: Recipe) -> dict[str, Any]:
    """What identifies the function that a column was asked to be, on any machine: no path, a local folder by digest."""
    from teachers.weights import PRETRAINED, STANDIN, WeightSource, digest_of_weights

    weights = weights_of(spec, recipe)
    if weights not in (STANDIN, PRETRAINED):
        weights = "local:" + digest_of_weights(WeightSource(weights=weights).folder(spec.backbone))
    asked = {name: getattr(spec, name) for name in ("backbone", "checkpoint", "revision", "options")}
    return json.loads(json.dumps(asked | {"weights": weights, "special": stored_special(spec)}))


def stored_special(spec: BackboneSpec) -> list[str]:
    """Tokens beside the grid that the store keeps: those of the recipe, and those that the model's own head reads."""
    return [*spec.stored, *(name for name in spec.special if name not in spec.stored)]


def weights_of(spec: BackboneSpec, recipe: Recipe) -> str:
    return spec.weights or recipe.backbones.weights


def precision(recipe: Recipe, ranks: Ranks) -> str:
    """The precision that the backbones run in."""
    if recipe.backbones.precision != "auto":
        return recipe.backbones.precision
    return "bf16" if ranks.device.type == "cuda" else "fp32"


def pixels_under(teacher: Backbone, student: Backbone) -> Backbone:
    """The backbone that averages the pixels under each of the teacher's tokens; under the student's if it is pooled."""
    model = student if teacher.layout.grid is None else teacher
    grid = model.layout.grid
    assert grid is not None
    frames = max(model.frames // grid[0], 1) * grid[0]
    cells = next(n for n in (4, 2, 1) if all(model.pixels % (side * n) == 0 for side in grid[1:]))
    return create_backbone("pixels", options={"grid": grid, "frames": frames, "pixels": model.pixels, "cells": cells})
