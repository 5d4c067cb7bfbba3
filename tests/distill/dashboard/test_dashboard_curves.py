"""Curves in a browser: which runs, how many, beside which floors, and files that take several readings."""

# ruff: noqa: F401, F811 (fixtures are imported, and named again by the tests that take them)
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from browsing import address, browser, card, drawn, numbers, page, painted, until
from run_folders import write_run

from distill.dashboard import journal
from distill.dashboard.api import Api

pytestmark = pytest.mark.browser

TITLE = "val / videomae / r2c"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


@pytest.mark.parametrize("name", ["curves", "overview"])
def test_a_file_that_takes_several_readings_is_read_to_its_end(
    name: str,
    page: Any,
    address: str,
    runs: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a run that has ended nothing changes, and yet the rest must come."""
    monkeypatch.setattr(journal, "BUDGET", 2**16)
    write_run(runs / "long", steps=4000)
    assert (runs / "long" / "metrics.jsonl").stat().st_size > 10 * 2**16
    page.goto(f"{address}#/{name}?teacher=videomae")
    title = "val / videomae / r2c" if name == "curves" else "Is it still improving"
    card = page.locator("section.card", has=page.locator("h2", has_text=title))
    until(lambda: card.count() and card.get_by_role("button", name="Table").is_visible())
    card.get_by_role("button", name="Table").click()
    until(lambda: "4000" in card.locator(".data").inner_text())
    text = page.locator("main").inner_text()
    assert "are read so far" not in text and "are read yet" not in text


def checked(page: Any) -> set[str]:
    return set(page.locator(".runs li:has(input:checked) .name").all_inner_texts())


def test_the_best_run_of_every_family_is_shown_first(page: Any, address: str, runs: Path) -> None:
    for at, family in enumerate(("perceiver", "mamba")):
        for rate in range(3):
            write_run(runs / f"{family}-{rate}", family=family, r2c=0.5 + 0.1 * at + 0.02 * (rate == at), steps=20)
    page.goto(f"{address}#/curves?teacher=videomae")
    drawn(page, TITLE)
    assert checked(page) == {"perceiver-0", "mamba-1"}
    rows = [line.split("\t")[0] for line in numbers(page, TITLE).splitlines()[1:]]
    assert {name for name in rows if not name.startswith("floor")} == {"perceiver-0", "mamba-1"}


def test_a_thirteenth_run_cannot_be_chosen(page: Any, address: str, runs: Path) -> None:
    for at in range(14):
        write_run(runs / f"{at:02d}", steps=20)
    ids = ",".join(run["id"] for run in Api([runs]).list()["runs"][:11])
    page.goto(f"{address}#/curves?runs={ids}")
    until(lambda: len(checked(page)) == 11)
    page.locator(".runs li", has_text="11").locator("input").check()
    until(lambda: len(checked(page)) == 12 and "take one away to choose another" in page.locator("aside").inner_text())
    assert page.locator(".runs input:disabled").count() == 2
    page.locator(".runs li", has_text="03").locator("input").uncheck()
    until(lambda: page.locator(".runs input:disabled").count() == 0 and len(checked(page)) == 11)
    more = ",".join(run["id"] for run in Api([runs]).list()["runs"])
    page.goto(f"{address}#/curves?runs={more}")
    until(lambda: len(checked(page)) == 12)


def test_floors_are_lines_or_none(page: Any, address: str, runs: Path) -> None:
    write_run(runs / "run")
    shown = {}
    for floors in ("all", "none", ""):
        page.goto(f"{address}#/curves?teacher=videomae&floors={floors}")
        until(lambda floors=floors: page.get_by_label("floors").input_value() == floors)
        page.wait_for_timeout(300)
        shown[floors] = drawn(page, TITLE)
    assert shown["none"] != shown["all"]
    page.goto(f"{address}#/curves?teacher=videomae&floors=none")
    until(lambda: "floor" not in numbers(page, TITLE))
    page.get_by_label("floors").select_option("all")
    until(lambda: {"floor ridge", "floor pixels"} <= {row.split("\t")[0] for row in numbers(page, TITLE).splitlines()})


def test_keys_zoom(page: Any, address: str, runs: Path) -> None:
    write_run(runs / "run")
    page.goto(f"{address}#/curves?teacher=videomae")
    whole = drawn(page, TITLE)
    for key, zoom in (("+", "25.0-75.0"), ("+", "37.5-62.5"), ("-", "25.0-75.0")):
        page.keyboard.press(key)
        until(lambda zoom=zoom: f"zoom={zoom}" in page.evaluate("() => location.href"))
    assert until(lambda: (found := drawn(page, TITLE)) != whole and found)
    page.keyboard.press("-")
    until(lambda: "zoom" not in page.evaluate("() => location.href") and painted(page, TITLE) == whole)


def test_a_long_table_shows_its_first_rows_and_says_so(page: Any, address: str, runs: Path) -> None:
    """Every cell is an element: 12 runs of 600 points took a tenth of the memory that a page may take."""
    for at in range(3):
        write_run(runs / str(at), steps=5000)
    ids = ",".join(run["id"] for run in Api([runs]).list()["runs"])
    page.goto(f"{address}#/curves?teacher=videomae&runs={ids}")
    drawn(page, TITLE)
    shown = numbers(page, TITLE)
    whole = card(page, TITLE).locator("tbody tr").count()
    assert whole == 1000 and f"The first {whole} of 15" in shown and "the CSV has all" in shown
    with page.expect_download() as file:
        card(page, TITLE).get_by_role("button", name="CSV").click()
    assert len(Path(file.value.path()).read_text().splitlines()) > 1501
