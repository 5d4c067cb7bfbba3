"""The dashboard on runs that really ran, tiny ones: what training writes is what the pages read."""

from __future__ import annotations

import json
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsing import browser, drawn, page, served, until  # noqa: F401
from safetensors.numpy import load_file
from waves import TINY

from distill import run
from distill.cost import stored_bytes
from distill.dashboard.__main__ import main
from distill.dashboard.compare import PAIRED
from distill.dashboard.where import paired
from distill.runfolder import read_metrics
from shards import FeatureStore
from shards.ranks import Ranks

RUNS = {
    "good": ["evaluate.floors=[ridge,pixels]", "train.lr=0.003"],
    "broken": ["evaluate.floors=[ridge]", "train.lr=0.5", "train.skip_lr=1", "train.warmup=0"],
    "masked": ["evaluate.floors=[ridge]", "deficiency=masking", "head.tasks=[label]"],
}
STEPS, BATCH = 12, 4


@pytest.fixture(scope="module")
def real(tiny_videos: Path, tiny_features: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with RUNS, and `other`, on other views."""
    root = tmp_path_factory.mktemp("real")
    words = [*TINY, f"data.root={tiny_videos}", f"run.dir={root / 'runs'}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ranks, "leave", lambda self: None)
        for name, own in RUNS.items():
            assert run.main([*words, f"store.path={tiny_features}", *own, f"run.name={name}"]) == 0
        elsewhere = [f"store.path={root / 'store'}", "data.clip_seconds=1", "evaluate.floors=[]"]
        assert run.main([*words, *elsewhere, "run.name=other"]) == 0
    return root / "runs"


@pytest.fixture
def address(real: Path) -> Iterator[str]:
    with served(real) as found:
        yield found


def ask(address: str, path: str) -> Any:
    with urllib.request.urlopen(f"{address}api/{path}") as response:
        return json.loads(response.read())


def test_the_server_tells_where_a_real_run_is_wrong(address: str, real: Path) -> None:
    briefs = {brief["name"]: brief for brief in ask(address, "runs")["runs"]}
    assert all(brief["where"] and brief["state"] == "finished" and not brief["problems"] for brief in briefs.values())
    at = briefs["good"]
    assert at["cost"]["parameters"] > 0 and at["cost"]["macs"] > 0 and at["cost"]["latency_ms"] > 0
    assert ask(address, f"runs/{at['id']}/where")["targets"] == {"videomae": ["converter", "ridge", "pixels"]}
    summary = json.loads((real / "good" / "summary.json").read_text())
    tensors = load_file(real / "good" / "where.safetensors")
    for number, r2c in enumerate(
        (summary["targets"]["videomae"]["r2c"], summary["floors"]["ridge"]["videomae"]["r2c"])
    ):
        found = ask(address, f"runs/{at['id']}/where/0/{number}")
        low, high = min(found["positions"]), max(found["positions"])
        error = tensors[f"videomae/error/{('converter', 'ridge')[number]}/positions"]
        assert found["positions"] == pytest.approx(1 - error / tensors["videomae/spread/positions"], abs=1e-5)
        assert found["grid"] == [4, 4, 4] and len(found["positions"]) == 64 and low < r2c < high
        assert found["clips"]["worst"][0]["r2c"] < r2c < found["clips"]["best"][0]["r2c"]
        assert found["clips"]["of"] == summary["clips"]["test"] == 8 and len(found["shares"]) == 3
        assert {clip["label"] for clip in found["clips"]["worst"] + found["clips"]["best"]} == {"left", "right"}
    first, *others = ask(address, f"runs/{at['id']}/where/0")["pictures"]
    assert len(others) == 7 and first["thumbnails"]["shape"] == [4, 16, 16, 3]
    assert all(first[kind]["shape"] == [4, 4, 4, 3] for kind in ("student", "converted", "teacher"))


def test_a_real_run_has_seconds_and_bytes_beside_every_step(address: str, real: Path, tiny_features: Path) -> None:
    at = next(brief for brief in ask(address, "runs")["runs"] if brief["name"] == "good")
    series = ask(address, f"runs/{at['id']}/series")["series"]
    names = [(one["split"], one["target"], one["metric"]) for one in series]
    loss = ask(address, f"runs/{at['id']}/series/{names.index(('train', None, 'loss'))}")
    store = FeatureStore(tiny_features)
    clip = sum(stored_bytes(store.columns[name]) for name in ("student", "videomae"))
    assert loss["step"] == list(range(1, STEPS + 1)) and loss["bytes"] == [BATCH * clip * step for step in loss["step"]]
    seconds = loss["seconds"]
    assert seconds[0] > 0 and seconds == sorted(seconds) and seconds[-1] < 120
    val = ask(address, f"runs/{at['id']}/series/{names.index(('val', 'videomae', 'r2c'))}")
    assert val["step"] == [5, 10, 12] and val["seconds"] == [seconds[step - 1] for step in (5, 10, 12)]


def test_a_resumed_run_counts_its_seconds_on(
    real: Path, tmp_path: Path, tiny_videos: Path, tiny_features: Path
) -> None:
    folder = tmp_path / "good"
    shutil.copytree(real / "good", folder)
    shutil.rmtree(folder / "checkpoints" / f"step-{STEPS:08d}")
    lines = [line | {"value": line["value"] + 1000 * (line["metric"] == "seconds")} for line in taken(folder)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = [*TINY, *RUNS["good"], f"data.root={tiny_videos}", f"store.path={tiny_features}", f"run.dir={tmp_path}"]
    assert run.main([*words, "run.name=good", "train.resume=auto"]) == 0
    seconds = [line["value"] for line in taken(folder) if line["metric"] == "seconds"]
    assert len(seconds) == STEPS and seconds == sorted(seconds)
    assert seconds[:10] == [line["value"] for line in lines if line["metric"] == "seconds"][:10] and seconds[10] > 1000


def taken(folder: Path) -> list[dict[str, Any]]:
    return list(read_metrics(folder / "metrics.jsonl"))


@pytest.mark.parametrize(
    ("a", "b", "status", "said"),
    [
        ("broken", "good", 0, "B is not shown to be worse"),
        ("good", "broken", 1, "B is worse on videomae"),
        ("good", "other", 2, "not comparable: they differ in"),
    ],
)
def test_the_command_compares_real_runs(
    a: str, b: str, status: int, said: str, real: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As if their 8 test groups were enough, and as they are."""
    for name in (a, b):
        summary = json.loads((shutil.copytree(real / name, tmp_path / name) / "summary.json").read_text())
        (tmp_path / name / "summary.json").write_text(json.dumps(summary | {"marks": {}}))
    assert main(["--compare", str(tmp_path / a), str(tmp_path / b)]) == status
    text = capsys.readouterr().out
    assert said in text and (status == 2 or f"videomae ({PAIRED})" in text)
    assert main(["--compare", str(real / a), str(real / b)]) == 2
    assert status == 2 or "r2c is not to be trusted (8 test groups" in capsys.readouterr().out


def test_the_interval_is_that_of_the_runs_own_gain(real: Path) -> None:
    """Its converter against its ridge, from the sums by clip: the paired gain that its summary has."""
    summary = json.loads((real / "good" / "summary.json").read_text())
    groups = [clip["group"] for clip in json.loads((real / "good" / "where.json").read_text())["clips"]]
    tensors = load_file(real / "good" / "where.safetensors")
    spread = tensors["videomae/spread/clips"]
    ours, theirs = (np.stack([tensors[f"videomae/error/{of}/clips"], spread]) for of in ("converter", "ridge"))
    found, gain = paired(ours, theirs, groups), summary["gain"]["videomae"]
    assert found["value"] == pytest.approx(gain["value"], abs=1e-6)
    assert found["low"] == pytest.approx(gain["low"], abs=0.3 * (gain["high"] - gain["low"]))
    assert found["high"] == pytest.approx(gain["high"], abs=0.3 * (gain["high"] - gain["low"]))


def test_a_deprived_run_has_what_the_page_asks_of_it(address: str) -> None:
    at = next(brief for brief in ask(address, "runs")["runs"] if brief["name"] == "masked")
    assert at["deficiency"]["kind"] == "masking" and at["deficiency"]["twin"] == "twin" and at["head"]
    summary = ask(address, f"runs/{at['id']}")["summary"]
    left = summary["deficiency"]["targets"]["videomae"]
    assert left["rank_recovery"]["k"] >= 0 and left["mask"]["on"] <= 1 and left["effective_rank"]["converted"] > 0
    assert {"value", "low", "high"} <= set(summary["deficiency"]["from_twin"]["videomae"]["r2c"])
    arms = summary["head"]["videomae"]["label"]["all"]
    assert {"accuracy", "alarms", "chance"} <= set(arms["converted"]) and "difference" in arms["converted_supervised"]


@pytest.mark.browser
def test_every_page_shows_real_runs(page: Any, address: str) -> None:  # noqa: F811
    page.goto(address)
    shown = {
        "1": ["Families and floors", "Quality against cost", "Is it still improving"],
        "2": ["val / videomae / r2c"],
        "3": ["r2c by place", "Channels by r2c", "Tokens of"],
        "4": ["Dial against r2c", "Rank recovery", "Accuracy of label"],
        "5": ["B minus A"],
    }
    for key, titles in shown.items():
        page.keyboard.press(key)
        for title in titles:
            drawn(page, title)
        assert "undefined" not in page.locator("main").inner_text() and "NaN" not in page.locator("main").inner_text()
    page.keyboard.press("2")
    before = drawn(page, "val / videomae / r2c")
    for axis in ("seconds", "bytes"):
        page.get_by_label("against").select_option(axis)
        before = until(lambda before=before: (found := drawn(page, "val / videomae / r2c")) != before and found)
    page.keyboard.press("3")
    first = drawn(page, "r2c by place")
    page.get_by_label("errors of").select_option("ridge")
    until(lambda: drawn(page, "r2c by place, a square for each frame of tokens: videomae, ridge") != first)
