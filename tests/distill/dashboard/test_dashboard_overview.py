"""The Overview in a browser: what is marked, and what its selectors change."""

# ruff: noqa: F401, F811 (fixtures are imported, and named again by the tests that take them)
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from browsing import address, browser, card, drawn, numbers, page, painted, until
from run_folders import write_run

pytestmark = pytest.mark.browser

HEAT = "Families and floors"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


def test_a_number_of_too_few_clips_is_told_apart_from_the_others(page: Any, address: str, runs: Path) -> None:
    why = "70 test clips, 100 needed"
    bayes = {"bayes": {"vivit": {"cka": 1.0}}}
    write_run(runs / "run", marks={"vivit": {"cka": why}, "videomae": {"r2c": why}}, references=bayes)
    page.goto(f"{address}#/overview?metric=cka")
    marked = drawn(page, HEAT)
    assert "!: not to be trusted, there are too few clips" in card(page, HEAT).inner_text()
    page.goto(f"{address}#/overview?metric=r2")
    until(lambda: "r2 on test" in card(page, HEAT).inner_text())
    assert drawn(page, HEAT) != marked and "not to be trusted" not in card(page, HEAT).inner_text()
    page.goto(f"{address}#/overview?metric=cka")
    until(lambda: "cka on test" in card(page, HEAT).inner_text())
    box = card(page, HEAT).locator(".canvas").bounding_box()
    page.mouse.move(box["x"] + 0.9 * box["width"], box["y"] + 40)
    until(lambda: f"not to be trusted: {why}" in card(page, HEAT).inner_text())
    lines = numbers(page, HEAT).splitlines()
    assert {line.split("\t")[0] for line in lines if why in line} >= {"perceiver", "ridge", "pixels"}
    assert all("vivit" in line and "bayes" not in line for line in lines if why in line)


def test_metric_and_cost_change_the_front(page: Any, address: str, runs: Path) -> None:
    write_run(runs / "a", r2c=0.6)
    write_run(runs / "b", family="mamba", r2c=0.7)
    page.goto(f"{address}#/overview?teacher=videomae")
    drawn(page, "Quality against cost")
    header, *rows = (line.split("\t") for line in numbers(page, "Quality against cost").splitlines())
    assert header[3:5] == ["macs", "r2c"] and [float(row[3]) for row in rows[:2]] == [1.2e9, 1.4e9]
    page.get_by_label("cost", exact=True).select_option("parameters")
    until(lambda: "\tparameters\t" in numbers(page, "Quality against cost"))
    assert "\t1800000\t0.6\t" in numbers(page, "Quality against cost")
    page.get_by_label("metric", exact=True).select_option("cka")
    until(lambda: "\tparameters\tcka\t" in numbers(page, "Quality against cost"))
    assert "cka on test" in card(page, HEAT).inner_text()
