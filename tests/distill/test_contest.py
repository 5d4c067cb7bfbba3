"""A contest: every contestant ends as it does alone, what is shared is done once, and a kill anywhere is survived."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file

from converters import create_converter
from converters.converter import Converter
from distill import evaluate, fit, floors, pairs, run, scoreboard, selection
from distill.floors import MAIN, Floors
from distill.runfolder import RunFolder, read_metrics
from recipes.compose import load_recipe
from recipes.schema import Floor
from shards import FeatureStore
from shards.ranks import Ranks

OPTIONS = {
    "perceiver": "{width: 32, latents: 8, heads: 2, blocks: 1}",
    "dsconv": "{width: 16, blocks: 2, kernel: 3}",
    "mamba": "{width: 16, blocks: 2, states: 4, samples: 4}",
    "tokenlearner": "{width: 16, tokens: 4, heads: 2, samples: 4}",
}
FLOORS = set(get_args(Floor))


def contest(tiny: list[str], *names: str) -> list[str]:
    """The tiny run as a contest of these families."""
    words = [word for word in tiny if not word.startswith(("recipe=", "converter."))]
    options = [f"contest.{name}.options={OPTIONS[name]}" for name in names]
    return ["recipe=contest_videomae", f"contest=[{','.join(names)}]", *words, *options]


def alone(tiny: list[str], family: str) -> list[str]:
    words = [word for word in tiny if not word.startswith(("recipe=", "converter."))]
    return [f"recipe={family}_videomae", *words, f"converter.options={OPTIONS[family]}"]


def summary(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "summary.json").read_text())
    return {key: value for key, value in found.items() if key not in ("recipe", "lead", "cost")}


def untimed(folder: Path) -> list[dict[str, Any]]:
    """Every line of metrics but the seconds, which no two runs share."""
    return [line for line in read_metrics(folder / "metrics.jsonl") if line["metric"] != "seconds"]


def assert_same_run(one: Path, other: Path) -> None:
    """Weights bit for bit, every line of metrics but the seconds, every score and floor."""
    ours, theirs = (load_file(folder / "bundle" / "model.safetensors") for folder in (one, other))
    assert set(ours) == set(theirs) and len(ours) > 3
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert untimed(one) == untimed(other)
    assert summary(one) == summary(other)


def test_every_contestant_ends_as_alone(tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = [*tiny, "train.clip_norm=0.01"]  # so low that a clipping over all of them would show
    assert run.main([*contest(tiny, *OPTIONS), "run.name=all"]) == 0
    text, top = capsys.readouterr().out, tmp_path / "runs" / "all"
    assert sorted(path.name for path in top.iterdir()) == sorted(OPTIONS)
    for family in OPTIONS:
        assert run.main([*alone(tiny, family), f"run.name={family}"]) == 0
        assert_same_run(top / family, tmp_path / "runs" / family)
        files = {path.name for path in (top / family).iterdir()}
        assert files == {path.name for path in (tmp_path / "runs" / family).iterdir()}
        found = json.loads((top / family / "summary.json").read_text())
        assert set(found) == set(json.loads((tmp_path / "runs" / family / "summary.json").read_text()))
        assert set(found["floors"]) == FLOORS and found["family"] == family
        assert set(found["lead"]) == set(OPTIONS) - {family}
        assert any(line.startswith(f"{family}/mlp ") for line in text.splitlines())
        assert f"bundle    {top / family / 'bundle'}" in text
    assert [sum(line.startswith(f"{floor} ") for line in text.splitlines()) for floor in ("ridge", "skip")] == [1, 1]
    assert "gain over ridge, paired" in text and f"run       {top}" in text

    table = scoreboard.scoreboard(sorted(top.iterdir()))
    assert all(f"{family} ({family})" in table for family in OPTIONS)
    scores = [line.partition(") ")[2].split()[0] for line in table.splitlines() if line.startswith(str(top))]
    assert len(scores) == len(OPTIONS) and sum(score.endswith("*") for score in scores) == 1


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps at which training has started."""
    seen: list[int] = []
    monkeypatch.setattr(
        run, "train", lambda *a, start, train=run.train, **o: (seen.append(start), train(*a, start=start, **o))
    )
    return seen


def test_a_contestants_recipe_trains_it_alone(tiny: list[str], tmp_path: Path, starts: list[int]) -> None:
    words = [*contest(tiny, "mamba", "perceiver"), "evaluate.floors=[ridge,skip]"]
    assert run.main([*words, "run.name=both"]) == 0
    own = tmp_path / "runs" / "both" / "mamba"
    assert run.main([f"recipe={own / 'recipe.yaml'}", f"run.dir={tmp_path}", "run.name=again"]) == 0
    assert_same_run(own, tmp_path / "again")
    metrics = (own / "metrics.jsonl").read_text()
    assert run.main([f"recipe={own / 'recipe.yaml'}", "train.resume=auto"]) == 0  # it is a run folder like any other
    assert (own / "metrics.jsonl").read_text() == metrics and starts == [0, 0, 12]


def test_all_is_read_once(tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """As often as for one: thrice to fit (basis, right, wrong pairs), once to train, thrice for val, once for test, and
    once for the references there."""
    read: list[tuple[str, int]] = []

    def spy(stage: str, work: Any) -> Any:
        def spied(store: FeatureStore, *, indices: Sequence[int], **options: Any) -> Any:
            read.append((stage, len(indices)))
            return work(store, indices=indices, **options)

        return spied

    monkeypatch.setattr(fit, "scan", spy("fit", fit.scan))
    monkeypatch.setattr(evaluate, "scan", spy("score", evaluate.scan))
    monkeypatch.setattr(pairs, "BatchReader", spy("train", pairs.BatchReader))
    for words in (alone(tiny, "dsconv"), contest(tiny, "dsconv", "mamba", "perceiver")):
        assert run.main([*words, "train.steps=6", f"run.name={len(read)}"]) == 0  # both may start in the same second
    assert [stage for stage, _ in read[:9]] == [*["fit"] * 3, "train", *["score"] * 5]
    assert read[9:] == read[:9]


class Killed(BaseException):
    """Nothing catches it, as nothing catches SIGKILL."""


@pytest.mark.parametrize("at", [5, 10])
def test_a_kill_between_two_folders_is_survived(
    at: int, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, starts: list[int]
) -> None:
    """The first contestant has saved a step, the second has not: both go on from the last step that both have."""
    words = [*contest(tiny, "mamba", "dsconv"), "evaluate.floors=[ridge,skip,mlp]", "train.resume=auto"]
    assert run.main([*words, "run.name=whole"]) == 0
    save = RunFolder.save_checkpoint

    def dies(folder: RunFolder, step: int, *rest: Any) -> None:
        if folder.path.name == "dsconv" and step == at:
            raise Killed
        save(folder, step, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save_checkpoint", dies)
        with pytest.raises(Killed):
            run.main([*words, "run.name=broken"])
    saved = {name: RunFolder(tmp_path / "runs" / "broken" / name).saved() for name in ("mamba", "dsconv")}
    assert [len(paths) for paths in saved.values()] == [at // 5, at // 5 - 1]

    assert run.main([*words, "run.name=broken"]) == 0
    assert starts == [0, 0, at - 5]
    for name in ("mamba", "dsconv"):
        assert_same_run(tmp_path / "runs" / "broken" / name, tmp_path / "runs" / "whole" / name)


def test_who_fell_behind_catches_up_as_advised(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed between two folders, then one continued without the other: no step is left that both have."""
    options = ["evaluate.floors=[ridge]", "train.resume=auto", "run.name=run"]
    both, top = [*contest(tiny, "mamba", "dsconv"), *options], tmp_path / "runs" / "run"
    save = RunFolder.save_checkpoint

    def dies(folder: RunFolder, step: int, *rest: Any) -> None:
        if folder.path.name == "dsconv" and step == 10:
            raise Killed
        save(folder, step, *rest)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(RunFolder, "save_checkpoint", dies)
        run.main(both)
    assert run.main([*contest(tiny, "mamba"), *options]) == 0
    before = (top / "mamba" / "metrics.jsonl").read_text()
    capsys.readouterr()
    assert run.main(both) == 1
    said = capsys.readouterr().err
    assert "mamba has 10, 12; dsconv has 5. Give the same command with contest=[dsconv] train.resume=auto" in said
    assert run.main([*contest(tiny, "dsconv"), *options]) == 0
    assert run.main(both) == 0
    assert (top / "mamba" / "metrics.jsonl").read_text() == before
    for name in ("mamba", "dsconv"):
        assert [path.name[-2:] for path in RunFolder(top / name).saved()] == ["10", "12"]


def test_who_may_continue_a_contest(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], starts: list[int]
) -> None:
    floors = ["evaluate.floors=[ridge]", "run.name=run"]
    assert run.main([*contest(tiny, "mamba", "dsconv"), *floors, "train.steps=5"]) == 0
    metrics = {name: (tmp_path / "runs" / "run" / name / "metrics.jsonl").read_text() for name in ("mamba", "dsconv")}
    capsys.readouterr()
    for words, problem in (
        (contest(tiny, "perceiver"), "run exists; choose another run.name"),
        (
            [*contest(tiny, "mamba", "perceiver"), "train.resume=auto"],
            "run was started without perceiver; continue it so",
        ),
        ([*alone(tiny, "mamba"), "train.resume=auto"], "run holds a contest of dsconv, mamba; continue it so"),
        (
            [*contest(tiny, "mamba", "dsconv"), "train.resume=auto", "contest.dsconv.skip=none"],
            "dsconv was started with other settings: converter.skip was linear, now none",
        ),
    ):
        assert run.main([*words, *floors, "train.steps=5"]) == 1
        assert problem in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "runs" / "run").iterdir()) == ["dsconv", "mamba"]
    assert run.main([*contest(tiny, "dsconv"), *floors, "train.steps=5", "train.resume=auto"]) == 0
    assert starts == [0, 5]
    for name, text in metrics.items():
        assert (tmp_path / "runs" / "run" / name / "metrics.jsonl").read_text() == text


def test_a_contestant_that_cannot_be_is_named(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*contest(tiny, "mamba", "perceiver"), "run.name=run"]
    assert run.main([*words, "contest.small.family=mambo"]) == 2
    assert "contest.small.family: 'mambo' is no family; there are" in capsys.readouterr().err
    assert run.main([*words, "contest.perceiver.options.latents=0"]) == 1
    assert "error: perceiver: latents is 0" in capsys.readouterr().err
    assert not [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert run.main([*words, "train.steps=1", "evaluate.floors=[]"]) == 0, "the name was free"


def test_what_is_not_a_number_is_written_as_none(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def undefined(converters: dict[str, Converter], *rest: Any, **options: Any) -> dict[str, dict[str, float]]:
        return {name: {"videomae": float("nan")} for name in converters}

    monkeypatch.setattr(selection, "validation_r2c", undefined)
    words = ["evaluate.floors=[ridge]", "train.steps=6", "run.name=run"]
    assert run.main([*contest(tiny, "mamba", "dsconv"), *words]) == 0
    for name in ("mamba", "dsconv"):
        text = (tmp_path / "runs" / "run" / name / "metrics.jsonl").read_text()
        found = [json.loads(line)["value"] for line in text.splitlines() if '"r2c"' in line]
        assert found == [None, None] and "NaN" not in text


def branch(store: FeatureStore, family: str = "mlp", *, parameters: int = 200, **words: Any) -> Converter:
    layouts = {"student": store.layout("student"), "targets": {"teacher": store.layout("teacher")}}
    options = {"parameters": parameters} if family == "mlp" else None
    return create_converter(family, **layouts, options=options, **words)  # type: ignore[arg-type]


def test_floors_that_agree_are_made_once(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    solved: list[str] = []
    solve = floors.solve_ridges
    monkeypatch.setattr(
        floors, "solve_ridges", lambda s, r, **o: (solved.append(r["student"].normaliser), solve(s, r, **o))[1]
    )
    contestants = {
        "a": branch(store, parameters=200),
        "b": branch(store, parameters=300, skip="none"),
        "c": branch(store, parameters=200, seed=3),
        "d": branch(store, "linear"),
    }
    asked = ["mean", "position_mean", "ridge", "ridge_local", "skip", "mlp", "shuffled"]
    made = Floors(contestants, store, asked=asked, seed=0, ranks=Ranks())
    assert solved == ["position"]
    shared = {floor: floor for floor in asked if floor != "mlp"}
    assert made.labels["a"] == made.labels["c"] | {MAIN: "a"} == {MAIN: "a", **shared, "mlp": "a/mlp"}
    assert made.labels["d"] == {MAIN: "d", **shared}, "it leaves an MLP no parameters"
    assert made.labels["b"] == {MAIN: "b", **shared, "mlp": "b/mlp"}
    assert list(made.trained) == ["a", "b", "c", "d", "skip", "a/mlp", "b/mlp"]
    assert list(made.candidates()) == ["a", "b", "c", "d", *asked[:5], "a/mlp", "b/mlp", "shuffled"]
    assert made.part("c", {"a": 1, "c": 2, "skip": 3, "a/mlp": 4}) == {MAIN: 2, "skip": 3, "mlp": 4}
    assert made.joined({"c": {MAIN: 2, "mlp": 4}, "d": {MAIN: 5}}) == {"c": 2, "a/mlp": 4, "d": 5}
    assert (made.queries("a/mlp", 9), made.queries("a", 9), made.queries("skip", None)) == (128, 9, None)


def test_a_floor_that_one_has_no_room_for_is_its_owners(store: FeatureStore, caplog: pytest.LogCaptureFixture) -> None:
    """An MLP of less than one hidden unit is none."""
    unit, biases = 12, 4
    linear = branch(store, "linear").num_parameters()
    size = ((linear - biases) // unit + 1) * unit + biases
    small = branch(store, parameters=size, skip="none")
    assert 0 < small.num_parameters() - linear < unit + biases
    made = Floors({"small": small, "wide": branch(store)}, store, asked=["ridge", "mlp"], seed=0, ranks=Ranks())
    assert made.labels["small"] == {MAIN: "small", "ridge": "ridge"}
    assert made.labels["wide"] == {MAIN: "wide", "ridge": "ridge", "mlp": "wide/mlp"}
    assert caplog.messages == [f"small: no mlp floor: a converter of {size} parameters leaves it none"]


def test_a_state_of_another_converter_is_named_after_its_learner(tiny: list[str], store: FeatureStore) -> None:
    made = Floors({"small": branch(store)}, store, asked=[], seed=0, ranks=Ranks())
    saved = {"small": {MAIN: {"parameter/elsewhere": torch.zeros(1)}}}
    with pytest.raises(ValueError, match=r"^small: the checkpoint is of another converter"):
        run.build_learners({"small": load_recipe(tiny)}, made, saved, Ranks())


def test_floors_of_another_space_are_made_for_themselves(store: FeatureStore) -> None:
    contestants = {"a": branch(store), "b": branch(store, normaliser="global"), "c": branch(store)}
    made = Floors(contestants, store, asked=["position_mean", "ridge", "skip"], seed=0, ranks=Ranks())
    names = {name: (labels["ridge"], labels["position_mean"]) for name, labels in made.labels.items()}
    assert names == {
        "a": ("a/ridge", "position_mean"),
        "b": ("b/ridge", "position_mean"),
        "c": ("a/ridge", "position_mean"),
    }
    assert [made.trained[f"{name}/skip"].normaliser for name in "ab"] == ["position", "global"]
    weights = {name: converter.state_dict() for name, converter in made.trained.items()}
    for name in "abc":
        skip = weights["b/skip" if name == "b" else "a/skip"]
        keys = [key for key in skip if key.startswith("skips.")]
        assert keys and all(torch.equal(weights[name][key], skip[key]) for key in keys), "it starts at its own ridge"
