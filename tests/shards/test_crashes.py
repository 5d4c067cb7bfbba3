"""Precompute that is killed at any instant, or meets a full disk, and starts again: the same bytes, no leftovers."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from processes import environments, wait_for

from shards import disk, writer
from shards.disk import TEMPORARY, StoreError
from shards.store import FeatureStore
from shards.team import Share

CALLS = ("fsync", "replace", "unlink", "mkdir")  # of the os module: the instants at which a store changes

NEED_SPACE = ("fsync", "replace", "mkdir")


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def columns(tiny) -> dict:
    return {"student": tiny.backbone(0), "videomae": tiny.backbone(1, poison=2)}


def make(path: Path, tiny) -> None:
    tiny.extract(path, clips=tiny.clips(4), columns=columns(tiny), render=tiny.broken(1), clips_per_shard=2)


class Traced:
    """A file whose every write is an instant, and is on the disk after it."""

    def __init__(self, file: BinaryIO, tick: Callable[[], None]) -> None:
        self.file, self.tick = file, tick

    def write(self, data: bytes) -> None:
        self.tick()
        self.file.write(data)
        self.file.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> Traced:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()


def tripped(at: int, then: Callable[[], None], patch: Callable[..., None], calls: Sequence[str]) -> list[int]:
    """Makes the `at`-th write or other of the calls do `then` first. Returns the running count."""
    seen = [0]

    def tick() -> None:
        seen[0] += 1
        if seen[0] == at:
            then()

    for name in calls:
        real = getattr(os, name)

        def wrapped(*arguments: Any, real: Callable[..., Any] = real, **options: Any) -> Any:
            tick()
            return real(*arguments, **options)

        patch(os, name, wrapped)
    for module in (disk, writer):
        patch(module, "open", lambda *arguments: Traced(open(*arguments), tick))  # noqa: SIM115
    return seen


def in_a_child(work: Callable[[], None]) -> int:
    """Runs work in a forked process; returns its wait status."""
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        try:
            work()
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1]


@pytest.mark.parametrize("step", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_sigkill_at_every_instant(tmp_path: Path, tiny, step: int) -> None:
    """A process that dies before its first, second, third ... change of a file; every third in short."""
    make(tmp_path / "whole", tiny)
    whole = contents(tmp_path / "whole")
    killed = 0
    for at in range(1, 1000, step):
        path = tmp_path / f"killed{at}"

        def die(at: int = at, path: Path = path) -> None:
            tripped(at, lambda: os.kill(os.getpid(), signal.SIGKILL), setattr, CALLS)
            make(path, tiny)

        if not os.WIFSIGNALED(in_a_child(die)):
            break
        killed += 1
        make(path, tiny)
        assert contents(path) == whole, f"killed at call {at}"
    assert killed > 80 / step, killed


def test_sigkill_again_and_again(tmp_path: Path, tiny) -> None:
    """One store, killed a little later each time: what was done stays done, so that it ends."""
    make(tmp_path / "whole", tiny)
    starts = 0
    while starts < 100:
        starts += 1

        def die() -> None:
            tripped(40, lambda: os.kill(os.getpid(), signal.SIGKILL), setattr, CALLS)
            make(tmp_path / "store", tiny)

        in_a_child(die)
        manifest = tmp_path / "store" / "manifest.json"
        if manifest.exists() and manifest.read_bytes() == (tmp_path / "whole" / "manifest.json").read_bytes():
            break
    make(tmp_path / "store", tiny)
    assert contents(tmp_path / "store") == contents(tmp_path / "whole") and 3 < starts < 100


def test_a_full_disk_at_every_instant(tmp_path: Path, tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says so, nothing temporary stays behind, and there is no shard that is not whole."""
    make(tmp_path / "whole", tiny)
    whole = contents(tmp_path / "whole")

    def full() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    failures = 0
    for at in range(1, 1000):
        path = tmp_path / f"full{at}"
        with monkeypatch.context() as patch:
            seen = tripped(at, full, partial(patch.setattr, raising=False), NEED_SPACE)
            try:
                make(path, tiny)
            except OSError as error:
                failures += 1
                assert error.errno == errno.ENOSPC
        if seen[0] < at:
            break
        assert not [name for name in contents(path) if name.endswith(TEMPORARY)], f"at call {at}"
        make(path, tiny)
        assert contents(path) == whole, f"full at call {at}"
    assert failures > 80, failures


SCRIPT = """
import sys
sys.path[:0] = sys.argv[2:4]
import conftest
from shards.ranks import Ranks
from shards import team
team.LOOK = 0.02
share = team.Share.parse(sys.argv[4]) if sys.argv[4:] else None
ranks = Ranks.join()
class Slow(conftest.TinyBackbone):
    def __call__(self, video):
        import time
        time.sleep(0.01)
        return super().__call__(video)
options = {"columns": {"student": Slow(0), "videomae": Slow(1, poison=33)}, "render": conftest.broken(7, 31)}
try:
    clips, say = conftest.tiny_clips(60), lambda text: print(text, flush=True)
    conftest.tiny_extract(sys.argv[1], clips=clips, ranks=ranks, share=share, say=say, **options)
except team.Unfinished as error:
    print(error)
ranks.leave()
"""


def test_ranks_that_are_killed_and_become_more_or_fewer(tmp_path: Path) -> None:
    """Real processes: 2 ranks, one of which is killed at some time; then 4, killed; then 1 to the end."""
    (tmp_path / "script.py").write_text(SCRIPT)
    here = Path(__file__).parent

    def start(path: Path, world: int) -> list[subprocess.Popen]:
        words = [sys.executable, str(tmp_path / "script.py"), str(path), str(here), str(here.parents[1])]
        return [subprocess.Popen(words, env=environment) for environment in environments(world)]

    assert wait_for(start(tmp_path / "whole", 1)) == [0]
    draw = random.Random(0)
    for world, shards in ((2, 2), (4, 7)):
        ranks = start(tmp_path / "killed", world)
        while len(list((tmp_path / "killed").glob("student/*.json"))) < shards:
            time.sleep(0.01)
        time.sleep(draw.random() * 0.05)
        for rank in draw.sample(ranks, len(ranks)):
            rank.kill()
        assert any(wait_for(ranks))
    assert wait_for(start(tmp_path / "killed", 1)) == [0]
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    refused = FeatureStore(tmp_path / "killed").refused
    assert {key[:6]: reason for key, reason in refused.items()} == {
        "000007": "7.mp4: no video stream",
        "000031": "31.mp4: no video stream",
        "000033": "videomae gives tokens that are not finite",
    }


def test_shares_that_never_meet(tmp_path: Path) -> None:
    """Three jobs, of which 0 comes late and 1 is killed; what a share leaves of another's is not cleared away."""
    (tmp_path / "script.py").write_text(SCRIPT)
    here = Path(__file__).parent

    def start(path: Path, *share: str) -> subprocess.Popen:
        words = [sys.executable, str(tmp_path / "script.py"), str(path), str(here), str(here.parents[1]), *share]
        return subprocess.Popen(words, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True)

    def ends(process: subprocess.Popen) -> str:
        out, _ = process.communicate(timeout=180)
        assert process.returncode == 0
        return out

    ends(start(tmp_path / "whole"))
    store = tmp_path / "store"
    killed, other = start(store, "1/3"), start(store, "2/3")
    lines = iter(killed.stdout or ())
    assert any("share 1/3: waits for share 0/3 to prepare the store" in line for line in lines)
    assert not (store / "manifest.json").exists()
    first = start(store, "0/3")
    while not (store / "student" / "00001.json").exists():
        time.sleep(0.01)
    killed.kill()
    killed.communicate()
    left = [str(path.relative_to(store)) for path in store.rglob("*" + TEMPORARY) if int(path.name[:5]) % 3 == 1]
    for process, share in ((first, "0/3"), (other, "2/3")):
        assert f"share {share} is done; " in ends(process)
    assert set(left) <= {str(path.relative_to(store)) for path in store.rglob("*")}
    with pytest.raises(StoreError, match="incomplete"):
        FeatureStore(store, ["student"])
    assert "is done" not in ends(start(store, "1/3"))
    assert contents(store) == contents(tmp_path / "whole")
    ends(start(store, "2/3"))  # nothing is left to do
    assert contents(store) == contents(tmp_path / "whole")


@pytest.mark.parametrize("text", ["3/3", "1", "a/b", "-1/2", "0/0"])
def test_a_share_is_k_of_n(text: str) -> None:
    with pytest.raises(ValueError, match=f"store.share={text}: write K/N"):
        Share.parse(text)
