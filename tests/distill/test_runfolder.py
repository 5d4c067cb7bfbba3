"""The run folder: what is refused, what a resumed run keeps, and checkpoints that are damaged or cannot be written."""

from __future__ import annotations

import errno
import json
import logging
from pathlib import Path

import pytest
import torch

from distill import checkpoint, runfolder
from distill.runfolder import RunFolder, newest_checkpoints, read_metrics
from shards.ranks import Ranks

RECORD = {"settings": {"train.lr": 0.001}, "world": 1}


def state(step: int) -> dict[str, torch.Tensor]:
    return {"step": torch.tensor(step), "parameter/w": torch.full((3, 4), float(step))}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.open(tmp_path / "runs" / "one", resume=False, ranks=Ranks())


def save(folder: RunFolder, *steps: int) -> None:
    for step in steps:
        folder.save_checkpoint(step, {"converter": state(step), "skip": state(-step)}, RECORD)


def test_an_existing_run_is_refused_unless_resumed(folder: RunFolder) -> None:
    assert RunFolder.open(folder.path, resume=False, ranks=Ranks()).path == folder.path  # nothing was written yet
    folder.write("recipe.yaml", "recipe: x\n")
    with pytest.raises(FileExistsError, match=r"runs/one exists; choose another run\.name"):
        RunFolder.open(folder.path, resume=False, ranks=Ranks())
    assert RunFolder.open(folder.path, resume=True, ranks=Ranks()).path == folder.path
    with pytest.raises(FileExistsError, match=r"runs/one exists; choose another run\.name"):
        RunFolder.open(folder.path, part="mamba", resume=False, ranks=Ranks())
    with pytest.raises(OSError, match=r"recipe\.yaml"):
        RunFolder.open(folder.path / "recipe.yaml", resume=False, ranks=Ranks())


def test_a_contest_and_a_plain_run_do_not_share_a_folder(folder: RunFolder, tmp_path: Path) -> None:
    folder.write("recipe.yaml", "recipe: x\n")
    fix = r"recipe=.*runs/one/recipe\.yaml train\.resume=auto run\.dir=.*runs run\.name=one, or choose another"
    with pytest.raises(FileExistsError, match=f"runs/one holds a run without a contest; continue it with {fix}"):
        RunFolder.open(folder.path, part="mamba", resume=True, ranks=Ranks())
    assert not (folder.path / "mamba").exists()
    both = [RunFolder.open(tmp_path / "both", part=part, resume=True, ranks=Ranks()) for part in ("mamba", "dsconv")]
    for part in both:
        part.write("recipe.yaml", "recipe: x\n")
    fix = r"recipe=.*both/dsconv/recipe\.yaml train\.resume=auto run\.dir=.*both run\.name=dsconv, or choose another"
    with pytest.raises(FileExistsError, match=f"both holds a contest of dsconv, mamba; .* one of them with {fix}"):
        RunFolder.open(tmp_path / "both", resume=True, ranks=Ranks())
    assert RunFolder.open(both[0].path, resume=True, ranks=Ranks()).path == both[0].path, "its own recipe does so"


def test_only_rank_0_writes(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, writes=False)
    folder.log(1, "train", "loss", 0.5)
    folder.write("summary.json", {})
    save(folder, 5)
    folder.rewind(0)
    assert not list(tmp_path.iterdir())


def test_a_loss_a_step_and_the_others_under_names_of_their_own(folder: RunFolder) -> None:
    folder.log_losses(
        3, {"converter": {"loss": 1.5, "videomae/mse": 1.0}, "skip": {"loss": 2.0, "a/mse": 2}}, main="converter"
    )
    folder.log_scores(3, "val", "r2c", {"videomae": 0.5}, converter="skip", weights="last")
    assert list(read_metrics(folder.metrics)) == [  # without closing: every line is flushed
        {"step": 3, "split": "train", "target": None, "metric": "loss", "value": 1.5},
        {"step": 3, "split": "train", "target": "videomae", "metric": "mse", "value": 1.0},
        {"step": 3, "split": "train", "target": None, "metric": "loss_of_skip", "value": 2.0, "converter": "skip"},
        {"step": 3, "split": "val", "target": "videomae", "metric": "r2c", "value": 0.5, "converter": "skip"}
        | {"weights": "last"},
    ]


def test_rewind_drops_half_lines_and_all_past_the_checkpoint(folder: RunFolder) -> None:
    for step in range(1, 8):
        folder.log(step, "train", "loss", step / 10)
    folder.log(5, "val", "r2c", 0.5, target="videomae")
    folder.log(5, "val", "r2c", 0.6, target="videomae", weights="averaged")  # chosen after training: chosen again
    with open(folder.metrics, "a") as file:
        file.write('{"step": 4, "split": "tra\n3\n"step"\n\xff\n{"step": "4"}\n{"step": 2, "spl')
    folder.rewind(5)
    lines = list(read_metrics(folder.metrics))
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 5] and lines[-1]["value"] == 0.5
    assert len(folder.metrics.read_text().splitlines()) == 6
    folder.log(6, "train", "loss", 0.6)
    assert json.loads(folder.metrics.read_text().splitlines()[-1])["step"] == 6
    folder.rewind(0)
    assert not folder.metrics.read_text()


def test_checkpoints_come_back_and_the_last_two_stay(folder: RunFolder) -> None:
    assert newest_checkpoints([folder]) is None
    save(folder, 5, 10, 115)
    assert [path.name for path in folder.checkpoints.iterdir() if path.name.endswith("5")] == ["step-00000115"]
    assert len(list(folder.checkpoints.iterdir())) == 2
    ((record, states),) = newest_checkpoints([folder]) or [({}, {})]
    assert record["step"] == 115 and record["settings"] == RECORD["settings"] and record["world"] == 1
    assert set(states) == {"converter", "skip"}
    assert all(torch.equal(states["converter"][name], value) for name, value in state(115).items())


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "cut": lambda path: (path / "skip.safetensors").write_bytes((path / "skip.safetensors").read_bytes()[:-7]),
    "flipped": lambda path: flip(path / "skip.safetensors"),
    "gone": lambda path: (path / "skip.safetensors").unlink(),
    "no record": lambda path: (path / "record.json").unlink(),
    "half a record": lambda path: (path / "record.json").write_text('{"step": 10'),
    "another record": lambda path: (path / "record.json").write_text("[]"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over(damage: str, folder: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    save(folder, 5, 10)
    DAMAGE[damage](folder.checkpoints / "step-00000010")
    with caplog.at_level(logging.WARNING):
        ((record, states),) = newest_checkpoints([folder]) or [({}, {})]
    assert record["step"] == 5 and float(states["skip"]["step"]) == -5
    assert "step-00000010 is damaged" in caplog.text
    folder.rewind(5)  # else it would be the newest again, and push whole ones out
    assert [path.name for path in folder.saved()] == ["step-00000005"]
    DAMAGE[damage](folder.checkpoints / "step-00000005")
    with pytest.raises(ValueError, match="all 1 checkpoints are damaged"):
        newest_checkpoints([folder])


def test_the_newest_checkpoint_that_all_folders_have(tmp_path: Path) -> None:
    """Of several contestants' folders: a kill between two of them, and damage in one."""
    one, two = (RunFolder.open(tmp_path / "run", part=part, resume=True, ranks=Ranks()) for part in ("one", "two"))
    save(one, 5)
    assert newest_checkpoints([one, two]) is None, "killed at the very first save"
    save(two, 5)
    save(one, 10, 15)
    save(two, 10)
    assert [record["step"] for record, _ in newest_checkpoints([one, two]) or ()] == [10, 10]
    flip(one.checkpoints / "step-00000010" / "skip.safetensors")
    behind = (
        r"run: no step is whole for all contestants: one has 15; two has 5, 10\. .*contest=\[two\] .*run\.name=run,"
    )
    with pytest.raises(ValueError, match=behind):
        newest_checkpoints([one, two])
    assert [record["step"] for record, _ in newest_checkpoints([two]) or ()] == [10], "as the message advises"
    for name in (5, 10):
        flip(two.checkpoints / f"step-{name:08d}" / "skip.safetensors")
    with pytest.raises(ValueError, match=r"one has 15; two has none\. .*contest=\[two\] train"):
        newest_checkpoints([one, two])
    flip(one.checkpoints / "step-00000015" / "skip.safetensors")
    with pytest.raises(
        ValueError, match=r"one has none; two has none\. Delete .*one/checkpoints, .*two/checkpoints to"
    ):
        newest_checkpoints([one, two])
    for both in (15, 20):
        save(two, both)
        save(one, both)
        assert [record["step"] for record, _ in newest_checkpoints([one, two]) or ()] == [both, both]


@pytest.mark.parametrize("why", ["two saved", "it is done"])
def test_a_folder_without_checkpoints_does_not_take_those_of_others(why: str, tmp_path: Path) -> None:
    folders = [RunFolder.open(tmp_path / "run", part=part, resume=True, ranks=Ranks()) for part in ("one", "two")]
    assert newest_checkpoints(folders) is None
    save(folders[0], 5)
    assert newest_checkpoints(folders) is None, "killed at the very first save"
    if why == "two saved":
        save(folders[0], 10)
    else:
        folders[0].write("summary.json", {})
    fix = r"contest=\[two\] train\.resume=auto run\.name=run to train two from step 0, with contest=\[one\]"
    with pytest.raises(ValueError, match=rf"run/two: no checkpoint, but there are some of one, .*{fix}"):
        newest_checkpoints(folders)
    assert folders[0].saved() and newest_checkpoints(folders[:1]) and newest_checkpoints(folders[1:]) is None


def test_a_full_disk_leaves_the_checkpoints_before(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    save(folder, 5, 10)

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for module, name in ((checkpoint, "save_file"), (checkpoint, "sync_folder"), (runfolder, "commit")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, full)
            with pytest.raises(OSError, match=r"step-00000015 cannot be written .*No space.*run\.name=one"):
                save(folder, 15)
            part = RunFolder.open(folder.path, part="mamba", resume=True, ranks=Ranks())
            with pytest.raises(OSError, match=r"mamba/checkpoints/step-00000015 cannot be written .*run\.name=one"):
                save(part, 15)  # the run's name, not the contestant's
        assert sorted(path.name for path in folder.checkpoints.iterdir()) == ["step-00000005", "step-00000010"]


def test_what_a_killed_save_left_is_swept(folder: RunFolder) -> None:
    save(folder, 5)
    (folder.checkpoints / ".step-00000010").mkdir()
    assert [path.name for path in folder.saved()] == ["step-00000005"]
    folder.rewind(5)
    assert [path.name for path in folder.checkpoints.iterdir()] == ["step-00000005"]
