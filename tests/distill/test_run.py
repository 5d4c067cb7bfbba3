"""The command, whole: summary, bundle, refusals, resumption."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from test_run_processes import losses

from converters import load_converter
from distill import evaluate, fit, pairs, run, scoreboard
from shards import FeatureStore

ROOT = Path(__file__).resolve().parents[2]


def test_a_whole_run(tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main([*tiny, "run.name=first"]) == 0
    folder = tmp_path / "runs" / "first"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["targets"]["videomae"]["r2c"] > 0.8
    assert set(summary["floors"]) == {
        "mean",
        "position_mean",
        "pixels",
        "ridge",
        "ridge_local",
        "skip",
        "mlp",
        "shuffled",
    }
    assert abs(summary["floors"]["shuffled"]["videomae"]["r2c"]) < 0.1
    assert summary["floors"]["position_mean"]["videomae"]["r2c"] == pytest.approx(0, abs=1e-6)
    assert summary["floors"]["mean"]["videomae"]["r2"] == pytest.approx(0, abs=1e-6)
    assert set(summary["above"]) == set(summary["floors"]) | set(summary["references"])
    assert summary["above"]["ridge"] == summary["gain"]
    assert set(summary["gain"]["videomae"]) == {"value", "low", "high"}
    assert (
        summary["gain"]["videomae"]["low"]
        <= summary["gain"]["videomae"]["value"]
        <= summary["gain"]["videomae"]["high"]
    )
    low, high = summary["intervals"]["videomae"]["r2c"]
    assert low <= summary["targets"]["videomae"]["r2c"] <= high
    recovery = summary["rank_recovery"]["videomae"]
    assert (
        0 < recovery["k"] <= recovery["of"] == 24 and recovery["k"] == summary["targets"]["videomae"]["rank_recovery"]
    )
    assert recovery["k"] == sum(value > 0.5 for value in recovery["r2"])
    assert {"parameters", "macs", "latency_ms", "threads"} <= set(summary["cost"])
    assert sum(summary["clips"].values()) == 40 and summary["clips"]["refused"] == 0
    assert set(summary["digests"]) >= {"split", "view", "normaliser", "data"}
    assert list(losses(folder)) == list(range(1, 13))
    assert yaml.safe_load((folder / "recipe.yaml").read_text())["train"]["steps"] == 12
    text = capsys.readouterr().out
    assert "gain over ridge" in text and str(folder / "bundle") in text

    converter = load_converter(folder / "bundle")
    path = next(word.split("=", 1)[1] for word in tiny if word.startswith("store.path"))
    store = FeatureStore(path)
    tokens = torch.stack([store[i]["student"] for i in store.indices("test")])
    wanted = torch.stack([store[i]["videomae"] for i in store.indices("test")])
    with torch.inference_mode():
        found = converter(tokens)["videomae"]
    stats = store.statistics("videomae")
    error, spread = ((found - wanted) / stats["scale"]), ((wanted - stats["mean"]) / stats["scale"])
    r2c = float(1 - error.double().square().sum() / spread.double().square().sum())
    assert r2c == pytest.approx(summary["targets"]["videomae"]["r2c"], abs=1e-5)

    assert run.main([*tiny, "run.name=first"]) == 1
    assert "first exists" in capsys.readouterr().err
    assert run.main([*tiny, "run.name=second", "converter.options.width=16"]) == 0
    assert "already in" in capsys.readouterr().out
    table = scoreboard.scoreboard([folder, folder.with_name("second")])
    assert "first (perceiver)" in table and "shuffled" in table and table.count("*") >= 2
    assert summary["cost"]["bytes_read"] == 4 * 8 * 8 * (4 * 3 * 2 + 2), "int8, and a scale of two bytes for a token"
    assert set(summary["spaces"]) == {"videomae"}


def test_scoreboard_refuses_other_clips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, split in (("a", "1111"), ("b", "2222")):
        (tmp_path / name).mkdir()
        summary = {
            "family": "perceiver",
            "targets": {"videomae": {"r2c": 0.5}},
            "floors": {},
            "cost": {"parameters": 1, "macs": 1, "latency_ms": 1},
            "digests": {"split": split, "view": "v", "data": "d", "normaliser": "n"},
        }
        (tmp_path / name / "summary.json").write_text(json.dumps(summary))
    assert scoreboard.main([str(tmp_path / "a"), str(tmp_path / "b")]) == 1
    assert "their split differs (1111 and 2222)" in capsys.readouterr().err
    assert scoreboard.main([str(tmp_path / "a"), "--metric", "r3"]) == 1
    assert "'r3'" in capsys.readouterr().err
    assert scoreboard.main([str(tmp_path / "none")]) == 1
    assert "no summary.json" in capsys.readouterr().err


def test_every_split_has_its_use(tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Fitted on train, chosen on val, told from test: which clips each stage reads, and of nothing else."""
    read: list[tuple[str, set[str]]] = []

    def spy(stage: str, work: Callable) -> Callable:
        def spied(store: FeatureStore, *, indices: Sequence[int], **options: Any) -> Any:
            read.append((stage, {store.clips[index]["split"] for index in indices}))
            assert len(indices) == len(set(indices)) == sum(len(store.indices(split)) for split in read[-1][1])
            pairs = {index for order in (options.get("paired") or {}).values() for index in order}
            assert {store.clips[index]["split"] for index in pairs} <= {"train"}
            return work(store, indices=indices, **options)

        return spied

    monkeypatch.setattr(fit, "scan", spy("fit", fit.scan))
    monkeypatch.setattr(evaluate, "scan", spy("score", evaluate.scan))
    monkeypatch.setattr(pairs, "BatchReader", spy("train", pairs.BatchReader))
    assert run.main([*tiny, "train.steps=6"]) == 0
    stages = [(stage, *splits) for stage, splits in read]
    assert set(stages[:3]) == {("fit", "train")} and stages[3] == ("train", "train")
    assert stages[4:-2] == [("score", "val")] * 3
    assert stages[-2:] == [("score", "test")] * 2  # converters and floors, then references


@pytest.mark.parametrize("normaliser", ["position", "global"])
def test_a_run_starts_at_the_ridge_of_its_own_space(normaliser: str, tiny: list[str], tmp_path: Path) -> None:
    """One step at next to no rate: converter and trained floors are the ridge, and their own scores in the summary."""
    words = ["train.steps=1", "train.lr=1e-12", "train.min_lr=0", f"converter.normaliser={normaliser}", "run.name=run"]
    assert run.main([*tiny, *words]) == 0
    summary = json.loads((tmp_path / "runs" / "run" / "summary.json").read_text())
    floors = {name: found["videomae"]["r2c"] for name, found in summary["floors"].items()}
    assert floors["ridge"] > 0.5
    assert [floors["skip"], floors["mlp"]] == pytest.approx([floors["ridge"]] * 2, abs=1e-6)
    assert summary["targets"]["videomae"]["r2c"] == pytest.approx(floors["ridge"], abs=1e-6)
    assert floors["position_mean"] == pytest.approx(0, abs=1e-6)


def test_accumulation_and_the_rate_of_the_skip_reach_the_engine(tiny: list[str], tmp_path: Path) -> None:
    tiny = [*tiny, "evaluate.floors=[ridge,skip]", "train.skip_lr=0"]
    for parts in (1, 2):
        assert run.main([*tiny, f"train.accumulation={parts}", f"run.name={parts}"]) == 0
    one, two = (losses(tmp_path / "runs" / name) for name in "12")
    assert list(one.values()) == pytest.approx(list(two.values()), rel=1e-3)
    summary = json.loads((tmp_path / "runs" / "1" / "summary.json").read_text())
    assert summary["floors"]["skip"] == summary["floors"]["ridge"]  # at no rate it stays what it was
    assert summary["targets"]["videomae"]["r2c"] != summary["floors"]["ridge"]["videomae"]["r2c"]


def test_a_finished_run_resumes_to_the_same_end(tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    tiny = [*tiny, "evaluate.floors=[ridge]", "run.name=run"]
    folder = Path(next(word.split("=", 1)[1] for word in tiny if word.startswith("run.dir"))) / "run"
    assert run.main(tiny) == 0
    metrics, targets = (
        (folder / "metrics.jsonl").read_text(),
        json.loads((folder / "summary.json").read_text())["targets"],
    )
    assert run.main([*tiny, "train.resume=auto"]) == 0
    assert (folder / "metrics.jsonl").read_text() == metrics
    assert json.loads((folder / "summary.json").read_text())["targets"] == targets
    recipe = (folder / "recipe.yaml").read_text()

    capsys.readouterr()
    assert run.main([*tiny, "train.resume=auto", "train.lr=0.01"]) == 1
    captured = capsys.readouterr()
    assert "train.lr was 0.001, now 0.01" in captured.err
    assert "ridge" not in captured.err, "refused after work"
    assert (folder / "recipe.yaml").read_text() == recipe, "a refused run must not rewrite what the run was"


def test_resuming_on_other_clips_is_refused(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One video more gives other features and another order of samples, under a recipe that has not changed."""
    root, videos = tmp_path / "videos", Path(next(w.split("=", 1)[1] for w in tiny if w.startswith("data.root")))
    shutil.copytree(videos, root)
    tiny = [word for word in tiny if not word.startswith("store.path")]
    tiny = [*tiny, f"data.root={root}", f"store.path={tmp_path / 'store'}", "evaluate.floors=[ridge]", "run.name=run"]
    assert run.main([*tiny, "train.steps=5"]) == 0
    shutil.copy(videos / "left" / "00.mp4", root / "left" / "99.mp4")
    shutil.rmtree(tmp_path / "store")
    assert run.main([*tiny, "train.steps=5", "train.resume=auto"]) == 1
    assert "features.data was " in capsys.readouterr().err


def test_a_run_that_failed_before_its_first_step_leaves_its_name_free(tiny: list[str]) -> None:
    tiny = [*tiny, "evaluate.floors=[ridge]", "run.name=run"]
    assert run.main([*tiny, "converter.options.latents=0"]) == 1
    assert run.main(tiny) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["converter.family=perceivr"], "'perceivr' is no family"),
        (["student.backbone=vjepa3"], "'vjepa3' is no backbone"),
        (["train.stepz=3", "train.lr=fast"], "did you mean train.steps"),
        (["train.batch=3", "train.accumulation=2"], "train.accumulation"),
    ],
)
def test_a_wrong_recipe_dies_before_any_work(
    words: list[str], message: str, tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.main([*tiny, *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_an_impossible_converter_dies_before_extraction(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word for word in tiny if not word.startswith("store.path")]
    assert run.main([*words, f"store.path={tmp_path / 'store'}", "converter.options.latents=0"]) == 1
    assert "latents is 0" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


def test_emulated_bf16_is_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert [run.choose_precision("auto", device) for device in (cpu, cuda)] == ["fp32", "bf16"]
    assert run.choose_precision("fp32", cpu) == "fp32" and not caplog.text
    assert run.choose_precision("bf16", cpu) == "bf16" and "it is emulated" in caplog.text
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    caplog.clear()
    assert run.choose_precision("bf16", cpu) == "bf16" and not caplog.text
