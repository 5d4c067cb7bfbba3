"""Arms: what heads of equal size and equal pooling make of converted tokens, of the student, and of both together.

An arm names what it reads. All are fitted by distill.head on the same clips, labels and decays, and scored on test.

converted              p alone
student                the pooled student alone
student_rank           the same through a learned rank q
converted_pca          p and the residual's q principal components
converted_supervised   p and a residual whose q directions are learned with the labels
teacher                the teacher's own pooled tokens

Controls, which read p and a supervised residual where nothing else is said: shuffled_residual (that of a clip of
another group), random_residual (q directions drawn by lot), wrong_teacher (p of another teacher, and the residual
beside that), permuted_labels (within every split, test too: against its true labels even a map fitted to noise may lie
well or badly, by more than an interval over clips says; must fall to chance).

Axes: n clips, e width of p, d of the student, q rank, c classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from distill.answers import scores, told
from distill.evaluate import number_or_none
from distill.fit import apart
from distill.head import Examples, Head, Loss, alarms, fit_head, random_basis, reading
from distill.labelled import class_weights, has_label, known_classes, permuted
from distill.naming import named
from distill.residual import principal_basis, residual, standardise
from distill.survival import accuracy
from shards.store import SPLITS


@dataclass(frozen=True)
class Arm:
    """p, r: names of inputs, r through U as basis says: learned, pca or random."""

    p: str | None
    r: str | None = None
    basis: str = "learned"
    permute_labels: bool = False

    @property
    def converts(self) -> bool:
        """Whether it reads anything that a converter has to do with."""
        return not {self.p, self.r} <= {"student", "teacher", None}


ARMS = {
    "converted": Arm("converted"),
    "student": Arm("student"),
    "student_rank": Arm(None, "student"),
    "converted_pca": Arm("converted", "residual", "pca"),
    "converted_supervised": Arm("converted", "residual"),
    "teacher": Arm("teacher"),
    "shuffled_residual": Arm("converted", "shuffled"),
    "random_residual": Arm("converted", "residual", "random"),
    "wrong_teacher": Arm("wrong", "wrong_residual"),
    "permuted_labels": Arm("converted", "residual", permute_labels=True),
}


@dataclass(frozen=True)
class Bench:
    """What all arms of a task read. inputs: name -> (n f) float64, standardised by train. labels: see `set_bench`.
    scales: of each residual, what corrected it; shares: of each, split -> its part of the student."""

    inputs: dict[str, Tensor]
    labels: Tensor
    num_classes: int
    groups: list[str]
    splits: dict[str, Tensor]
    scales: dict[str, float]
    shares: dict[str, dict[str, float]]

    @property
    def arms(self) -> list[str]:
        """Those whose inputs are there."""
        there = {*self.inputs, None}
        return [name for name, arm in ARMS.items() if arm.p in there and arm.r in there]


@dataclass(frozen=True)
class Result:
    """Of one arm. numbers: see `tell`. hits: (test clips,) float64, see distill.answers.told: two arms' are paired,
    so that accuracy(ours - theirs, group_weights(...)) is their difference with its interval."""

    head: Head
    numbers: dict[str, Any]
    hits: Tensor
    alarms: list[str]


def set_bench(
    *,
    student: Tensor,
    converted: Tensor,
    labels: Tensor,
    num_classes: int,
    groups: Sequence[str],
    splits: Mapping[str, Sequence[int]],
    teacher: Tensor | None = None,
    wrong: Tensor | None = None,
    seed: int = 0,
) -> Bench:
    """Standardises what is pooled and takes the residuals, once for all arms.

    student (n d); converted, teacher and wrong, the tokens of another teacher, (n e): pooled alike. labels: (n,) int64
    below num_classes, or of several labels (n c), 1 or 0; -1: none. groups: of every clip. splits: train, val, test ->
    places. Raises ValueError on clip counts that differ, an empty split, what is not finite, labels that the task does
    not know.
    """
    given = {"student": student, "converted": converted, "teacher": teacher, "wrong": wrong}
    raw = {name: rows for name, rows in given.items() if rows is not None}
    _check(raw, labels, num_classes, groups, splits)
    places = {split: torch.as_tensor(splits[split]) for split in SPLITS}
    inputs = {name: standardise(rows, places["train"]) for name, rows in raw.items()}
    scales, shares = {}, {}
    for name, beside in (("residual", "converted"), ("wrong_residual", "wrong")):
        if beside in inputs:
            found = residual(inputs[beside], inputs["student"], splits=places, groups=groups)
            inputs[name], scales[name], shares[name] = found.values, found.scale, found.share
    inputs["shuffled"] = torch.zeros_like(inputs["residual"])
    for rows in places.values():
        others = apart(rows.tolist(), [groups[place] for place in rows.tolist()], seed=seed)
        inputs["shuffled"][rows] = inputs["residual"][others]
    return Bench(inputs, labels, num_classes, list(groups), places, scales, shares)


def _check(
    raw: Mapping[str, Tensor],
    labels: Tensor,
    num_classes: int,
    groups: Sequence[str],
    splits: Mapping[str, Sequence[int]],
) -> None:
    counts = {name: len(rows) for name, rows in raw.items()} | {"labels": len(labels), "groups": len(groups)}
    if len(set(counts.values())) > 1:
        raise ValueError(f"clips are {', '.join(f'{n} of {name}' for name, n in counts.items())}; give the same of all")
    if empty := [split for split in SPLITS if len(splits.get(split, ())) == 0]:
        raise ValueError(f"the split {empty[0]!r} has no clip; a head is fitted on train, chosen on val, told by test")
    for name, rows in raw.items():
        if rows.ndim != 2:
            raise ValueError(f"{name} is {tuple(rows.shape)}; give pooled tokens, (clips, width)")
        if len(bad := (~rows.isfinite().all(1)).nonzero()):
            raise ValueError(f"{name}: clip {int(bad[0])} holds values that are not finite; audit the store")
    most = 1 if labels.ndim == 2 else num_classes - 1
    if labels.ndim == 2 and labels.shape[1] != num_classes:
        raise ValueError(f"labels are {tuple(labels.shape)}, but the task has {num_classes} classes")
    if len(bad := ((labels < -1) | (labels > most)).nonzero()):
        clip = bad[0].tolist()
        raise ValueError(
            f"clip {clip[0]} has the label {int(labels[tuple(clip)])}; the task knows 0..{most}, and -1 for none"
        )


def run_arm(
    name: str,
    bench: Bench,
    *,
    rank: int,
    weights: str = "none",
    smoothing: float = 0.0,
    seed: int = 0,
) -> Result:
    """Fits and scores one arm. rank: q. weights: none or balanced, over the train clips that have a label (a few of
    each class: distill.labelled.keep_few). smoothing: of labels.

    Raises ValueError on an arm that is not there, a rank that does not fit the student, and labels too few to learn.
    """
    arm, width = _arm(name, bench), bench.inputs["student"].shape[1]
    if not 1 <= rank <= width:
        raise ValueError(f"the residual's rank is {rank}; it must lie in 1..{width}, the width of the student")
    if not 0 <= smoothing < 1:
        raise ValueError(f"label smoothing is {smoothing}; it must lie in 0..1, 1 left out")
    generator = torch.Generator().manual_seed(seed)
    labels, labelled = bench.labels, bench.splits["train"]
    labelled = labelled[has_label(labels[labelled])]
    if arm.permute_labels:
        labels = permuted(labels, [labelled, bench.splits["val"], bench.splits["test"]], generator=generator)
    known = known_classes(labels, bench.num_classes, labelled, bench.splits["val"])
    train, val, test = (
        _examples(arm, bench, labels, known, rows) for rows in (labelled, bench.splits["val"], bench.splits["test"])
    )
    head = fit_head(
        train,
        val,
        known=known,
        rank=rank if arm.r else 0,
        basis=_basis(arm, bench, rank, generator),
        loss=Loss(smoothing, class_weights(train.truth, weights)),
        generator=generator,
    )
    return _score(head, test, labels[labelled], labels[bench.splits["test"]], generator)


def _arm(name: str, bench: Bench) -> Arm:
    if name not in bench.arms:
        why = "its input was not given" if name in ARMS else "there is no such arm"
        raise ValueError(f"arm {name!r}: {why}; there are {', '.join(bench.arms)}")
    return ARMS[name]


def _examples(arm: Arm, bench: Bench, labels: Tensor, known: Tensor, rows: Tensor) -> Examples:
    """Of some clips; truth in the classes that train has, -1 for the others."""
    nothing = bench.inputs["student"][rows, :0]
    p, r = (nothing if name is None else bench.inputs[name][rows] for name in (arm.p, arm.r))
    if labels.ndim == 2:
        return Examples(p, r, labels[rows][:, known])
    place = torch.where(known, known.cumsum(0) - 1, -1)
    return Examples(p, r, torch.where(labels[rows] < 0, -1, place[labels[rows].clamp_min(0)]))


def _basis(arm: Arm, bench: Bench, rank: int, generator: torch.Generator) -> Tensor | None:
    """A given U (d q): from all train clips, for it asks no label; None where it is learned, or there is none."""
    if arm.r is None or arm.basis == "learned":
        return None
    values = bench.inputs[arm.r]
    if arm.basis == "pca":
        return principal_basis(values[bench.splits["train"]], rank)
    return random_basis(values.shape[1], rank, generator=generator)


def _score(head: Head, test: Examples, learned: Tensor, truth: Tensor, generator: torch.Generator) -> Result:
    """learned, truth: labels of the train clips that taught, and of the test clips."""
    logits = head(test.p, test.r)
    if not bool((truth >= 0).any()):
        raise ValueError(f"none of {len(truth)} test clips has a label; label some, or leave the task out")
    read = reading(head, test.p, test.r, generator=generator)
    numbers = {name: number_or_none(value) for name, value in scores(logits, truth).items()}
    numbers["chance"] = float(_most_frequent(learned, truth).nanmean())
    numbers |= {"gate": float(head.gate), "parameters": head.num_parameters, "labelled": len(learned), **read}
    numbers |= {
        "decay": head.decays[0],
        "residual_decay": head.decays[1],
        "clips": int(has_label(truth).sum()),
    }
    return Result(head, numbers, told(logits, truth), alarms(head, read))


def _most_frequent(train: Tensor, truth: Tensor) -> Tensor:
    """(test clips,) what naming train's most frequent class, or of several labels what mostly holds, tells."""
    if train.ndim == 1:
        return (truth == train[train >= 0].mode().values).double().masked_fill(truth < 0, math.nan)
    mostly = (train > 0).sum(0) * 2 > (train >= 0).sum(0)
    return (((truth > 0) == mostly) & (truth >= 0)).sum(1).double() / (truth >= 0).sum(1)


def run_arms(
    bench: Bench,
    *,
    rank: int,
    weights: str = "none",
    smoothing: float = 0.0,
    seed: int = 0,
    known: Mapping[str, Result] | None = None,
) -> dict[str, Result]:
    """All arms whose inputs are there; those of `known` are taken from it. For the rest see `run_arm`."""
    results, known = {}, known or {}
    for name in bench.arms:
        with named(f"arm {name}"):
            results[name] = known.get(name) or run_arm(
                name, bench, rank=rank, weights=weights, smoothing=smoothing, seed=seed
            )
    return results


def tell(
    results: Mapping[str, Result], resampled: Tensor, *, twin: Mapping[str, Result] | None = None
) -> dict[str, dict[str, Any]]:
    """arm -> its numbers on test, for a summary. resampled: distill.metrics.group_weights of the test clips.

    accuracy (top-1; of several labels the share that is told) is {value, low, high}, a 95% interval by bootstrap over
    groups, and so are `difference`, that to `converted` on the same clips and resamples, and `from_twin`, that to the
    same arm of a twin, None without one. Then top5, macro_f1, ece, chance (train's most frequent class), gate, share_*
    and changed_* of either input (see distill.head.reading), the decays chosen, how many parameters, labelled train
    clips and labelled test clips, and `alarms`, in sentences.
    """
    return {
        name: result.numbers
        | {
            "accuracy": accuracy(result.hits, resampled),
            "difference": accuracy(result.hits - results["converted"].hits, resampled),
            "from_twin": twin and accuracy(result.hits - twin[name].hits, resampled),
            "alarms": result.alarms,
        }
        for name, result in results.items()
    }
