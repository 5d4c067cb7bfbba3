"""Features from elsewhere, from the file to the converter: no video, no backbone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from distill import apply, run
from shards import FeatureStore, importer, precompute


@pytest.fixture
def features(tmp_path: Path) -> Path:
    """Student and teacher of 30 clips in 15 groups, the teacher a linear map of the student's tokens."""
    reading = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    for number in range(30):
        student = torch.randn(8, 6, generator=torch.Generator().manual_seed(number))
        for name, tokens in (("a", student), ("b", student @ reading + 1)):
            path = tmp_path / "mine" / name / f"g{number // 2}" / f"{number}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, tokens.numpy())
    for name, dim in (("a", 6), ("b", 4)):
        (tmp_path / f"{name}.yaml").write_text(f"grid: [2, 2, 2]\ndim: {dim}\norigin: {{function: mine/{name}}}\n")
    return tmp_path


def take(root: Path, column: str, name: str) -> None:
    words = [str(root / "store"), "--column", column, "--layout", str(root / f"{name}.yaml")]
    assert importer.main([*words, "--files", f"{root}/mine/{name}/{{group}}/{{name}}.npy"]) == 0


def test_imported_features_are_converted(features: Path, capsys: pytest.CaptureFixture[str]) -> None:
    take(features, "student", "a")
    words = ["recipe=dsconv_videomae", "data=store", f"store.path={features / 'store'}", f"run.dir={features / 'runs'}"]
    words += ["run.name=run", "train.steps=3", "train.batch=2", "train.validate_every=3", "converter.options.width=16"]
    assert run.main([*words, "evaluate.floors=[ridge]"]) == 1
    assert "has no column 'videomae'; there are student" in capsys.readouterr().err
    take(features, "videomae", "b")
    assert run.main([*words, "run.name=again"]) == 1
    assert "has no column 'pixels_videomae': no pixels; set evaluate.floors=[mean," in capsys.readouterr().err
    assert run.main([*words, "run.name=third", "evaluate.floors=[ridge]"]) == 0
    out = capsys.readouterr().out
    assert "features: as they are in" in out and "data: 30 clips in 15 groups" in out
    summary = json.loads((features / "runs/third/summary.json").read_text())
    assert summary["floors"]["ridge"]["videomae"]["r2c"] > 0.99 and summary["clips"]["test"] > 0
    assert apply.main([str(features / "runs/third/bundle"), str(features / "store"), "--column", "converted"]) == 0
    store = FeatureStore(features / "store")
    scale = store.statistics("videomae")["scale"]
    error = torch.stack([(store[n]["converted"] - store[n]["videomae"]) / scale for n in range(len(store))])
    assert float(error.square().mean()) < 0.1
    assert precompute.main(words) == 1
    assert "data=store has no videos" in capsys.readouterr().err
    url = [f"store.path=file://{features}/store", f"store.cache={features / 'cache'}", "store.cache_gb=0.000001"]
    assert run.main([*words, *url, "run.name=remote", "evaluate.floors=[ridge]"]) == 0
    assert f"features: as they are in file://{features}/store" in capsys.readouterr().out
    found = json.loads((features / "runs/remote/summary.json").read_text())
    assert found["floors"] == summary["floors"] and found["digests"] == summary["digests"]
    assert found["targets"]["videomae"]["r2c"] > 0.99  # another order: shards by shards
