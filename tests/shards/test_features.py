"""From a recipe to its store: what a second recipe on the same place finds there."""

from __future__ import annotations

import shutil
from pathlib import Path

import av
import numpy as np
import pytest
from test_crashes import contents

from recipes.compose import load_recipe
from shards.features import Features, notices, plan_features
from shards.ranks import Ranks
from shards.store import FeatureStore

PIXELS = "{grid: [2, 4, 4], frames: 4, pixels: 16, cells: 2}"
RECIPE = [
    *("recipe=perceiver_videomae", "data=folder", "student.backbone=pixels", f"student.options={PIXELS}"),
    *("targets.videomae.backbone=pixels", "targets.videomae.options={grid: [2, 2, 2], frames: 4, pixels: 8, cells: 2}"),
    *("evaluate.floors=[ridge]", "evaluate.references=[]", "train.batch=1"),
]


def write_video(path: Path, *, seed: int, frames: int = 12) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(seed)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=6, options={"preset": "ultrafast"})
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for _ in range(frames):
            image = np.kron(draw.integers(0, 256, (4, 4, 3)), np.ones((8, 8, 1))).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("videos")
    for number in range(6):
        write_video(root / "ab"[number % 2] / f"{number}.mp4", seed=number)
    return root


def planned(root: Path, *words: str, said: list[str] | None = None) -> Features:
    lines = [] if said is None else said
    return plan_features(load_recipe([*RECIPE, f"data.root={root}", *words]), Ranks(), say=lines.append)


def test_a_finished_store_is_found_without_its_backbones(videos: Path, tmp_path: Path) -> None:
    place = f"store.path={tmp_path / 'store'}"
    planned(videos, place).extract()
    said: list[str] = []
    again = planned(videos, place, said=said)
    again.extract()
    assert said[-1] == f"features: already in {tmp_path / 'store'}" and "sources" not in vars(again)


@pytest.mark.parametrize("gone", ["student/stats.safetensors", "student/00000.json", "clips/00000.json"])
def test_a_finished_store_that_misses_something_is_made_whole(videos: Path, tmp_path: Path, gone: str) -> None:
    """As after a kill at its very end, or where somebody does what an error advises."""
    place, store = f"store.path={tmp_path / 'store'}", tmp_path / "store"
    planned(videos, place).extract()
    whole = contents(store)
    (store / gone).unlink()
    (store / gone).with_name("stats.safetensors.1234.tmp").write_text("")
    planned(videos, place).extract()
    assert contents(store) == whole


def test_refused_and_odd_clips_are_named(videos: Path, tmp_path: Path) -> None:
    root = tmp_path / "videos"
    shutil.copytree(videos, root)
    (root / "a" / "zz.mp4").write_bytes(b"no video")
    said: list[str] = []
    store = planned(root, f"store.path={tmp_path / 'store'}", said=said).extract()
    assert "data: 1 of 7 clips were refused:" in said and any("a/zz.mp4" in line for line in said)
    assert not any("remark" in line for line in notices(store))
    store.clips[0]["notes"], store.clips[2]["notes"] = ["times run backwards"], ["cut", "short"]
    lines = notices(store, most=1)
    assert lines[-3] == "data: 2 clips were read with a remark:"
    assert lines[-2].endswith(": times run backwards") and lines[-1].startswith("  and 1 more")


def test_more_videos_go_on_after_the_old_ones(videos: Path, tmp_path: Path) -> None:
    """Where the listing puts them between; asked for by name, and a finished store is then found as such."""
    root, place = tmp_path / "videos", f"store.path={tmp_path / 'store'}"
    shutil.copytree(videos, root)
    old = planned(root, place).extract()
    write_video(root / "a" / "1new.mp4", seed=11)
    with pytest.raises(ValueError, match="only here: a/1new.mp4"):
        planned(root, place).extract()
    store = planned(root, place, "store.extend=true").extract()
    assert store.keys[:6] == old.keys and store.clips[6]["source"] == "a/1new.mp4"
    again = planned(root, place, "store.extend=true")
    again.extract()
    assert "sources" not in vars(again)


def test_a_target_on_a_part_of_the_clips(videos: Path, tmp_path: Path) -> None:
    place, said = f"store.path={tmp_path / 'store'}", []
    store = planned(videos, place, "targets.videomae.clips=4", said=said).extract()
    assert len(store) == 4 and len(FeatureStore(store.path, ["student"])) == 6
    assert "data: 2 clips are left out, which not every column covers" in said
    again = planned(videos, place, "targets.videomae.clips=4")
    again.extract()
    assert "sources" not in vars(again)
    with pytest.raises(ValueError, match="leaves out . of . clips where . shall be: the column covers other clips"):
        planned(videos, place, "targets.videomae.clips=3").extract()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.clip_seconds=1.0"], "clip_seconds of the view: there 2.0, here 1.0"),
        (["store.codec=fp16"], "has column .* in codec int8, not fp16"),
        (["store.clips_per_shard=6"], "clips_per_shard: there 1, here 6"),
    ],
)
def test_a_finished_store_of_other_settings_is_refused(
    videos: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    place = f"store.path={tmp_path / 'store'}"
    planned(videos, place).extract()
    with pytest.raises(ValueError, match=message):
        planned(videos, place, *words).extract()


def test_a_finished_store_of_other_videos_is_refused_by_name(videos: Path, tmp_path: Path) -> None:
    place, root = f"store.path={tmp_path / 'store'}", tmp_path / "videos"
    planned(videos, place).extract()
    shutil.copytree(videos, root)
    (root / "a" / "0.mp4").rename(root / "a" / "new.mp4")
    with pytest.raises(ValueError, match=r"(?s)was made otherwise.*only there: a/0.mp4\n  only here: a/new.mp4\n"):
        planned(root, place).extract()
    (root / "a" / "new.mp4").rename(root / "a" / "0.mp4")
    planned(root, place).extract()
    write_video(root / "a" / "0.mp4", seed=9, frames=3)
    with pytest.raises(ValueError, match="data digest: there .{12}, here"):
        planned(root, place).extract()


def test_other_splits_are_refused_and_have_another_default_place(videos: Path, tmp_path: Path) -> None:
    def asked(last: str, *words: str) -> Features:
        splits = ["train", "train", "val", "test", "train", last]
        rows = [f"{'ab'[number % 2]}/{number}.mp4,x,{split}" for number, split in enumerate(splits)]
        (tmp_path / "clips.csv").write_text("\n".join(["path,label,split", *rows]))
        return planned(videos, "data=csv", f"data.csv={tmp_path / 'clips.csv'}", *words)

    assert asked("train").path == asked("train").path != asked("test").path
    asked("train", f"store.path={tmp_path / 'store'}").extract()
    with pytest.raises(ValueError, match=r"another split: b/5.mp4 \(there train, here test\)\n"):
        asked("test", f"store.path={tmp_path / 'store'}").extract()


def test_other_factors_are_refused_by_name_and_have_another_default_place(videos: Path, tmp_path: Path) -> None:
    def asked(last: str, *words: str) -> Features:
        rows = [f"{'ab'[number % 2]}/{number}.mp4,x,{hue}" for number, hue in enumerate(["red"] * 5 + [last])]
        (tmp_path / "clips.csv").write_text("\n".join(["path,label,factor.hue", *rows]))
        return planned(videos, "data=csv", f"data.csv={tmp_path / 'clips.csv'}", *words)

    assert asked("red").path == asked("red").path != asked("blue").path
    store = asked("red", f"store.path={tmp_path / 'store'}").extract()
    assert store.tasks["hue"].values == ["red"] and store.clips[5]["factors"] == {"hue": "red"}
    for last in ("blue", ""):
        message = rf"data digest.*\n  another factor.hue: b/5.mp4 \(there red, here {last or None}\)\n"
        with pytest.raises(ValueError, match=f"(?s)was made otherwise.*{message}"):
            asked(last, f"store.path={tmp_path / 'store'}").extract()


def test_a_store_has_a_place_of_its_own(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer clears its folder of temporary files: it must never be a folder of someone's work."""
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tmp").write_text("years of work")
    with pytest.raises(ValueError, match="mine holds thesis.tmp and no manifest.json: it is no feature store"):
        planned(videos, f"store.path={mine}")
    with pytest.raises(NotADirectoryError, match="thesis.tmp is not a folder; choose another store.path"):
        planned(videos, f"store.path={mine / 'thesis.tmp' / 'store'}")
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(PermissionError, match="new: no permission to write in .*; choose another store.path"):
        planned(videos, f"store.path={tmp_path / 'new'}")
    assert (mine / "thesis.tmp").read_text() == "years of work"


def test_what_a_killed_start_leaves_is_taken_over(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "manifest.json.tmp").write_text("{")
    assert len(planned(videos, f"store.path={tmp_path / 'store'}").extract()) == 6
