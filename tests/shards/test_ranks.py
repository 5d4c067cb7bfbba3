"""Who am I, as each launcher says it; and an error of rank 0 that no other rank waits for."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from shards.ranks import Ranks, device_index, first_host, is_first, read_environment

ROOT = Path(__file__).resolve().parents[2]
TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "node1",
    "MASTER_PORT": "29501",
}
DEEPSPEED = {name: value for name, value in TORCHRUN.items() if name != "LOCAL_WORLD_SIZE"} | {"LOCAL_SIZE": "2"}
SRUN = {
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_TASKS_PER_NODE": "2(x2)",
    "SLURM_STEP_NODELIST": "node[003-004]",
    "SLURM_JOB_ID": "123456",
}
PLACE = {"rank": 3, "world": 4, "local_rank": 1, "local_world": 2, "address": "node1", "port": 29501}
ALONE = {"rank": 0, "world": 1, "local_rank": 0, "local_world": 1, "address": "127.0.0.1", "port": 29500}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, ALONE),
        ({"RANK": "", "WORLD_SIZE": ""}, ALONE),
        (TORCHRUN, PLACE),
        (DEEPSPEED, PLACE),
        ({"RANK": "0", "WORLD_SIZE": "1"}, ALONE),
        (SRUN, PLACE | {"address": "node003", "port": 20000 + 123456 % 20000}),
        (SRUN | {"SLURM_NTASKS_PER_NODE": "4"}, PLACE | {"local_world": 4, "address": "node003", "port": 23456}),
        (SRUN | {"MASTER_ADDR": "node1", "MASTER_PORT": "29501"}, PLACE),
        (SRUN | {"SLURM_STEP_NODELIST": "", "SLURM_JOB_NODELIST": "a9"}, PLACE | {"address": "a9", "port": 23456}),
        (SRUN | TORCHRUN, PLACE),
        (SRUN | {"WORLD_SIZE": "4", "MASTER_ADDR": "node1", "MASTER_PORT": "29501"}, PLACE),  # as scripts export them
        ({"SLURM_NTASKS": "4"}, ALONE),  # a shell inside an allocation
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, ALONE),
    ],
)
def test_every_launcher_is_understood(environment: dict[str, str], expected: dict) -> None:
    assert read_environment(environment) == expected


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": "1"}, r"RANK=1 but WORLD_SIZE is not set"),
        ({"WORLD_SIZE": "2"}, r"WORLD_SIZE=2 but RANK, MASTER_ADDR, MASTER_PORT is not set"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "x"}, "WORLD_SIZE=2 but MASTER_PORT"),
        (TORCHRUN | {"RANK": "4"}, "rank 4 of 4"),
        (TORCHRUN | {"WORLD_SIZE": "four"}, "WORLD_SIZE=four"),
        (SRUN | {"SLURM_PROCID": "-1"}, "SLURM_PROCID=-1"),
        (SRUN | {"SLURM_STEP_NODELIST": "[]"}, r"'\[\]'"),
    ],
)
def test_half_set_environments_are_refused(environment: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_environment(environment)


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("node1", "node1"),
        ("gpu-a,gpu-b", "gpu-a"),
        ("node[003-007,9],gpu1", "node003"),
        ("node[3,5-7]", "node3"),
        ("rack1-node[12-13]", "rack1-node12"),
        ("node[1-2]-ib", "node1-ib"),
        ("r[1-2]n[3-4]", "r1n3"),
        ("10.0.0.1", "10.0.0.1"),
    ],
)
def test_first_host(nodes: str, host: str) -> None:
    assert first_host(nodes) == host


def test_a_rank_takes_its_own_gpu_or_the_only_one_it_sees() -> None:
    assert [device_index(rank, 4) for rank in range(4)] == [0, 1, 2, 3]
    assert device_index(3, 1) == 0
    with pytest.raises(ValueError, match="local rank 4, but there are 4 GPUs"):
        device_index(4, 4)


def test_a_lone_rank_does_first_things_once_and_raises_its_own_errors() -> None:
    calls: list[int] = []
    assert Ranks().first(lambda: calls.append(1) or "done") == "done" and calls == [1]  # type: ignore[func-returns-value]
    assert Ranks().text("Grüße") == "Grüße" and Ranks().text(None) == ""
    with pytest.raises(KeyError, match="disk"):
        Ranks().first(lambda: {}["disk"])


SCRIPT = """
import sys
from shards.ranks import FailedElsewhere, Ranks
ranks = Ranks.join()
assert ranks.text("from 0" if ranks.main else "from 1") == "from 0" and ranks.text(None) == ""
assert ranks.first(lambda: ranks.rank) == ranks.rank
def work():
    if ranks.main:
        raise OSError("no space")
    return 1
try:
    ranks.first(work)
except FailedElsewhere as error:
    assert not ranks.main and str(error) == "rank 0 failed with OSError: no space", error
except OSError as error:
    assert ranks.main
else:
    sys.exit(3)
ranks.leave()
"""


def test_an_error_of_rank_0_reaches_the_others(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(tmp_path / "script.py")],
            env={"PATH": "/usr/bin:/bin", "WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank), **address},
        )
        for rank in range(2)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]


def test_only_the_first_rank_speaks_before_the_group_is_joined() -> None:
    assert is_first({}) and is_first({"RANK": "0"}) and is_first({"SLURM_PROCID": "0"})
    assert not is_first({"RANK": "1"}) and not is_first({"SLURM_PROCID": "3"})
