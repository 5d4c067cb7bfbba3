"""What the dashboard makes of where.json and its tensors when they hold what a run should not write."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from run_folders import write_run, write_where
from safetensors.numpy import load_file, save_file

from distill.dashboard.api import Api
from distill.dashboard.where import LISTED, Where


def with_errors(folder: Path, **by_clip: float) -> Where:
    """The file of a run whose errors on some clips (c0, c1, ...) are these."""
    folder.mkdir(exist_ok=True)
    write_where(folder)
    tensors = load_file(folder / "where.safetensors")
    for clip, error in by_clip.items():
        tensors["videomae/error/converter/clips"][int(clip[1:])] = error
    save_file(tensors, folder / "where.safetensors")
    return Where(folder / "where.json")


def test_a_clip_without_a_number_is_the_worst_and_never_among_the_best(tmp_path: Path) -> None:
    file = with_errors(tmp_path, c7=np.nan, c3=np.inf, c20=9.0, c5=0.0)
    clips = file.told("videomae", "converter")["clips"]
    assert [clip["key"] for clip in clips["worst"][:3]] == [f"{n:06d}-clip" for n in (7, 3, 20)]
    assert [clip["r2c"] for clip in clips["worst"][:3]] == [None, None, -8]
    assert clips["best"][0] == {"key": "000005-clip", "group": "g2", "label": "a", "r2c": 1}
    assert len(clips["best"]) == LISTED == len(clips["worst"])
    nothing = with_errors(tmp_path / "b", **{f"c{n}": np.nan for n in range(2, 40)})
    clips = nothing.told("videomae", "converter")["clips"]
    assert len(clips["worst"]) == LISTED and {clip["key"] for clip in clips["best"]} == {"000000-clip", "000001-clip"}


@pytest.mark.parametrize(
    "clip", ["1e999", "-1e999", "NaN", "1.5", "true", '"3"', "null", "[0]", "99", "-1", "1" + 30 * "0"]
)
def test_a_shown_clip_that_is_no_place_is_said_to_be_wrong(clip: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", where=True)
    record = json.loads((folder / "where.json").read_text())
    record["targets"]["videomae"]["shown"][0]["clip"] = "here"
    (folder / "where.json").write_text(json.dumps(record).replace('"here"', clip))
    with pytest.raises(ValueError, match=r"the shown clips of videomae are .* must be places among its 40 clips"):
        Where(folder / "where.json").pictures("videomae")
    api = Api([tmp_path])
    (name,) = api.known()
    found = json.loads(api.answer(f"runs/{name}/where/0") or b"")
    assert found["targets"] == {} and "the shown clips of videomae" in found["problem"]
