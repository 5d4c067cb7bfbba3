"""What is shown stands in the address: a link of every page, opened in a fresh browser, shows the same."""

# ruff: noqa: F401, F811 (fixtures are imported, and named again by the tests that take them)
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from browsing import address, browser, drawn, page, painted, until
from run_folders import DIGESTS, write_deprived, write_run

pytestmark = pytest.mark.browser


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    root = tmp_path / "runs"
    write_run(root / "one" / "perceiver", r2c=0.7, where=True)
    write_run(root / "one" / "mamba", family="mamba", r2c=0.6)
    write_deprived(root / "arms")
    for at in (0, 1):
        write_run(root / "else" / f"{at}", r2c=0.5 + 0.1 * at, digests=DIGESTS | {"split": "other"}, targets=["vivit"])
    return root


@pytest.mark.parametrize(
    ("key", "chosen", "title", "in_address"),
    [
        ("1", {"teacher": "vivit", "metric": "r2", "cost": "parameters"}, "Quality against cost: vivit", "cost=par"),
        ("1", {"clips and view": 1}, "Quality against cost: vivit", "set="),
        ("2", {"metric": "train / loss", "against": "seconds", "floors": "none"}, "train / loss", "x=seconds"),
        ("3", {"teacher": "timesformer", "errors of": "ridge"}, "Channels by r2c: timesformer, ridge", "of=ridge"),
        ("4", {"teacher": "videomae"}, "Rank recovery: videomae", "teacher=videomae"),
        ("5", {"A": "arms/weak (perceiver)", "B": "arms/strong (perceiver)"}, "B minus A", "a="),
    ],
)
def test_a_link_opens_the_same_in_a_fresh_browser(
    page: Any,
    browser: Any,
    address: str,
    key: str,
    chosen: dict[str, Any],
    title: str,
    in_address: str,
) -> None:
    page.goto(address)
    drawn(page, "Families and floors")
    page.keyboard.press(key)
    for label, value in chosen.items():
        select = page.get_by_label(label, exact=True)
        until(
            lambda select=select: (select.count() and select.locator("option").count() > 1) or not select.is_visible()
        )
        if select.is_visible():
            select.select_option(**choice(label, value))
    until(lambda: in_address in page.evaluate("() => location.href") or key == "4")
    wanted = until(lambda: settled(page, title))
    with_context = browser.new_context(viewport={"width": 1400, "height": 900})
    other = with_context.new_page()
    other.goto(page.evaluate("() => location.href"))
    until(lambda: painted(other, title) == wanted)
    assert (
        other.locator("nav a[aria-current=page]").inner_text() == page.locator("nav a[aria-current=page]").inner_text()
    )
    with_context.close()


def choice(label: str, value: Any) -> dict[str, Any]:
    return {"index": value} if isinstance(value, int) else {"label": value} if label in "AB" else {"value": value}


def settled(page: Any, title: str) -> dict[str, int] | None:
    """What is painted, once it stays."""
    before = painted(page, title)
    page.wait_for_timeout(400)
    return before if len(before) > 3 and painted(page, title) == before else None


def test_a_link_to_a_set_holds_when_others_become_larger(page: Any, address: str, runs: Path) -> None:
    page.goto(address)
    drawn(page, "Families and floors")
    page.get_by_label("clips and view").select_option(index=1)
    title = "Quality against cost: vivit"
    wanted = until(lambda: "set=" in page.evaluate("() => location.href") and settled(page, title))
    for at in range(4):
        write_run(runs / "aaa" / f"{at}", digests=DIGESTS | {"split": "third"}, targets=["timesformer"])
    until(lambda: page.get_by_label("clips and view").locator("option").count() == 3)
    assert until(lambda: settled(page, title)) == wanted
    page.reload()
    until(lambda: painted(page, title) == wanted)
    assert page.get_by_label("clips and view").locator("option:checked").inner_text().startswith("3: 2 runs")
