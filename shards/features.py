"""From a recipe to its feature store: which clips, which columns, where, and what of it is already there.

The joint between recipes, backbones and the store, used by the two commands that need features.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.schema import Recipe
from recipes.schema import Store as StoreSpec
from shards.agreement import check_clips, describe_clips
from shards.column import PIXELS, STUDENT
from shards.decode import Refusal
from shards.extension import after_those_of, choose_part
from shards.extraction import Views, extract
from shards.functions import asked_columns, build_columns, precision, references_of
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
from teachers.backbone import Backbone
from teachers.layout import TokenLayout

if TYPE_CHECKING:
    from shards.remote import Mirror

RENDERED = Path("features")  # demo/ and world/ stand there
log = logging.getLogger(__name__)


@dataclass
class Features:
    """The features that a recipe asks for. `path` is the store; `columns` says what each column was asked to be;
    `covers` has the keys of those that are asked for a part of the clips."""

    recipe: Recipe
    ranks: Ranks
    found: Found
    path: Path
    view: dict[str, Any]
    columns: dict[str, dict[str, Any]]
    covers: dict[str, frozenset[str]]
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
        train = {clip.key for clip in self.found.clips if clip.split == "train"}
        taught = [name for name in self.columns if not train.isdisjoint(self.covers.get(name, train))]
        return manifest if is_whole(self.path, manifest, self.columns, statistics=taught) else None

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
        sources = build_columns(self.recipe, self.ranks, self.columns)
        for name, source in sources.items():
            source.origin = source.origin | {"asked": digest(self.columns[name])}
            source.to(self.ranks.device)
        return sources

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
        """The store with this recipe's columns, without references; of targets, the special tokens converted."""
        special = {name: spec.special for name, spec in self.recipe.targets.items()}
        beside = references_of(self.recipe)  # of the test clips alone: shards.references opens them
        return FeatureStore(self.path, [name for name in self.columns if name not in beside], special=special)

    def _announce(self) -> None:
        if self.ranks.main:
            beside = references_of(self.recipe)
            names = ", ".join(
                f"{name} ({source.layout.describe()})" for name, source in self.sources.items() if name not in beside
            )
            where = f"{self.ranks.device}, {precision(self.recipe, self.ranks)}"
            self.say(f"features: {names} on {where} into {self.path}")
            if beside:
                self.say(f"features: references, of the test clips alone: {', '.join(beside)}")


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
    columns = asked_columns(recipe, ranks)
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
    covers = covered_parts(recipe, found.clips)
    columns = {name: asked for name, asked in columns.items() if covers.get(name, True)}  # none without a clip
    return Features(recipe, ranks, found, path, view, columns, {n: k for n, k in covers.items() if n in columns}, say)


def covered_parts(recipe: Recipe, clips: Sequence[Clip]) -> dict[str, frozenset[str]]:
    """column -> the keys that it shall have, of the columns that are for a part of the clips."""
    keys = [clip.key for clip in clips]
    asked = {name: spec.clips for name, spec in recipe.targets.items()}
    parts = {name: choose_part(keys, count) for name, count in asked.items() if count and count < len(keys)}
    test = frozenset(clip.key for clip in clips if clip.split == "test")
    beside = {name: test & parts.get(target, test) for name, target in references_of(recipe).items()}
    return parts | {PIXELS + name: part for name, part in parts.items()} | beside


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
