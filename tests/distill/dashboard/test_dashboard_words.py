"""What Where, Deficiency and Compare say in words, and what is greyed."""

# ruff: noqa: F401, F811 (fixtures are imported, and named again by the tests that take them)
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from browsing import address, browser, drawn, page, until
from run_folders import DIGESTS, TARGETS, write_deprived, write_run

from distill.dashboard.api import Api

pytestmark = pytest.mark.browser

SPACES = {f"normaliser of {target}": f"space of {target}" for target in TARGETS}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    root = tmp_path / "runs"
    write_run(root / "one" / "perceiver", r2c=0.7, where=True)
    write_run(root / "one" / "mamba", family="mamba", r2c=0.6, where=True)
    write_deprived(root / "arms")
    return root


def said(page: Any) -> str:
    return page.locator("main").inner_text()


def test_a_shut_gate_is_an_alarm(page: Any, address: str) -> None:
    page.goto(f"{address}#/deficiency?teacher=videomae")
    until(lambda: "Alarms of gates: 1 of direction, 1 in all" in said(page))
    assert "weak, direction, all labels, converted_supervised: the gate of weak is shut" in said(page)


def test_compare_shows_interval_recipes_and_hashes(page: Any, address: str, runs: Path) -> None:
    ours, theirs = (run["id"] for run in Api([runs]).list()["runs"] if run["name"].startswith("one/"))
    page.goto(f"{address}#/compare?a={ours}&b={theirs}")
    drawn(page, "B minus A")
    text = said(page)
    assert "videomae: B is better, +0.1000 [0." in text and "paired over groups of test clips" in text
    recipe = page.locator("section", has_text="What differs in the recipes").last
    assert "converter.family\tmamba\tperceiver" in recipe.inner_text()
    page.get_by_text("Same clips, view and normaliser").click()
    rows = page.locator("details tr").all_inner_texts()
    assert [row.split("\t") for row in rows[1:]] == [
        [name, digest[:12], digest[:12], "same"] for name, digest in (DIGESTS | SPACES).items()
    ]


def test_cosine_is_greyed_wherever_metrics_are_listed(page: Any, address: str) -> None:
    colour = "(one) => getComputedStyle(one).color"
    page.goto(f"{address}#/compare")
    drawn(page, "B minus A")
    greyed = page.locator("td", has_text="cosine (flatters)").first
    plain = page.locator("td", has_text="cos_std").first
    assert greyed.evaluate(colour) == page.locator("thead th").first.evaluate(colour) != plain.evaluate(colour)
    page.goto(f"{address}#/overview?metric=cosine")
    until(lambda: "cosine (flatters) on test" in said(page))
    options = page.get_by_label("metric").locator("option")
    assert [one.inner_text() for one in options.all() if one.get_attribute("class")] == ["cosine (flatters)"]


def clips(page: Any) -> list[str]:
    return page.locator(".clips td:first-child").all_inner_texts()


def test_the_clips_that_are_listed_have_their_thumbnails(page: Any, address: str, runs: Path) -> None:
    """Of the converter all, of a floor those that are the converter's, too."""
    page.goto(f"{address}#/where?teacher=videomae")
    drawn(page, "Tokens of")
    assert len(clips(page)) == 8 == page.locator(".clips canvas").count() == page.locator(".clips button").count()
    assert "A click shows a clip's pictures" in said(page)
    page.locator(".clips button").first.click()
    until(lambda: f"Tokens of {clips(page)[0]}" in said(page))
    page.get_by_label("errors of").select_option("ridge")
    until(lambda: "of the converter's worst and best alone, and these are those of ridge" in said(page))
    assert len(clips(page)) == 8
