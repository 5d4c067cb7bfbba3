"""Heads from pooled columns of a store."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from planted_factors import GRID, Ideal

from distill import pooled
from distill.compensation import Asked, compensate
from distill.head_oracles import ProductOracle
from shards import FeatureStore
from shards.derive import derive, pool
from shards.ranks import Ranks


def test_heads_from_pooled_columns_tell_what_those_of_a_run_tell(
    planted: FeatureStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = shutil.copytree(planted.path, tmp_path / "store")
    origin = {"function": "ideal"}
    derive(path, column="made", source="student", function=lambda x: Ideal()(x)["dense"], layout=GRID, origin=origin)
    for source in ("student", "made", "dense"):
        pool(path, column=f"{source}_mean", source=source)
    words = [str(path), "--student", "student_mean", "--converted", "made_mean", "--teacher", "dense_mean"]
    assert pooled.main([*words, "--task", "both", "student", "--rank", "2", "--out", str(tmp_path / "told.json")]) == 0
    table = capsys.readouterr().out
    assert "made_mean: accuracy of heads" in table and "both all" in table
    ours = json.loads((tmp_path / "told.json").read_text())
    runs = compensate(
        planted, {"main": Ideal()}, Asked(("both", "student"), rank=2), resamples=100, seed=0, ranks=Ranks()
    )["main"]["dense"]
    for task in ("both", "student"):
        arms = runs[task]["all"]
        assert ours[task]["all"].keys() == arms.keys() - {"wrong_teacher"}
        for arm, numbers in ours[task]["all"].items():
            assert numbers["accuracy"]["value"] == pytest.approx(arms[arm]["accuracy"]["value"], abs=0.03), (task, arm)
    for wrong, said in (
        ([*words, "--task", "speed"], "has no task 'speed'; there are label, both, student, teacher"),
        ([str(path), "--student", "student", "--converted", "made_mean", "--task", "both"], "8 tokens a clip"),
        ([str(path), "--student", "student_mean", "--converted", "nothing"], "'nothing' is not there"),
    ):
        assert pooled.main(wrong) == 1
        assert said in capsys.readouterr().err


def test_heads_of_an_oracle_stand_beside_its_optimum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(pooled.ORACLES, "product", (ProductOracle, 4000, 2))
    assert pooled.main(["--oracle", "product", "--out", str(tmp_path / "told.json")]) == 0
    table = capsys.readouterr().out
    assert "product: accuracy of heads" in table and "converted 0.416, student 0.454, both 0.755" in table
    arms = json.loads((tmp_path / "told.json").read_text())["product"]["all"]
    found = {arm: arms[arm]["accuracy"]["value"] for arm in ("converted", "student", "converted_supervised")}
    assert found == pytest.approx({"converted": 0.416, "student": 0.454, "converted_supervised": 0.755}, abs=0.06)


@pytest.mark.parametrize("words", [[], ["store"], ["store", "--oracle", "linear"]])
def test_a_store_or_an_oracle_is_asked_for(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        pooled.main(words)
    assert "give a store" in capsys.readouterr().err
