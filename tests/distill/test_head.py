"""The compensated head learns from a gate of zero, takes from the residual what it holds and no more, and says what it
leaves unread; what cannot be fitted is said before."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from distill.answers import expected_calibration_error, macro_f1, scores, told
from distill.arms import ARMS, Bench, run_arm, run_arms, set_bench
from distill.head import DECAYS, Examples, Head, Loss, alarms, fit_factors, fit_head, reading, start_factors
from distill.head_oracles import LinearOracle
from distill.labelled import class_weights, draw_labelled, known_classes
from distill.metrics import group_weights
from distill.residual import principal_basis, residual, standardise
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


@pytest.fixture(scope="module")
def examples(bench: Bench) -> dict[str, Examples]:
    return {
        split: Examples(bench.inputs["converted"][rows], bench.inputs["residual"][rows], bench.labels[rows])
        for split, rows in bench.splits.items()
    }


def fit(examples: dict[str, Examples], *, seed: int = 0, **chosen: Any) -> Head:
    known = torch.ones(6, dtype=torch.bool)
    return fit_head(examples["train"], examples["val"], known=known, generator=generator(seed), **chosen)


def loss_of(head: Head, seen: Examples) -> float:
    return float(Loss()(head(seen.p, seen.r), seen.truth))


def test_a_gate_of_zero_learns_beside_a_random_map_and_never_beside_none(examples: dict[str, Examples]) -> None:
    seen, offset = examples["train"], torch.zeros(500, 6, dtype=torch.float64)
    found = {}
    for map_start in (0.0, 1.0):
        start = start_factors(10, 6, RANK, map_start=map_start, generator=generator())
        assert float(start[2]) == 0 and float(start[1].norm()) == pytest.approx(map_start)
        basis, out, gate = fit_factors(seen, offset, start, loss=Loss(), decay=1e-3)
        found[map_start] = float(gate), float(Loss()(gate * (seen.r @ basis) @ out.T, seen.truth))
    assert found[0.0] == pytest.approx((0, math.log(6)))
    assert found[1.0][0] > 0.5 and found[1.0][1] < math.log(6) - 0.2


@pytest.mark.parametrize("decay", [DECAYS[0], DECAYS[2], DECAYS[-1]])
def test_the_residual_never_makes_the_train_loss_worse(decay: float, examples: dict[str, Examples]) -> None:
    alone = fit(examples, decays=(decay,))
    both = fit(examples, decays=(decay,), rank=RANK)
    assert torch.equal(alone.weight, both.weight) and torch.equal(alone.bias, both.bias)
    assert loss_of(both, examples["train"]) < loss_of(alone, examples["train"])


def test_a_fitted_residual_is_in_its_canonical_form(examples: dict[str, Examples]) -> None:
    for chosen in ({"rank": RANK}, {"basis": principal_basis(examples["train"].r, RANK)}):
        head = fit(examples, **chosen)  # type: ignore[arg-type]
        assert torch.allclose(head.basis.T @ head.basis, torch.eye(RANK, dtype=torch.float64), atol=1e-8)
        assert float(head.out.norm()) == pytest.approx(1) and float(head.gate) > 0
        assert head.num_parameters == 6 * 4 + 6 + RANK * (10 + 6) + 1


def test_logits_are_what_the_formula_says(examples: dict[str, Examples]) -> None:
    head, seen = fit(examples, rank=RANK), examples["test"]
    for clip in (0, 7):
        by_hand = head.weight @ seen.p[clip] + head.bias + head.gate * head.out @ head.basis.T @ seen.r[clip]
        assert torch.allclose(head(seen.p, seen.r)[clip], by_hand)


def test_a_seed_gives_the_same_head_and_another_one_as_good(examples: dict[str, Examples]) -> None:
    torch.manual_seed(1)
    one = fit(examples, rank=RANK, decays=(1e-3,))
    torch.manual_seed(2)
    again, other = (fit(examples, rank=RANK, decays=(1e-3,), seed=seed) for seed in (0, 1))
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in one.state_dict().items())
    assert not torch.equal(one.basis, other.basis)
    assert loss_of(one, examples["train"]) == pytest.approx(loss_of(other, examples["train"]), abs=2e-3)


def test_convex_maps_are_solved(examples: dict[str, Examples]) -> None:
    """The gradient of the decayed loss vanishes."""
    head, seen = fit(examples, decays=(0.01,)), examples["train"]
    weight, bias = head.weight.clone().requires_grad_(), head.bias.clone().requires_grad_()
    (Loss()(seen.p @ weight.T + bias, seen.truth) + 0.005 * weight.square().sum()).backward()
    assert weight.grad is not None and bias.grad is not None
    assert weight.grad.abs().max() < 1e-3 and bias.grad.abs().max() < 1e-3


def test_every_arm_finds_what_it_can(bench: Bench) -> None:
    found = run_arms(bench, rank=RANK, resamples=200)
    assert list(found) == list(ARMS)
    assert json.loads(json.dumps(found)) == found
    right = {name: numbers["accuracy"]["value"] for name, numbers in found.items()}
    assert right["converted_supervised"] > max(right["converted_pca"], right["random_residual"]) + 0.03
    assert found["converted_supervised"]["difference"]["low"] > 0.1
    assert right["converted_supervised"] == pytest.approx(right["student"], abs=0.05)
    assert right["teacher"] == pytest.approx(right["converted"], abs=0.01)
    assert found["converted"]["difference"] == {"value": 0, "low": 0, "high": 0}
    assert found["shuffled_residual"]["difference"]["low"] <= 0 and right["wrong_teacher"] < right["student"]
    assert found["permuted_labels"]["accuracy"]["low"] <= found["permuted_labels"]["chance"]
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


def crossed(clips: int, *, width: int = 40, seed: int = 0) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Converted (n width) and student (n 16), half of whose fields the converted show; standardised by train."""
    fields, noise = normal(clips + 1000, 12, seed=seed), normal(clips + 1000, width, seed=seed + 1)
    converted = fields[:, :6] @ normal(6, width, seed=seed + 2) + 0.5 * noise
    student = fields @ normal(12, 16, seed=seed + 3)
    places = torch.arange(clips + 1000)
    splits = {"train": places[:clips], "val": places[clips : clips + 500], "test": places[clips + 500 :]}
    return standardise(converted, splits["train"]), standardise(student, splits["train"]), splits


@pytest.mark.parametrize("clips", [30, 40, 400])
def test_the_residual_of_train_is_that_of_other_clips(clips: int) -> None:
    converted, student, splits = crossed(clips)
    found = residual(converted, student, splits=splits, groups=[str(clip) for clip in range(len(student))])
    train = splits["train"]
    fitted = torch.linalg.lstsq(converted[train], student[train], driver="gelsd").solution
    in_sample = (student[train] - converted[train] @ fitted).square().sum() / student[train].square().sum()
    assert float(in_sample) < (0.01 if clips <= 40 else 0.55)
    assert found.share["train"] == pytest.approx(found.share["test"], rel=0.2) and found.share["test"] > 0.4
    sizes = {split: float(found.values[rows].square().mean()) for split, rows in splits.items()}
    assert sizes["val"] == pytest.approx(sizes["train"]) and sizes["test"] == pytest.approx(sizes["train"], rel=0.1)
    assert found.scale == pytest.approx(1, abs=0.1)


def test_the_residual_holds_nothing_of_the_converted() -> None:
    converted, student, splits = crossed(2000, width=8)
    found = residual(converted, student, splits=splits, groups=[str(clip) for clip in range(len(student))])
    for rows in splits.values():
        assert (converted[rows].T @ found.values[rows] / len(rows)).abs().max() < 0.12
    assert (converted.T @ student / len(student)).abs().max() > 0.5


def test_a_group_never_stands_on_both_sides() -> None:
    """Every clip twice: were its twin among those that it is predicted from, 60 clips of 40 dims would leave less."""
    converted, student, splits = crossed(30)
    twins = torch.cat([splits["train"], splits["train"], splits["val"], splits["test"]])
    places = torch.arange(len(twins))
    splits = {"train": places[:60], "val": places[60:560], "test": places[560:]}
    groups = [str(place) for place in twins.tolist()]
    apart = residual(converted[twins], student[twins], splits=splits, groups=groups)
    mixed = residual(
        converted[twins], student[twins], splits=splits, groups=[str(place) for place in places.tolist()]
    )  # fmt: skip
    assert apart.share["train"] == pytest.approx(apart.share["test"], rel=0.2)
    assert mixed.share["train"] < 0.5 * mixed.share["test"]


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
    few, many = (run_arm("student", bench, rank=RANK, per_class=count).numbers for count in (2, None))
    assert few["labelled"] == 12 and few["accuracy"] < many["accuracy"] - 0.05


def test_the_calibration_error_by_hand() -> None:
    """Confidences 0.9, 0.9, 0.9, 0.6 with hits 1, 1, 0, 1: bins of 0.9 and 0.6."""
    chances = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.4, 0.6], [0.5, 0.5]], dtype=torch.float64)
    truth = torch.tensor([0, 0, 0, 1, -1])
    by_hand = 3 / 4 * (0.9 - 2 / 3) + 1 / 4 * (1 - 0.6)
    assert expected_calibration_error(chances.log(), truth) == pytest.approx(by_hand)
    several = torch.tensor([[0.9, 0.2], [0.88, 0.6], [0.1, 0.6]], dtype=torch.float64).logit()
    held = torch.tensor([[1, 0], [0, 1], [0, -1]])
    one, other = (2 * abs(0.89 - 0.5) + 0.1) / 3, (0.2 + 0.4) / 2
    assert expected_calibration_error(several, held) == pytest.approx((one + other) / 2)


def test_accuracy_and_f1_by_hand() -> None:
    logits = torch.tensor([[3.0, 1, 2, -math.inf], [3, 2, 1, -math.inf], [1, 3, 2, -math.inf], [0, 1, 2, -math.inf]])
    truth = torch.tensor([0, 1, 1, 3])  # nobody says 3, for train does not have it
    assert told(logits, truth).tolist() == [1, 0, 1, 0]
    assert told(logits, truth, top=2).tolist() == [1, 1, 1, 0] and told(logits, truth, top=4).tolist() == [1, 1, 1, 0]
    assert macro_f1(logits, truth) == pytest.approx((2 / 3 + 2 / 3 + 0 + 0) / 4)
    assert told(logits, torch.tensor([-1, 0, 0, 2]))[0].isnan() and "top5" not in scores(logits, truth)
    assert scores(normal(9, 6), torch.arange(9) % 6)["top5"] > 0.5
    held = torch.tensor([[1, 0, -1], [1, 1, 0]])
    several = torch.tensor([[2.0, 1, 1], [-1, 1, -1]])
    assert told(several, held).tolist() == pytest.approx([1 / 2, 2 / 3])
    assert macro_f1(several, held) == pytest.approx((2 / 3 + 2 / 3) / 2)


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
    assert found["converted"].head(*(bench.inputs[name] for name in ("converted", "residual")))[:, 4].isneginf().all()


def test_a_loss_of_several_labels_by_hand() -> None:
    logits, held = torch.tensor([[1.0, -2], [0.5, 3], [9, 9]]), torch.tensor([[1, 0], [-1, 1], [-1, -1]])
    terms = [math.log1p(math.exp(-1)), math.log1p(math.exp(-2)), math.log1p(math.exp(-3))]
    assert float(Loss()(logits, held)) == pytest.approx(sum(terms) / 2)
    doubled = Loss(weights=torch.tensor([1.0, 2]))
    assert float(doubled(logits, held)) == pytest.approx((terms[0] + terms[1] + 2 * terms[2]) / 2)


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


def test_alarms_name_what_is_not_read() -> None:
    p, r = normal(300, 4), normal(300, 5, seed=1)
    whole, none = normal(3, 4, seed=2), torch.zeros(3, 4, dtype=torch.float64)

    def sentences(weight: Tensor, gate: float) -> list[str]:
        parts = {"basis": torch.eye(5, 2, dtype=torch.float64), "out": normal(3, 2, seed=3)}
        maps = parts | {"weight": weight, "bias": normal(3), "gate": torch.tensor(gate, dtype=torch.float64)}
        head = Head(known=torch.ones(3, dtype=torch.bool), several=False, decays=(1.0, 1.0), **maps)  # type: ignore[arg-type]
        return alarms(head, reading(head, p, r, generator=generator()))

    assert sentences(whole, 1.0) == []
    assert sentences(whole, 1e-4) == ["the gate stayed at 0.0001: the head does without the residual"]
    (ignored,) = sentences(whole, 0.02)
    assert "ignores the residual: 0.0% of the logits' variance" in ignored
    (ignored,) = sentences(none, 1.0)
    assert "ignores the converted tokens: 0.0%" in ignored and "change 0.0% of the answers" in ignored


def test_a_shift_of_all_logits_is_no_share() -> None:
    p, r = normal(200, 4), normal(200, 5, seed=1)
    maps = {"weight": torch.ones(3, 4).double(), "bias": torch.zeros(3).double(), "gate": torch.tensor(1.0).double()}
    parts = {"basis": torch.eye(5, 2, dtype=torch.float64), "out": normal(3, 2, seed=3), **maps}
    for several, share in ((False, 1.0), (True, 0.5)):
        head = Head(known=torch.ones(3, dtype=torch.bool), several=several, decays=(1.0, 1.0), **parts)  # type: ignore[arg-type]
        assert reading(head, p, r, generator=generator())["share_residual"] == pytest.approx(share, abs=0.25 * several)


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
    with pytest.raises(ValueError, match="per_class is 0"):
        run_arm("converted", bench, rank=1, per_class=0)


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
