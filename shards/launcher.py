"""Ends the ranks whose `deepspeed` command is gone.

The command starts a launcher, which starts the ranks. It does not pass signals on (deepspeed 0.19.8): once
it is gone, launcher and ranks work on, and a second start makes two runs write one folder.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

LAUNCHER = b"deepspeed.launcher.launch"
PAUSE = 0.5  # seconds between two looks


def follow_launcher() -> bool:
    """Sends this process SIGTERM, as the command ought to, once it is gone. Returns whether there is one to follow."""
    launcher = os.getppid()
    command = parent(launcher)
    if command is None or LAUNCHER not in Path(f"/proc/{launcher}/cmdline").read_bytes().split(b"\0"):
        return False

    def watch() -> None:
        while os.getppid() == launcher and parent(launcher) == command:
            time.sleep(PAUSE)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="follow-launcher", daemon=True).start()
    return True


def parent(process: int) -> int | None:
    """The parent of a process; None where it is gone, or this is no Linux."""
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return None
    return int(status.rpartition(")")[2].split()[1])  # pid (name) state parent ...
