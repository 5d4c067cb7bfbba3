"""Curves in a browser: which runs, how many, beside which floors, and files that take several readings."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import browser, drawn, page, painted, until  # noqa: F401
from run_folders import write_run

from distill.dashboard import journal
from distill.dashboard.api import Api
from distill.dashboard.server import Server

pytestmark = pytest.mark.browser


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def address(runs: Path) -> Iterator[str]:
    runs.mkdir(exist_ok=True)
    with Server(Api([runs]), 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.address
        server.shutdown()


def table(page: Any) -> str:  # noqa: F811
    """The chart's numbers, opened once."""
    button = page.get_by_role("button", name="Table")
    if button.get_attribute("aria-pressed") != "true":
        button.click()
    return page.locator(".data").inner_text()


@pytest.mark.parametrize("name", ["curves", "overview"])
def test_a_file_that_takes_several_readings_is_read_to_its_end(
    name: str,
    page: Any,  # noqa: F811
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
