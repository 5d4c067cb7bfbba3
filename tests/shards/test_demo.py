from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from shards import demo
from shards.decode import scan
from shards.split import split_of
from shards.videos import find_clips


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo.render_demo(tmp_path_factory.mktemp("demo"), clips=9, seed=3)


def test_every_class_is_there_as_two_second_videos(folder: Path) -> None:
    videos = sorted(folder.rglob("*.mp4"))
    assert len(videos) == 9
    assert Counter(path.parent.name for path in videos) == Counter([*demo.CLASSES, demo.CLASSES[0]])
    assert scan(str(videos[0]), name="clip").duration == pytest.approx(2.0)


def test_worlds_are_seeded_and_differ(folder: Path) -> None:
    first = demo.render_clip(1, seed=3)
    assert first.shape == (32, 256, 288, 3) and first.dtype == np.uint8
    assert np.array_equal(first, demo.render_clip(1, seed=3))
    for other in (demo.render_clip(9, seed=3), demo.render_clip(1, seed=4)):  # the same class
        assert np.abs(first.astype(int) - other).mean() > 10
    assert all(np.abs(late.astype(int) - early).mean() > 1 for early, late in pairwise(first))


def test_rendering_again_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    again = demo.render_demo(tmp_path, clips=2, seed=3)
    names = sorted(path.relative_to(again) for path in again.rglob("*.mp4"))
    assert len(names) == 2
    assert all((again / name).read_bytes() == (folder / name).read_bytes() for name in names)


def test_a_second_start_does_not_render(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "render_clip", lambda *_, **__: pytest.fail("rendered again"))
    assert demo.render_demo(folder.parent, clips=9, seed=3) == folder


def test_a_rendering_that_was_cut_short_is_no_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(path: Path, frames: np.ndarray, **settings: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(demo, "encode", killed)
        demo.render_demo(tmp_path, clips=1, seed=0)
    assert not list(tmp_path.iterdir())
    torn = tmp_path / f"demo-v{demo.VERSION}-seed0-1"
    torn.mkdir()
    (torn / "half.mp4").touch()
    assert demo.render_demo(tmp_path, clips=1, seed=0) == torn
    assert [path.name for path in torn.rglob("*.mp4")] == ["world-0000.mp4"]


def test_as_a_source(folder: Path) -> None:
    found = find_clips(source="demo", rendered_dir=folder.parent, clips=9, seed=3)
    assert len(found.clips) == 9 and found.labels == sorted(demo.CLASSES)
    assert all(clip.label == clip.name.split("/")[0] for clip in found.clips)
    assert not [note for note in found.notes if "moved" not in note]


def test_eighty_clips_have_enough_on_every_side() -> None:
    names = [f"{demo.CLASSES[index % 8]}/world-{index:04d}.mp4" for index in range(80)]
    count = Counter(map(split_of, names))
    assert count["test"] >= 10 and count["val"] >= 10 and count["train"] >= 50
