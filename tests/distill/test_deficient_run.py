"""Deficient converters through the whole command: beside their twin from one read, measured, and resumed exactly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from converters import load_converter
from distill import run
from distill.runfolder import RunFolder, read_metrics

OPTIONS = "options={width: 32, latents: 8, heads: 2, blocks: 1}"
ARMS = {
    "low": "{kind: low_rank, rank: 2, strength: 0.01}",
    "both": "{kind: combined, nuclear: 0.01, ratio: 0.5}",
    "smooth": "{kind: jacobian, strength: 0.1, every: 2}",
}


def words(tiny: list[str]) -> list[str]:
    """The tiny run as a contest of one family: whole, and in every deficiency."""
    rest = [word for word in tiny if not word.startswith(("recipe=", "converter."))]
    arms = [word for name in ARMS for word in (f"contest.{name}.family=perceiver", f"contest.{name}.{OPTIONS}")]
    arms += [f"contest.{name}.deficiency={settings}" for name, settings in ARMS.items()]
    head = ["recipe=contest_videomae", "contest=[perceiver]", f"contest.perceiver.{OPTIONS}"]
    return [*head, *rest, *arms, "evaluate.floors=[ridge]", "train.resume=auto"]


class Killed(BaseException):
    """Nothing catches it, as nothing catches SIGKILL."""


def summary(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "summary.json").read_text())
    return {key: value for key, value in found.items() if key not in ("recipe", "cost")}


def test_deficient_converters_beside_their_twin_and_resumed(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.main([*words(tiny), "run.name=whole"]) == 0
    top, text = tmp_path / "runs" / "whole", capsys.readouterr().out
    found = {name: summary(top / name) for name in ("perceiver", *ARMS)}
    left = {name: entry["deficiency"]["targets"]["videomae"] for name, entry in found.items()}
    kinds = {name: (entry["deficiency"]["kind"], entry["deficiency"]["strength"]) for name, entry in found.items()}
    assert kinds == {
        "perceiver": ("none", 0),
        "low": ("low_rank", 0.01),
        "both": ("combined", 1.0),
        "smooth": ("jacobian", 0.1),
    }
    assert len([value for value in left["low"]["singular_values"]["grid"] if value > 1e-4]) == 2
    assert left["low"]["rank_recovery"]["k"] <= 2 < left["perceiver"]["rank_recovery"]["k"]
    assert left["low"]["effective_rank"]["converted"] <= 2.01 < left["perceiver"]["effective_rank"]["converted"]
    assert left["low"]["effective_rank"]["teacher"] == left["perceiver"]["effective_rank"]["teacher"]
    for name, entry in left.items():
        assert entry["jacobian"]["value"] > 3 * entry["jacobian"]["standard_error"] > 0
        assert entry["effective_rank"]["note"] and ("mask" in entry) == (name == "both")
        assert set(found["perceiver"]["lead"]) == set(ARMS)  # r2c paired against every arm, in both directions
    mask = left["both"]["mask"]
    assert mask["off"] == found["both"]["targets"]["videomae"]["r2c"] > mask["on"]
    assert mask["difference"]["value"] == pytest.approx(mask["on"] - mask["off"])
    assert any(line.split()[:4] == ["low", "videomae", "low_rank", "0.01"] for line in text.splitlines())

    lines = list(read_metrics(top / "low" / "metrics.jsonl"))
    assert len([line for line in lines if line["metric"] == "nuclear"]) == 12
    assert [line["value"] for line in lines if line["metric"] == "map_rank"] == pytest.approx([2, 2], abs=0.2)
    steps = [line["step"] for line in read_metrics(top / "smooth" / "metrics.jsonl") if line["metric"] == "jacobian"]
    assert steps == [3, 5, 7, 9, 11]
    converter = load_converter(top / "low" / "bundle")
    y = converter(torch.randn(3, *converter.student.shape), standardised=True)["videomae"].flatten(0, 1)
    assert int(torch.linalg.matrix_rank((y - y.mean(0)).detach(), rtol=1e-4)) == 2

    save = RunFolder.save_checkpoint

    def dies(folder: RunFolder, step: int, *rest: Any) -> None:
        if step == 10:
            raise Killed
        save(folder, step, *rest)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(RunFolder, "save_checkpoint", dies)
        run.main([*words(tiny), "run.name=broken"])
    assert run.main([*words(tiny), "run.name=broken"]) == 0
    for name, entry in found.items():
        assert summary(top.with_name("broken") / name) == entry


def test_a_rank_above_the_width_dies_before_extraction(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rest = [word for word in tiny if not word.startswith("store.path")]
    store = f"store.path={tmp_path / 'store'}"
    assert run.main([*rest, store, "deficiency=low_rank", "deficiency.rank=99"]) == 1
    assert "rank is 99, but target 'videomae' has 24 channels" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


def test_a_run_without_a_deficiency_measures_none(tiny: list[str], tmp_path: Path) -> None:
    assert run.main([*tiny, "train.steps=1", "evaluate.floors=[ridge]", "run.name=run"]) == 0
    assert summary(tmp_path / "runs" / "run")["deficiency"] is None
