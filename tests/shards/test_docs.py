"""docs/store.md: its five lines run, and what it says of int8 is what we decode."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import torch
from safetensors.torch import load_file

from shards.store import FeatureStore

DOCS = Path(__file__).resolve().parents[2] / "docs" / "store.md"


def test_five_lines_of_other_tools(store: FeatureStore, tmp_path: Path) -> None:
    text = DOCS.read_text()
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]  # type: ignore[index]
    lines = [line for line in code.splitlines() if line]
    assert len(lines) == 4 and "from shards" not in code  # the fifth is what the user does with them
    script = tmp_path / "five_lines.py"
    script.write_text(code.replace("STORE", str(store.path)))
    place = runpy.run_path(str(script))
    found, calibration = place["tensors"], load_file(store.path / "student" / "calibration.safetensors")
    assert "`tokens = q * scale[:, None] * deviation + mean`" in text
    tokens = found["q"] * found["scale"].float()[:, None] * calibration["deviation"] + calibration["mean"]
    assert place["sample"]["__key__"] == store.keys[3] and torch.allclose(tokens, store[3]["student"], atol=1e-4)
