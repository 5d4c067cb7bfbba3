"""Which factors survive conversion: what probes tell from the student's, the teacher's and the converted tokens.

Every probe is fitted on train, chosen on val and scored on test. The student's and the teachers' are fitted once, and
serve all contestants. Converted tokens are read twice: by a probe of their own, which says what they hold, and by the
teacher's, which says whether it lies where the teacher has it, and whether it answers as on the teacher's own tokens.

Axes: n test clips, k tasks, c classes, r resamples.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
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
    difference, chance, clips, corrected, agreement, kappa, kl}.

    The first four are accuracies on test, with a 95% interval by bootstrap over groups; `difference` is converted minus
    teacher, on the same clips and resamples; `chance` is the accuracy of naming train's most frequent class; `clips`
    are the test clips that have a label; `corrected` has the four accuracies as (accuracy - chance) / (1 - chance). The
    last three hold the teacher's probe on converted tokens against itself on the teacher's own, over all test clips:
    see `agreement`. The intervals are over clips, not over seeds of the probes. contestants: of the same targets, on
    the ranks' device.

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
    """The probes of every kind on one set of tokens, what they tell on test, and their logits (n k c) there."""

    probes: dict[str, Probe]
    hits: Hits
    logits: dict[str, Tensor]


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
            crossed, hits = self._read(teacher.probes, sources["test"])
            told = {"student": student.hits, "teacher": teacher.hits, "converted": converted.hits}
            found[target] = self._compare(told | {"converted_by_teacher_probe": hits})
            for kind, logits in crossed.items():
                for place, task in enumerate(self.labels):
                    own, other = teacher.logits[kind][:, place], logits[:, place]
                    found[target][task][kind] |= agreement(own, other, self.weights)
        return found

    def _column(self, name: str) -> _Readers:
        return self._fit(name, self._open([name])[name], self.store.layout(name))

    def _open(self, columns: list[str], converter: Converter | None = None) -> dict[str, dict[str, Source]]:
        return open_sources(self.store, columns, converter=converter, seed=self.seed, device=self.device)

    def _fit(self, name: str, sources: Mapping[str, Source], layout: TokenLayout) -> _Readers:
        probes = {}
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
            self.bar.update()
        logits, hits = self._read(probes, sources["test"])
        return _Readers(probes, hits, logits)

    def _read(self, probes: Mapping[str, Probe], test: Source) -> tuple[dict[str, Tensor], Hits]:
        """By kind the logits on test (n k c), and what of them is right."""
        read = {kind: probe.read(test) for kind, probe in probes.items()}
        hits = {kind: probes[kind].right(*found, self.labels) for kind, found in read.items()}
        return {kind: logits for kind, (logits, _) in read.items()}, hits

    def _compare(self, hits: Mapping[str, Hits]) -> dict[str, dict[str, Any]]:
        """task -> kind -> the numbers of one target. hits: of student, teacher and both readings of the converted."""
        found: dict[str, dict[str, Any]] = {task: {} for task in self.labels}
        for task in self.labels:
            for kind in self.kinds:
                told = {tokens: by_kind[kind][task] for tokens, by_kind in hits.items()}
                accuracies: dict[str, Any] = {tokens: accuracy(right, self.weights) for tokens, right in told.items()}
                chance = float(self.chance[task].nanmean())
                found[task][kind] = accuracies | {
                    "difference": accuracy(told["converted"] - told["teacher"], self.weights),
                    "chance": chance,
                    "clips": int((~told["teacher"].isnan()).sum()),
                    "corrected": {name: corrected(at["value"], chance) for name, at in accuracies.items()},
                }
        return found

    def _most_frequent(self, classes: Tensor) -> Tensor:
        """(n,) what naming the most frequent class of train tells on test."""
        train, test = (classes[self.store.indices(split)] for split in ("train", "test"))
        named_always = train[train >= 0].mode().values
        return (test == named_always).double().masked_fill(test < 0, torch.nan)


def accuracy(right: Tensor, weights: Tensor) -> dict[str, Any]:
    """Mean of (n,), or of a difference of two of them, over the clips that have a label, with its 95% interval.

    weights: (r n), see group_weights. A resample without a labelled clip is left out.
    """
    counted = weights * ~right.isnan()
    low, high = interval(counted @ right.nan_to_num() / counted.sum(1))
    return {"value": float(right.nanmean()), "low": number_or_none(low), "high": number_or_none(high)}


def corrected(value: float, chance: float) -> float | None:
    """What is told beyond chance, of what could be: 0 at chance, 1 at all; None where chance tells all."""
    return (value - chance) / (1 - chance) if chance < 1 else None


def agreement(own: Tensor, other: Tensor, weights: Tensor) -> dict[str, Any]:
    """One probe's answers on the teacher's tokens and on converted ones, logits (n c), -inf for classes it never had.

    agreement: share of clips of the same top-1 answer, with its interval. kappa: the same beyond what two readers of
    these frequencies share by chance (Cohen 1960). kl: mean KL of its answer on converted tokens from that on the
    teacher's own, in nats.
    """
    said = [logits.argmax(1) for logits in (own, other)]
    shares = [torch.bincount(answers, minlength=own.shape[1]).double() / len(own) for answers in said]
    same = accuracy((said[0] == said[1]).double(), weights)
    logs = [logits.double().log_softmax(1) for logits in (own, other)]
    kl = (logs[0].exp() * (logs[0] - logs[1])).nan_to_num(0).sum(1).mean()
    return {"agreement": same, "kappa": corrected(same["value"], float(shares[0] @ shares[1])), "kl": float(kl)}


def mean_kappa(found: Survival) -> dict[str, float]:
    """target -> probe_agreement: the mean kappa over its tasks and kinds, those left out that have none."""
    means = {}
    for target, tasks in found.items():
        values = [kinds["kappa"] for task in tasks.values() for kinds in task.values() if kinds["kappa"] is not None]
        if values:
            means[target] = fmean(values)
    return means


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
