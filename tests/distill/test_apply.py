"""A bundle on a video and over a store: the same tokens as the converter itself, and refusals that say why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from converters import load_converter
from distill import apply, run
from shards import FeatureStore
from shards.derive import derive
from shards.disk import StoreError
from teachers.layout import TokenLayout


@pytest.fixture
def trained(tiny: list[str], tmp_path: Path) -> tuple[Path, Path]:
    """(bundle, store) of a tiny run in a store of its own."""
    words = [word for word in tiny if not word.startswith("store.path")]
    store = tmp_path / "store"
    assert run.main([*words, f"store.path={store}", "run.name=run", "train.steps=2", "evaluate.floors=[ridge]"]) == 0
    return tmp_path / "runs" / "run" / "bundle", store


def test_over_a_store(trained: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    bundle, path = trained
    assert apply.main([str(bundle), str(path), "--column", "converted"]) == 0
    store = FeatureStore(path)
    converter = load_converter(bundle)
    assert store.layout("converted") == converter.targets["videomae"]
    for index in (0, len(store) - 1):
        with torch.inference_mode():
            wanted = converter(store[index]["student"][None])["videomae"][0]
        error = (store[index]["converted"] - wanted) / store.statistics("converted")["scale"]
        assert float(error.square().mean().sqrt()) < 0.02
    before = (path / "converted" / "00000.tar").read_bytes()
    assert apply.main([str(bundle), str(path), "--column", "converted"]) == 0
    assert (path / "converted" / "00000.tar").read_bytes() == before
    assert apply.main([str(bundle), str(path)]) == 1
    assert "--column NAME" in capsys.readouterr().err
    assert apply.main([str(bundle), str(path), "--column", "videomae"]) == 1
    assert "'videomae' that was made otherwise" in capsys.readouterr().err


def test_on_a_video(
    trained: tuple[Path, Path], tiny_videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, path = trained
    video = tiny_videos / "left" / "03.mp4"
    assert apply.main([str(bundle), str(video), "--out", str(tmp_path / "out.safetensors")]) == 0
    found = load_file(tmp_path / "out.safetensors")["videomae"]
    store = FeatureStore(path)
    index = next(i for i, record in enumerate(store.clips) if record["source"].endswith("left/03.mp4"))
    with torch.inference_mode():
        wanted = load_converter(bundle)(store[index]["student"][None])["videomae"][0]
    assert float((found - wanted).abs().max()) < 0.05 * float(wanted.std())  # the store's tokens are int8
    assert apply.main([str(bundle), str(video)]) == 1
    assert "--out" in capsys.readouterr().err
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    assert apply.main([str(bundle), str(broken), "--out", str(tmp_path / "x")]) == 1
    assert "broken.mp4" in capsys.readouterr().err


def test_another_student_is_refused(trained: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    bundle, path = trained
    config = json.loads((bundle / "config.json").read_text())
    config["origins"]["student"]["weights"] = "local:0123"
    (bundle / "config.json").write_text(json.dumps(config))
    assert apply.main([str(bundle), str(path), "--column", "converted"]) == 1
    assert "weights None, not local:0123" in capsys.readouterr().err
    assert apply.main([str(bundle), str(path / "clips" / "00000.tar"), "--out", "x"]) == 1
    assert "--weights FOLDER" in capsys.readouterr().err


def test_derived_tokens_must_be_finite(trained: tuple[Path, Path]) -> None:
    _, path = trained
    layout = TokenLayout(grid=None, dim=3)
    common = {"source": "student", "layout": layout, "origin": {"function": "test:nan"}}
    with pytest.raises(StoreError, match="column sick, clip"):
        derive(path, column="sick", function=lambda x: x.new_full((len(x), 1, 3), float("nan")), **common)
    derive(path, column="pooled", function=lambda x: x.mean(1, keepdim=True)[..., :3], codec="fp16", **common)
    store = FeatureStore(path, ["student", "pooled"])
    assert torch.allclose(store[1]["pooled"][0], store[1]["student"].mean(0)[:3], atol=1e-3)
