"""Fixtures of whole runs and of a store of made-up tokens, from the module waves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from waves import CLIPS, STUDENT, TEACHER, TINY, Clip, Wave, write_clip

from shards.extraction import extract
from shards.ranks import Ranks
from shards.store import FeatureStore


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


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """24 clips in groups of two, on whose tokens the teacher's grid and cls are linear, plus noise."""
    path = tmp_path_factory.mktemp("linear") / "store"
    split = ("train", "train", "train", "val", "test", "train")
    extract(
        path,
        clips=[Clip(number, split[number // 2 % 6]) for number in range(CLIPS)],
        columns={"student": Wave(STUDENT), "teacher": Wave(TEACHER, teaches=True)},
        render=lambda clip: ({}, {(2, 4): torch.full((2, 3, 4, 4), clip.number, dtype=torch.uint8)}),
        view={"clip_seconds": 2.0},
        refusal=RuntimeError,
        codec="fp16",
        clips_per_shard=5,
        say=lambda text: None,
    )
    return FeatureStore(path)


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """The store of the module of that name."""
    from planted_factors import GRID, POOLED, Planted, plant

    path = tmp_path_factory.mktemp("planted") / "store"
    return plant(path, dense=Planted(GRID, (0, 2)), pooled=Planted(POOLED, (2,)))
