"""Several ranks as real processes."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Sequence


def environments(world: int) -> list[dict[str, str]]:
    """What a launcher would set for each rank, with a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(world)}
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"} for rank in range(world)]


def wait_for(processes: Sequence[subprocess.Popen], *, seconds: float = 180) -> list[int]:
    """Their exit statuses. Kills all where one does not end: a hang is a failure."""
    try:
        return [process.wait(timeout=seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()
