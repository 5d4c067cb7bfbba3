"""Every arm finds what it can and no more; fewer labels are among more; what cannot be fitted is said before."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from distill.arms import ARMS, Bench, _examples, run_arm, run_arms, set_bench, tell
from distill.head_oracles import LinearOracle
from distill.labelled import class_weights, draw_labelled, keep_few, known_classes
from distill.metrics import group_weights
from distill.survival import accuracy

ORACLE = LinearOracle(
    classes=6, exposed=2, missed=2, others=4, student_width=10, teacher_width=4, spread=1.5, seed=1
)  # fmt: skip
SPLITS = {"train": range(500), "val": range(500, 640), "test": range(640, 1040)}
CLIPS, RANK = 1040, 2


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def given() -> dict[str, Any]:
    """1040 clips in groups of two, six classes; `wrong` has nothing to do with the clips."""
    pooled = ORACLE.sample(CLIPS, generator())
    features = {"student": pooled.student, "converted": pooled.converted, "teacher": pooled.teacher}
    groups = [str(clip // 2) for clip in range(CLIPS)]
    other = {"wrong": normal(CLIPS, 4), "labels": pooled.labels, "num_classes": 6, "groups": groups, "splits": SPLITS}
    return features | other


@pytest.fixture(scope="module")
def bench(given: dict[str, Any]) -> Bench:
    return set_bench(**given)


def test_every_arm_finds_what_it_can(bench: Bench) -> None:
    results = run_arms(bench, rank=RANK)
    found = tell(results, group_weights([bench.groups[place] for place in SPLITS["test"]], resamples=200))
    assert list(found) == list(ARMS)
    assert json.loads(json.dumps(found)) == found
    shared = {name: results[name] for name, arm in ARMS.items() if not arm.converts}
    assert set(shared) == {"student", "student_rank", "teacher"} and list(
        run_arms(bench, rank=RANK, known=results)
    ) == list(ARMS)
    right = {name: numbers["accuracy"]["value"] for name, numbers in found.items()}
    assert right["converted_supervised"] > max(right["converted_pca"], right["random_residual"]) + 0.03
    assert found["converted_supervised"]["difference"]["low"] > 0.1
    assert right["converted_supervised"] == pytest.approx(right["student"], abs=0.05)
    assert right["teacher"] == pytest.approx(right["converted"], abs=0.01)
    assert found["converted"]["difference"] == {"value": 0, "low": 0, "high": 0}
    assert found["shuffled_residual"]["difference"]["low"] <= 0 and right["wrong_teacher"] < right["student"]
    assert found["permuted_labels"]["accuracy"]["low"] <= 1 / 6 <= found["permuted_labels"]["accuracy"]["high"]
    assert found["converted"]["chance"] < 0.25 and found["converted"]["clips"] == 400
    assert found["converted"]["labelled"] == 500 and found["student"]["parameters"] == 66
    assert not found["converted_supervised"]["alarms"] and found["shuffled_residual"]["alarms"]


def test_arms_without_their_input_are_not_there(given: dict[str, Any]) -> None:
    small = set_bench(**{**given, "teacher": None, "wrong": None})
    assert set(ARMS) - set(small.arms) == {"teacher", "wrong_teacher"}
    with pytest.raises(ValueError, match="arm 'teacher': its input was not given; there are converted, student"):
        run_arm("teacher", small, rank=RANK)
    with pytest.raises(ValueError, match="arm 'mlp': there is no such arm"):
        run_arm("mlp", small, rank=RANK)


def test_two_arms_are_paired_clip_by_clip(bench: Bench) -> None:
    weights = group_weights([bench.groups[place] for place in SPLITS["test"]], resamples=200)
    ours, theirs = (run_arm(name, bench, rank=RANK).hits for name in ("student", "converted"))
    paired = accuracy(ours - theirs, weights)
    apart = [float(hits.mean()) for hits in (ours, theirs)]
    assert paired["value"] == pytest.approx(apart[0] - apart[1])
    assert ours.shape == (400,) and set(ours.tolist()) == {0, 1}


def test_fewer_labels_are_among_more() -> None:
    labels = torch.arange(400) % 7
    labels[::9] = -1
    train = torch.arange(20, 320)
    drawn = {few: set(draw_labelled(labels, train, few, generator=generator(3)).tolist()) for few in (5, 10, 50, None)}
    assert drawn[5] < drawn[10] < drawn[50] and drawn[10] < drawn[None] <= set(train.tolist())
    assert labels[list(drawn[10])].bincount().tolist() == [10] * 7
    assert drawn[None] == set(train[labels[train] >= 0].tolist())
    assert drawn[5] != set(draw_labelled(labels, train, 5, generator=generator(4)).tolist())
    with pytest.raises(ValueError, match="per_class is 0; a class needs at least one label"):
        draw_labelled(labels, train, 0, generator=generator())


def test_fewer_labels_are_among_more_of_several() -> None:
    labels = (normal(300, 4) > torch.tensor([-1, 0, 1, 1.5])).long()
    drawn = [draw_labelled(labels, torch.arange(300), few, generator=generator()) for few in (2, 5)]
    assert set(drawn[0].tolist()) < set(drawn[1].tolist())
    assert bool(((labels[drawn[1]] > 0).sum(0) >= 5).all()) and len(drawn[1]) <= 20


def test_few_labels_are_what_a_head_learns_from(bench: Bench) -> None:
    train = torch.arange(500)
    kept = {count: keep_few(bench.labels, train, count, generator=generator()) for count in (2, None)}
    assert torch.equal(kept[None], bench.labels) and torch.equal(kept[2][500:], bench.labels[500:])
    assert kept[2][:500].clamp_min(-1).add(1).bincount().tolist() == [488, *[2] * 6]
    few, many = (run_arm("student", replace(bench, labels=kept[count]), rank=RANK).numbers for count in (2, None))
    assert few["labelled"] == 12 and few["accuracy"] < many["accuracy"] - 0.05


def test_labels_that_do_not_exclude_each_other(bench: Bench, given: dict[str, Any]) -> None:
    """Four signs of fields, two of which the converted tokens show and two the residual; the last label is unknown."""
    g = (given["student"].double() @ ORACLE.student_map)[:, :4]
    labels = torch.cat([(g > 0).long(), torch.full((CLIPS, 1), -1)], dim=1)
    labels[::5, 0] = -1
    several = set_bench(**{**given, "labels": labels, "num_classes": 5})
    found = {name: run_arm(name, several, rank=RANK) for name in ("converted", "converted_supervised")}
    right = {name: result.numbers["accuracy"] for name, result in found.items()}
    assert right["converted"] < 0.85 and right["converted_supervised"] > 0.93
    assert found["converted"].numbers["chance"] == pytest.approx(0.5, abs=0.06)
    assert found["converted_supervised"].numbers["ece"] < 0.1
    converted = bench.inputs["converted"]
    assert found["converted"].head(converted, converted[:, :0])[:, 4].isneginf().all()


def test_balanced_weights_and_smoothing(bench: Bench, given: dict[str, Any]) -> None:
    truth = torch.tensor([0, 0, 0, 1, -1])
    weights = class_weights(truth, "balanced")
    assert weights is not None and weights.tolist() == pytest.approx([4 / 6, 4 / 2])
    held = class_weights(torch.tensor([[1, 0], [0, 0], [0, 1], [-1, 1]]), "balanced")
    assert held is not None and held.tolist() == [2, 1] and class_weights(truth, "none") is None
    with pytest.raises(ValueError, match="weights are 'rare'; there are none, balanced"):
        class_weights(truth, "rare")
    rare = torch.where((given["labels"] == 0) | (torch.arange(CLIPS) % 4 == 0), given["labels"], 0)
    skewed = set_bench(**{**given, "labels": rare})
    plain, balanced = (run_arm("student", skewed, rank=1, weights=kind).numbers for kind in ("none", "balanced"))
    assert plain["accuracy"] > balanced["accuracy"]
    rows = bench.splits["test"]
    sure, unsure = (run_arm("student", bench, rank=1, smoothing=amount).head for amount in (0.0, 0.4))
    tops = [
        head(bench.inputs["student"][rows], bench.inputs["student"][rows, :0]).softmax(1) for head in (sure, unsure)
    ]
    assert tops[0].max(1).values.mean() > tops[1].max(1).values.mean() + 0.05


def test_what_cannot_be_fitted_is_said(given: dict[str, Any], bench: Bench) -> None:
    def refused(match: str, **changed: Any) -> None:
        with pytest.raises(ValueError, match=match):
            set_bench(**{**given, **changed})

    labels, student = given["labels"], given["student"].clone()
    student[7, 3] = math.nan
    refused("student: clip 7 holds values that are not finite", student=student)
    refused("clips are 1040 of student, 1039 of converted", converted=given["converted"][1:])
    refused("the split 'val' has no clip", splits={**SPLITS, "val": range(0)})
    refused(r"clip 4 has the label 9; the task knows 0..5, and -1", labels=labels.index_fill(0, torch.tensor(4), 9))
    refused(r"clip 4 has the label -2", labels=labels.index_fill(0, torch.tensor(4), -2))
    refused(r"labels are \(1040, 3\), but the task has 6 classes", labels=torch.zeros(CLIPS, 3, dtype=torch.int64))
    refused(r"converted is \(1040, 4, 1\); give pooled tokens", converted=given["converted"][..., None])
    refused("all 500 train clips are of one group, 'same'", groups=["same"] * CLIPS)
    for rank in (0, 11):
        with pytest.raises(ValueError, match=f"rank is {rank}; it must lie in 1..10, the width of the student"):
            run_arm("converted_supervised", bench, rank=rank)
    with pytest.raises(ValueError, match="label smoothing is 1.0"):
        run_arm("converted", bench, rank=1, smoothing=1.0)


def test_labels_too_few_are_said(given: dict[str, Any]) -> None:
    places = torch.arange(CLIPS)
    cases = {
        "500 train clips have one class only; a head needs two": torch.where(places < 500, 2, given["labels"]),
        "0 train clips have no label": torch.where(places < 500, -1, given["labels"]),
        "none of 140 val clips has a label that a train clip has": given["labels"].index_fill(0, places[500:640], -1),
        "none of 400 test clips has a label": given["labels"].index_fill(0, places[640:], -1),
    }
    for match, labels in cases.items():
        few = set_bench(**{**given, "labels": labels, "wrong": None})
        with pytest.raises(ValueError, match=match):
            run_arm("converted", few, rank=1)
    held = torch.ones(10, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match="no label that holds in some and not in others"):
        known_classes(held, 2, torch.arange(5), torch.arange(5, 10))


def test_a_class_that_train_never_had_is_not_told(given: dict[str, Any]) -> None:
    labels = given["labels"].clone()
    labels[:500][labels[:500] == 5] = -1
    result = run_arm("student", set_bench(**{**given, "labels": labels, "wrong": None}), rank=1)
    lacking = labels[640:] == 5
    assert int(lacking.sum()) > 20 and (result.hits[lacking] == 0).all() and result.hits[~lacking].mean() > 0.6


def test_truth_is_in_the_classes_that_train_has(bench: Bench) -> None:
    labels, known = bench.labels.clone(), torch.tensor([True, False, True, True, False, False])
    labels[:5] = torch.tensor([-1, 0, 1, 2, 3])
    assert _examples(ARMS["converted"], bench, labels, known, torch.arange(5)).truth.tolist() == [-1, 0, -1, 1, 2]
