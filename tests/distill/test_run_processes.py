"""Whole runs in processes of their own: several ranks, signals, kills, and what goes wrong on one rank."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import pytest

from distill import run
from distill.runfolder import read_metrics

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
