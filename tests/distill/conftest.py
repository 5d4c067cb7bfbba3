"""A tiny world for whole runs: labelled videos of moving squares, and averaged pixels as student and teacher.

Pixels on two grids take the place of the backbones, so that a whole run costs seconds and the right answer is known to
be nearly linear. Nothing in the path from the command to the bundle is otherwise different.
"""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from shards.ranks import Ranks

TINY = [
    "recipe=perceiver_videomae",
    "data=folder",
    "student.backbone=pixels",
    "student.options={grid: [4, 8, 8], frames: 8, pixels: 32, cells: 2}",
    "targets.videomae.backbone=pixels",
    "targets.videomae.options={grid: [4, 4, 4], frames: 8, pixels: 16, cells: 2}",
    "converter.options={width: 32, latents: 8, heads: 2, blocks: 1}",
    "store.clips_per_shard=5",
    "train.steps=12",
    "train.batch=4",
    "train.queries=24",
    "train.validate_every=5",
    "train.checkpoint_every=5",
    "evaluate.bootstrap=200",
]


def write_clip(path: Path, *, seed: int, frames: int = 16, size: int = 32) -> None:
    """A bright square on a coloured ground, moving in the direction that the seed gives."""
    draw = np.random.default_rng(seed)
    place, motion, colours = draw.uniform(4, 20, 2), draw.uniform(-0.8, 0.8, 2), draw.integers(0, 256, (2, 3))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8, options={"preset": "ultrafast", "crf": "18"})
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for number in range(frames):
            image = np.broadcast_to(colours[0], (size, size, 3)).astype(np.uint8).copy()
            y, x = (int(v) for v in np.clip(place + number * motion, 0, size - 10))
            image[y : y + 10, x : x + 10] = colours[1]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture(autouse=True)
def one_process_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """All runs of this process share a group: DeepSpeed keeps the first one that it saw."""
    monkeypatch.setattr(Ranks, "leave", lambda self: None)


@pytest.fixture(scope="session")
def tiny_videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two class folders of 20 clips each."""
    root = tmp_path_factory.mktemp("videos")
    for label in ("left", "right"):
        (root / label).mkdir()
        for number in range(20):
            write_clip(root / label / f"{number:02d}.mp4", seed=number + 100 * (label == "right"))
    return root


@pytest.fixture(scope="session")
def tiny_features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tiny store goes: made by the first run, found by the others."""
    return tmp_path_factory.mktemp("features") / "store"


@pytest.fixture
def tiny(tiny_videos: Path, tiny_features: Path, tmp_path: Path) -> list[str]:
    """The command line of a tiny run into runs/ of this test."""
    return [*TINY, f"data.root={tiny_videos}", f"store.path={tiny_features}", f"run.dir={tmp_path / 'runs'}"]
