"""Heads on what a run has converted: on planted factors, then through the command; what cannot be fitted is said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from planted_factors import FACTORS, GRID, STUDENT, TARGETS, Ideal, sides
from torch import Tensor

from converters import Converter, create_converter
from distill import compensation, pooling, run
from distill.compensation import Asked, check_head, compensate, fit_heads, labels_of
from distill.fit import set_normalisers, set_skips, solve_ridges
from distill.head_table import COLUMNS, head_lines
from distill.pooling import pool_means
from distill.seeds import one_of
from distill.summary import with_mask_on
from shards import FeatureStore
from shards.ranks import Ranks
from shards.task import Task
from teachers.layout import TokenLayout

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def ridge(planted: FeatureStore) -> Converter:
    found = create_converter("linear", student=STUDENT, targets=TARGETS)
    set_normalisers(found, planted)
    train = planted.indices("train")
    return set_skips(found, solve_ridges(planted, {"student": found}, indices=train, ranks=Ranks(), shuffled=False))


class Blank(Ideal):
    """Knows nothing."""

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        return {target: 0 * made for target, made in super().forward(tokens).items()}


def told(
    store: FeatureStore, asked: Asked, *, twins: dict[str, str] | None = None, **contestants: Any
) -> dict[str, Any]:
    return compensate(store, contestants, asked, resamples=100, seed=0, ranks=Ranks(), twins=twins)


def test_a_residual_wins_back_what_the_teacher_lacks(planted: FeatureStore) -> None:
    fitted: list[str] = []
    fit = compensation.run_arms
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            compensation, "run_arms", lambda *a, **o: (fitted.append(sorted(o["known"] or ())), fit(*a, **o))[1]
        )
        found = told(planted, Asked(FACTORS, rank=2), main=Ideal(), again=Ideal())
    assert fitted[:4] == [[], [], *[["student", "student_rank", "teacher"]] * 2], (
        "what no converter has a part in, once"
    )
    assert json.loads(json.dumps(found, allow_nan=False)) == found and found["main"] == found["again"]
    assert list(found["main"]) == ["dense", "pooled"] and list(found["main"]["dense"]) == list(FACTORS)
    both, student, teacher = (
        {arm: numbers["accuracy"]["value"] for arm, numbers in found["main"]["dense"][task]["all"].items()}
        for task in FACTORS
    )
    assert min(both["converted"], both["student"], both["teacher"]) > 0.9
    assert student["converted"] < 0.7 < 0.9 < min(student["converted_supervised"], student["student"])
    assert found["main"]["dense"]["student"]["all"]["converted_supervised"]["difference"]["low"] > 0.1
    assert teacher["teacher"] > 0.9 and max(teacher["converted_supervised"], teacher["student"]) < 0.75
    assert both["wrong_teacher"] > 0.9 > 0.7 > found["main"]["pooled"]["both"]["all"]["converted"]["accuracy"]["value"]
    assert both["permuted_labels"] < 0.75 and both["shuffled_residual"] > 0.9 > 0.75 > student["shuffled_residual"]


def test_a_contestant_beside_its_twin(planted: FeatureStore) -> None:
    asked, contestants = Asked(("both",), rank=2), {"whole": Ideal(), "blank": Blank()}
    found = told(planted, asked, twins={"blank": "whole"}, **contestants)
    ours, twin = (found[name]["dense"]["both"]["all"] for name in ("blank", "whole"))
    for arm in ("converted", "converted_supervised", "teacher"):
        lost = ours[arm]["accuracy"]["value"] - twin[arm]["accuracy"]["value"]
        assert ours[arm]["from_twin"]["value"] == pytest.approx(lost), arm
        assert twin[arm]["from_twin"] is None
    assert ours["converted"]["from_twin"]["high"] < -0.2 and ours["teacher"]["from_twin"]["value"] == 0
    assert ours["converted_supervised"]["from_twin"]["low"] > ours["converted"]["from_twin"]["high"]


def test_means_are_those_of_the_grid(planted: FeatureStore, ridge: Converter) -> None:
    pooled = pool_means(planted, {"main": ridge}, device=CPU)
    clip = planted[7]
    assert torch.allclose(pooled[None, "student"][7], clip["student"].mean(0), atol=1e-5)
    assert torch.allclose(pooled[None, "dense"][7], clip["dense"][:8].mean(0), atol=1e-5)
    assert torch.allclose(pooled[None, "pooled"][7], clip["pooled"][0], atol=1e-5)
    with torch.no_grad():
        made = ridge(clip["student"].unsqueeze(0))
    assert torch.allclose(pooled["main", "dense"][7], made["dense"][0, :8].mean(0), atol=1e-5)


def test_a_pool_that_attends_sees_no_more_labels_than_the_head(
    planted: FeatureStore, ridge: Converter, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []
    fit = pooling.fit_probe
    monkeypatch.setattr(pooling, "fit_probe", lambda *a, **o: (seen.append(o["labels"]["head"]), fit(*a, **o))[1])
    alone = create_converter("linear", student=STUDENT, targets={"dense": GRID})
    alone.load_state_dict({k: v for k, v in ridge.state_dict().items() if k in alone.state_dict()})
    asked = Asked(("both",), (10, None), rank=2, pooling="attentive")
    (few, all_) = fit_heads(planted, {"main": alone}, asked, seed=0, device=CPU)
    assert len(seen) == 6, "student, teacher and converted, for each number of labels"
    train = torch.tensor(planted.indices("train"))
    assert [int((labels[train] >= 0).sum()) for labels in seen] == [20] * 3 + [144] * 3
    assert few[:3] == (("main", "dense"), "both", "10") and few[3]["student"].numbers["labelled"] == 20
    assert min(all_[3][arm].numbers["accuracy"] for arm in ("student", "teacher", "converted")) > 0.85


def test_labels_of_several(planted: FeatureStore) -> None:
    labels, classes = labels_of(planted, "label", "+")
    assert classes == ["both", "none", "student", "teacher"] and labels.shape == (240, 4)
    wanted = [[sides(clip)[0], int(not any(sides(clip))), *sides(clip)[1:]] for clip in range(240)]
    assert labels.tolist() == wanted
    found = told(planted, Asked(("label",), rank=2, separator="+"), main=Ideal())["main"]["dense"]["label"]["all"]
    assert found["converted_supervised"]["difference"]["low"] > 0
    one = SimpleNamespace(tasks={"label": Task(["a", "a;b"], [1, -1, 0])})
    assert labels_of(one, "label", ";")[0].tolist() == [[1, 1], [-1, -1], [1, 0]]  # type: ignore[arg-type]


def store_of(groups: str = "abcdef", clips: list[str | None] | None = None, **tasks: list[int]) -> Any:
    """Six clips: two train, two val, two test."""
    values, splits = ["a", "b", "c"], {"train": [0, 1], "val": [2, 3], "test": [4, 5]}
    return SimpleNamespace(
        path=Path("features/x"),
        tasks={task: Task(values, indices) for task, indices in tasks.items()},
        indices=splits.__getitem__,
        groups=list(groups),
        layout=lambda column: TokenLayout(grid=(1, 2, 2), dim=4),
        labels=values,
        keys=list("uvwxyz"),
        clips=[{"label": label} for label in clips or "abcabc"],
    )


def test_what_cannot_be_fitted_is_said() -> None:
    good, two = [0, 1, 0, 1, 0, 1], Asked(("label",), rank=2)
    check_head(store_of(label=good), two)
    check_head(store_of(), Asked())

    def refused(match: str, store: Any, asked: Asked = two) -> None:
        with pytest.raises(ValueError, match=match):
            check_head(store, asked)

    refused(
        r"features/x has no task 'labell'; there are label, shape", store_of(label=good, shape=good), Asked(("labell",))
    )
    refused("has no task 'label'; there are none: no clip has a label", store_of())
    refused("head.rank=5 is above 4, the width of the student", store_of(label=good), replace(two, rank=5))
    refused("head.tasks=label: 2 train clips have one class only", store_of(label=[1, 1, 0, 1, 0, 1]))
    refused("head.tasks=label: 2 train clips have no label", store_of(label=[-1, -1, 0, 1, 0, 1]))
    refused(
        "head.tasks=label: none of 2 val clips has a label that a train clip has", store_of(label=[0, 1, 2, 2, 0, 1])
    )
    refused("head.tasks=label: none of 2 test clips has a label", store_of(label=[0, 1, 0, 1, -1, -1]))
    refused("all 2 train clips are of one group, 'a'", store_of("aabcde", label=good))
    refused(r'clip "x" has the label \'d\', which the manifest of features/x does not know \(a, b, c\)',
            store_of(clips=["a", "b", None, "d", "a", "b"], label=good))  # fmt: skip


def test_a_run_with_a_head(tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*tiny, "evaluate.floors=[ridge]", "run.name=run", "train.steps=2"]
    assert run.main([*words, "head={tasks: [lable]}"]) == 1
    error = capsys.readouterr().err
    assert "has no task 'lable'; there are label" in error and "ridge" not in error
    assert not (tmp_path / "runs" / "run" / "metrics.jsonl").exists()
    assert run.main(words) == 0
    summary = tmp_path / "runs" / "run" / "summary.json"
    assert json.loads(summary.read_text())["head"] is None and "heads on pooled" not in capsys.readouterr().out
    head = "head={tasks: [label], per_class: [4, null], rank: 2}"
    assert run.main([*words, head, "train.resume=auto"]) == 0  # asked for afterwards
    found = json.loads(summary.read_text())["head"]["videomae"]["label"]
    assert list(found) == ["4", "all"] and found["4"]["student"]["labelled"] == 8
    assert "wrong_teacher" not in found["all"] and {"teacher", "permuted_labels"} <= set(found["all"])
    text = capsys.readouterr().out
    row = next(line for line in text.splitlines() if line.startswith("label all ")).split()
    assert float(row[2].rstrip("*")) == pytest.approx(found["all"]["converted"]["accuracy"]["value"], abs=0.006)


def test_what_was_told_with_the_mask_on_stands_behind_the_target() -> None:
    heads: dict[str, Any] = {"a": {"t": 1}, "a with the mask on": {"t": 2}, "b": {"t": 3}}
    assert with_mask_on("a", heads) == {"t": 1, "t with the mask on": 2} and with_mask_on("b", heads) == {"t": 3}
    assert with_mask_on("a", {"a": None, "a with the mask on": None}) is None


def numbers(value: float, low: float, alarms: list[str]) -> dict[str, Any]:
    between = {"value": value, "low": low, "high": 1.0}
    return {"accuracy": between, "difference": between, "chance": 0.25, "alarms": alarms}


def test_the_table_shows_what_is_better_and_the_alarms() -> None:
    arms = {
        "converted": numbers(0.5, 0.0, []),
        "converted_supervised": numbers(0.75, 0.1, ["the gate stayed at 0"]),
        "shuffled_residual": numbers(0.5, -0.1, ["it is ignored"]),
    }
    summary = {"head": {"videomae": {"shape": {"5": arms}}}, "marks": {}}
    lines = "\n".join(head_lines({"main": summary})).splitlines()
    assert lines[1].startswith("videomae: accuracy of heads")
    assert lines[-2].split() == ["shape", "5", "0.50", "0.75*", "0.50", "0.25"]
    assert lines[-1] == "alarm: shape 5, converted_supervised: the gate stayed at 0"
    many = {"head": {"videomae": {f"task{n}": {"5": arms} for n in range(4)}}, "marks": {}}
    assert "\n".join(head_lines({"main": many})).splitlines()[-1] == (
        "alarm: converted_supervised, 4 of 4 heads (all in summary.json), the first: task0 5: the gate stayed at 0"
    )
    few = {"r2c": "1 test groups, too few for an interval"}
    assert "*" not in head_lines({"main": summary | {"marks": {"videomae": few}}})[-2].splitlines()[-1]
    assert head_lines({"main": {"head": None, "marks": {}}}) == []
    assert one_of([summary, summary])["head"] == summary["head"]
    long = {
        "head": {"t" * 90: {"a-factor-with-a-long-name": {"all": dict.fromkeys(COLUMNS, arms["converted"])}}},
        "marks": {},
    }
    lines = "\n".join(head_lines({f"a-contestant-of-a-long-name-{n}": long for n in range(2)})).splitlines()
    assert max(map(len, lines[3:])) <= 120 and "a-contestant.. a-factor-w.. all" in lines[-1]
