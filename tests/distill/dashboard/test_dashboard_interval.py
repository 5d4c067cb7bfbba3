"""Where the numbers by clip of two runs give no interval, and what is said instead."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from run_folders import write_run
from safetensors.numpy import load_file, save_file

from distill.dashboard.compare import PAIRED, check, compare
from distill.dashboard.runs import Run
from distill.dashboard.where import paired


def grouped(folder: Path, groups: Sequence[str | None], *, r2c: float) -> Path:
    """A run whose 40 test clips are in these groups, in turn."""
    write_run(folder, r2c=r2c, where=True)
    record = json.loads((folder / "where.json").read_text())
    for at, clip in enumerate(record["clips"]):
        clip["group"] = groups[at % len(groups)]
    (folder / "where.json").write_text(json.dumps(record))
    return folder


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        (["a"], "no interval: the test clips are in 1 group, and resampling groups needs 2"),
        ([None], "no interval: 40 of 40 test clips have no group"),
        (["a", "b", None, "c"], "no interval: 10 of 40 test clips have no group"),
        (["a", "b"], PAIRED),
    ],
)
def test_below_two_groups_there_is_no_interval(groups: list[str | None], said: str, tmp_path: Path) -> None:
    a, b = (grouped(tmp_path / name, groups, r2c=r2c) for name, r2c in (("a", 0.6), ("b", 0.5)))
    found = compare(Run(a, "a"), Run(b, "b"))
    change = found["targets"]["videomae"]["r2c"]
    assert found["notes"]["videomae"] == said and change["value"] == pytest.approx(-0.1)
    assert ("low" in change and "high" in change) == (said == PAIRED)
    text, status = check(a, b, tolerance=0.2)
    assert status == 0 and f"videomae ({said})" in text and check(a, b, tolerance=0.0)[1] == 1


@pytest.mark.parametrize("error", [np.nan, np.inf])
def test_a_clip_without_a_number_gives_no_interval_of_the_others(error: float, tmp_path: Path) -> None:
    a, b = (write_run(tmp_path / name, where=True) for name in ("a", "b"))
    tensors = load_file(b / "where.safetensors")
    tensors["videomae/error/converter/clips"][3] = error
    save_file(tensors, b / "where.safetensors")
    found = compare(Run(a, "a"), Run(b, "b"))
    assert found["notes"]["videomae"] == "no interval: 1 of 40 test clips have no number"
    assert "low" not in found["targets"]["videomae"]["r2c"] and found["notes"]["timesformer"] == PAIRED


def test_no_clips_give_no_interval() -> None:
    with pytest.raises(ValueError, match="in 0 groups"):
        paired(np.ones((2, 0)), np.ones((2, 0)), [])
