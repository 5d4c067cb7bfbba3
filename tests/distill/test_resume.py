"""Where a resumed run begins, and that it is the same run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from distill.resume import flatten, resume_point, saver
from distill.runfolder import RunFolder
from shards.ranks import Ranks

TREE = {
    "run": {"name": "a"},
    "runner": 1,
    "train": {"steps": 3, "resume": "no", "checkpoint_every": 5, "validate_every": 2, "betas": [0.9, 0.99]},
    "converter": {"options": {}, "family": "linear"},
    "contest": {},
}
FLAT = {
    "runner": 1,
    "train.steps": 3,
    "train.betas": [0.9, 0.99],
    "converter.family": "linear",
}


def test_flatten_leaves_out_what_may_change() -> None:
    assert flatten(TREE) == FLAT
    assert flatten({"data": "abc"}, "features.") == {"features.data": "abc"}


def test_resume_point(tmp_path: Path) -> None:
    folder = {"one": RunFolder(tmp_path)}
    settings = flatten(TREE)
    assert resume_point(folder, {"one": settings}, resume=True) == (0, {})
    folder["one"].save_checkpoint(4, {"converter": {"step": torch.tensor(4)}}, {"settings": settings})
    assert resume_point(folder, {"one": settings}, resume=False) == (0, {})
    step, states = resume_point(folder, {"one": settings}, resume=True)
    assert step == 4 and int(states["one"]["converter"]["step"]) == 4
    before = {key: value for key, value in settings.items() if key != "contest"} | {"converter.options": {}}
    folder["one"].save_checkpoint(5, {"converter": {"step": torch.tensor(5)}}, {"settings": before})
    assert resume_point(folder, {"one": settings}, resume=True)[0] == 5
    with pytest.raises(ValueError, match=r"train\.steps was 3, now 9; x was None, now 1\. Give the old ones"):
        resume_point(folder, {"one": settings | {"train.steps": 9, "x": 1}}, resume=True)


def test_a_state_that_is_not_finite_is_named_after_its_learner(tmp_path: Path) -> None:
    def state() -> dict[str, torch.Tensor]:
        raise ValueError("after step 3 w is not finite")

    sick: Any = SimpleNamespace(name="mamba", engine=SimpleNamespace(state=state))
    floors: Any = None
    save = saver([sick], floors, {"mamba": RunFolder(tmp_path)}, {"mamba": {}}, Ranks())
    with pytest.raises(ValueError, match=r"^mamba: after step 3 w is not finite"):
        save(3)
    assert not list(tmp_path.iterdir())
