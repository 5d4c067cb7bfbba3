"""An oracle's clips as a feature store, and what a run on it reached of the optimum.

Tokens are drawn in chunks of a split, from (seed, split, chunk) alone: more train clips leave the first ones, and all
of val and test, as they were. Nothing but the store knows that no video stands behind it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.deficiency import Dials
from distill.fields import MEDIUM
from distill.oracles import FieldOracle, NonlinearOracle, Oracle, RetrievalOracle, RoutedOracle
from shards.addition import add_column
from shards.column import STUDENT
from shards.manifest import Column, Manifest, digest
from shards.plan import default_clips_per_shard
from shards.ranks import Ranks
from shards.records import write_records
from shards.split import SPLITS
from shards.store import FeatureStore
from shards.stored import Stored
from shards.videos import Clip

KINDS = {"field": FieldOracle, "nonlinear": NonlinearOracle, "routed": RoutedOracle, "retrieval": RetrievalOracle}
CHUNK = 50  # clips that are drawn together


def make_oracle(asked: Mapping[str, Any], *, seed: int) -> Oracle:
    """asked: the section `oracle` of a recipe: kind, size, noise, decay (None: the size's own), degrees, reach."""
    kind, decay = asked["kind"], asked["decay"]
    options: dict[str, Any] = {**(MEDIUM if asked["size"] == "medium" else {}), "noise": asked["noise"], "seed": seed}
    options |= {"decay": decay} if decay is not None else {}
    options |= {"degrees": tuple(asked["degrees"])} if kind == "nonlinear" else {}
    options |= {"reach": (asked["reach"],) * 3} if kind == "routed" else {}
    return KINDS[kind](**options)


@dataclass(frozen=True)
class Drawn:
    """The clips of an oracle: key -> (split, number in it)."""

    oracle: Oracle
    seed: int
    places: Mapping[str, tuple[str, int]]

    def tokens(self, side: int, keys: Sequence[str]) -> Iterator[tuple[str, Tensor | str]]:
        """The student's (side 0) or the teacher's (1) tokens of some clips."""
        chunk = lru_cache(maxsize=1)(self._chunk)
        for key in keys:
            split, number = self.places[key]
            yield key, chunk(split, number // CHUNK)[side][number % CHUNK].clone()

    def _chunk(self, split: str, number: int) -> tuple[Tensor, Tensor]:
        name = hashlib.sha256(f"{self.seed}/{split}/{number}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(name[:8], "big") >> 1)
        return self.oracle.sample(CHUNK, generator)


def oracle_features(
    asked: Mapping[str, Any],
    *,
    path: str | None,
    clips: int,
    seed: int,
    codec: str,
    target: str,
    floors: Sequence[str],
    ranks: Ranks,
    say: Callable[[str], None],
) -> Stored:
    """The features of a run on an oracle, drawn by rank 0 where they are not there yet.

    asked: see make_oracle, and how many clips val and test have; train has `clips`. Raises ValueError where another
    store stands at the path (by default features/oracle/ and a digest).
    """
    oracle, counts = make_oracle(asked, seed=seed), {"train": clips, "val": asked["val"], "test": asked["test"]}
    whole = {**asked, "train": clips, "seed": seed, "codec": codec, "target": target}
    root = Path(path or f"features/oracle/{digest(whole)[:16]}")
    made = [_clip(place, *of) for place, of in enumerate((s, n) for s in SPLITS for n in range(counts[s]))]
    drawn = Drawn(oracle, seed, {clip.key: (clip.split, clip.position[0]) for clip in made})
    origin = {"function": "distill.oracles", "oracle": digest({**asked, "val": 0, "test": 0})[:16], "seed": str(seed)}
    layouts = {STUDENT: oracle.student, target: oracle.teacher}

    def write() -> None:
        columns = [Column(name, layout, codec, origin) for name, layout in layouts.items()]
        per_shard = default_clips_per_shard(columns[0], len(made))
        view = {"oracle": origin["oracle"], "seed": seed}
        write_records(root, made, view=view, clips_per_shard=per_shard, more=lambda clip: {})
        for side, column in enumerate(columns):
            there = Manifest.read(root).columns.get(column.name)
            if there is None or not there.complete:
                add_column(FeatureStore(root, []), column, lambda keys, side=side: drawn.tokens(side, keys))

    ranks.first(write)
    return Stored(root, {target: ()}, floors, ranks, say)


def _clip(place: int, split: str, number: int) -> Clip:
    """One that no video stands behind; it is a group of its own."""
    name = f"{split}-{number}"
    key = f"{place:06d}-{hashlib.sha256(name.encode()).hexdigest()[:10]}"
    return Clip(key, "oracle", None, name, split, None, None, (number, 1), name, 0)


def with_optimum(summary: Mapping[str, Any], oracle: Oracle, *, dials: Dials | None) -> dict[str, Any]:
    """A summary with its optimum: the section `oracle` (see `reached`), and `bayes` among the references: the R2 of
    the best answers in expectation, as r2 and as r2c, for the mean of an oracle's teacher is 0 at every position."""
    told = reached(summary, oracle, dials=dials)
    bayes = {target: dict.fromkeys(("r2c", "r2"), told["bayes_r2_of_any_rank"]) for target in summary["targets"]}
    return {**summary, "oracle": told, "references": summary["references"] | {"bayes": bayes}}


def reached(summary: Mapping[str, Any], oracle: Oracle, *, dials: Dials | None) -> dict[str, Any]:
    """`oracle` of a summary: bayes_r2, and the regret (1 - R2) / (1 - R2 of Bayes) of the converter, with its interval,
    and of every floor, by target; 1 is the optimum.

    dials: what the converter is deprived of; one of a hard rank is held against the best answers of that rank, the
    floors against the best of all.
    """
    own = best = oracle.bayes_r2(standardised=True)
    if dials and isinstance(dials.rank, int) and isinstance(oracle, FieldOracle):
        own = oracle.bayes_r2(dials.rank, standardised=True)

    def regret(r2: float | None, bayes: float) -> float | None:
        return None if r2 is None else (1 - r2) / (1 - bayes)

    found = {}
    for target, scores in summary["targets"].items():
        low, high = summary["intervals"][target]["r2"]
        found[target] = {"value": regret(scores["r2"], own), "low": regret(high, own), "high": regret(low, own)}
    floors = {
        floor: {target: regret(scores["r2"], best) for target, scores in by_target.items()}
        for floor, by_target in summary["floors"].items()
    }
    return {"bayes_r2": own, "bayes_r2_of_any_rank": best, "regret": found, "floors": floors}
