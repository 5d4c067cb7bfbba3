"""The teacher on other renderings as a reference: scored like a converter, and a scale in pixels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from waves import STUDENT, TEACHER, Clip, Wave

from distill.evaluate import frozen_statistics
from distill.metrics import Alignment
from distill.references import Told, equivalent_pixels, on_scale, score_references
from shards.extraction import extract
from shards.ranks import Ranks
from shards.references import find_references
from shards.store import FeatureStore

SPLIT = ("train", "train", "train", "val", "test", "train")


@dataclass
class Off(Wave):
    """The teacher of `Wave`, off by a constant."""

    by: float = 0.0

    @property
    def origin(self) -> dict[str, Any]:
        return {"function": f"off:{self.by}", "revision": None, "licence": "none"}

    def tokens(self, number: int) -> torch.Tensor:
        return super().tokens(number) + self.by


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """References of `teacher`: exact on the student's frames, off by as much as they are shifted."""
    path = tmp_path_factory.mktemp("beside") / "store"
    clips = [Clip(number, SPLIT[number // 2 % 6]) for number in range(60)]
    test = {clip.key for clip in clips if clip.split == "test"}
    off = {"student_frames": 0.0, "shift_1": 0.1, "shift_2": 0.2, "shift_4": 0.4}
    beside = {f"{name}_teacher": Off(TEACHER, teaches=True, by=by) for name, by in off.items()}
    extract(
        path,
        clips=clips,
        columns={"student": Wave(STUDENT), "teacher": Wave(TEACHER, teaches=True), **beside},
        render=lambda clip: ({}, {(2, 4): torch.full((2, 3, 4, 4), clip.number, dtype=torch.uint8)}),
        view={"clip_seconds": 2.0},
        refusal=RuntimeError,
        codec="fp16",
        clips_per_shard=5,
        covers={name: test - {"000009-abc"} if name.startswith("shift") else test for name in beside},
        say=lambda text: None,
    )
    return FeatureStore(path, ["student", "teacher"])


def scored(store: FeatureStore, asked: list[str], special: list[str]) -> dict[str, Any]:
    found = find_references(store, {"teacher": special}, asked)
    scores = score_references(store, found, ranks=Ranks(), cka_positions=2)
    return {name: {target: at.compute() for target, at in by_target.items()} for name, by_target in scores.items()}


@pytest.mark.parametrize("special", [[], ["cls"]])
def test_a_reference_is_scored_in_the_teachers_space(store: FeatureStore, special: list[str]) -> None:
    chosen = FeatureStore(store.path, ["student", "teacher"], special={"teacher": special})
    found = scored(chosen, ["student_frames", "shifts"], special)
    test = [index for index in chosen.indices("test") if chosen.keys[index] != "000009-abc"]
    statistics = frozen_statistics(chosen, "teacher")
    assert len(statistics.mean) == TEACHER.num_grid_tokens + len(special)
    tokens = torch.stack([chosen[index]["teacher"] for index in test])
    spread = ((tokens - statistics.mean) / statistics.scale).square().sum()
    error = (0.2 / statistics.scale).square().sum() * len(test) * len(statistics.mean)
    assert found["shift_2"]["teacher"]["r2c"] == pytest.approx(1 - float(error / spread), abs=1e-3)
    assert found["student_frames"]["teacher"]["r2c"] == pytest.approx(1)
    order = [found[f"shift_{pixels}"]["teacher"]["r2c"] for pixels in (1, 2, 4)]
    assert order == sorted(order, reverse=True) and order[0] < 1


def test_clips_without_a_reference_are_counted(store: FeatureStore, caplog: pytest.LogCaptureFixture) -> None:
    scored(store, ["shifts"], [])
    assert "references: on 9 of the 10 test clips, the others have none" in caplog.text


def test_without_references_there_is_nothing(store: FeatureStore) -> None:
    assert scored(store, ["large"], []) == {} == scored(store, [], [])
    assert equivalent_pixels({}, {"teacher": aligned(0.5)}) == {}
    assert equivalent_pixels({"large": {"teacher": {"r2c": 0.5}}}, {"teacher": aligned(0.5)}) == {}


def aligned(r2c: float) -> Alignment:
    """Sums of which this is the r2c."""

    class Known:
        def compute(self) -> dict[str, float]:
            return {"r2c": r2c}

    return Known()  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("r2c", "value", "beyond"),
    [(1.0, 0, None), (0.95, 0.5, None), (0.9, 1, None), (0.75, 1.5, None), (0.4, 3, None), (0.2, 4, None)]
    + [(0.19, None, 4), (-3, None, 4), (1.01, 0, None)],
)
def test_equivalent_pixels(r2c: float, value: float | None, beyond: float | None) -> None:
    scale = {f"shift_{pixels}": {"x": {"r2c": at}} for pixels, at in ((4, 0.2), (1, 0.9), (2, 0.6))}
    found = equivalent_pixels(scale | {"student_frames": {"x": {"r2c": 0.1}}}, {"x": aligned(r2c)})
    assert found == {"x": {"value": None if value is None else pytest.approx(value), "beyond": beyond}}


def test_a_scale_can_only_fall() -> None:
    """Where a larger shift did less, by chance: the smaller one's r2c holds for both."""
    points = [(0.0, 1.0), (1.0, 0.8), (2.0, 0.9), (4.0, 0.4)]
    assert on_scale(points, 0.8) == pytest.approx(1) and on_scale(points, 0.6) == pytest.approx(3)
    assert on_scale(points, 0.9) == pytest.approx(0.5)


def test_what_a_column_tells_at_some_positions() -> None:
    tokens = torch.arange(24.0).reshape(1, 6, 4)
    told = Told("x", TEACHER)
    assert torch.equal(told(tokens)["x"], tokens) and told.targets == {"x": TEACHER}
    assert torch.equal(told(tokens, positions={"x": torch.tensor([4, 1])})["x"], tokens[:, [4, 1]])


def test_a_run_says_them(tiny: list[str]) -> None:
    """From the recipe to summary, table and scoreboard, and how far off the converter is in pixels."""
    import json

    from distill import run
    from distill.scoreboard import scoreboard

    words = ["evaluate.floors=[ridge]", "run.name=one", "train.steps=2", "evaluate.bootstrap=50"]
    assert run.main([*tiny, *words]) == 0
    folder = Path(next(word for word in tiny if word.startswith("run.dir=")).removeprefix("run.dir=")) / "one"
    summary = json.loads((folder / "summary.json").read_text())
    assert list(summary["references"]) == ["student_frames", "shift_1", "shift_2", "shift_4"]
    assert summary["references"]["student_frames"]["videomae"]["r2c"] > 0.999  # it sees as many frames
    shifts = [summary["references"][f"shift_{pixels}"]["videomae"]["r2c"] for pixels in (1, 2, 4)]
    assert 1 > shifts[0] > shifts[1] > shifts[2]
    assert set(summary["equivalent_pixels"]["videomae"]) == {"value", "beyond"}
    assert set(summary["floors"]) == {"ridge"}
    assert "shift_2 (reference)" in scoreboard([folder])
