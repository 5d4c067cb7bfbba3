"""Where a converter is wrong: sums that add up to the headline, the clips at the ends, pictures on one basis."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from einops import rearrange
from safetensors.torch import load_file

from converters import create_converter
from distill import run, where
from distill.floors import Floors
from shards import FeatureStore
from shards.ranks import Ranks


@pytest.fixture(scope="module")
def ridge(store: FeatureStore) -> Floors:
    layouts = {"student": store.layout("student"), "targets": {"teacher": store.layout("teacher")}}
    converter = create_converter("linear", **layouts)  # type: ignore[arg-type]
    return Floors({"converter": converter}, store, asked=["ridge"], seed=0, ranks=Ranks())


def test_a_run_writes_sums_that_add_up_to_its_summary(tiny: list[str], tmp_path: Path) -> None:
    assert run.main([*tiny, "evaluate.floors=[ridge,pixels]", "run.name=run"]) == 0
    folder = tmp_path / "runs" / "run"
    summary, record = (json.loads((folder / f"{name}.json").read_text()) for name in ("summary", "where"))
    tensors = load_file(folder / "where.safetensors")
    told = record["targets"]["videomae"]
    assert told["candidates"] == ["converter", "ridge", "pixels"] and told["grid"] == [4, 4, 4]
    scores = {"converter": summary["targets"]} | summary["floors"]
    for label in told["candidates"]:
        for axis, count in (("clips", 8), ("positions", 64), ("channels", 24)):
            error, spread = tensors[f"videomae/error/{label}/{axis}"], tensors[f"videomae/spread/{axis}"]
            assert error.shape == spread.shape == (count,) and error.dtype == torch.float64
            r2c = scores[label]["videomae"]["r2c"]
            assert float(1 - error.sum() / spread.sum()) == pytest.approx(r2c, abs=1e-6), (label, axis)
    assert len(record["clips"]) == summary["clips"]["test"] == 8
    assert all(clip["group"] and clip["key"] and clip["label"] in ("left", "right") for clip in record["clips"])
    shown = told["shown"]
    assert [entry["r2c"] for entry in shown] == sorted(entry["r2c"] for entry in shown) and len(shown) == 8
    for kind in ("teacher", "converted", "student"):
        assert tensors[f"videomae/{kind}"].shape == (8, 4, 4, 4, 3) and tensors[f"videomae/{kind}"].dtype == torch.uint8
    for entry in shown:
        error, spread = (tensors[f"videomae/{part}/clips"][entry["clip"]] for part in ("error/converter", "spread"))
        assert entry["r2c"] == pytest.approx(float(1 - error / spread))
    assert 0 < sum(told["shares"]) <= 1 and told["thumbnails"]

    path = next(word.split("=", 1)[1] for word in tiny if word.startswith("store.path"))
    store = FeatureStore(path)
    index = store.indices("test")[shown[-1]["clip"]]
    pixels = store[index]["pixels_videomae"]
    still = rearrange(pixels, "(t h w) (f i j c) -> f t (h i) (w j) c", t=4, h=4, w=4, i=4, j=4, c=3)[0]
    assert torch.equal(tensors["videomae/thumbnails"][-1], (still * 255).round().byte())


def test_the_ends_are_the_worst_and_the_best_once_each() -> None:
    r2c = torch.tensor([0.5, 0.1, float("nan"), 0.9, 0.2, 0.8, 0.3, 0.7, 0.4, 0.6])
    assert where.ends(r2c, count=2) == [2, 1, 5, 3]
    assert where.ends(r2c[:4], count=2) == [2, 1, 0, 3]
    nothing = torch.tensor([0.5, float("nan"), -torch.inf, float("nan"), float("nan"), 0.7])
    assert where.ends(nothing, count=2) == [1, 3, 0, 5] and where.ends(nothing, count=1) == [1, 5]
    assert where.ends(nothing[:5], count=2) == [1, 3, 0] and where.ends(torch.full((9,), torch.nan), count=2) == [0, 1]


def test_pictures_share_one_basis(ridge: Floors, store: FeatureStore) -> None:
    """What is converted to the teacher's very tokens looks the same; what shrinks turns grey; ridge is ridge."""
    layout = store.layout("teacher")
    test = store.indices("test")

    def perfect(student: torch.Tensor, shrunk: float = 1.0) -> dict[str, torch.Tensor]:
        rows = [i for i in test if torch.allclose(store[i]["student"], student[0], atol=1e-2)]
        tokens = torch.stack([store[i]["teacher"] for i in rows])
        mean = store.statistics("teacher")["mean"]
        return {"teacher": mean + shrunk * (tokens - mean)}

    class Known:
        targets, normaliser = {"teacher": layout}, "position"

        def __init__(self, shrunk: float) -> None:
            self.shrunk = shrunk

        def __call__(self, student: torch.Tensor) -> dict[str, torch.Tensor]:
            found = [perfect(clip[None], self.shrunk)["teacher"] for clip in student]
            return {"teacher": torch.cat(found)}

    linear = ridge.contestants["converter"]
    ridge_of = SimpleNamespace(store=store, ranks=Ranks(), ridge=lambda _: ridge.ridge(linear))
    same, shares = where.paint(ridge_of, Known(1.0), "teacher", test)  # type: ignore[arg-type]
    assert torch.equal(same["converted"], same["teacher"]) and shares and sum(shares) > 0.7
    small = SimpleNamespace(store=store, ranks=Ranks(), ridge=lambda _: Known(0.1))
    half, _ = where.paint(small, Known(0.5), "teacher", test)  # type: ignore[arg-type]
    ours, theirs, ridges = (half[kind].float() - 127.5 for kind in ("converted", "teacher", "student"))
    inside = theirs.abs() < 127
    assert torch.allclose(ours[inside], theirs[inside] / 2, atol=1) and inside.float().mean() > 0.9
    assert 0.85 < float(theirs.flatten(0, 3).std(0).mean()) / 127.5 * 2.5 < 1.1 and ridges.abs().max() < 30
    grey, _ = where.paint(ridge_of, Known(0.0), "teacher", test)  # type: ignore[arg-type]
    assert torch.equal(grey["converted"], torch.full_like(grey["converted"], 127))
    own, _ = where.paint(ridge, linear, "teacher", test)
    assert torch.equal(own["converted"], own["student"]), "a linear converter at its start is the ridge"
    error = (own["student"].float() - own["teacher"].float()).abs().mean()
    assert error < 0.5 * (own["teacher"].float() - 127).abs().mean()


def test_a_pooled_target_has_no_picture_and_a_store_without_pixels_no_thumbnail(store: FeatureStore) -> None:
    pooled = SimpleNamespace(targets={"teacher": SimpleNamespace(grid=None)})
    assert where.paint(SimpleNamespace(store=store, ranks=Ranks()), pooled, "teacher", [0]) == ({}, None)  # type: ignore[arg-type]
    assert where.thumbnails(store, "teacher", [0]) == {}
