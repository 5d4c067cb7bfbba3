"""The processes of one job: who am I, how many are we, on which device, and the few things we do together."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Result = TypeVar("Result")
PATIENCE = timedelta(hours=24)  # a rank may wait this long for a slower one (a day of extraction)


@dataclass(frozen=True)
class Ranks:
    """One process among `world`. `device` is the one that this process computes on."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def main(self) -> bool:
        return self.rank == 0

    @classmethod
    def join(cls, environment: Mapping[str, str] | None = None) -> Ranks:
        """Enters the process group that the launcher describes: deepspeed, torchrun, SLURM's srun, or a lone process.

        Raises ValueError where the environment is half set.
        """
        place = read_environment(os.environ if environment is None else environment)
        cuda = torch.cuda.is_available()
        index = device_index(place["local_rank"], torch.cuda.device_count()) if cuda else place["local_rank"]
        os.environ["LOCAL_RANK"] = str(index)  # deepspeed takes its device from it; srun and a shell do not set it
        device = torch.device("cuda", index) if cuda else torch.device("cpu")
        if cuda:
            torch.cuda.set_device(device)
        else:
            share_cores(place["local_world"])
        if not dist.is_initialized():
            backend = "cuda:nccl,cpu:gloo" if cuda else "gloo"
            if place["world"] == 1:  # no port is opened, so that two lone runs never collide
                dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=PATIENCE)
            else:
                url = f"tcp://{place['address']}:{place['port']}"
                where = {"rank": place["rank"], "world_size": place["world"]}
                dist.init_process_group(backend, init_method=url, timeout=PATIENCE, **where)
        return cls(place["rank"], place["world"], place["local_rank"], place["local_world"], device)

    def leave(self) -> None:
        """Leaves the group. The barrier keeps gloo from aborting the ranks that are still at work."""
        if dist.is_initialized():
            self.barrier()
            dist.destroy_process_group()

    def barrier(self) -> None:
        if self.world > 1:
            dist.barrier()

    def sum_(self, tensor: Tensor) -> Tensor:
        """Sums the tensor over ranks, in place, and returns it."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def text(self, text: str | None) -> str:
        """Rank 0's text, on every rank."""
        if self.world == 1:
            return text or ""
        data = torch.tensor(list((text or "").encode()), dtype=torch.uint8)
        length = torch.tensor([len(data)])
        dist.broadcast(length, src=0)
        data = data if self.main else torch.empty(int(length), dtype=torch.uint8)
        dist.broadcast(data, src=0)
        return bytes(data.tolist()).decode()

    def first(self, work: Callable[[], Result]) -> Result:
        """Does the work on rank 0 and then on the others, for work that leaves files which a second one only finds.

        Where rank 0 fails, the others do not wait for it: they raise FailedElsewhere.
        """
        failure = None
        if self.main:
            try:
                result = work()
            except Exception as error:
                failure = error
        told = self.text(f"{type(failure).__name__}: {failure}" if failure else "")
        if failure is not None:
            raise failure
        if told and not self.main:
            raise FailedElsewhere(f"rank 0 failed with {told}")
        return result if self.main else work()


class FailedElsewhere(OSError):
    """Another rank could not do what this one waits for."""


def is_first(environment: Mapping[str, str] | None = None) -> bool:
    """Whether this is rank 0 by the launcher's word, before any group is joined: for messages that all would repeat."""
    environment = os.environ if environment is None else environment
    return environment.get("RANK", environment.get("SLURM_PROCID", "0")) == "0"


def share_cores(local_world: int) -> None:
    """Divides this machine's cores between its ranks, unless OMP_NUM_THREADS says otherwise."""
    if local_world > 1 and "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // local_world))


def device_index(local_rank: int, devices: int) -> int:
    """Which of the visible GPUs is this rank's: its own number, or the only one where srun shows each rank but one."""
    if devices > 1 and local_rank >= devices:
        raise ValueError(f"local rank {local_rank}, but there are {devices} GPUs; start at most {devices} ranks here")
    return local_rank if devices > 1 else 0


def read_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """rank, world, local_rank, local_world, address, port as the launcher set them; a lone process if none did.

    Raises ValueError, naming the variable, where they are half set or make no sense.
    """
    given = {name: value for name, value in environment.items() if value}
    place: dict[str, Any] = {"rank": 0, "world": 1, "local_rank": 0, "local_world": 1}
    place |= {"address": "127.0.0.1", "port": 29500}
    if "RANK" in given or ("WORLD_SIZE" in given and "SLURM_PROCID" not in given):
        place |= read_torchrun(given)
    elif "SLURM_PROCID" in given and number(given, "SLURM_NTASKS", 1) > 1:
        place |= read_slurm(given)
    if place["rank"] >= place["world"]:
        raise ValueError(
            f"rank {place['rank']} of {place['world']}: ranks count from 0; start with deepspeed or torchrun"
        )
    return place


def read_torchrun(given: Mapping[str, str]) -> dict[str, Any]:
    """What torchrun and the deepspeed launcher set."""
    world = number(given, "WORLD_SIZE", 1)
    needed = ["RANK", "WORLD_SIZE"] + (["MASTER_ADDR", "MASTER_PORT"] if world > 1 else [])
    if missing := [name for name in needed if name not in given]:
        there = "WORLD_SIZE" if "WORLD_SIZE" in given else "RANK"
        raise ValueError(
            f"{there}={given[there]} but {', '.join(missing)} is not set; start with deepspeed or torchrun"
        )
    return {
        "rank": number(given, "RANK", 0),
        "world": world,
        "local_rank": number(given, "LOCAL_RANK", 0),
        "local_world": number(given, "LOCAL_WORLD_SIZE", number(given, "LOCAL_SIZE", world)),
        "address": given.get("MASTER_ADDR", "127.0.0.1"),
        "port": number(given, "MASTER_PORT", 29500),
    }


def read_slurm(given: Mapping[str, str]) -> dict[str, Any]:
    """What srun sets; the port follows from the job, so that all of its tasks agree."""
    tasks_per_node = given.get("SLURM_NTASKS_PER_NODE") or given.get("SLURM_TASKS_PER_NODE", "1")
    nodes = given.get("SLURM_STEP_NODELIST") or given.get("SLURM_JOB_NODELIST", "127.0.0.1")
    return {
        "rank": number(given, "SLURM_PROCID", 0),
        "world": number(given, "SLURM_NTASKS", 1),
        "local_rank": number(given, "SLURM_LOCALID", 0),
        "local_world": int(re.match(r"\d+", tasks_per_node).group()),  # type: ignore[union-attr]
        "address": given.get("MASTER_ADDR") or first_host(nodes),
        "port": number(given, "MASTER_PORT", 20000 + number(given, "SLURM_JOB_ID", 0) % 20000),
    }


def number(given: Mapping[str, str], name: str, default: int) -> int:
    """A variable of the environment. Raises ValueError unless it is a whole number."""
    text = given.get(name, str(default))
    if not text.isdecimal():
        raise ValueError(f"{name}={text} must be a whole number, at least 0; start with deepspeed, torchrun or srun")
    return int(text)


def first_host(nodes: str) -> str:
    """The first host of SLURM's compact list: node[003-007,9]-ib,gpu1 -> node003-ib."""
    host = re.sub(r"\[(\w+)[^\]]*\]", r"\1", nodes).split(",")[0]
    if not re.fullmatch(r"[\w.:-]+", host):
        raise ValueError(f"SLURM's node list {nodes!r} cannot be read; set MASTER_ADDR")
    return host
