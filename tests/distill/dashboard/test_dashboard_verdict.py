"""Can I believe it: what the Overview answers, and that its yes says no more than is so."""

# ruff: noqa: F401, F811 (fixtures are imported, and named again by the tests that take them)
from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from browsing import browser, page, served, until
from run_folders import FLOORS, write_run

from distill.dashboard.api import Api
from distill.dashboard.server import Server

pytestmark = pytest.mark.browser

TARGET = "videomae"
SEEDS = (0, 1, 2)


def floors(**changed: float | None) -> dict[str, Any]:
    """Those of every run here, with some at another r2c, or without them."""
    return {name: {TARGET: {"r2c": value}} for name, value in (FLOORS | changed).items() if value is not None}


def span(value: float, low: float) -> dict[str, Any]:
    return {TARGET: {"value": value, "low": low, "high": 2 * value - low}}


def row(page: Any, root: Path) -> str:
    """The teacher's row of the Overview."""
    with served(root) as address:
        page.goto(address)
        found = page.locator("tr", has=page.locator("th", has_text=TARGET))
        return until(lambda: found.count() and found.first.inner_text())


def write_seeds(root: Path, *each: dict[str, Any], seeds: Sequence[int] = SEEDS) -> None:
    """A recipe in some seeds; each: entries of the first's summary, of the second's, ..."""
    for at, seed in enumerate(seeds):
        folder = write_run(root / "one" / f"seed{seed}", seed=seed, steps=10, targets=[TARGET])
        told = json.loads((folder / "summary.json").read_text()) | (each[at] if at < len(each) else {})
        (folder / "summary.json").write_text(json.dumps(told))


ALL = ["mlp", "position_mean", "pixels", "ridge", "ridge_local", "shuffled"]
LEFT_OUT = {name: None for name in ALL if name != "ridge"}


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"above": {name: span(0.1, 0.05) for name in ALL}}, "paired, above ridge, position_mean, pixels, ridge_local"),
        (
            {},
            "✓ yes: paired, above ridge; by the bare numbers, above position_mean, pixels, ridge_local, mlp, shuffled",
        ),
        ({"above": {"mlp": span(0.1, 0.01)}}, "✓ yes: paired, above ridge, mlp; by the bare numbers, above position"),
        ({"floors": floors(**LEFT_OUT)}, "! with care: no pixels floor; no mlp floor; no shuffled floor"),
        ({"floors": floors(ridge=None), "gain": {}}, "! with care: no ridge floor"),
        ({"gain": {}}, "! with care: above ridge by the bare numbers alone"),
        ({"clips": {"test": 200, "refused": 3}}, "! with care: 3 clips refused"),
        ({"marks": {TARGET: {"r2c": "4 test groups"}}}, "✕ no: 4 test groups"),
        ({"weights": "standin"}, "✕ no: stand-in backbones"),
        ({"floors": floors(shuffled=0.2)}, "✕ no: shuffled control is 0.20: something leaks"),
        ({"floors": floors(shuffled=-0.2)}, "✕ no: shuffled control is -0.20: something leaks"),
        ({"floors": floors(shuffled_converter=0.2)}, "✕ no: the converter on wrong pairs reaches 0.20"),
        ({"floors": floors(pixels=0.55)}, "✕ no: pixels alone reach 0.55"),
        ({"floors": floors(mean=0.6)}, "✕ no: not above mean"),
        ({"floors": floors(position_mean=0.7)}, "✕ no: not above position_mean"),
        ({"gain": span(0.1, -0.01)}, "✕ no: not shown to be above ridge, paired"),
        ({"above": {"mlp": span(0.05, -0.01)}}, "✕ no: not shown to be above mlp, paired"),
        ({"above": {"mlp": {TARGET: {"value": 0.05, "low": None, "high": None}}}}, "✕ no: not shown to be above mlp"),
        ({"targets": {TARGET: {"r2": 0.5}}}, "✕ no: not every seed has an r2c"),
    ],
)
def test_what_can_be_believed(page: Any, tmp_path: Path, entries: dict, said: str) -> None:
    write_seeds(tmp_path, entries, entries, entries)
    assert said in row(page, tmp_path)


def test_what_is_wrong_with_any_seed_is_wrong_with_all(page: Any, tmp_path: Path) -> None:
    write_seeds(tmp_path, {}, {"marks": {TARGET: {"r2c": "4 test groups"}}}, {"gain": span(0.1, -0.02)})
    assert "✕ no: 4 test groups; not shown to be above ridge, paired" in row(page, tmp_path)


def test_one_seed_or_a_rival_not_shown_to_be_behind_asks_for_care(page: Any, tmp_path: Path) -> None:
    write_seeds(tmp_path, seeds=[0])
    write_run(tmp_path / "one" / "mamba", family="mamba", r2c=0.59, steps=10, targets=[TARGET])
    assert "! with care: 1 seed; not shown to be ahead of mamba" in row(page, tmp_path)


def test_a_floor_is_the_mean_over_seeds(page: Any, tmp_path: Path) -> None:
    """Its first seed alone would lie above."""
    write_seeds(tmp_path, *({"floors": floors(mlp=value)} for value in (0.61, 0.5, 0.5)))
    assert "✓ yes" in row(page, tmp_path)


def test_a_floor_that_was_made_for_another_converter_says_nothing(page: Any, tmp_path: Path) -> None:
    """Its MLP has other parameters; its pixels are the same clips'."""
    without = {"floors": floors(mlp=None, pixels=None)}
    write_seeds(tmp_path, without, without, without)
    rival = {"r2c": 0.55, "floors": floors(mlp=0.65, pixels=0.3)}
    write_run(tmp_path / "one" / "mamba", family="mamba", steps=10, targets=[TARGET], **rival)
    text = row(page, tmp_path)
    assert "no mlp floor" in text and "no pixels floor" not in text and "not above mlp" not in text


@pytest.mark.parametrize(
    ("beyond", "said"),
    [
        ((None, None, None), "as a shift of 1.30 px"),
        ((4.0, None, None), "beyond 4 px in 1 of 3 seeds"),
        ((4.0, 4.0, 4.0), "worse than a shift of 4 px"),
    ],
)
def test_a_shift_of_all_seeds_is_beyond_only_where_all_are(
    page: Any,
    tmp_path: Path,
    beyond: Sequence[float | None],
    said: str,
) -> None:
    each = [{"value": 1.3 if at is None else None, "beyond": at} for at in beyond]
    write_seeds(tmp_path, *({"equivalent_pixels": {TARGET: one}} for one in each))
    text = row(page, tmp_path)
    assert said in text and text.count("px") == 1
