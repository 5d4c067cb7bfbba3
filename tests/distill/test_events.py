"""TensorBoard's files hold what metrics.jsonl holds, and need no TensorFlow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from distill import run
from distill.runfolder import RunFolder, read_metrics


def scalars(folder: Path) -> dict[tuple[str, int], float]:
    """(tag, step) -> value, as TensorBoard itself reads them."""
    reader = EventAccumulator(str(folder))
    reader.Reload()
    found = [(tag, event) for tag in reader.Tags()["scalars"] for event in reader.Scalars(tag)]
    assert len({(tag, event.step) for tag, event in found}) == len(found), "a value stands there twice"
    return {(tag, event.step): event.value for tag, event in found}


def test_a_run_writes_both(tiny: list[str], tmp_path: Path) -> None:
    words = [*tiny, "evaluate.floors=[ridge,skip]", "run.tensorboard=true", "run.name=run"]
    assert run.main(words) == 0
    folder = tmp_path / "runs" / "run"
    found = scalars(folder / "tensorboard")
    lines = list(read_metrics(folder / "metrics.jsonl"))
    assert len(found) == len(lines) > 40
    for line in lines:
        names = (line["split"], line["metric"], line["target"], line.get("converter"), line.get("weights"))
        assert found["/".join(name for name in names if name), line["step"]] == pytest.approx(line["value"], rel=1e-6)
    assert ("train/loss", 12) in found and ("val/r2c/videomae", 10) in found
    assert run.main([*tiny, "evaluate.floors=[ridge]", "run.name=without"]) == 0
    assert not (tmp_path / "runs" / "without" / "tensorboard").exists()


def test_what_a_resumed_run_writes_again_stands_there_once(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.rewind(0, events=True)
    for step in (1, 2, 3):
        folder.log(step, "train", "loss", float(step))
    folder.log(3, "val", "r2c", None, target="videomae")
    folder.close()
    folder.rewind(2, events=True)
    folder.log(3, "train", "loss", 30.0)
    folder.close()
    assert scalars(tmp_path / "tensorboard") == {("train/loss", 1): 1, ("train/loss", 2): 2, ("train/loss", 3): 30}


def test_no_tensorflow_is_imported_even_where_there_is_one(tmp_path: Path) -> None:
    (tmp_path / "tensorflow.py").write_text("raise SystemExit('TensorFlow was imported')")
    code = (
        "import sys; from pathlib import Path; from distill.events import Events\n"
        "assert 'tensorboard' not in sys.modules, 'imported before it is asked for'\n"
        "events = Events(Path('events'), purge=1)\n"
        "events.add({'split': 'train', 'metric': 'loss', 'target': None, 'value': 1.0, 'step': 1})\n"
        "events.close(); assert 'tensorflow' not in sys.modules"
    )
    root = str(Path(__file__).resolve().parents[2])
    path = {"PYTHONPATH": f"{tmp_path}:{root}", "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "events").iterdir())


def test_a_missing_package_is_said(
    tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert run.main([*tiny, "run.tensorboard=true", "run.name=run"]) == 1
    assert "install it, or set run.tensorboard=false" in capsys.readouterr().err
