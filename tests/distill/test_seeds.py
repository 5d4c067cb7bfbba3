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


def test_what_has_no_mean_is_kept_where_all_agree() -> None:
    """Settings and booleans are no measurements; a count of what was recovered is one."""
    a = {
        "mlp_rate": 0.3,
        "cost": {"threads": 1, "latency_ms": 2.0, "parameters": 7},
        "rank_recovery": {"videomae": {"k": 3, "of": 24, "r2": [0.5, None]}},
        "deficiency": {
            "strength": 1.0,
            "amounts": {"nuclear": 0.1, "rank": 8},
            "targets": {"v": {"mask": {"masks": 3}}},
        },
        "clips": {"test": 20, "refused": 0},
        "flags": [True, True],
        "probes": {"strength": {"value": 0.5, "clips": 9}},
        "equivalent_pixels": {"videomae": {"value": None, "beyond": 4.0}},
    }
    assert one_of([a, a, a]) == a and one_of([a, a, a])["flags"][0] is True
    b = {
        "mlp_rate": 3.0,
        "cost": {"threads": 2, "latency_ms": 3.0, "parameters": 7},
        "rank_recovery": {"videomae": {"k": 6, "of": 23, "r2": [0.7, 0.1]}},
        "deficiency": {
            "strength": 2.0,
            "amounts": {"nuclear": 0.3, "rank": 4},
            "targets": {"v": {"mask": {"masks": 5}}},
        },
        "clips": {"test": 20, "refused": 3},
        "flags": [True, False],
        "probes": {"strength": {"value": 0.7, "clips": 8}},
        "equivalent_pixels": {"videomae": {"value": None, "beyond": 2.0}},
    }
    assert one_of([a, b]) == {
        "mlp_rate": None,
        "cost": {"threads": None, "latency_ms": 2.5, "parameters": 7},
        "rank_recovery": {"videomae": {"k": 4.5, "of": None, "r2": [0.6, None]}},
        "deficiency": {
            "strength": None,
            "amounts": {"nuclear": None, "rank": None},
            "targets": {"v": {"mask": {"masks": None}}},
        },
        "clips": {"test": 20, "refused": None},
        "flags": [True, None],
        "probes": {"strength": {"value": 0.6, "clips": None}},
        "equivalent_pixels": {"videomae": {"value": None, "beyond": None}},
    }


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        ({"a": 1}, None, "differ in the entries of x"),
        ([1, 2], [1], "differ in the length of x: 2, 1"),
        ([1, 2], None, "differ in the length of x: 2, none"),
    ],
)
def test_summaries_of_another_form_are_refused(ours: Any, theirs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        one_of([{"x": ours}, {"x": theirs}])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("converter: {family: wide}", "it has no train.seed"),
        ("train: 3", "it has no train.seed"),
        ("train: {seed: one}", "it has no train.seed"),
        ("train: {steps: 9}", "it has no train.seed"),
        ("", "it has no train.seed"),
        ("train: {seed: [", "while parsing a flow node"),
        ("train: \x00", "unacceptable character"),
    ],
)
def test_a_recipe_without_a_seed_is_named(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = two_families(tmp_path)
    (runs[1] / "recipe.yaml").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        by_recipe(runs)
    assert str(caught.value).startswith(f"{runs[1] / 'recipe.yaml'} is not the recipe of a run (")
    assert main(["--seeds", *map(str, runs)]) == 1 and message in capsys.readouterr().err


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
