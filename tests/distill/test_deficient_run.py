"""Deficient converters through the whole command: beside their twin from one read, measured, and resumed exactly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_contest import OPTIONS as FAMILIES_RUN
from test_contest import untimed
from test_run_processes import finish, losses, start_ranks

from converters import load_converter
from distill import run
from distill.runfolder import RunFolder, read_metrics

OPTIONS = "options={width: 32, latents: 8, heads: 2, blocks: 1}"
HEAD = "head={tasks: [label], rank: 2}"
ARMS = {
    "low": "{kind: low_rank, rank: 2, strength: 0.01}",
    "both": "{kind: combined, nuclear: 0.01, ratio: 0.5}",
    "smooth": "{kind: jacobian, strength: 0.1, every: 2}",
}


def words(tiny: list[str]) -> list[str]:
    """The tiny run as a contest of one family: whole, and in every deficiency."""
    rest = [word for word in tiny if not word.startswith(("recipe=", "converter."))]
    arms = [word for name in ARMS for word in (f"contest.{name}.family=perceiver", f"contest.{name}.{OPTIONS}")]
    arms += [f"contest.{name}.deficiency={settings}" for name, settings in ARMS.items()]
    head = ["recipe=contest_videomae", "contest=[perceiver]", f"contest.perceiver.{OPTIONS}"]
    return [*head, *rest, *arms, "evaluate.floors=[ridge]", "train.resume=auto", HEAD]


class Killed(BaseException):
    """Nothing catches it, as nothing catches SIGKILL."""


def summary(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "summary.json").read_text())
    return {key: value for key, value in found.items() if key not in ("recipe", "cost")}


def test_deficient_converters_beside_their_twin_and_resumed(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.main([*words(tiny), "run.name=whole"]) == 0
    top, text = tmp_path / "runs" / "whole", capsys.readouterr().out
    found = {name: summary(top / name) for name in ("perceiver", *ARMS)}
    check_what_is_left(found)
    check_twins(found)
    check_what_is_written(top)
    assert any(line.split()[:3] == ["low", "low_rank", "0.01,"] for line in text.splitlines())

    save = RunFolder.save_checkpoint

    def dies(folder: RunFolder, step: int, *rest: Any) -> None:
        if step == 10:
            raise Killed
        save(folder, step, *rest)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(RunFolder, "save_checkpoint", dies)
        run.main([*words(tiny), "run.name=broken"])
    assert run.main([*words(tiny), "run.name=broken"]) == 0
    for name, entry in found.items():
        assert summary(top.with_name("broken") / name) == entry

    alone = [*tiny, f"converter.{OPTIONS}", "deficiency=masking", "evaluate.floors=[ridge]", HEAD, "run.name=alone"]
    assert run.main([*alone, "deficiency.kind=combined", "deficiency.nuclear=0.01"]) == 0
    check_an_arm_is_as_alone(top / "both", top.with_name("alone"))


def check_what_is_left(found: dict[str, Any]) -> None:
    left = {name: entry["deficiency"]["targets"]["videomae"] for name, entry in found.items()}
    kinds = {name: (entry["deficiency"]["kind"], entry["deficiency"]["amounts"]) for name, entry in found.items()}
    assert kinds == {
        "perceiver": ("none", {}),
        "low": ("low_rank", {"nuclear": 0.01, "rank": 2}),
        "both": ("combined", {"nuclear": 0.01, "rank": "full", "mask_ratio": 0.5, "entropy": 0.1}),
        "smooth": ("jacobian", {"jacobian": 0.1}),
    }
    assert len([value for value in left["low"]["singular_values"]["grid"] if value > 1e-4]) == 2
    assert left["low"]["rank_recovery"]["k"] <= 2 < left["perceiver"]["rank_recovery"]["k"]
    assert left["low"]["effective_rank"]["converted"] <= 2.01 < left["perceiver"]["effective_rank"]["converted"]
    assert left["low"]["effective_rank"]["teacher"] == left["perceiver"]["effective_rank"]["teacher"]
    for name, entry in left.items():
        assert entry["jacobian"]["value"] > 3 * entry["jacobian"]["standard_error"] > 0
        assert entry["effective_rank"]["note"] and ("mask" in entry) == (name == "both")
    mask = left["both"]["mask"]
    assert mask["off"] == found["both"]["targets"]["videomae"]["r2c"] > mask["on"] and mask["deviation"] > 0
    assert mask["difference"]["value"] == pytest.approx(mask["on"] - mask["off"])


def check_twins(found: dict[str, Any]) -> None:
    whole = found["perceiver"]
    scores = whole["targets"]["videomae"]
    assert whole["deficiency"]["twin"] is None and whole["deficiency"]["from_twin"] == {}
    for name in ARMS:
        own, entry = found[name], found[name]["deficiency"]
        change = entry["from_twin"]["videomae"]
        assert entry["twin"] == "perceiver" and own["floors"]["twin"]["videomae"].items() <= scores.items()
        assert change["r2c"] == own["lead"]["perceiver"]["videomae"]
        ours, theirs = (at["deficiency"]["targets"]["videomae"] for at in (own, whole))
        assert change["k"]["value"] == ours["rank_recovery"]["k"] - theirs["rank_recovery"]["k"]
        both = [at["effective_rank"]["converted"] for at in (ours, theirs)]
        assert change["effective_rank"]["value"] == both[0] - both[1]
        assert change["jacobian"]["value"] == ours["jacobian"]["value"] - theirs["jacobian"]["value"]
    masked = found["both"]["deficiency"]["from_twin"]["videomae"]["r2c_masked"]
    on = found["both"]["deficiency"]["targets"]["videomae"]["mask"]["on"]
    assert masked["value"] == pytest.approx(on - whole["targets"]["videomae"]["r2c"])
    assert masked["low"] < masked["value"] < masked["high"]
    heads = {name: entry["head"] for name, entry in found.items()}
    assert list(heads["both"]) == ["videomae", "videomae with the mask on"] and list(heads["low"]) == ["videomae"]
    twin, *rest = (at["label"]["all"]["converted_supervised"] for name in heads for at in heads[name].values())
    assert twin["from_twin"] is None and len(rest) == 4
    for arm in rest:
        lost = arm["accuracy"]["value"] - twin["accuracy"]["value"]
        assert arm["from_twin"]["value"] == pytest.approx(lost)


def check_what_is_written(top: Path) -> None:
    lines = list(read_metrics(top / "low" / "metrics.jsonl"))
    assert len([line for line in lines if line["metric"] == "nuclear"]) == 12
    assert [line["value"] for line in lines if line["metric"] == "map_rank"] == pytest.approx([2, 2], abs=0.2)
    steps = [line["step"] for line in read_metrics(top / "smooth" / "metrics.jsonl") if line["metric"] == "jacobian"]
    assert steps == [3, 5, 7, 9, 11]
    converter = load_converter(top / "low" / "bundle")
    y = converter(torch.randn(3, *converter.student.shape), standardised=True)["videomae"].flatten(0, 1)
    assert int(torch.linalg.matrix_rank((y - y.mean(0)).detach(), rtol=1e-4)) == 2
    card = json.loads((top / "low" / "bundle" / "config.json").read_text())["training"]["deficiency"]
    assert card == {"kind": "low_rank", "strength": 0.01, "amounts": {"nuclear": 0.01, "rank": 2}, "twin": "perceiver"}


def check_an_arm_is_as_alone(arm: Path, alone: Path) -> None:
    """Weights bit for bit, and its twin, which it trains itself then, is the contestant that lacks nothing."""
    ours, theirs = (load_file(folder / "bundle" / "model.safetensors") for folder in (arm, alone))
    assert set(ours) == set(theirs) and all(torch.equal(ours[name], value) for name, value in theirs.items())
    one, other = summary(arm), summary(alone)
    assert (one["deficiency"].pop("twin"), other["deficiency"].pop("twin")) == ("perceiver", "twin")
    assert one.pop("lead") and not other.pop("lead") and one == other
    assert untimed(arm) == untimed(alone)


@pytest.mark.slow
@pytest.mark.parametrize("zero", [0, 1])
def test_every_family_in_every_deficiency_on_two_ranks(zero: int, tiny: list[str], tmp_path: Path) -> None:
    """The same losses and measures as on one, with the twins that nobody named; a Jacobian's directions and variance
    are a rank's own."""
    kinds = ("{kind: combined, rank: 2, nuclear: 0.01, ratio: 0.5}", "{kind: jacobian, strength: 0.1, every: 1}")
    arms = {f"{family}{number}": (family, kind) for family in FAMILIES_RUN for number, kind in enumerate(kinds)}
    rest = [word for word in tiny if not word.startswith(("recipe=", "converter."))]
    command = [
        "recipe=contest_videomae",
        "contest=[perceiver]",
        f"contest.perceiver.options={FAMILIES_RUN['perceiver']}",
    ]
    command += [*rest, "evaluate.floors=[ridge]", "train.steps=6"]
    for name, (family, kind) in arms.items():
        settings = {"family": family, "options": FAMILIES_RUN[family], "deficiency": kind}
        command += [f"contest.{name}.{key}={value}" for key, value in settings.items()]
    assert run.main([*command, "run.name=one"]) == 0
    both = start_ranks([*command, "run.name=two", f"engine=zero{zero}"], tmp_path)
    assert [finish(process, tmp_path) for process in both] == [0, 0]
    for name, (family, _) in arms.items():
        folders = [tmp_path / "runs" / ranks / name for ranks in ("one", "two")]
        one, two = map(losses, folders)
        assert len(one) == len(two) == 6 and one[1] == pytest.approx(two[1], rel=1e-3)
        ours, theirs = (summary(folder)["deficiency"] for folder in folders)
        twin = "perceiver" if family == "perceiver" else f"{family}0/twin"
        assert ours["twin"] == theirs["twin"] == twin
        if name.endswith("0"):
            assert list(one.values()) == pytest.approx(list(two.values()), rel=1e-3)
            mine, other = (at["from_twin"]["videomae"] for at in (ours, theirs))
            for key in ("r2c", "r2c_masked", "k", "effective_rank", "jacobian"):
                assert mine[key]["value"] == pytest.approx(other[key]["value"], rel=1e-3, abs=1e-3), (name, key)


def test_a_rank_above_the_width_dies_before_extraction(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rest = [word for word in tiny if not word.startswith("store.path")]
    store = f"store.path={tmp_path / 'store'}"
    assert run.main([*rest, store, "deficiency=low_rank", "deficiency.rank=99"]) == 1
    assert "rank is 99, but target 'videomae' has 24 channels" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


def test_a_run_without_a_deficiency_measures_none(tiny: list[str], tmp_path: Path) -> None:
    assert run.main([*tiny, "train.steps=1", "evaluate.floors=[ridge]", "run.name=run"]) == 0
    assert summary(tmp_path / "runs" / "run")["deficiency"] is None
