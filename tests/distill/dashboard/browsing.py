"""A headless Chromium for the tests of the dashboard's page, and what it has painted."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from distill.dashboard.api import Api
from distill.dashboard.server import Server

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
QUIET = ("gpu", "quic", "background-networking", "component-update", "sync")
READBACK = "Multiple readback operations"  # what Chromium says of PAINTED
PAINTED = """(layers) => {
    const found = {};
    for (const canvas of layers) {
        const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        for (let at = 0; at < data.length; at += 4) {
            if (data[at + 3]) found[data.slice(at, at + 3).join()] = (found[data.slice(at, at + 3).join()] ?? 0) + 1;
        }
    }
    return found;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One that is on the PATH, else Playwright's own."""
    flags = ["--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in QUIET)]
    with sync_api.sync_playwright() as playwright:
        path = executable(playwright.chromium.executable_path)
        if path is None:
            pytest.skip(f"no browser: none of {', '.join(NAMES)} on the PATH, and none that Playwright installed")
        found = playwright.chromium.launch(executable_path=path, args=flags)
        yield found
        found.close()


def executable(own: str) -> str | None:
    """own: where Playwright would have installed one."""
    return next(filter(None, map(shutil.which, NAMES)), own if Path(own).is_file() else None)


@contextmanager
def served(root: Path) -> Iterator[str]:
    """The address of a server of the runs below a folder."""
    with Server(Api([root]), 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.address
        server.shutdown()


@pytest.fixture
def address(runs: Path) -> Iterator[str]:
    """Of a server of the runs below `runs`, a fixture of the module that uses this one."""
    with served(runs) as found:
        yield found


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page in a context of its own, that fails the test where its console or its requests say so."""
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    found = context.new_page()
    wrong: list[str] = []
    found.on(
        "console", lambda at: at.type in ("error", "warning") and READBACK not in at.text and wrong.append(at.text)
    )
    found.on("pageerror", lambda error: wrong.append(f"{error}\n{error.stack}"))
    found.on("dialog", lambda dialog: (wrong.append(f"dialog {dialog.message}"), dialog.dismiss()))
    found.on("request", lambda at: at.url.startswith(("http://127.0.0.1:", "file:", "blob:")) or wrong.append(at.url))
    yield found
    context.close()
    assert not wrong, wrong


def until(found: Callable[[], Any], seconds: float = 60) -> Any:
    """What `found` returns as soon as it is true. The page's policy forbids Playwright's own waiting on expressions."""
    end = time.monotonic() + seconds
    while not (value := found()) and time.monotonic() < end:
        time.sleep(0.1)
    assert value, f"nothing came in {seconds:g} s"
    return value


def painted(page: Any, title: str) -> dict[str, int]:
    """Colour -> pixels of the chart under a title that begins so, all its layers; empty until it is drawn."""
    chart = page.locator("section.card", has=page.locator("h2", has_text=title)).locator("canvas")
    return chart.evaluate_all(PAINTED)


def drawn(page: Any, title: str) -> dict[str, int]:
    return until(lambda: len(found := painted(page, title)) > 3 and found)


def card(page: Any, title: str) -> Any:
    return page.locator("section.card", has=page.locator("h2", has_text=title))


def numbers(page: Any, title: str) -> str:
    """A chart's table, opened once."""
    button = card(page, title).get_by_role("button", name="Table")
    if button.get_attribute("aria-pressed") != "true":
        button.click()
    return card(page, title).locator(".data").inner_text()
