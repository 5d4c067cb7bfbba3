"""The page in a headless Chromium: every page, a run chosen, links, live updates, the export without a network."""

# ruff: noqa: F401, F811 (fixtures are imported, and named again by the tests that take them)
from __future__ import annotations

import itertools
import json
import time
from pathlib import Path
from typing import Any

import pytest
from browsing import address, browser, drawn, executable, page, painted, until
from run_folders import write_deprived, write_run

from distill.dashboard.api import Api
from distill.dashboard.export import export

pytestmark = pytest.mark.browser

PAGES = ("overview", "curves", "where", "deficiency", "compare")
HOSTILE = "<img src=x onerror=alert(1)>"
JUNK: tuple[Any, ...] = (
    3,
    [],
    {"videomae": 3},
    {"videomae": {"r2c": None}},
    {"videomae": {"direction": {"all": {"converted": {"alarms": 3}}}}},
)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    root = tmp_path / "runs"
    write_run(root / "one" / "perceiver", r2c=0.7, where=True)
    write_run(root / "one" / "mamba", family="mamba", r2c=0.6)
    write_deprived(root / "arms")
    write_run(root / "going", family="dsconv", finished=False, steps=30)
    return root


def test_every_page_opens_and_draws(page: Any, address: str) -> None:
    page.goto(address)
    charts = {
        "overview": ["Families and floors", "Quality against cost", "Is it still improving"],
        "curves": ["val / "],
        "where": ["r2c by place", "Channels by r2c", "Tokens of"],
        "deficiency": ["Dial against r2c", "Rank recovery", "Accuracy of direction"],
        "compare": ["B minus A"],
    }
    for number, name in enumerate(PAGES, 1):
        page.keyboard.press(str(number))
        until(lambda name=name: page.locator("nav a[aria-current=page]").inner_text().lower() == name)
        for title in charts[name]:
            drawn(page, title)


def test_the_overview_answers_at_one_look(page: Any, address: str) -> None:
    page.goto(address)
    row = page.locator("table tr", has=page.locator("th", has_text="videomae")).first
    text = until(lambda: row.count() and row.inner_text())
    for part in (
        "perceiver",
        "0.700 [0.690, 0.710]",
        "+0.100 [0.090, 0.110]",
        "2.10 M, 1.40 G, 21 ms",
        "with care",
        "1 seed",
    ):
        assert part in text
    assert "30 of 30" in page.locator("tr", has_text="going").inner_text()


def test_the_overview_puts_an_error_on_a_scale(page: Any, address: str, runs: Path) -> None:
    shown = {"videomae": {"value": 1.3, "beyond": None}, "vivit": {"value": None, "beyond": 4.0}}
    told = {"regret": {"videomae": {"value": 1.07, "low": 1.06, "high": 1.08}}}
    write_run(runs / "best", r2c=0.9, equivalent_pixels=shown, oracle=told)
    page.goto(address)
    until(lambda: "as a shift of 1.30 px" in page.locator("main").inner_text())
    text = page.locator("main").inner_text()
    assert "worse than a shift of 4 px" in text and "regret 1.07 [1.060, 1.080]" in text
    assert text.count("px") == 2 and text.count("regret") == 1


def test_a_run_is_chosen_and_its_link_opens_elsewhere(page: Any, browser: Any, address: str) -> None:
    page.goto(f"{address}#/curves?teacher=videomae")
    before = drawn(page, "val / videomae / r2c")
    page.locator(".runs li", has_text="strong").locator("input").check()
    until(lambda: painted(page, "val / videomae / r2c") != before)
    page.get_by_label("metric").select_option("train / loss")
    page.get_by_label("spaced").select_option("log")
    until(lambda: "log=log" in page.url)
    wanted = drawn(page, "train / loss")
    other = browser.new_context(viewport={"width": 1400, "height": 900}).new_page()
    other.goto(page.url)
    until(lambda: painted(other, "train / loss") == wanted)
    assert other.locator(".runs li", has_text="strong").locator("input").is_checked()
    other.context.close()


def test_a_zoom_stands_in_the_address(page: Any, browser: Any, address: str) -> None:
    page.goto(f"{address}#/curves?teacher=videomae&series=train+%2F+loss")
    drawn(page, "train / loss")
    page.locator(".canvas").hover()
    page.mouse.wheel(0, -400)
    link = until(lambda: "zoom=" in (href := page.evaluate("() => location.href")) and href)
    whole, zoomed = (browser.new_context(viewport={"width": 1400, "height": 900}).new_page() for _ in range(2))
    whole.goto(link.replace("zoom=", "no="))
    zoomed.goto(link)
    assert drawn(whole, "train / loss") != drawn(zoomed, "train / loss")
    for other in (whole, zoomed):
        other.context.close()


def test_a_line_that_a_run_appends_is_seen(page: Any, address: str, runs: Path) -> None:
    page.goto(address)
    page.locator("a", has_text="going").click()
    before = drawn(page, "val / ")
    with open(runs / "going" / "metrics.jsonl", "a") as file:
        for step in (60, 90):
            for target in ("timesformer", "videomae", "vivit"):
                entry = {"step": step, "split": "val", "target": target, "metric": "r2c", "value": 0.9}
                file.write(json.dumps(entry) + "\n")
    until(lambda: painted(page, "val / ") != before)
    page.get_by_role("button", name="Table").click()
    assert "90" in page.locator(".data").inner_text()


def test_an_update_keeps_the_keyboard_s_place_and_what_is_open(page: Any, address: str, runs: Path) -> None:
    def grown() -> None:
        with open(runs / "going" / "metrics.jsonl", "a") as file:
            entry = {"step": 60, "split": "train", "target": None, "metric": "loss", "value": 0.9}
            file.write(json.dumps(entry) + "\n")

    page.goto(address)
    drawn(page, "Quality against cost")
    page.locator("nav a", has_text="Where").focus()
    grown()
    until(lambda: "60 of" in page.locator("tr", has_text="going").inner_text())
    assert page.evaluate("() => document.activeElement.textContent") == "Where"
    page.goto(f"{address}#/compare")
    drawn(page, "B minus A")
    page.get_by_text("Same clips, view and normaliser").click()
    before = page.locator("details").element_handle()
    page.keyboard.press("]")  # another state: what is told is written anew
    until(lambda: not before.evaluate("(one) => one.isConnected"))
    assert page.locator("details[open]").count() == 1


def test_the_export_opens_without_a_network(page: Any, runs: Path, tmp_path: Path) -> None:
    export(Api([runs]), tmp_path / "report.html", say=lambda text: None)
    page.context.set_offline(True)
    page.goto((tmp_path / "report.html").as_uri())
    drawn(page, "Families and floors")
    assert "exported" in page.locator("#status").inner_text()
    for key, title in (("2", "val / "), ("3", "r2c by place"), ("4", "Dial against r2c"), ("5", "B minus A")):
        page.keyboard.press(key)
        drawn(page, title)


def test_names_with_markup_are_text(page: Any, address: str, runs: Path) -> None:
    folder = write_run(
        runs / HOSTILE / "__proto__", family=HOSTILE, r2c=0.9, targets=["<b>bold</b>", "__proto__", "vivit"]
    )
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": 1, "split": "val", "target": "../../x", "metric": HOSTILE, "value": 1}) + "\n")
    page.goto(address)
    row = page.locator("tr", has=page.locator("th", has_text="<b>bold</b>"))
    assert HOSTILE in until(lambda: row.count() and row.inner_text())
    for number, name in enumerate(PAGES, 1):
        page.keyboard.press(str(number))
        until(lambda name=name: page.locator(f"nav a[aria-current=page][href^='#/{name}']").count())
        time.sleep(0.3)
        assert page.locator("main img, main b b, main script").count() == 0
    page.keyboard.press("2")
    listed = page.locator(".runs li", has_text="__proto__")
    listed.locator("input").check()
    page.get_by_label("metric").select_option(f"val / ../../x / {HOSTILE}")
    drawn(page, f"val / ../../x / {HOSTILE}")


def test_a_large_grid_is_drawn_at_once_when_the_window_changes(page: Any, address: str) -> None:
    """16 x 14 x 14 places: more than ECharts draws in one frame where it may. A picture that is saved then
    would lack the rest."""
    page.goto(f"{address}#/where?teacher=timesformer")
    drawn(page, "r2c by place")
    last_place = """async (chart) => {
        const layers = () => [...chart.querySelectorAll("canvas")], frame = () => new Promise(requestAnimationFrame);
        const before = layers()[0].width;
        chart.style.width = "99%";
        for (let waited = 0; waited < 300 && layers()[0].width === before; waited++) await frame();
        for (let painted = 0; painted < 5; painted++) await frame();
        return Math.max(...layers().map((canvas) => {
            const at = [0.85, 0.8].map((share, side) => Math.floor(share * [canvas.width, canvas.height][side]));
            return canvas.getContext("2d").getImageData(...at, 1, 1).data[3];
        }));
    }"""
    assert page.locator(".canvas").first.evaluate(last_place) > 200


def test_broken_runs_say_what_is_broken(page: Any, address: str, runs: Path) -> None:
    with open(runs / "going" / "metrics.jsonl", "a") as file:
        file.write("{nonsense\n{half")
    (runs / "one" / "mamba" / "summary.json").write_text('{"targets"')
    (runs / "one" / "perceiver" / "where.safetensors").write_bytes(b"\x00" * 20)
    page.goto(address)
    broken = page.locator("section", has_text="What is broken")
    text = until(lambda: broken.count() and broken.inner_text())
    assert "1 line not JSON (the first is line 100)" in text and "half written (5 bytes)" in text
    assert "summary.json cannot be read" in text
    page.keyboard.press("3")
    until(lambda: "The file is damaged" in page.locator("main").inner_text())


def test_runs_on_other_clips_are_not_compared(page: Any, address: str, runs: Path) -> None:
    write_run(runs / "other", digests={"split": "x", "view": "v" * 64, "data": "d" * 64, "normaliser": "n" * 64})
    page.goto(f"{address}#/compare")
    page.get_by_label("B", exact=True).select_option(label="other (perceiver)")
    text = until(lambda: "cannot be compared" in (text := page.locator("main").inner_text()) and text)
    assert "they differ in split" in text and page.locator("canvas").count() == 0


def test_light_and_dark_and_a_run_that_wrote_nothing(page: Any, address: str) -> None:
    page.goto(f"{address}#/compare")
    light = drawn(page, "B minus A")
    page.emulate_media(color_scheme="dark")
    until(lambda: painted(page, "B minus A") != light)
    assert page.evaluate("() => getComputedStyle(document.body).backgroundColor") == "rgb(18, 22, 26)"
    page.keyboard.press("?")
    assert "the pages, in order" in page.locator("dialog").inner_text()
    page.keyboard.press("Escape")
    page.keyboard.press("3")
    page.get_by_label("run", exact=True).select_option(label="one/mamba (not written)")
    until(lambda: "This run has not written it" in page.locator("main").inner_text())


def test_the_teacher_is_chosen_by_keys_and_kept(page: Any, address: str) -> None:
    page.goto(address)
    drawn(page, "Quality against cost: timesformer")
    page.keyboard.press("]")
    drawn(page, "Quality against cost: videomae")
    page.keyboard.press("[")
    page.keyboard.press("[")
    drawn(page, "Quality against cost: vivit")
    page.keyboard.press("2")
    drawn(page, "val / vivit / r2c")
    page.keyboard.press("/")
    page.keyboard.type("mamba")
    until(lambda: page.locator(".runs li").count() == 1)


def test_a_browser_is_looked_for_on_the_path_and_where_playwright_puts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    own = tmp_path / "chrome"
    assert executable(str(own)) is None
    own.touch()
    assert executable(str(own)) == str(own)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "chromium").touch(mode=0o755)
    assert executable(str(own)) == str(tmp_path / "bin" / "chromium")


def test_numbers_of_another_form_break_no_page(page: Any, address: str, runs: Path) -> None:
    for number, (name, junk) in enumerate(itertools.product(("targets", "gain", "head", "deficiency", "cost"), JUNK)):
        told = json.loads((runs / "arms" / "strong" / "summary.json").read_text())
        (runs / f"junk-{number}").mkdir()
        (runs / f"junk-{number}" / "summary.json").write_text(json.dumps(told | {name: junk}))
    page.goto(address)
    for number, name in enumerate(PAGES, 1):
        page.keyboard.press(str(number))
        until(lambda name=name: page.locator(f"nav a[aria-current=page][href^='#/{name}']").count())
        time.sleep(0.5)
        assert "undefined" not in page.locator("main").inner_text() and "NaN" not in page.locator("main").inner_text()
        assert page.locator("#status").get_attribute("class") != "lost"


def test_pages_that_are_left_while_they_are_drawn_leave_no_error(page: Any, address: str) -> None:
    page.goto(address)
    for key in "1234512345132415":
        page.keyboard.press(key)
        page.wait_for_timeout(30)
    page.keyboard.press("1")
    drawn(page, "Is it still improving")
