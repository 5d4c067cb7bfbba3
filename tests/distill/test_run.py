"""The command, whole: summary, bundle, refusals; two ranks; stopped, killed and resumed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from converters import load_converter
from distill import evaluate, fit, pairs, run, scoreboard
from distill.runfolder import read_metrics
from shards import FeatureStore

ROOT = Path(__file__).resolve().parents[2]


def losses(folder: Path) -> dict[int, float]:
    lines = [line for line in read_metrics(folder / "metrics.jsonl") if line["split"] == "train"]
    found = [(line["step"], line["value"]) for line in lines if line["metric"] == "loss"]
    assert len(found) == len(dict(found)), "a step's loss stands there twice"
    return dict(found)


def start(command: list[str], tmp_path: Path, *, launcher: list[str] | None = None) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        environment.pop(name, None)
    line = [*(launcher or [sys.executable]), str(ROOT / "distill" / "run.py"), *command]
    with open(tmp_path / "output.txt", "a") as output:
        return subprocess.Popen(line, cwd=tmp_path, env=environment, stdout=output, stderr=subprocess.STDOUT)


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def start_ranks(
    command: list[str], tmp_path: Path, *, script: Path = ROOT / "distill" / "run.py"
) -> list[subprocess.Popen]:
    """Two ranks without a launcher, which would end one when the other ends."""
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "OMP_NUM_THREADS": "1"}
    processes = []
    for rank in "01":
        environment = {**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank, "PYTHONPATH": str(ROOT)}
        with open(tmp_path / "output.txt", "a") as output:
            line = [sys.executable, str(script), *command]
            processes.append(subprocess.Popen(line, cwd=tmp_path, env=environment, stdout=output, stderr=output))
    return processes


def finish(process: subprocess.Popen, tmp_path: Path) -> int:
    status = process.wait(timeout=240)
    if status not in (0, run.RESUMABLE, -signal.SIGKILL):
        print((tmp_path / "output.txt").read_text())
    return status


def wait_for_steps(folder: Path, steps: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (folder / "metrics.jsonl").exists() and len(losses(folder)) >= steps:
            return
        time.sleep(0.02)
    raise AssertionError("the run ended, or took too long, before it was stopped")


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


def test_two_ranks_take_the_same_steps(tiny: list[str], tmp_path: Path) -> None:
    tiny = [*tiny, "evaluate.floors=[ridge,shuffled]"]
    assert finish(start([*tiny, "run.name=one"], tmp_path), tmp_path) == 0
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", "2", "--master_port", free_port()]
    two = start([*tiny, "run.name=two", "engine=zero1"], tmp_path, launcher=launcher)
    assert finish(two, tmp_path) == 0
    one, two_ = (losses(tmp_path / "runs" / name) for name in ("one", "two"))
    assert list(one) == list(two_)
    assert list(one.values()) == pytest.approx(list(two_.values()), rel=1e-3)
    scores = [json.loads((tmp_path / "runs" / name / "summary.json").read_text())["targets"] for name in ("one", "two")]
    assert scores[0]["videomae"]["r2c"] == pytest.approx(scores[1]["videomae"]["r2c"], abs=1e-3)


def test_two_ranks_hold_the_same_contest(tiny: list[str], tmp_path: Path) -> None:
    """With a floor that both contestants share, and the optimizer's state partitioned."""
    words = [
        *("recipe=contest_videomae", "contest=[dsconv,mamba]", "evaluate.floors=[ridge,skip]"),
        *("evaluate.probes=[linear]", "head.tasks=[label]", "head.per_class=[3,null]"),
        *(word for word in tiny if not word.startswith(("recipe=", "converter."))),
        "contest.dsconv.options={width: 16, blocks: 2, kernel: 3}",
        "contest.mamba.options={width: 16, blocks: 2, states: 4, samples: 4}",
    ]
    assert run.main([*words, "run.name=one"]) == 0
    both = start_ranks([*words, "run.name=two", "engine=zero1"], tmp_path)
    assert [finish(process, tmp_path) for process in both] == [0, 0]
    for name in ("dsconv", "mamba"):
        folders = [tmp_path / "runs" / ranks / name for ranks in ("one", "two")]
        one, two = map(losses, folders)
        assert len(one) == 12 and list(one) == list(two)
        assert list(one.values()) == pytest.approx(list(two.values()), rel=1e-3)
        ours, theirs = (json.loads((folder / "summary.json").read_text()) for folder in folders)
        assert set(theirs["lead"]) == {"dsconv", "mamba"} - {name}
        assert set(theirs["floors"]) == {"ridge", "skip"}
        told = [found["probes"]["videomae"]["label"]["linear"] for found in (ours, theirs)]
        assert told[0]["teacher"] == told[1]["teacher"] and told[0]["student"] == told[1]["student"]
        heads = [found["head"]["videomae"]["label"] for found in (ours, theirs)]
        assert list(heads[0]) == ["3", "all"] and heads[0]["3"]["teacher"]["labelled"] == 6
        for few, arm in product(heads[0], ("student", "teacher")):
            assert heads[0][few][arm]["accuracy"] == heads[1][few][arm]["accuracy"]
        for floor in (None, "ridge", "skip"):
            scores = [found["floors"][floor] if floor else found["targets"] for found in (ours, theirs)]
            assert scores[0]["videomae"]["r2c"] == pytest.approx(scores[1]["videomae"]["r2c"], abs=1e-3)


def test_stopped_and_killed_runs_resume_exactly(tiny: list[str], tmp_path: Path) -> None:
    """Once by SIGTERM, which saves, then by SIGKILL, which does not: the loss trace is that of a run left alone."""
    tiny = [*tiny, "train.steps=400", "evaluate.floors=[ridge,skip]", "train.resume=auto", "train.checkpoint_every=20"]
    runs = tmp_path / "runs"
    assert finish(start([*tiny, "run.name=whole"], tmp_path), tmp_path) == 0

    process = start([*tiny, "run.name=broken"], tmp_path)
    wait_for_steps(runs / "broken", 30, process)
    process.send_signal(signal.SIGTERM)
    assert finish(process, tmp_path) == run.RESUMABLE
    stopped = len(losses(runs / "broken"))
    process = start([*tiny, "run.name=broken"], tmp_path)
    wait_for_steps(runs / "broken", stopped + 50, process)
    process.kill()
    assert finish(process, tmp_path) == -signal.SIGKILL
    with open(runs / "broken" / "metrics.jsonl", "a") as file:
        file.write('{"step": 399, "split": "tra')
    assert stopped < len(losses(runs / "broken")) < 400
    assert finish(start([*tiny, "run.name=broken"], tmp_path), tmp_path) == 0
    assert losses(runs / "broken") == losses(runs / "whole")
    results = [json.loads((runs / name / "summary.json").read_text()) for name in ("whole", "broken")]
    assert results[0]["targets"] == results[1]["targets"]


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


def test_sigterm_stops_both_ranks_after_the_same_step(tiny: list[str], tmp_path: Path) -> None:
    """One rank is asked, both stop; then one rank goes on from there, with the samples of a run left alone."""
    tiny = [*tiny, "train.steps=120", "evaluate.floors=[ridge]", "train.resume=auto"]
    both = start_ranks([*tiny, "run.name=two"], tmp_path)
    wait_for_steps(tmp_path / "runs" / "two", 20, both[0])
    both[1].send_signal(signal.SIGTERM)
    assert [finish(process, tmp_path) for process in both] == [run.RESUMABLE] * 2
    stopped = len(losses(tmp_path / "runs" / "two"))
    assert 20 <= stopped < 120
    assert "train.resume=auto run.name=two" in (tmp_path / "output.txt").read_text()
    assert finish(start([*tiny, "run.name=two"], tmp_path), tmp_path) == 0
    assert finish(start([*tiny, "run.name=one"], tmp_path), tmp_path) == 0
    one, two = (losses(tmp_path / "runs" / name) for name in ("one", "two"))
    assert list(one) == list(two)
    assert list(one.values()) == pytest.approx(list(two.values()), rel=1e-2)


def test_a_signal_to_the_deepspeed_command_reaches_its_ranks(tiny: list[str], tmp_path: Path) -> None:
    """The command itself only dies of it, and would leave its ranks at work."""
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", "2", "--master_port", free_port()]
    words = [*tiny, "train.steps=5000", "evaluate.floors=[ridge]", "run.name=run"]
    command = start(words, tmp_path, launcher=launcher)
    folder = tmp_path / "runs" / "run"
    wait_for_steps(folder, 20, command)
    command.terminate()
    command.wait(timeout=60)
    deadline = time.monotonic() + 60
    while "stopped after step" not in (tmp_path / "output.txt").read_text() and time.monotonic() < deadline:
        time.sleep(0.1)
    stopped = len(losses(folder))
    assert f"stopped after step {stopped};" in (tmp_path / "output.txt").read_text()
    assert (folder / "checkpoints" / f"step-{stopped:08d}" / "record.json").exists()


@pytest.mark.parametrize("rank", [0, 1])
def test_what_goes_wrong_on_one_rank_ends_both(rank: int, tiny: list[str], tmp_path: Path) -> None:
    """With the clip's name, an exit status that says so, and no rank left waiting."""
    spoil = (
        "import os, sys; from shards.reader import BatchReader; load = BatchReader._load\n"
        "def spoilt(self, task):\n"
        "    batch = load(self, task)\n"
        f"    if task[0] == 3 and self.rank == {rank}: batch['student'][0, 0, 0] = float('nan')\n"
        "    return batch\n"
        "BatchReader._load = spoilt\n"
        "from distill import run; sys.exit(run.main(sys.argv[1:]))\n"
    )
    (tmp_path / "spoilt.py").write_text(spoil)
    both = start_ranks([*tiny, "evaluate.floors=[ridge]"], tmp_path, script=tmp_path / "spoilt.py")
    assert [process.wait(timeout=240) for process in both] == [1, 1]
    text = (tmp_path / "output.txt").read_text()
    assert text.count("step 3: converter's loss") == 2 and "Traceback" not in text
    assert text.count("are not finite") == 1, "only the rank that has the clip may name it"


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
