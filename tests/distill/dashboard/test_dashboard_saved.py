"""Every chart of every page as PNG and CSV, and in the CSV all that the chart shows."""

# ruff: noqa: F401, F811 (fixtures are imported, and named again by the tests that take them)
from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from browsing import address, browser, drawn, page, until
from run_folders import FLOORS, write_deprived, write_run

pytestmark = pytest.mark.browser


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    root = tmp_path / "runs"
    references = {"large": {"videomae": {"r2c": 0.8}}}
    write_run(root / "one" / "perceiver", r2c=0.7, where=True, references=references)
    write_run(root / "one" / "mamba", family="mamba", r2c=0.6)
    write_deprived(root / "arms")
    return root


def saved(page: Any, card: Any, button: str) -> bytes:
    with page.expect_download() as download:
        card.get_by_role("button", name=button).click()
    return Path(download.value.path()).read_bytes()


CHARTS = {
    "overview": {
        "Families and floors": "row,kind,teacher,r2c,low,high,seeds,not to be trusted",
        "Quality against cost": "family,run,seeds,macs,r2c,low,high",
        "Is it still improving": "family,run,step,r2c",
    },
    "curves": {"val / videomae / r2c": "run,step,val / videomae / r2c"},
    "where": {
        "r2c by place": "frame,row,column,r2c",
        "Channels by r2c": "from,to,channels",
        "Tokens of": "tokens,number,red,green,blue",
    },
    "deficiency": {
        "Dial against r2c": "kind,run,strength,r2c,r2c with the mask on",
        "Rank recovery": "run,component,R2",
        "Accuracy of direction": 'run,arm,accuracy,low,high,gained,"gained, low","gained, high"',
    },
    "compare": {"B minus A": "teacher,B minus A,low,high,interval"},
}


@pytest.mark.parametrize("name", list(CHARTS))
def test_every_chart_is_saved_as_picture_and_numbers(name: str, page: Any, address: str) -> None:
    page.goto(f"{address}#/{name}?teacher=videomae")
    for title, header in CHARTS[name].items():
        drawn(page, title)
        card = page.locator("section.card", has=page.locator("h2", has_text=title))
        assert saved(page, card, "PNG").startswith(b"\x89PNG")
        first, *rest = saved(page, card, "CSV").decode().splitlines()
        assert first == header and len(rest) > 1
    assert page.get_by_role("button", name="PNG").count() == len(CHARTS[name])


@pytest.mark.parametrize(
    ("name", "title", "column", "value", "shown"),
    [
        ("overview", "Families and floors", 0, 3, FLOORS | {"perceiver": 0.7, "large": 0.8}),
        ("overview", "Quality against cost", 0, 4, FLOORS | {"perceiver": 0.7, "mamba": 0.6, "large": 0.8}),
        (
            "curves",
            "val / videomae / r2c",
            0,
            2,
            {f"floor {n}": v for n, v in FLOORS.items()} | {"reference large": 0.8},
        ),
        ("deficiency", "Dial against r2c", 1, 3, {"arms/whole": 0.6, "arms/weak": 0.55, "arms/strong": 0.4}),
        ("deficiency", "Accuracy of direction", 1, 2, {"chance": 0.25, "teacher": 0.8, "student": 0.61}),
    ],
)
def test_lines_beside_the_data_are_in_its_csv(
    page: Any,
    address: str,
    name: str,
    title: str,
    column: int,
    value: int,
    shown: dict[str, float],
) -> None:
    page.goto(f"{address}#/{name}?teacher=videomae")
    drawn(page, title)
    card = page.locator("section.card", has=page.locator("h2", has_text=title))
    rows = list(csv.reader(saved(page, card, "CSV").decode().splitlines()))
    found = {
        row[column]: float(row[value]) for row in rows[1:] if name != "overview" or "videomae" in row or value == 4
    }
    assert {label: found[label] for label in shown} == pytest.approx(shown)
