"""Starts beside and after other starts: who decides, who holds the store, and bytes that tell nothing of it."""

from __future__ import annotations

import io
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from test_crashes import contents
from test_extraction import in_ranks

from shards import disk, team
from shards.disk import StoreError, Writing
from shards.plan import Plan
from shards.store import FeatureStore
from shards.team import Share
from shards.writer import ShardWriter


@dataclass
class Batchwise:
    """A backbone whose results depend on how many clips come at once, as on a GPU in half precision."""

    inner: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __call__(self, video: torch.Tensor) -> torch.Tensor:
        return self.inner(video) + 0.1 * len(video)


def test_bytes_do_not_tell_where_a_start_was_killed(tmp_path: Path, tiny) -> None:
    """A killed start may know already that a clip gives no finite tokens, or cannot be read."""

    def columns() -> dict[str, Batchwise]:
        return {"student": Batchwise(tiny.backbone(0, poison=2)), "videomae": Batchwise(tiny.backbone(1))}

    options = {"batch": 4, "codec": "fp16", "render": tiny.broken(5)}
    tiny.extract(tmp_path / "whole", columns=columns(), **options)
    tiny.extract(tmp_path / "killed", columns=columns(), **options)
    for shard in range(3):
        (tmp_path / "killed" / "videomae" / f"{shard:05d}.json").unlink()
    (tmp_path / "killed" / "videomae" / "stats.safetensors").unlink()
    tiny.extract(tmp_path / "killed", columns=columns(), **options)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_rank_0_says_whether_shards_are_left(tmp_path: Path, tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another share may end between two ranks' looks."""
    looks = iter((0, 1))
    monkeypatch.setattr(Plan, "left", lambda self: next(looks))
    assert not in_ranks(2, lambda ranks: tiny.extract(tmp_path, ranks=ranks))


def test_two_commands_do_not_write_one_store(tmp_path: Path, tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "PATIENCE", 0.0)
    with Writing(tmp_path):
        errors = in_ranks(2, lambda ranks: tiny.extract(tmp_path, ranks=ranks))
        assert len(errors) == 2 and isinstance(errors[0], StoreError)
        assert "written by another command" in str(errors[0])
        with pytest.raises(StoreError, match="written by another command"):
            tiny.extract(tmp_path, share=Share(0, 2))
    with Writing(tmp_path, shared=True) as other:
        with pytest.raises(StoreError, match="written by another command"):
            tiny.extract(tmp_path)
        with Writing(tmp_path, shared=True):
            pass
        other.alone()
    tiny.extract(tmp_path)
    with Writing(tmp_path):
        assert len(FeatureStore(tmp_path)) == 10  # reading asks nobody


def test_a_command_waits_for_one_that_is_about_to_end(tmp_path: Path, tiny) -> None:
    other = Writing(tmp_path)
    other.__enter__()
    ends = threading.Timer(0.5, other.__exit__)
    ends.start()
    tiny.extract(tmp_path)
    ends.join()
    assert len(FeatureStore(tmp_path)) == 10


def test_a_file_system_without_locks_is_said(tmp_path: Path, tiny, monkeypatch, caplog) -> None:
    def refuse(descriptor: int, how: int) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", refuse)
    tiny.extract(tmp_path)
    assert "cannot be locked (Function not implemented): let no other command write it" in caplog.text


def test_a_column_that_came_since_stays(tmp_path: Path, tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing can be locked, a pass that was planned before another ended does not undo it."""
    tiny.extract(tmp_path, columns={"student": tiny.backbone(0)})
    finish = Plan.write_manifest
    waiting = [True]

    def write(plan: Plan, *, complete: bool) -> None:
        if waiting:
            waiting.clear()
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("fcntl.flock", lambda *_: None)
                tiny.extract(tmp_path, columns={"other": tiny.backbone(2)})
        finish(plan, complete=complete)

    monkeypatch.setattr(Plan, "write_manifest", write)
    tiny.extract(tmp_path, columns={"videomae": tiny.backbone(1)})
    assert set(FeatureStore(tmp_path).columns) == {"student", "videomae", "other"}


def test_the_last_share_leaves_nothing_of_a_killed_one(tmp_path: Path, tiny) -> None:
    tiny.extract(tmp_path / "whole")
    tiny.extract(tmp_path / "store")
    (tmp_path / "store" / "manifest.json.1234.tmp").write_text("{")
    (tmp_path / "store" / "student" / "stats.safetensors.1234.tmp").write_text("")
    tiny.extract(tmp_path / "store", share=Share(1, 2))
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


def test_a_share_does_not_wait_for_ever(tmp_path: Path, tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(team, "PATIENCE", 0.0)
    monkeypatch.setattr(team, "LOOK", 0.01)
    with pytest.raises(TimeoutError, match="share 1/2: share 0/2 has not prepared the store in 0 h; start it"):
        tiny.extract(tmp_path, share=Share(1, 2))


def test_a_teacher_on_a_part_decodes_its_part(tmp_path: Path, tiny) -> None:
    """Also where the pass has a student, which is whole."""
    seen: list[int] = []

    def render(clip):
        seen.append(clip.number)
        return tiny.render(clip)

    both = {"student": tiny.backbone(0), "videomae": tiny.backbone(1)}
    part = frozenset(clip.key for clip in tiny.clips() if clip.number in (0, 6))
    tiny.extract(tmp_path, columns={"student": tiny.backbone(0)})
    tiny.extract(tmp_path, columns=both, covers={"videomae": part}, render=render)
    assert sorted(seen) == [0, 6] and len(FeatureStore(tmp_path, ["videomae"])) == 2
    assert len(FeatureStore(tmp_path, ["student"])) == 10


class Full(io.BytesIO):
    """A file on a full disk, which says so when it is closed."""

    def close(self) -> None:
        raise OSError(28, "No space left on device")


def test_a_disk_that_is_full_at_the_end_keeps_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left"), ShardWriter(tmp_path, column="c", shard=0, spec={}) as writer:
        writer._file.close()
        writer._file = Full()
        raise OSError(28, "No space left on device")
    assert not list((tmp_path / "c").iterdir())
