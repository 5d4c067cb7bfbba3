"""Runs of several seeds as one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_report import METRICS, contestant

from distill.scoreboard import main, seeds_board
from distill.seeds import by_recipe, one_of


def write_run(folder: Path, summary: dict[str, Any], *, seed: int, family: str = "wide") -> Path:
    folder.mkdir(parents=True)
    recipe = {"train": {"seed": seed, "steps": 9}, "converter": {"family": family}, "run": {"dir": str(folder)}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def two_families(top: Path, seeds: int = 2) -> list[Path]:
    runs = []
    for seed in range(seeds):
        found = {
            "wide": contestant(0.8 + 0.1 * seed, 0.9, {"deep": 0.01}, 0.2 + 0.2 * seed),
            "deep": contestant(0.5, 0.8, {"wide": -0.2}, 0.3),
        }
        runs += [write_run(top / str(seed) / name, summary, seed=seed, family=name) for name, summary in found.items()]
    return runs


def test_runs_of_one_recipe_are_found_whatever_their_folders(tmp_path: Path) -> None:
    a, b, c, d = two_families(tmp_path)
    assert by_recipe([a, b, c, d]) == [[a, c], [b, d]]


def test_means_and_the_widest_intervals() -> None:
    found = one_of(
        [
            {"value": 0.2, "low": 0.1, "high": 0.3, "name": "same", "none": None, "n": 250},
            {"value": 0.4, "low": 0.3, "high": 0.7, "name": "same", "none": 0.1, "n": 250},
        ]
    )
    assert found.pop("value") == pytest.approx(0.3)
    assert found == {"low": 0.1, "high": 0.7, "name": "same", "none": None, "n": 250}
    spectra = [
        {"intervals": {"a": {"r2": [0, 4]}}, "r2": [0, 4, None]},
        {"intervals": {"a": {"r2": [1, 6]}}, "r2": [1, 6, 0]},
    ]
    assert one_of(spectra) == {"intervals": {"a": {"r2": [0, 6]}}, "r2": [0.5, 5, None]}
    assert one_of([{"low": None, "w": "last"}, {"low": 0.1, "w": "ema"}]) == {"low": None, "w": None}
    with pytest.raises(ValueError, match="differ in the entries of a"):
        one_of([{"a": {"b": 1}}, {"a": {"c": 1}}])


def test_the_board_says_what_holds_for_every_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = two_families(tmp_path)
    assert main(["--seeds", *map(str, runs)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("means over 2 seeds;") and "videomae, 3 test clips" in lines
    cells = {line.split("  ")[0]: line.split() for line in lines}
    assert cells["wide/mlp"][1] == "0.300" and cells["deep/mlp"][1] == "0.300"
    assert "wide is better than deep" in lines
    rows = [line.split() for line in lines if line.startswith("wide ")]
    assert rows[0][1] == "0.850" and rows[0][5] == f"{METRICS['r2']:.3f}"


@pytest.mark.parametrize(("seeds", "message"), [((0, 0), "the same seed 0"), ((0,), "different numbers of seeds")])
def test_seeds_that_cannot_stand_for_each_other(seeds: tuple[int, ...], message: str, tmp_path: Path) -> None:
    runs = two_families(tmp_path)
    summary = json.loads((runs[0] / "summary.json").read_text())
    others = [write_run(tmp_path / f"x{n}", summary, seed=seed, family="third") for n, seed in enumerate(seeds)]
    with pytest.raises(ValueError, match=message):
        seeds_board([*runs, *others])


def test_seeds_on_other_clips_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = two_families(tmp_path)
    summary = json.loads((runs[0] / "summary.json").read_text())
    summary["digests"]["split"] = "else"
    other = write_run(tmp_path / "other", summary, seed=7)
    assert main(["--seeds", str(runs[0]), str(other)]) == 1
    assert "their split differs" in capsys.readouterr().err
