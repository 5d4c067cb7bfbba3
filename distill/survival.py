"""Which factors survive conversion: what probes tell from the student's, the teacher's and the converted tokens.

Every probe is fitted on train, chosen on val and scored on test. The student's and the teachers' are fitted once, and
serve all contestants. Converted tokens are read twice: by a probe of their own, which says what they hold, and by the
teacher's, which says whether it lies where the teacher has it.

Axes: n test clips, r resamples.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from converters.converter import Converter
from distill.evaluate import number_or_none
from distill.metrics import group_weights, interval
from distill.naming import named
from distill.probe import Probe, fit_probe
from distill.tokens import Source, open_sources
from shards.column import STUDENT
from shards.ranks import Ranks
from shards.store import SPLITS, FeatureStore
from teachers.layout import TokenLayout

Hits = dict[str, dict[str, Tensor]]  # kind -> task -> (n,): 1 told, 0 not, nan without a label
Survival = dict[str, dict[str, dict[str, Any]]]  # target -> task -> kind -> its numbers


def survival(
    store: FeatureStore,
    contestants: Mapping[str, Converter],
    *,
    kinds: Sequence[str],
    resamples: int,
    seed: int,
    ranks: Ranks,
) -> dict[str, Survival]:
    """contestant -> target -> task -> kind of probe -> {student, teacher, converted, converted_by_teacher_probe,
    difference, chance, clips}.

    The first four are accuracies on test, with a 95% interval by bootstrap over groups; `difference` is converted minus
    teacher, on the same clips and resamples; `chance` is the accuracy of naming train's most frequent class; `clips`
    are the test clips that have a label. The intervals are over clips, not over seeds of the probes. contestants: of
    the same targets, on the ranks' device.

    Rank 0 does all of it while the others wait; where it fails, they raise FailedElsewhere. All return the same.
    """
    if not kinds:
        return {name: {} for name in contestants}

    def work() -> str:
        if not ranks.main:
            return ""
        return json.dumps(_Examination(store, kinds, resamples, seed, ranks.device).of(contestants))

    return json.loads(ranks.text(ranks.first(work)))


@dataclass(frozen=True)
class _Readers:
    """The probes of every kind on one set of tokens, and what they tell on test."""

    probes: dict[str, Probe]
    hits: Hits


class _Examination:
    """What is the same for all sets of tokens of a store: its tasks, the test clips, and how they are resampled."""

    def __init__(
        self, store: FeatureStore, kinds: Sequence[str], resamples: int, seed: int, device: torch.device
    ) -> None:
        self.store, self.kinds, self.seed, self.device = store, kinds, seed, device
        self.labels = probed_tasks(store)
        groups = [store.groups[index] for index in store.indices("test")]
        self.weights = group_weights(groups, resamples=resamples)
        self.chance = {task: self._most_frequent(classes) for task, classes in self.labels.items()}

    def of(self, contestants: Mapping[str, Converter]) -> dict[str, Survival]:
        """As `survival`."""
        targets = list(next(iter(contestants.values())).targets)
        total = len(self.kinds) * (1 + len(targets) * (1 + len(contestants)))
        with tqdm(total=total, desc="probes", unit="probe", dynamic_ncols=True) as self.bar:
            student, teachers = self._column(STUDENT), {target: self._column(target) for target in targets}
            return {
                name: self._contestant(name, converter, student, teachers) for name, converter in contestants.items()
            }

    def _contestant(
        self, name: str, converter: Converter, student: _Readers, teachers: Mapping[str, _Readers]
    ) -> Survival:
        opened = self._open(list(teachers), converter)
        found: Survival = {}
        for target, teacher in teachers.items():
            sources = opened.pop(target)  # so that its memory goes with it
            converted = self._fit(f"{name}'s {target}", sources, converter.targets[target])
            crossed = {kind: probe.hits(sources["test"], self.labels)[0] for kind, probe in teacher.probes.items()}
            hits = {"student": student.hits, "teacher": teacher.hits, "converted": converted.hits}
            found[target] = self._compare(hits | {"converted_by_teacher_probe": crossed})
        return found

    def _column(self, name: str) -> _Readers:
        return self._fit(name, self._open([name])[name], self.store.layout(name))

    def _open(self, columns: list[str], converter: Converter | None = None) -> dict[str, dict[str, Source]]:
        return open_sources(self.store, columns, converter=converter, seed=self.seed, device=self.device)

    def _fit(self, name: str, sources: Mapping[str, Source], layout: TokenLayout) -> _Readers:
        probes, hits = {}, {}
        for kind in self.kinds:
            with named(f"{kind} probe of {name}"):
                probes[kind] = fit_probe(
                    kind,
                    train=sources["train"],
                    val=sources["val"],
                    labels=self.labels,
                    layout=layout,
                    generator=torch.Generator().manual_seed(self.seed),
                    device=self.device,
                )
                hits[kind] = probes[kind].hits(sources["test"], self.labels)[0]
            self.bar.update()
        return _Readers(probes, hits)

    def _compare(self, hits: Mapping[str, Hits]) -> dict[str, dict[str, Any]]:
        """task -> kind -> the numbers of one target. hits: of student, teacher and both readings of the converted."""
        found: dict[str, dict[str, Any]] = {task: {} for task in self.labels}
        for task in self.labels:
            for kind in self.kinds:
                told = {tokens: by_kind[kind][task] for tokens, by_kind in hits.items()}
                accuracies: dict[str, Any] = {tokens: accuracy(right, self.weights) for tokens, right in told.items()}
                found[task][kind] = accuracies | {
                    "difference": accuracy(told["converted"] - told["teacher"], self.weights),
                    "chance": float(self.chance[task].nanmean()),
                    "clips": int((~told["teacher"].isnan()).sum()),
                }
        return found

    def _most_frequent(self, classes: Tensor) -> Tensor:
        """(n,) what naming the most frequent class of train tells on test."""
        train, test = (classes[self.store.indices(split)] for split in ("train", "test"))
        named_always = train[train >= 0].mode().values
        return (test == named_always).double().masked_fill(test < 0, torch.nan)


def accuracy(right: Tensor, weights: Tensor) -> dict[str, float | None]:
    """Mean of (n,), or of a difference of two of them, over the clips that have a label, with its 95% interval.

    weights: (r n), see group_weights. A resample without a labelled clip is left out.
    """
    counted = weights * ~right.isnan()
    low, high = interval(counted @ right.nan_to_num() / counted.sum(1))
    return {"value": float(right.nanmean()), "low": number_or_none(low), "high": number_or_none(high)}


def check_tasks(store: FeatureStore, kinds: Sequence[str], say: Callable[[str], None]) -> None:
    """Says which tasks cannot be probed. Raises ValueError where probes are asked for and none can."""
    if kinds:
        try:
            probed_tasks(store)
        except ValueError as error:
            raise ValueError(f"evaluate.probes=[{','.join(kinds)}] needs labels, and {error}") from None
        for problem in task_problems(store).values():
            say(f"no probe: {problem}")


def probed_tasks(store: FeatureStore) -> dict[str, Tensor]:
    """task -> (clips of the store,) int64, its class or -1, of all tasks that can be probed; of two that say the same,
    the later, so that a factor stands for a label that repeats it. Raises ValueError where none can."""
    problems = task_problems(store)
    one_of_each = {tuple(at.indices): task for task, at in store.tasks.items() if task not in problems}
    found = {task: torch.tensor(indices) for indices, task in one_of_each.items()}
    if not found:
        why = "; ".join(problems.values()) or "its clips have no label"
        raise ValueError(
            f"{store.path} has none that can be told: {why}; give data with labels (a folder for each class, or a CSV "
            "with label and factor.NAME), or leave probes out"
        )
    return found


def task_problems(store: FeatureStore) -> dict[str, str]:
    """task -> why it cannot be probed."""
    problems = {}
    for task, at in store.tasks.items():
        seen = {split: {at.indices[clip] for clip in store.indices(split)} - {-1} for split in SPLITS}
        if len(seen["train"]) < 2:
            which = f"only {at.values[seen['train'].pop()]!r}" if seen["train"] else "no value"
            problems[task] = f"task {task!r} has {which} in train"
        elif not seen["val"] & seen["train"]:
            problems[task] = f"task {task!r} has no value in val that train has, too"
        elif not seen["test"]:
            problems[task] = f"task {task!r} has no value in test"
    return problems
