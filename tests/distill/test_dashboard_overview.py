"""The Overview in a browser: what is marked, and what its selectors change."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import browser, drawn, page, painted, until  # noqa: F401
from run_folders import write_run

from distill.dashboard.api import Api
from distill.dashboard.server import Server

pytestmark = pytest.mark.browser

HEAT = "Families and floors"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


@pytest.fixture
def address(runs: Path) -> Iterator[str]:
    with Server(Api([runs]), 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.address
        server.shutdown()


def card(page: Any, title: str) -> Any:  # noqa: F811
    return page.locator("section.card", has=page.locator("h2", has_text=title))


def numbers(page: Any, title: str) -> str:  # noqa: F811
    """A chart's table, opened once."""
    button = card(page, title).get_by_role("button", name="Table")
    if button.get_attribute("aria-pressed") != "true":
        button.click()
    return card(page, title).locator(".data").inner_text()


def test_a_number_of_too_few_clips_is_told_apart_from_the_others(page: Any, address: str, runs: Path) -> None:  # noqa: F811
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
