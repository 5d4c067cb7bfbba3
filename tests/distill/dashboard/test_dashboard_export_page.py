"""An exported file of runs whose names are markup, in a headless Chromium: they are text there as well."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from run_folders import write_run, write_where
from test_dashboard_page import HOSTILE, PAGES, browser, page, until  # noqa: F401

from distill.dashboard.api import Api
from distill.dashboard.export import export, paths

pytestmark = pytest.mark.browser

ENDS = f"</script><script>alert(1)</script>{HOSTILE}"  # as a folder, it is a few of them


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    root = tmp_path / "runs"
    targets = [HOSTILE, ENDS, "__proto__"]
    folder = write_run(
        root / ENDS / "__proto__", family=HOSTILE, targets=targets, marks={t: {"r2c": ENDS} for t in targets}
    )
    write_where(folder, grids={HOSTILE: (2, 3, 3), ENDS: ()})
    with open(folder / "metrics.jsonl", "a") as file:
        entry = {"split": "val", "target": HOSTILE, "metric": ENDS, "value": 1.0}
        file.write("".join(json.dumps({"step": step} | entry) + "\n" for step in range(5)))
    write_run(root / "other", family=ENDS, targets=targets, r2c=0.5)
    write_run(root / HOSTILE / "broken").joinpath("summary.json").write_text("{")
    return root


def test_names_with_markup_are_text_in_an_export(page: Any, runs: Path, tmp_path: Path) -> None:  # noqa: F811
    export(Api([runs]), tmp_path / "report.html", say=lambda text: None)
    page.goto((tmp_path / "report.html").as_uri())
    row = page.locator("tr", has=page.locator("th", has_text=ENDS)).first
    assert HOSTILE in until(lambda: row.count() and row.inner_text())
    seen = ""
    for number, name in enumerate(PAGES, 1):
        page.keyboard.press(str(number))
        until(lambda name=name: page.locator(f"nav a[aria-current=page][href^='#/{name}']").count())
        time.sleep(0.3)
        assert page.locator("main img, main script, main b b, body > img").count() == 0, name
        seen += page.locator("body").inner_text() + "".join(page.locator("option").all_inner_texts())
    for text in (HOSTILE, ENDS, f"{ENDS}/__proto__", f"val / {HOSTILE} / {ENDS}", "summary.json cannot be read"):
        assert text in seen, text


def test_markup_in_the_recording_itself_ends_no_script(
    page: Any,  # noqa: F811
    runs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its answers are base64, its paths ids: should one ever be a name, it still is data."""

    def further(api: Api, *, say: Callable[[str], None]) -> Iterator[str]:
        yield ENDS
        yield from paths(api, say=say)

    answer = Api.answer
    monkeypatch.setattr(Api, "answer", lambda api, path: b"{}" if path == ENDS else answer(api, path))
    monkeypatch.setattr("distill.dashboard.export.paths", further)
    export(Api([runs]), tmp_path / "report.html", say=lambda text: None)
    page.goto((tmp_path / "report.html").as_uri())
    until(lambda: page.locator("tr", has=page.locator("th", has_text=ENDS)).count())
    assert page.locator("img").count() == 0 and page.locator("script:not([type])").count() == 2
    assert page.evaluate("(path) => document.getElementById(`recorded:${path}`).type", ENDS) == "text/plain"
