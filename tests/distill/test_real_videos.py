"""From real video files to heads, beside baselines that need no model: a smoke test of the benchmark."""

from __future__ import annotations

from pathlib import Path

import pytest
import real_videos

VIDEOS = Path(__file__).resolve().parents[2] / "../shared/videos/labelled"


def test_blocks_are_neighbours_and_no_fold_has_one_on_two_sides(tmp_path: Path) -> None:
    for label in ("fight", "noFight"):
        (tmp_path / label).mkdir()
        for number in (1, 2, 9, 10, 30, 100):
            (tmp_path / label / f"fi{number}.mp4").touch()
    blocks = real_videos.blocks_of(tmp_path, 3)
    own = {int(video.stem[2:]): block for video, (label, block) in blocks.items() if label == "fight"}
    assert own == {1: 0, 2: 0, 9: 1, 10: 1, 30: 2, 100: 2}
    tests = [[block for block in range(4) if real_videos.split_of(block, fold, 4) == "test"] for fold in range(4)]
    assert tests == [[0], [1], [2], [3]] and real_videos.split_of(0, 3, 4) == "val"
    real_videos.write_fold(tmp_path / "fold.csv", blocks, 1, 3)
    rows = [line.split(",")[1:] for line in (tmp_path / "fold.csv").read_text().splitlines()]
    assert rows[0] == ["label", "split", "group"] and rows[4] == ["fight", "test", "fight-1"]


@pytest.mark.skipif(not VIDEOS.is_dir(), reason="../shared/videos/labelled is not there")
def test_real_clips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A quarter of them: three folds of two clips a class, two steps each."""
    for folder in (path for path in VIDEOS.iterdir() if path.is_dir()):
        (tmp_path / "clips" / folder.name).mkdir(parents=True)
        for video in sorted(folder.glob("*.mp4"))[::4]:
            (tmp_path / "clips" / folder.name / video.name).symlink_to(video.resolve())
    words = [str(tmp_path / "clips"), "--out", str(tmp_path / "out"), "--folds", "3", "--steps", "2", "--rank", "1"]
    found = real_videos.main(words)
    assert set(found) == {*real_videos.ARMS, "metadata", "mean colour"}
    assert all(0 <= entry["low"] <= entry["value"] <= entry["high"] <= 1 for entry in found.values())
    assert "12 clips in 6 blocks, 3 folds, weights miniature" in capsys.readouterr().out
