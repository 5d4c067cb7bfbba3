"""The processes of one job: who am I, how many are we, on which device, and the few things we do together."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

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
        os.environ.setdefault(
            "LOCAL_RANK", str(place["local_rank"])
        )  # deepspeed reads it; srun and a shell do not set it
        cuda = torch.cuda.is_available()
        device = torch.device("cuda", place["local_rank"]) if cuda else torch.device("cpu")
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
        """Does the work on rank 0 and then on the others, for work that leaves files which a second one only finds."""
        if self.main:
            result = work()
        self.barrier()
        return result if self.main else work()


def share_cores(local_world: int) -> None:
    """Divides this machine's cores between its ranks, unless OMP_NUM_THREADS says otherwise."""
    if local_world > 1 and "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // local_world))


def read_environment(environment: Mapping[str, str]) -> dict:
    """rank, world, local_rank, local_world, address, port as the launcher set them; a lone process if none did."""
    if "RANK" in environment and "WORLD_SIZE" in environment:  # deepspeed, torchrun
        world = int(environment["WORLD_SIZE"])
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in environment]
        if world > 1 and missing:
            raise ValueError(
                f"WORLD_SIZE={world} but {', '.join(missing)} is not set; start with deepspeed or torchrun"
            )
        local_world = environment.get("LOCAL_WORLD_SIZE") or environment.get("LOCAL_SIZE") or world
        return {
            "rank": int(environment["RANK"]),
            "world": world,
            "local_rank": int(environment.get("LOCAL_RANK", 0)),
            "local_world": int(local_world),
            "address": environment.get("MASTER_ADDR", "127.0.0.1"),
            "port": int(environment.get("MASTER_PORT", 29500)),
        }
    if int(environment.get("SLURM_NTASKS", 1)) > 1 and "SLURM_PROCID" in environment:  # srun
        tasks_per_node = environment.get("SLURM_NTASKS_PER_NODE") or environment.get("SLURM_TASKS_PER_NODE", "1")
        job = int(environment.get("SLURM_JOB_ID", 0))
        return {
            "rank": int(environment["SLURM_PROCID"]),
            "world": int(environment["SLURM_NTASKS"]),
            "local_rank": int(environment.get("SLURM_LOCALID", 0)),
            "local_world": int(re.match(r"\d+", tasks_per_node).group()),  # type: ignore[union-attr]
            "address": environment.get("MASTER_ADDR")
            or first_host(environment.get("SLURM_STEP_NODELIST", "127.0.0.1")),
            "port": int(environment.get("MASTER_PORT", 20000 + job % 20000)),
        }
    return {"rank": 0, "world": 1, "local_rank": 0, "local_world": 1, "address": "127.0.0.1", "port": 29500}


def first_host(nodes: str) -> str:
    """The first host of SLURM's compact list: node[003-007,9],gpu1 -> node003."""
    match = re.match(r"([^,\[]+)(?:\[([^\],-]+)[^\]]*\])?", nodes)
    if not match:
        raise ValueError(f"SLURM's node list {nodes!r} cannot be read; set MASTER_ADDR")
    return match.group(1) + (match.group(2) or "")
