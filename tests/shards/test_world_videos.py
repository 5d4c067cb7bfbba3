from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest

from recipes.compose import load_recipe
from shards import features, world_videos
from shards.decode import scan
from shards.ranks import Ranks
from shards.rendered import DONE, encode
from shards.split import split_of
from shards.videos import Found, find_clips
from shards.world import FACTORS
from shards.world_videos import render_clip, render_world

CLIPS = 28
UNSEEN = {
    *(("disc", "red"), ("square", "yellow"), ("triangle", "green"), ("star", "cyan"), ("ring", "blue")),
    *(("cross", "magenta"), ("disc", "southeast"), ("square", "south"), ("triangle", "southwest"), ("star", "west")),
    *(("ring", "northwest"), ("cross", "north"), ("solid", "northwest"), ("stripes", "north"), ("checks", "northeast")),
}
WORLD = {"clips": CLIPS, "seed": 3, "split": "combination", "difficulty": 0.5}


def unseen_pairs(factors: dict[str, str]) -> int:
    return len({(first, second) for first in factors.values() for second in factors.values()} & UNSEEN)


def world_of(root: Path, **settings: object) -> Found:
    return find_clips(source="world", rendered_dir=root, **(WORLD | settings))


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render_world(tmp_path_factory.mktemp("world"), **WORLD)


@pytest.fixture(scope="module")
def found(table: Path) -> Found:
    return world_of(table.parents[1])


def test_videos_show_what_was_rendered(table: Path) -> None:
    """Two seconds of H.264 whose decoded frames are the rendered ones, but for what a codec loses."""
    names = sorted(path.name for path in table.parent.glob("*.mp4"))
    assert names == [f"clip-{index:06d}.mp4" for index in range(CLIPS)]
    for index, side in ((0, "train"), (3, "test"), (9, "train")):
        path = table.parent / names[index]
        assert scan(str(path), name="clip").duration == pytest.approx(2.0)
        with av.open(str(path)) as container:
            decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]).astype(float)
        frames, _ = render_clip(index, seed=3, side=side, difficulty=0.5)
        other, _ = render_clip(index + 1, seed=3, side=side, difficulty=0.5)
        assert frames.shape == decoded.shape == (32, 96, 96, 3) and frames.dtype == np.uint8
        assert abs(decoded - frames).mean() < 3 and abs(decoded - other).mean() > 15
        assert abs(decoded[1:] - frames[:-1]).mean() > abs(decoded - frames).mean()  # not a frame late


def test_the_table_holds_every_factor(table: Path, found: Found) -> None:
    rows = list(csv.DictReader(table.open(encoding="utf-8")))
    assert list(rows[0]) == ["path", "label", "split", *(f"factor.{name}" for name in FACTORS)]
    for row, clip in zip(rows, found.clips, strict=True):
        _, factors = render_clip(int(row["path"][5:11]), seed=3, side=row["split"], difficulty=0.5)
        assert clip.factors == factors and set(factors) == set(FACTORS)
        assert all(factors[name] in values for name, values in FACTORS.items())
        assert clip.label == row["label"] == factors["shape"] and clip.name == row["path"]
    assert found.labels == sorted(FACTORS["shape"]) and "mean nothing" not in " ".join(found.notes)


def test_only_test_clips_hold_unseen_pairings(found: Found) -> None:
    sides = [clip.split for clip in found.clips]
    assert Counter(sides) == {"train": 18, "val": 3, "test": 7} and sides[3::4] == ["test"] * 7
    for clip in found.clips:
        assert (unseen_pairs(clip.factors) > 0) == (clip.split == "test")


def test_about_a_seventh_of_the_others_is_val() -> None:
    sides = Counter(map(world_videos.side_of, range(1000)))
    assert sides["test"] == 250 and sides["val"] == 107
    assert {world_videos.side_of(index) for index in range(4)} == {"train", "val", "test"}


def test_random_split(tmp_path: Path) -> None:
    found = world_of(tmp_path, clips=12, split="random")
    rows = list(csv.DictReader((Path(found.clips[0].source).parent / "clips.csv").open(encoding="utf-8")))
    assert "split" not in rows[0] and {clip.split for clip in found.clips} == {"train", "val", "test"}
    moved = [note for note in found.notes if "moved" in note]
    expected = [split_of(clip.name) for clip in found.clips]
    assert sum(clip.split != side for clip, side in zip(found.clips, expected, strict=True)) == len(moved)
    assert {clip.split for clip in found.clips if unseen_pairs(clip.factors)} > {"train"}


def test_a_clip_depends_on_nothing_but_its_number_and_side(table: Path, tmp_path: Path) -> None:
    few = render_world(tmp_path, **(WORLD | {"clips": 4})).parent
    for path in few.glob("*.mp4"):
        assert path.read_bytes() == (table.parent / path.name).read_bytes()
    first = render_clip(0, seed=3, side="train", difficulty=0.5)[0].astype(int)
    for other in ((1, 3, 0.5), (0, 4, 0.5), (0, 3, 0.9)):
        frames, _ = render_clip(other[0], seed=other[1], side="train", difficulty=other[2])
        assert abs(first - frames).mean() > 2


def test_every_setting_has_a_folder_of_its_own(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert table.parent.name == "world-v1-seed3-28-combination-difficulty0.5"
    monkeypatch.setattr(world_videos, "rendered_folder", lambda folder, write, *, marker: folder)
    others: list[dict[str, object]] = [{"clips": 27}, {"seed": 4}, {"split": "random"}, {"difficulty": 0.25}]
    tables = {render_world(table.parents[1], **(WORLD | other)) for other in ({}, *others)}
    assert len(tables) == 5 and table in tables
    assert render_world(table.parents[1], **(WORLD | {"difficulty": 1})).parent.name.endswith("1.0")
    monkeypatch.setattr(world_videos, "VERSION", 2)
    assert render_world(table.parents[1], **WORLD) not in tables


def test_a_second_start_does_not_render(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world_videos, "render_clip", lambda *_, **__: pytest.fail("rendered again"))
    assert render_world(table.parents[1], **WORLD) == table


def test_a_rendering_that_was_cut_short_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = WORLD | {"clips": 4}

    def killed(path: Path, frames: np.ndarray, **settings: object) -> None:
        if path.name == "clip-000002.mp4":
            raise KeyboardInterrupt
        encode(path, frames, **settings)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(world_videos, "encode", killed)
        render_world(tmp_path, **settings)
    assert not list(tmp_path.iterdir())
    torn = tmp_path / "world-v1-seed3-4-combination-difficulty0.5"
    torn.mkdir()
    (torn / "clips.csv").write_text("path,label\n")
    assert render_world(tmp_path, **settings) == torn / "clips.csv"
    assert len(list(torn.glob("*.mp4"))) == 4 and (torn / DONE).is_file()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": "randm"}, "data.split is 'randm'; it is one of combination, random"),
        ({"difficulty": 1.5}, "data.difficulty=1.5 must be between 0 and 1"),
        ({"difficulty": float("nan")}, "data.difficulty=nan must be between 0 and 1"),
        ({"clips": 3}, "data.clips=3 with data.split=combination: needs at least 4; give more clips"),
    ],
)
def test_settings_that_no_world_has(tmp_path: Path, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        world_of(tmp_path, **settings)
    assert not list(tmp_path.iterdir())


def test_a_store_of_the_world_has_every_factor_as_a_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "RENDERED", tmp_path)
    pixels = "{grid: [2, 2, 2], frames: 4, pixels: 8, cells: 2}"
    words = [
        "recipe=perceiver_videomae",
        "data=world",
        "data.clips=8",
        "data.difficulty=0.25",
        "evaluate.floors=[ridge]",
    ]
    words += [
        f"{name}.{key}" for name in ("student", "targets.videomae") for key in ("backbone=pixels", f"options={pixels}")
    ]
    words += ["train.batch=1", f"store.path={tmp_path / 'store'}"]
    said: list[str] = []
    store = features.plan_features(load_recipe(words), Ranks(), say=said.append).extract()
    assert list(store.tasks) == ["label", *sorted(FACTORS)] and len(store) == 8
    assert (tmp_path / "world" / "world-v1-seed0-8-combination-difficulty0.25" / DONE).is_file()
    assert store.tasks["shape"] == store.tasks["label"]
    for name, task in store.tasks.items():
        told = [record["label"] if name == "label" else record["factors"][name] for record in store.clips]
        assert [task.values[index] for index in task.indices] == told
    assert [len(store.indices(side)) for side in ("train", "val", "test")] == [5, 1, 2]
    assert any(line.startswith("data: factors: background (") for line in said)
