"""What survives conversion, on planted factors; then through the command."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from operator import itemgetter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from planted_factors import FACTORS, GRID, STUDENT, Planted, plant
from torch import Tensor, nn

from converters import Converter, create_converter
from distill import run, survival, tokens
from distill.floors import Floors
from distill.survival import accuracy, check_tasks, probed_tasks, task_problems
from distill.tokens import Held, Streamed, open_sources
from shards import FeatureStore
from shards.ranks import Ranks
from shards.task import Task


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    path = tmp_path_factory.mktemp("planted") / "store"
    return plant(path, label=itemgetter("both"), teacher=Planted(GRID, (0, 2)))


@pytest.fixture(scope="module")
def converter(planted: FeatureStore) -> Converter:
    """The ridge."""
    found = create_converter("linear", student=STUDENT, targets={"teacher": GRID})
    Floors({"main": found}, planted, asked=[], seed=0, ranks=Ranks())
    return found


class Altered(nn.Module):
    """A converter and what is done to its tokens."""

    def __init__(self, converter: Converter, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.converter, self.change, self.targets = converter, change, converter.targets

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        return {name: self.change(found) for name, found in self.converter(tokens).items()}


def examine(store: FeatureStore, **contestants: nn.Module) -> dict[str, Any]:
    asked = {"kinds": ["linear", "attentive"], "resamples": 300, "seed": 0, "ranks": Ranks()}
    return survival.survival(store, contestants, **asked)  # type: ignore[arg-type]


def test_what_both_hold_survives_and_what_the_student_lacks_does_not(
    planted: FeatureStore, converter: Converter, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[str] = []
    fit = survival.fit_probe
    monkeypatch.setattr(survival, "fit_probe", lambda kind, **o: (fitted.append(kind), fit(kind, **o))[1])
    drawn, draw = [], survival.group_weights
    monkeypatch.setattr(survival, "group_weights", lambda groups, **o: (drawn.append(groups), draw(groups, **o))[1])
    found = examine(planted, main=converter, mirrored=Altered(converter, torch.neg))
    assert fitted.count("linear") == fitted.count("attentive") == 4, "student and teacher once, converted twice"
    assert drawn == [[planted.groups[clip] for clip in planted.indices("test")]]
    assert list(found["main"]) == ["teacher"] and set(found["main"]["teacher"]) == set(FACTORS)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    for kind in ("linear", "attentive"):
        both, student, teacher = (found["main"]["teacher"][task][kind] for task in FACTORS)
        read = {name: both[name]["value"] for name in ("student", "teacher", "converted", "converted_by_teacher_probe")}
        if kind == "linear":  # a ridge's tokens vary less, so that their maxima lie elsewhere than the teacher's
            assert read.pop("converted_by_teacher_probe") > 0.55
        assert min(read.values()) > 0.85, read
        assert student["student"]["value"] > 0.85 and student["teacher"]["value"] < 0.75
        assert teacher["teacher"]["value"] > 0.85 and teacher["student"]["value"] < 0.75
        assert teacher["difference"]["high"] < 0 < teacher["teacher"]["low"] and teacher["converted"]["value"] < 0.75
        for entry in (both, student, teacher):
            gain = entry["converted"]["value"] - entry["teacher"]["value"]
            assert entry["difference"]["value"] == pytest.approx(gain, abs=1e-9)
            assert all(entry[name]["low"] <= entry[name]["value"] <= entry[name]["high"] for name in read)
            assert entry["clips"] == 48
        for task, entry in zip(FACTORS, (both, student, teacher), strict=True):
            named = [torch.tensor(planted.tasks[task].indices)[planted.indices(split)] for split in ("train", "test")]
            assert entry["chance"] == pytest.approx(
                (named[1] == named[0].double().mean().round()).double().mean().item()
            )
        mirrored = found["mirrored"]["teacher"]["both"][kind]
        assert mirrored["converted"]["value"] > 0.85 > 0.45 > mirrored["converted_by_teacher_probe"]["value"]
        assert mirrored["student"] == both["student"] and mirrored["teacher"] == both["teacher"]
        assert both["kappa"] > 0.7 if kind == "attentive" else both["kappa"] > 0.1
        assert mirrored["kappa"] < 0.1 and mirrored["kl"] > both["kl"] > 0
        assert both["corrected"]["teacher"] == pytest.approx(
            (both["teacher"]["value"] - both["chance"]) / (1 - both["chance"])
        )
    assert survival.mean_kappa(found["main"])["teacher"] > survival.mean_kappa(found["mirrored"])["teacher"]


def test_agreement_is_that_of_two_readers() -> None:
    """By hand: Cohen's own table of two readers, and the divergence of two coins."""
    table = {(0, 0): 44, (0, 1): 6, (1, 0): 16, (1, 1): 34}  # 78% alike, of which (60 * 50 + 40 * 50) / 100^2 by chance
    said = torch.tensor([pair for pair, count in table.items() for _ in range(count)])
    own, other = (torch.nn.functional.one_hot(said[:, side], 3).float().log() for side in (0, 1))
    own, other = (
        logits.clamp_min(-5).masked_fill(torch.tensor([False, False, True]), -torch.inf) for logits in (own, other)
    )
    found = survival.agreement(own, other, torch.ones(1, 100, dtype=torch.float64))
    assert found["agreement"]["value"] == pytest.approx(0.78) and found["kappa"] == pytest.approx((0.78 - 0.5) / 0.5)
    sure = 1 / (1 + torch.exp(torch.tensor(-5.0, dtype=torch.float64)))
    assert found["kl"] == pytest.approx(float(0.22 * (2 * sure - 1) * 5), rel=1e-6)
    same = survival.agreement(own, own, torch.ones(1, 100, dtype=torch.float64))
    assert same["kappa"] == 1 and same["kl"] == 0
    always = torch.zeros(4, 2)
    assert survival.agreement(always, always, torch.ones(1, 4, dtype=torch.float64))["kappa"] is None


def test_tokens_that_do_not_fit_are_read_again(
    planted: FeatureStore, converter: Converter, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = {
        **open_sources(planted, ["student", "teacher"], seed=3),
        "converted": open_sources(planted, ["teacher"], converter=converter, seed=3)["teacher"],
    }
    before = examine(planted, main=converter)
    monkeypatch.setattr(tokens, "HELD_BYTES", 0)
    streamed = {
        **open_sources(planted, ["student", "teacher"], seed=3),
        "converted": open_sources(planted, ["teacher"], converter=converter, seed=3)["teacher"],
    }
    for name, splits in held.items():
        orders = [
            [torch.cat([clips for _, clips in splits[split](turn)]).tolist() for turn in (0, 1)] for split in splits
        ]
        assert [one == other for one, other in orders] == [False, True, True], "only train has another order each time"
        for split, source in splits.items():
            assert isinstance(source, Held) and isinstance(streamed[name][split], Streamed)
            for turn in (0, 1):
                for ours, theirs in zip(source(turn), streamed[name][split](turn), strict=True):
                    assert torch.equal(ours[1], theirs[1]) and torch.allclose(ours[0], theirs[0], atol=1e-5)
    assert isinstance(held["teacher"]["test"], Held) and held["teacher"]["test"].clips.tolist() == planted.indices(
        "test"
    )
    again = examine(planted, main=converter)
    for task in FACTORS:
        ours, theirs = (found["main"]["teacher"][task]["linear"] for found in (before, again))
        assert ours["converted"]["value"] == pytest.approx(theirs["converted"]["value"], abs=0.03)


def test_what_a_contestant_does_wrong_is_said_with_its_name(planted: FeatureStore, converter: Converter) -> None:
    broken = Altered(converter, lambda found: found * math.nan)
    with pytest.raises(ValueError, match=r"linear probe of broken's teacher: clip \d+: 45 of 45 values of its tokens"):
        examine(planted, broken=broken)


def test_accuracies_are_resampled_by_clip_and_leave_out_what_has_no_label() -> None:
    right = torch.tensor([1, 0, 1, math.nan, 1], dtype=torch.float64)
    weights = torch.tensor([[1.0, 1, 1, 5, 1], [2, 0, 0, 1, 0], [0, 3, 1, 0, 0], [0, 0, 0, 2, 0]], dtype=torch.float64)
    found = accuracy(right, weights)
    assert found["value"] == 0.75
    low, high = torch.tensor([0.75, 1, 0.25]).quantile(torch.tensor([0.025, 0.975])).tolist()
    assert (found["low"], found["high"]) == pytest.approx((low, high))
    assert accuracy(right, weights[3:]) == {"value": 0.75, "low": None, "high": None}


def labelled(**tasks: list[int]) -> Any:
    """A store of six clips: two train, two val, two test."""
    splits = {"train": [0, 1], "val": [2, 3], "test": [4, 5]}
    values = ["a", "b", "c"]
    found = {task: Task(values, indices) for task, indices in tasks.items()}
    return SimpleNamespace(path=Path("features/x"), tasks=found, indices=splits.__getitem__)


def test_tasks_that_cannot_be_probed_are_left_out_with_the_reason() -> None:
    good = [0, 1, -1, 1, 0, 2]
    store = labelled(
        label=good,
        one=[2, 2, 0, 2, 0, 2],
        none=[-1, -1, 0, 1, 0, 1],
        val=[0, 1, -1, 2, 0, 1],
        test=[0, 1, 0, 1, -1, -1],
    )
    assert task_problems(store) == {
        "one": "task 'one' has only 'c' in train",
        "none": "task 'none' has no value in train",
        "val": "task 'val' has no value in val that train has, too",
        "test": "task 'test' has no value in test",
    }
    said: list[str] = []
    check_tasks(store, ["linear"], said.append)
    check_tasks(labelled(), [], said.append)
    assert said[0] == "no probe: task 'one' has only 'c' in train" and len(said) == 4
    assert {task: at.tolist() for task, at in probed_tasks(store).items()} == {"label": good}
    other = [1, 0, 1, 0, 1, 0]
    assert list(probed_tasks(labelled(label=good, shape=good, size=other))) == ["shape", "size"]
    with pytest.raises(ValueError, match="features/x has none that can be told: its clips have no label; give data"):
        probed_tasks(labelled())
    with pytest.raises(ValueError, match="told: task 'label' has only 'b' in train; give data"):
        probed_tasks(labelled(label=[1, 1, 0, 1, 0, 1]))


def test_a_run_with_probes(tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*tiny, "evaluate.floors=[ridge]", "run.name=run"]
    assert run.main([*words, "train.steps=6", "evaluate.probes=[]"]) == 0
    folder = tmp_path / "runs" / "run"
    assert json.loads((folder / "summary.json").read_text())["probes"] == {}
    assert "probes on test" not in capsys.readouterr().out
    probes = "evaluate.probes=[linear,attentive]"
    assert run.main([*words, "train.steps=6", probes, "train.resume=auto"]) == 0  # asked for afterwards
    found = json.loads((folder / "summary.json").read_text())["probes"]
    assert list(found) == ["videomae"] and list(found["videomae"]) == ["label"]
    assert list(found["videomae"]["label"]) == ["linear", "attentive"]
    for entry in found["videomae"]["label"].values():
        numbers = {"student", "teacher", "converted", "converted_by_teacher_probe", "difference", "agreement"}
        assert set(entry) == numbers | {"chance", "clips", "corrected", "kappa", "kl"}
        assert all(set(entry[name]) == {"value", "low", "high"} for name in numbers)
    text = capsys.readouterr().out
    for kind in ("linear", "attentive"):
        entry = found["videomae"]["label"][kind]
        at = text.index(f"accuracy of {kind} probes on test")
        row = next(line for line in text[at:].splitlines() if line.startswith("label")).split()
        values = [entry[name]["value"] for name in ("student", "teacher", "converted")]
        assert [row[1], row[2], row[4].rstrip("*"), row[5]] == [f"{v:.2f}" for v in (*values, entry["chance"])]


def test_probes_without_labels_are_refused_before_training(
    tiny: list[str], tiny_videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open(tmp_path / "clips.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "label", "factor.side"])
        for number, path in enumerate(sorted(tiny_videos.rglob("*.mp4"))[::4]):
            table.writerow([path, "", "left" if number < 20 else ""])
    words = [word for word in tiny if not word.startswith(("data", "store.path"))]
    words += ["data=csv", f"data.csv={tmp_path / 'clips.csv'}", f"store.path={tmp_path / 'store'}", "run.name=run"]
    assert run.main([*words, "evaluate.probes=[attentive]"]) == 1
    error = capsys.readouterr().err
    assert "evaluate.probes=[attentive] needs labels, and" in error
    assert "task 'side' has only 'left' in train" in error and "ridge" not in error
    assert not (tmp_path / "runs" / "run" / "metrics.jsonl").exists()
