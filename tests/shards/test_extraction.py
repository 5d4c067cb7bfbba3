from __future__ import annotations

import json
import re
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from shards.codec import CALIBRATION_FILE
from shards.manifest import Column
from shards.plan import default_clips_per_shard, make_plan, required_bytes
from shards.store import FeatureStore
from teachers.layout import TokenLayout


@dataclass
class ThreadRank:
    """One of several ranks that are threads of this process."""

    rank: int
    world: int
    gate: threading.Barrier
    told: list[str | None]

    def barrier(self) -> None:
        self.gate.wait(20)

    def text(self, text: str | None) -> str:
        if self.rank == 0:
            self.told[:] = [text]
        self.barrier()
        told = self.told[0]
        self.barrier()
        return told


def in_ranks(world: int, work) -> list[BaseException]:
    """Runs work(rank) in `world` threads; returns what they raise."""
    gate = threading.Barrier(world)
    told: list[str | None] = []
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            work(ThreadRank(rank, world, gate, told))
        except BaseException as error:
            errors.append(error)
            gate.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def both(tiny, **options):
    return {"student": tiny.backbone(0, **options), "videomae": tiny.backbone(1)}


def test_files_of_a_store(tmp_path: Path, tiny) -> None:
    tiny.extract(tmp_path)
    shards = [f"0000{shard}.{end}" for shard in range(3) for end in ("json", "tar")]
    columns = [
        f"{column}/{name}"
        for column in ("student", "videomae")
        for name in (*shards, "calibration.safetensors", "stats.safetensors")
    ]
    assert sorted(contents(tmp_path)) == sorted([*(f"clips/{name}" for name in shards), *columns, "manifest.json"])
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["partition"] == {
        "clips": 10,
        "clips_per_shard": 4,
        "shards": 3,
        "keys": manifest["partition"]["keys"],
    }
    assert manifest["columns"]["student"]["function"] == "tiny:0" and manifest["columns"]["student"]["codec"] == "int8"
    assert manifest["columns"]["student"]["coverage"] == {"complete": True, "clips": 10, "refused": 0}


@pytest.mark.parametrize("codec", ["int8", "fp16"])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_same_bytes_for_any_number_of_ranks_and_after_any_kill(tmp_path: Path, tiny, codec: str, world: int) -> None:
    """A reference store; then one that is killed after every few clips, with changing ranks."""
    options = {"codec": codec, "render": tiny.broken(1, 6), "batch": 2}
    poisoned = {"student": tiny.backbone(0), "videomae": tiny.backbone(1, poison=8)}
    tiny.extract(tmp_path / "whole", columns=poisoned, **options)
    errors: list[BaseException] = []
    for stop_after in (1, 3, 6):

        def work(rank: ThreadRank, stop_after: int = stop_after) -> None:
            columns = {"student": tiny.backbone(0), "videomae": tiny.backbone(1, poison=8, stop_after=stop_after)}
            tiny.extract(tmp_path / "killed", columns=columns, ranks=rank, **options)

        errors += in_ranks(1 + (world + stop_after) % 3, work)
    assert any(isinstance(error, KeyboardInterrupt) for error in errors)
    if (tmp_path / "killed" / "student").exists():
        (tmp_path / "killed" / "student" / "00002.tar.tmp").write_bytes(b"left by SIGKILL")
    fresh = [{"student": tiny.backbone(0), "videomae": tiny.backbone(1, poison=8)} for _ in range(world)]
    assert not in_ranks(world, lambda r: tiny.extract(tmp_path / "killed", columns=fresh[r.rank], ranks=r, **options))
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    store = FeatureStore(tmp_path / "killed")
    assert store.refused == {
        "000001-abc": "1.mp4: no video stream",
        "000006-abc": "6.mp4: no video stream",
        "000008-abc": "videomae gives tokens that are not finite",
    }
    assert store.manifest.refused["clips"] == 3 and store.columns["student"].coverage["clips"] == 7


def test_killed_between_the_columns_of_a_shard(tmp_path: Path, tiny) -> None:
    """A refusal by one backbone is remembered where the other column's shard was written and its own was not."""
    columns = {"student": tiny.backbone(0), "videomae": tiny.backbone(1, poison=3)}
    tiny.extract(tmp_path, columns=columns)
    whole = contents(tmp_path)
    for lost in ("clips/00000.json", "student/00000.json", "videomae/00000.json", "student/00000.tar"):
        (tmp_path / lost).unlink()
        again = {"student": tiny.backbone(0), "videomae": tiny.backbone(1, poison=3)}
        tiny.extract(tmp_path, columns=again)
        assert contents(tmp_path) == whole
        assert again["student"].calls + again["videomae"].calls == (0 if lost.startswith("clips") else 3)


def test_finished_work_is_not_done_again(tmp_path: Path, tiny) -> None:
    tiny.extract(tmp_path)
    columns = both(tiny)
    tiny.extract(tmp_path, columns=columns, render=None)
    assert columns["student"].calls == 0


def test_calibration_clips_are_computed_once(tmp_path: Path, tiny) -> None:
    columns = both(tiny)
    tiny.extract(tmp_path, columns=columns, batch=3)
    assert columns["student"].calls == columns["videomae"].calls == 10


def test_calibration_reads_train_clips_only(tmp_path: Path, tiny) -> None:
    """Other values in val and test clips leave the calibration as it is; other values in train clips do not."""
    clips = tiny.clips()
    paths = [tmp_path / name for name in "abc"]
    far = replace(clips[2], number=200), replace(clips[0], number=200)
    for path, changed in zip(paths, (None, *far), strict=True):
        chosen = (
            clips
            if changed is None
            else [changed if c.split == changed.split and c.number in (0, 2) else c for c in clips]
        )
        tiny.extract(path, clips=chosen)
    a, b, c = ((path / "student" / CALIBRATION_FILE).read_bytes() for path in paths)
    assert a == b and a != c


def test_a_column_is_added(tmp_path: Path, tiny) -> None:
    render = tiny.broken(5)
    tiny.extract(tmp_path, render=render)
    before = contents(tmp_path)
    student, added = tiny.backbone(0), tiny.backbone(7, poison=2)
    seen: list[int] = []

    def watched(clip):
        seen.append(clip.number)
        return tiny.render(clip)

    tiny.extract(tmp_path, columns={"student": student, "vivit": added}, render=watched)
    after = contents(tmp_path)
    assert all(after[name] == data for name, data in before.items() if name != "manifest.json")
    assert student.calls == 0 and added.calls == 9 and sorted(seen) == [0, 1, 2, 3, 4, 6, 7, 8, 9]  # 5 stays refused
    assert len(FeatureStore(tmp_path, ["student", "videomae"])) == 9
    joined = FeatureStore(tmp_path)
    assert list(joined.columns) == ["student", "videomae", "vivit"] and set(joined.refused) == {
        "000002-abc",
        "000005-abc",
    }


def test_one_render_serves_all_backbones(tmp_path: Path, tiny) -> None:
    seen: list[int] = []

    def watched(clip):
        seen.append(clip.number)
        return tiny.render(clip)

    tiny.extract(tmp_path, render=watched, threads=2)
    assert sorted(seen) == list(range(10))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"view": {"clip_seconds": 3.0}}, "clip_seconds of the view: there 2.0, here 3.0"),
        ({"codec": "fp16"}, "codec of student: there int8, here fp16"),
        ({"clips_per_shard": 5}, "clips_per_shard: there 4, here 5"),
        ({"revision": "b"}, "revision of student: there None, here b"),
        ({"layout": TokenLayout((1, 2, 4), 6)}, "layout of student: there 2 x 2 x 2 .*, here 1 x 2 x 4"),
        ({"count": 9}, "clips: there 10, here 9"),
        ({"split": "test"}, "split digest"),
        ({"label": "sit"}, "data digest"),
        ({"factors": {"speed": "fast"}}, "data digest"),
    ],
)
def test_a_store_made_otherwise_is_refused(tmp_path: Path, tiny, options: dict, message: str) -> None:
    tiny.extract(tmp_path)
    before = contents(tmp_path)
    columns, clips = both(tiny), tiny.clips(options.pop("count", 10))
    columns["student"].layout = options.pop("layout", columns["student"].layout)
    columns["student"].origin["revision"] = options.pop("revision", None)
    clips[0] = replace(clips[0], split=options.pop("split", "train"), label=options.pop("label", "run"))
    clips[0] = replace(clips[0], factors=options.pop("factors", {}))
    with pytest.raises(ValueError, match=f"(?s)was made otherwise.*{message}"):
        tiny.extract(tmp_path, columns=columns, clips=clips, **options)
    assert contents(tmp_path) == before


def test_too_many_refusals_stop_but_nothing_is_lost(tmp_path: Path, tiny) -> None:
    with pytest.raises(
        ValueError, match=r"(?s)4 of 10 clips \(40%\) so far .*max_refused=0.3.*000000-abc: 0.mp4: no video"
    ):
        tiny.extract(tmp_path, render=tiny.broken(0, 1, 3, 4), codec="fp16", max_refused=0.3)
    assert (tmp_path / "student" / "00001.json").exists()
    tiny.extract(tmp_path, render=tiny.broken(0, 1, 3, 4), codec="fp16", max_refused=0.4)
    assert len(FeatureStore(tmp_path)) == 6
    with pytest.raises(ValueError, match=r"4 of 10 clips \(40%\) were refused"):
        tiny.extract(tmp_path, render=None, codec="fp16", max_refused=0.3)


def test_an_unreadable_train_split_stops_int8(tmp_path: Path, tiny) -> None:
    with pytest.raises(ValueError, match="column student: int8 needs at least one readable train clip"):
        tiny.extract(tmp_path, render=tiny.broken(*range(10)))


def test_other_errors_are_not_refusals(tmp_path: Path, tiny) -> None:
    def render(clip):
        raise OSError(f"{clip.source}: the disk is gone")

    with pytest.raises(OSError, match=r"\d.mp4: the disk is gone"):
        tiny.extract(tmp_path, render=render)


def test_says_what_it_will_do_and_stops_on_a_small_disk(tmp_path: Path, tiny) -> None:
    said: list[str] = []
    tiny.extract(tmp_path / "a", say=said.append, free_bytes=lambda folder: 10**9)
    assert said[0].startswith("features: 10 clips, 0.00 MB a clip") and "1.0 GB are free" in said[0]
    assert "0.0 MB in all" in said[0] and re.search(
        "about 0 s for the other [0-9] clips, at .* a clip on 1 rank", said[1]
    )
    said.clear()
    more = both(tiny) | {"vivit": tiny.backbone(2)}
    tiny.extract(tmp_path / "a", columns=more, say=said.append)
    assert said[1] == "features: already there: student, videomae; to compute: vivit"
    columns = both(tiny)
    with pytest.raises(OSError, match=r"b: 10 clips, .* 0.0 GB are free. Choose another store.path"):
        tiny.extract(tmp_path / "b", columns=columns, free_bytes=lambda folder: 10_000)
    assert columns["student"].calls == 0 and not (tmp_path / "b").exists()


def test_the_pace_is_not_that_of_refusals(tmp_path: Path, tiny) -> None:
    def patient(clip):
        views = tiny.broken(*range(5))(clip)
        time.sleep(0.05)
        return views

    said: list[str] = []
    tiny.extract(tmp_path, render=patient, say=said.append)
    assert float(re.search("at ([0-9.]+) s a clip", said[1])[1]) >= 0.05  # type: ignore[index]


def test_announced_bytes_are_enough(tmp_path: Path, tiny) -> None:
    settings = {"clips": tiny.clips(), "columns": both(tiny), "view": {}, "codec": "int8", "clips_per_shard": 4}
    required, _ = required_bytes(make_plan(tmp_path, **settings))
    tiny.extract(tmp_path)
    tars = sum(path.stat().st_size for path in tmp_path.rglob("*.tar"))
    assert 0.7 * required < tars < required + 9 * 1024


def test_wrong_requests(tmp_path: Path, tiny) -> None:
    with pytest.raises(ValueError, match="column 'label'"):
        tiny.extract(tmp_path, columns={"label": tiny.backbone()})
    with pytest.raises(ValueError, match="2 clips have only 1 different keys"):
        tiny.extract(tmp_path, clips=tiny.clips(1) * 2)
    with pytest.raises(ValueError, match="needs clips and columns, got 1 and 0"):
        tiny.extract(tmp_path, clips=tiny.clips(1), columns={})
    backbone = tiny.backbone()
    with pytest.raises(ValueError, match=r"column student: tokens are \(8, 6\), but layout \(4, 6\)"):
        tiny.extract(tmp_path, columns={"student": Mislaid(backbone, replace(backbone.layout, grid=(2, 2, 1)))})


class Mislaid:
    """A backbone whose layout is not what it gives."""

    frames, pixels, origin = 2, 4, {"function": "mislaid"}

    def __init__(self, backbone, layout: TokenLayout) -> None:
        self.backbone, self.layout = backbone, layout

    def __call__(self, video: torch.Tensor) -> torch.Tensor:
        return self.backbone(video)


def test_default_shards() -> None:
    column = Column("student", TokenLayout((8, 16, 16), 1024), "int8", {})
    assert default_clips_per_shard(column, 80) == 10
    assert default_clips_per_shard(column, 250_000) == 243
    assert default_clips_per_shard(column, 3) == 1
