"""The benchmark of the question, at one tiny seed: what stands beside a deficient converter is what it says."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import head
import pytest
import torch
import twins
from waves import TINY

from distill import run


def test_deficient_against_whole_and_controls(
    tiny_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(twins, "STRENGTHS", {"masking": (1.0,), "low_rank": (0.1,)})
    monkeypatch.setattr(twins, "NARROW", {"thin": {"width": 16}})
    words = [word.replace("targets.videomae", "targets.miniature_masked") for word in TINY]
    words = [word for word in words if not word.startswith(("recipe=", "converter.", "data.", "train.steps"))]
    words += ["backbones=standin", f"data.root={tiny_videos}", "train.steps=4"]
    words += [f"store.path={tmp_path / 'store'}"]
    options = '{"width": 32, "latents": 8, "heads": 2, "blocks": 1}'
    asked = ["--dials", "low_rank", "masking", "--options", options, "--stops", "1", "--tasks", "label", "--rank", "2"]
    head.main([*words, *asked, "--json", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())
    assert list(found) == ["low_rank-0_1", "masking-1", "masking-1 with the mask on"]
    for name, rows in found.items():
        assert list(rows) == ["deficient", "whole", "noise", "early", "narrower"]
        assert rows["deficient"]["names"] == [name] and rows["deficient"]["difference"]["value"] == 0
        for row in rows.values():
            gain = rows["deficient"]["converted_supervised"] - row["converted_supervised"]
            assert row["difference"]["value"] == pytest.approx(gain, abs=1e-6)
        r2c = {role: row["r2c"] for role, row in rows.items()}
        assert r2c["noise"] == pytest.approx(min(r2c["deficient"], r2c["whole"]), abs=0.1)  # matched on 4 val clips
    lines = capsys.readouterr().out.splitlines()
    assert "1 seed(s), tasks label, rank 2" in lines[-1 - sum(len(rows) + 3 for rows in found.values())]


def test_noise_is_the_same_for_all_tokens_of_a_clip() -> None:
    class Zero:
        def __init__(self) -> None:
            self.targets = {"t": None}
            self.target_normalisers = {"t": SimpleNamespace(scale=torch.tensor([1.0, 10.0]))}

        def __call__(self, tokens: torch.Tensor, *, positions: object = None) -> dict[str, torch.Tensor]:
            return {"t": torch.zeros(500, 3, 2)}

    noisy = twins.Noisy(Zero(), 0.5, torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    found = noisy(torch.zeros(500, 1, 1))["t"]
    assert (found == found[:, :1]).all() and found[:, 0].std(0).tolist() == pytest.approx([0.5, 5], rel=0.1)


def test_two_seeds_and_finished_runs(tmp_path: Path) -> None:
    arms = dict.fromkeys(head.ARMS, torch.tensor([1.0, 0, 1, 1], dtype=torch.float64))
    worse = dict.fromkeys(head.ARMS, torch.tensor([1.0, 0, 0, 0], dtype=torch.float64))

    def entry(hits: dict[str, torch.Tensor]) -> dict[str, object]:
        return {"name": "x", "r2c": 0.5, "hits": {"a": hits, "b": hits}}

    seeds = [{"deficient": entry(arms), "whole": entry(other)} for other in (worse, arms)]
    found = head.row(seeds, "whole", torch.ones(2, 4, dtype=torch.float64))
    assert found["difference"] == {"value": 0.25, "low": 0.25, "high": 0.25}
    assert found["seeds"]["each"] == [0.5, 0] and found["seeds"]["low"] == pytest.approx(0.25 - 12.706 * 0.25)
    with pytest.raises(SystemExit, match="holds no contestant without a deficiency: none at all"):
        twins.finished(tmp_path, run.Ranks())
