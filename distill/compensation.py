"""What a residual from the student wins back after conversion: every arm of distill.arms, on a run's converted tokens.

Rank 0 does it once the converters are trained; it needs no engine, for L-BFGS on all clips solves a head exactly.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from converters.converter import Converter
from distill.arms import ARMS, Bench, Result, run_arms, set_bench, tell
from distill.labelled import has_label, keep_few, known_classes
from distill.metrics import group_weights
from distill.naming import named
from distill.pooling import Pooled, pool_attentive, pool_means
from distill.residual import check_groups
from shards.column import STUDENT
from shards.ranks import Ranks
from shards.store import SPLITS, FeatureStore

ALL = "all"  # the budget of all labels
Place = tuple[str, str]  # contestant, target
Heads = dict[str, dict[str, dict[str, dict[str, Any]]]]  # target -> task -> budget -> arm -> its numbers


@dataclass(frozen=True)
class Asked:
    """A recipe's section `head`; recipes.schema says what each entry means."""

    tasks: Sequence[str] = ()
    per_class: Sequence[int | None] = (None,)
    rank: int = 8
    pooling: str = "mean"
    weights: str = "none"
    smoothing: float = 0.0
    separator: str | None = None


def compensate(
    store: FeatureStore,
    contestants: Mapping[str, Converter],
    asked: Asked,
    *,
    resamples: int,
    seed: int,
    ranks: Ranks,
    twins: Mapping[str, str] | None = None,
) -> dict[str, Heads | None]:
    """contestant -> target -> task -> labels of a class -> arm -> its numbers (see distill.arms.tell); None where no
    task was asked for.

    contestants: of the same targets, on the ranks' device. twins: of a contestant, which other it is compared with.
    The intervals are over clips, not over seeds. Rank 0 does all of it while the others wait; where it fails, they
    raise FailedElsewhere. All return the same.
    """
    if not asked.tasks:
        return dict.fromkeys(contestants)

    def work() -> str:
        if not ranks.main:
            return ""
        groups = [store.groups[index] for index in store.indices("test")]
        resampled = group_weights(groups, resamples=resamples)
        fitted = {
            (name, target, task, budget): results
            for (name, target), task, budget, results in fit_heads(
                store, contestants, asked, seed=seed, device=ranks.device
            )
        }
        found: dict[str, Heads] = {name: {} for name in contestants}
        for (name, target, task, budget), results in fitted.items():
            twin = fitted.get(((twins or {}).get(name, ""), target, task, budget))
            found[name].setdefault(target, {}).setdefault(task, {})[budget] = tell(results, resampled, twin=twin)
        return json.dumps(found)

    return json.loads(ranks.text(ranks.first(work)))


def fit_heads(
    store: FeatureStore, contestants: Mapping[str, Converter], asked: Asked, *, seed: int, device: torch.device
) -> Iterator[tuple[Place, str, str, dict[str, Result]]]:
    """(contestant and target, task, budget, arm -> its result), each once. Arms that no converter has a part in are
    fitted once for all contestants."""
    benches: dict[Place, Bench] = {}
    rounds = [(task, count) for task in asked.tasks for count in asked.per_class]
    for task, count in tqdm(rounds, desc="heads", unit="task", dynamic_ncols=True):
        labels, classes = labels_of(store, task, asked.separator)
        train = torch.tensor(store.indices("train"))
        labels = keep_few(labels, train, count, generator=torch.Generator().manual_seed(seed))
        if asked.pooling == "attentive":
            pooled = pool_attentive(store, contestants, labels, seed=seed, device=device)
            benches = set_benches(store, pooled, labels, len(classes), seed=seed)
        else:
            benches = benches or set_benches(
                store, pool_means(store, contestants, device=device), labels, len(classes), seed=seed
            )
        shared: dict[str, dict[str, Result]] = {}
        for (name, target), bench in benches.items():
            with named(f"{name}, {target}, {task}"):
                results = run_arms(
                    replace(bench, labels=labels, num_classes=len(classes)),
                    rank=asked.rank,
                    weights=asked.weights,
                    smoothing=asked.smoothing,
                    seed=seed,
                    known=shared.get(target),
                )
            shared[target] = {arm: result for arm, result in results.items() if not ARMS[arm].converts}
            yield (name, target), task, str(count or ALL), results


def set_benches(
    store: FeatureStore, pooled: Pooled, labels: Tensor, num_classes: int, *, seed: int
) -> dict[Place, Bench]:
    """What the arms of every contestant and target read. The wrong teacher is the next target, converted alike."""
    targets = [column for name, column in pooled if name is None and column != STUDENT]
    following = dict(zip(targets, targets[1:] + targets[:1], strict=True))
    found = {}
    for name, target in pooled:
        if name is not None:
            with named(f"{name}, {target}"):
                found[name, target] = set_bench(
                    student=pooled[None, STUDENT],
                    converted=pooled[name, target],
                    teacher=pooled[None, target],
                    wrong=pooled[name, following[target]] if len(targets) > 1 else None,
                    labels=labels,
                    num_classes=num_classes,
                    groups=store.groups,
                    splits={split: store.indices(split) for split in SPLITS},
                    seed=seed,
                )
    return found


def labels_of(store: FeatureStore, task: str, separator: str | None) -> tuple[Tensor, list[str]]:
    """A task's labels, (n,) int64, and its classes; with a separator (n c), and a label names several of them."""
    at = store.tasks[task]
    indices = torch.tensor(at.indices)
    if separator is None:
        return indices, at.values
    parts = [{part.strip() for part in value.split(separator)} - {""} for value in at.values]
    classes = sorted(set[str]().union(*parts))
    held = torch.tensor([[int(name in those) for name in classes] for those in parts])
    return held[indices.clamp_min(0)].masked_fill(indices[:, None] < 0, -1), classes


def check_head(store: FeatureStore, asked: Asked) -> None:
    """Raises ValueError where a head that is asked for could not be fitted to this store, or not be scored."""
    if not asked.tasks:
        return
    if unknown := [task for task in asked.tasks if task not in store.tasks]:
        there = ", ".join(store.tasks) or "none: no clip has a label"
        raise ValueError(f"head.tasks: {store.path} has no task {', '.join(map(repr, unknown))}; there are {there}")
    if asked.rank > (width := store.layout(STUDENT).dim):
        raise ValueError(f"head.rank={asked.rank} is above {width}, the width of the student; lower it")
    train, val, test = (torch.tensor(store.indices(split)) for split in SPLITS)
    check_groups([store.groups[index] for index in train.tolist()])
    for task in asked.tasks:
        with named(f"head.tasks={task}"):
            if task == "label":
                check_labels(store)
            labels, classes = labels_of(store, task, asked.separator)
            known_classes(labels, len(classes), train, val)
            if not bool(has_label(labels[test]).any()):
                raise ValueError(f"none of {len(test)} test clips has a label; label some, or leave the task out")


def check_labels(store: FeatureStore) -> None:
    """Raises ValueError where a clip has a label that the manifest does not list: it would count as none."""
    for key, record in zip(store.keys, store.clips, strict=True):
        if record["label"] is not None and record["label"] not in store.labels:
            listed = ", ".join(store.labels)
            raise ValueError(
                f'clip "{key}" has the label {record["label"]!r}, which the manifest of {store.path} does not know '
                f"({listed}); extract the store again"
            )
