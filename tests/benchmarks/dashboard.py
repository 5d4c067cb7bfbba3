"""What the dashboard takes on 200 runs x 1000 steps x 3 teachers x 10 metrics: the table of docs/dashboard.md.

    python tests/benchmarks/dashboard.py [--runs 200] [--steps 1000] [--folder FOLDER]

Writes the runs (585 MB) into a temporary folder and removes them. Needs Linux, for memory is read from /proc, and a
Chromium. Times of the first chart are from the start of navigation until it is drawn, by the browser's own clock.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "distill" / "dashboard"))
from browsing import executable
from run_folders import METRICS, TARGETS, recipe, summary, write_where

FAMILIES = ("perceiver", "dsconv", "mamba", "tokenlearner")
LOGGED = (*METRICS, "knn", "procrustes", "loss")
SHOWN = 12  # runs at a time on Curves
TITLES = {"overview": "Families and floors", "where": "r2c by place", "compare": "B minus A"}
WINDOW = {"width": 1400, "height": 900}
Row = tuple[str, str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder, sync_playwright() as playwright:
        root = Path(folder) / "runs"
        say(f"writing {given.runs} runs into {root}")
        size = sum(write(root, number, given.steps) for number in range(given.runs))
        lines = given.runs * given.steps * len(TARGETS) * len(LOGGED)
        print(f"{given.runs} runs x {given.steps} steps x {len(TARGETS)} teachers x {len(LOGGED)} metrics: ", end="")
        print(f"{lines / 1e6:.1f} million lines, {size / 1e6:.0f} MB; load {os.getloadavg()[0]:.1f}", end="")
        print(f", {len(os.sched_getaffinity(0))} core(s)\n\n| | |\n|---|---|")

        @contextmanager
        def browsing() -> Iterator[Any]:
            found = playwright.chromium.launch(
                executable_path=executable(playwright.chromium.executable_path), args=["--no-sandbox", "--disable-gpu"]
            )
            yield found.new_page(viewport=WINDOW)
            found.close()

        for name, value in chain.from_iterable(part(root, browsing) for part in (first_charts, whole_visit, exported)):
            print(f"| {name} | {value} |", flush=True)


def write(root: Path, number: int, steps: int) -> int:
    """A run that ended, with its 30 curves; every tenth says where it is wrong. Returns the bytes of its metrics."""
    family, r2c = FAMILIES[number % len(FAMILIES)], 0.4 + 0.4 * (number * 7 % 100) / 100
    folder = root / f"sweep{number // 20}" / f"{family}-{number:03d}"
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(recipe(family=family, steps=steps, lr=0.001 + number / 1e5, name=folder.name))
    (folder / "summary.json").write_text(json.dumps(summary(family=family, r2c=r2c)))
    if number % 10 == 0:
        write_where(folder, r2c=r2c)
    draw = np.random.default_rng(number)
    level = r2c * (1 - np.exp(-4 * np.arange(1, steps + 1) / steps))
    with open(folder / "metrics.jsonl", "w") as file:
        for step in range(steps):
            values = iter((level[step] + draw.normal(0, 0.01, len(TARGETS) * len(LOGGED))).tolist())
            file.writelines(
                f'{{"step": {step + 1}, "split": "val", "target": "{target}", "metric": "{metric}", '
                f'"value": {next(values)}}}\n'
                for target in TARGETS
                for metric in LOGGED
            )
    return (folder / "metrics.jsonl").stat().st_size


# --- what is measured


def first_charts(root: Path, browsing: Callable[[], Any]) -> Iterator[Row]:
    """In a browser and on a server that have both just started, and once more in the same."""
    for title, path in (
        ("Overview, the server just started", ""),
        ("Curves, none of the metrics read yet", "#/curves"),
    ):
        with serving(root) as (address, _), browsing() as page:
            page.goto(address + path)
            cold = marked(page) / 1000
            page.reload()
            yield f"first chart, {title}", f"{cold:.2f} s ({marked(page) / 1000:.2f} s once it is warm)"


def marked(page: Any) -> float:
    """When the first chart was drawn, in milliseconds."""
    return wait(lambda: page.evaluate("() => performance.getEntriesByName('first-chart')[0]?.startTime"))


def whole_visit(root: Path, browsing: Callable[[], Any]) -> Iterator[Row]:
    """Every metric of twelve runs, then every page; and a line that is appended meanwhile."""
    with serving(root) as (address, server), browsing() as page:
        page.goto(address)
        ids = page.evaluate(
            "async () => (await (await fetch('api/runs')).json()).runs.map((run) => [run.id, run.name])"
        )
        chosen = ids[:: max(1, len(ids) // SHOWN)][:SHOWN]
        page.goto(f"{address}#/curves?runs={','.join(name for name, _ in chosen)}")
        for target in TARGETS:
            for metric in LOGGED:
                name = f"val / {target} / {metric}"
                wait(lambda: page.get_by_label("metric", exact=True).count())
                page.get_by_label("metric", exact=True).select_option(name)
                wait(lambda name=name: page.locator("h2", has_text=name).count())
        yield "a line appended until it is seen", f"{appended(page, root / chosen[0][1], name):.1f} s"
        visit(page, address)
        heap = page.evaluate("() => performance.memory.usedJSHeapSize") / 1e6
        share = f"{renderer():.0f} MB (proportional share of the renderer), heap {heap:.0f} MB"
        yield f"the browser after all pages and {len(TARGETS) * len(LOGGED)} metrics of {len(chosen)} runs", share
        yield "the server then", f"{kilobytes(server, 'status', 'VmRSS:') / 1e3:.0f} MB"


def appended(page: Any, run: Path, name: str) -> float:
    """Seconds from a line's writing until it stands in the chart's table."""
    page.get_by_role("button", name="Table").click()
    _, target, metric = name.split(" / ")
    with open(run / "metrics.jsonl", "a") as file:
        entry = {"step": 987_654, "split": "val", "target": target, "metric": metric, "value": 0.5}
        file.write(json.dumps(entry) + "\n")
    start = time.perf_counter()
    wait(page.locator("xpath=//td[.='987654']").count)
    return time.perf_counter() - start


def visit(page: Any, address: str) -> None:
    for name, title in TITLES.items():
        page.goto(f"{address}#/{name}")
        wait(lambda title=title: page.locator("h2", has_text=title).count())
        page.wait_for_timeout(2000)
    page.goto(f"{address}#/deficiency")
    page.wait_for_timeout(2000)


def exported(root: Path, browsing: Callable[[], Any]) -> Iterator[Row]:
    file, start = root.parent / "report.html", time.perf_counter()
    subprocess.run([*COMMAND, str(root), "--export", str(file)], check=True, capture_output=True)
    seconds, size = time.perf_counter() - start, file.stat().st_size / 1e6
    with browsing() as page:
        page.goto(file.as_uri())
        first = marked(page) / 1000
        visit(page, file.as_uri())
        yield (
            "export",
            f"{size:.0f} MB, {seconds:.0f} s; first chart {first:.2f} s, {renderer():.0f} MB after all pages",
        )


# --- processes


COMMAND = [sys.executable, "-m", "distill.dashboard"]


@contextmanager
def serving(root: Path) -> Iterator[tuple[str, int]]:
    """The address and process id of a server that has just started."""
    server = subprocess.Popen([*COMMAND, str(root), "--port", "0"], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    line = server.stdout.readline()
    try:
        yield line.split(" at ")[1].split(" ")[0], server.pid
    finally:
        server.terminate()
        server.wait()


def renderer() -> float:
    """Megabytes of the largest renderer below this process, memory that several share counted in proportion."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and (entry / "stat").exists():
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    ours = {os.getpid()}
    while more := {process for process, parent in parents.items() if parent in ours} - ours:
        ours |= more
    rendering = [at for at in ours if b"--type=renderer" in Path(f"/proc/{at}/cmdline").read_bytes()]
    return max(kilobytes(at, "smaps_rollup", "Pss:") for at in rendering) / 1e3


def kilobytes(process: int, file: str, name: str) -> int:
    lines = Path(f"/proc/{process}/{file}").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(name)))


def wait(found: Callable[[], Any], seconds: float = 120) -> Any:
    end = time.perf_counter() + seconds
    while not (value := found()):
        if time.perf_counter() > end:
            raise TimeoutError(f"nothing came in {seconds:g} s")
        time.sleep(0.02)
    return value


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
