"""What a run says at its end."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from distill.report import STANDIN_WARNING, end_table, model_card
from distill.runfolder import RunFolder
from distill.table import format_table, number

METRICS = {"r2c": 0.8, "r2": 0.85, "cos_std": 0.9, "cka": None, "nmse": 0.2, "cosine": 0.99}
SUMMARY: dict[str, Any] = {
    "recipe": "perceiver_videomae",
    "family": "perceiver",
    "weights": "standin",
    "targets": {"videomae": METRICS},
    "intervals": {"videomae": {"r2c": [0.7, None]}},
    "floors": {"ridge": {"videomae": METRICS | {"r2c": -0.25}}, "pixels": {"vivit": METRICS}},
    "marks": {"videomae": {"r2c": "3 test clips, 8 needed", "r2": "3 test clips, 8 needed"}},
    "gain": {"videomae": {"value": 0.05, "low": 0.01, "high": 0.09}},
    "lead": {},
    "cost": {"parameters": 4_770_000, "macs": 5_400_000_000, "latency_ms": 61.4, "threads": 2, "device": "cpu"},
    "clips": {"train": 56, "val": 12, "test": 3, "refused": 1},
    "digests": {"split": "abc"},
}


def test_end_table_says_all_of_it() -> None:
    folders = {"converter": RunFolder(Path("runs/x"))}
    lines = end_table({"converter": SUMMARY}, folders, store=Path("features/y")).splitlines()
    assert "videomae, 3 test clips" in lines
    cells = {line.split("  ")[0]: line.split() for line in lines}
    assert cells["perceiver"] == ["perceiver", "0.800", "0.700", "..", "-", "0.850", "0.900", "-", "0.200", "0.990"]
    assert cells["ridge"][:2] == ["ridge", "-0.250"] and "pixels" not in cells  # that floor has another target
    assert "gain over ridge, paired: 0.0500 (0.0100 .. 0.0900)" in lines
    assert lines.count("not to be trusted: r2c, r2 (3 test clips, 8 needed)") == 1
    assert "4.77 M parameters, 5.40 GMAC and 61 ms a clip (cpu, 2 threads, fp32, batch 1, all targets)" in lines
    assert "clips: 56 train, 12 val, 3 test, 1 refused" in lines
    assert lines[-4:] == [STANDIN_WARNING, "run       runs/x", "bundle    runs/x/bundle", "features  features/y"]
    published = {"converter": SUMMARY | {"weights": "pretrained"}}
    assert STANDIN_WARNING not in end_table(published, folders, store=Path("f"))


def test_model_card_carries_origins_and_numbers() -> None:
    columns = {name: SimpleNamespace(origin={"licence": name}) for name in ("student", "videomae", "pixels_videomae")}
    manifest = SimpleNamespace(view={"clip_seconds": 2.0})
    card = model_card(SUMMARY, SimpleNamespace(columns=columns, manifest=manifest))  # type: ignore[arg-type]
    assert card["origins"] == {"student": {"licence": "student"}, "videomae": {"licence": "videomae"}}
    assert card["name"] == "perceiver_videomae" and card["metrics"] == SUMMARY["targets"]
    assert card["training"]["view"] == {"clip_seconds": 2.0}
    assert card["digests"] == {"split": "abc"} and card["training"]["gain"] == SUMMARY["gain"]


def test_tables_align() -> None:
    assert format_table(["name", "x"], [["a", "1.25"], ["longer", "-2"]]).splitlines() == [
        "name       x",
        "------  ----",
        "a       1.25",
        "longer    -2",
    ]
    assert number(None) == "-" and number(0.12345, 4) == "0.1235"
