"""Run B minus run A: the interval against torch's of the training's own metrics, and every reason to refuse."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from run_folders import DIGESTS, summary, write_run, write_where
from safetensors.numpy import load_file, save_file

from distill.dashboard.__main__ import main
from distill.dashboard.compare import PAIRED, UNPAIRED, compare
from distill.dashboard.runs import Run
from distill.dashboard.where import Where, paired


def pair(a: Path, b: Path) -> dict:
    return compare(Run(a, a.name), Run(b, b.name))


def test_the_interval_is_that_of_the_difference_over_groups() -> None:
    """Against the normal law: with many groups the bootstrap's width is 1.96 standard errors to either side."""
    draw = np.random.default_rng(0)
    common, groups = draw.gamma(9, 1 / 9, 600), [f"g{n // 2}" for n in range(600)]
    theirs = np.stack([0.4 * common, np.ones(600)])
    ours = np.stack([0.4 * common + 0.05 + 0.1 * np.repeat(draw.normal(size=300), 2), np.ones(600)])
    found = paired(ours, theirs, groups)
    change = (theirs[0] - ours[0]).reshape(300, 2).mean(1)
    assert found["value"] == pytest.approx(change.mean())
    half = 1.96 * change.std(ddof=1) / 300**0.5
    assert found["high"] - found["value"] == pytest.approx(half, rel=0.1)
    assert found["value"] - found["low"] == pytest.approx(half, rel=0.1)
    assert paired(ours, ours, groups) == {"value": 0, "low": 0, "high": 0}


def test_clips_of_both_give_a_paired_interval(tmp_path: Path) -> None:
    a, b = (write_run(tmp_path / name, r2c=r2c, where=True) for name, r2c in (("a", 0.6), ("b", 0.7)))
    found = pair(a, b)
    change = found["targets"]["videomae"]["r2c"]
    assert found["notes"]["videomae"] == PAIRED and found["recipe"] == []
    assert change["value"] == pytest.approx(0.1) and 0.05 < change["low"] < change["high"] < 0.15
    assert "low" not in found["targets"]["videomae"]["cka"]


def test_a_contest_gives_the_interval_of_its_summary(tmp_path: Path) -> None:
    a = write_run(tmp_path / "top" / "mamba", family="mamba", r2c=0.5)
    lead = {"mamba": {"videomae": {"value": 0.1, "low": 0.08, "high": 0.12}}}
    b = write_run(tmp_path / "top" / "perceiver", r2c=0.6, lead=lead)
    found = pair(a, b)
    assert (found["targets"]["videomae"]["r2c"]["low"], found["notes"]["vivit"]) == (0.08, UNPAIRED)
    assert found["recipe"] == [["converter.family", "mamba", "perceiver"]]
    elsewhere = write_run(tmp_path / "other" / "perceiver", r2c=0.6, lead=lead)
    assert pair(a, elsewhere)["notes"]["videomae"] == UNPAIRED


@pytest.mark.parametrize("name", list(DIGESTS))
def test_other_clips_or_another_space_are_refused_by_name(name: str, tmp_path: Path) -> None:
    a = write_run(tmp_path / "a")
    b = write_run(tmp_path / "b", digests=DIGESTS | {name: "0123456789abcdef"})
    found = pair(a, b)
    assert f"they differ in {name} ({name}: {name[0] * 12} and 0123456789ab)" in found["refused"]
    assert "targets" not in found


def test_runs_that_share_a_target_in_another_space_are_refused(tmp_path: Path) -> None:
    """The normaliser of all targets says nothing where these are not the same: the space of each does."""
    a = write_run(tmp_path / "a", targets=["videomae"])
    b = write_run(tmp_path / "b", targets=["videomae", "vivit"], spaces={"videomae": "another", "vivit": "v"})
    assert (
        "they differ in normaliser of videomae (normaliser of videomae: space of vid and another)"
        in (pair(a, b)["refused"])
    )
    c = write_run(tmp_path / "c", targets=["videomae", "vivit"], spaces={})
    assert "(normaliser of videomae: space of vid and not told)" in pair(a, c)["refused"]
    found = pair(a, write_run(tmp_path / "d", targets=["videomae", "vivit"], digests=DIGESTS | {"normaliser": "both"}))
    assert "targets" in found and list(found["digests"]) == ["split", "view", "data", "normaliser of videomae"]


def test_runs_without_numbers_or_a_common_target_are_refused(tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b", finished=False)
    assert "b has no summary.json that can be read" in pair(a, b)["refused"]
    (b / "summary.json").write_text(json.dumps(summary(targets=["other"])))
    assert "no target in common: videomae, timesformer, vivit; other" in pair(a, b)["refused"]


def test_other_clips_in_the_files_give_no_interval_and_say_so(tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a", where=True), write_run(tmp_path / "b")
    write_where(b, clips=41)
    assert pair(a, b)["notes"]["videomae"] == "no interval: where.json of a and of b list other test clips"
    (b / "where.safetensors").write_bytes(b"\x08\x00")
    (b / "where.json").write_text((b / "where.json").read_text() + " ")
    assert "no interval: where.safetensors cannot be read" in pair(a, b)["notes"]["videomae"]


@pytest.mark.parametrize(
    ("b", "extra", "status", "said"),
    [
        ({"r2c": 0.7, "where": True}, [], 0, "B is not shown to be worse (r2c, tolerance 0)"),
        ({"r2c": 0.5, "where": True}, [], 1, "B is worse on videomae, timesformer, vivit"),
        ({"r2c": 0.5, "where": True}, ["--tolerance", "0.2"], 0, "not shown to be worse (r2c, tolerance 0.2)"),
        ({"r2c": 0.5}, [], 1, "no interval: the run folders hold no numbers by clip"),
        ({"r2c": 0.6, "seed": 4}, [], 0, "recipe  train.seed: 0 -> 4"),
        ({"digests": {}}, [], 2, "not comparable: they differ in split, view, data, normaliser"),
        ({"finished": False}, [], 2, "b has no summary.json"),
        (
            {"r2c": 0.5, "marks": {"vivit": {"r2c": "2 test groups"}}},
            *([], 1, "B is worse on videomae, timesformer; not comparable on vivit: r2c is not to be trusted (2 test"),
        ),
        ({"marks": {"vivit": {"r2c": "2 test groups"}}}, [], 2, "not comparable on vivit: r2c is not to be trusted"),
        ({"marks": {"vivit": {"knn": "50 test clips"}}}, [], 0, "not to be trusted: knn (50 test clips)"),
    ],
)
def test_the_command_ends_with_a_status_for_ci(
    b: dict, extra: list[str], status: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = write_run(tmp_path / "a", where=True), write_run(tmp_path / "b", **b)
    assert main(["--compare", str(first), str(second), *extra]) == status
    assert said in capsys.readouterr().out


# --- where.json and where.safetensors


def test_errors_by_place_channel_and_clip_are_told(tmp_path: Path) -> None:
    write_where(tmp_path, r2c=0.6)
    file = Where(tmp_path / "where.json")
    found, floor = (file.told("videomae", name) for name in ("converter", "ridge"))
    assert found["grid"] == (8, 14, 14) and len(found["positions"]) == 8 * 14 * 14
    assert found["candidates"] == ["converter", "ridge"] and found["shares"] == [0.4, 0.2, 0.1]
    assert found["positions"][0] == pytest.approx(1 - 0.4 * (0.6 + 1 - 0.2), abs=1e-5)  # first frame, a corner
    assert floor["positions"][0] == pytest.approx(found["positions"][0] - 0.1, abs=1e-5)
    assert sum(found["channels"]["counts"]) + found["channels"]["below"] == 32
    worst, best, pictures = found["clips"]["worst"], found["clips"]["best"], file.pictures("videomae")
    assert [clip["key"] for clip in worst + best[::-1]] == [picture["key"] for picture in pictures]
    assert [clip["r2c"] for clip in worst] == pytest.approx([at["r2c"] for at in pictures[:4]], abs=1e-5)
    assert worst[0]["r2c"] < worst[-1]["r2c"] < best[-1]["r2c"] < best[0]["r2c"] and found["clips"]["of"] == 40
    assert found["main"] and not floor["main"]
    picture = pictures[2]
    assert picture["label"] == "a" and picture["teacher"]["shape"] == (8, 14, 14, 3)
    assert picture["thumbnails"]["shape"] == (8, 56, 56, 3)
    pooled = file.told("vivit", "converter")
    assert pooled["special"] == {"cls": 0.6} and pooled["positions"] == [] == file.pictures("vivit")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"videomae/error/converter/positions": np.ones(5)}, r"positions of .* shape \(5,\); it must be \(1568,\)"),
        ({"videomae/spread/positions": np.ones((2, 5))}, r"spread/positions of .* shape \(2, 5\)"),
        ({"videomae/spread/channels": np.ones(5)}, r"videomae/spread/channels .* shape \(5,\); it must be \(32,\)"),
        ({"videomae/error/converter/clips": np.ones(7)}, r"shape \(7,\); it must be \(40,\)"),
        ({"videomae/teacher": np.ones((8, 8, 14, 14, 3))}, "videomae/teacher .* is float64"),
        ({"videomae/thumbnails": np.ones((9, 2, 8, 8, 3), np.uint8)}, r"thumbnails .* uint8 \(9, 2, 8, 8, 3\)"),
    ],
)
def test_tensors_of_another_form_are_refused_by_name(change: dict, said: str, tmp_path: Path) -> None:
    write_where(tmp_path)
    file = tmp_path / "where.safetensors"
    save_file(load_file(file) | change, file)
    with pytest.raises(ValueError, match=said):
        file = Where(tmp_path / "where.json")
        file.told("videomae", "converter")
        file.pictures("videomae")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 2}, "version 2, where this page knows 1"),
        ({"main": None, "clips": 3}, "where.json cannot be read .*int"),
        ({"clips": [7]}, "where.json cannot be read"),
        ({"targets": ["videomae"]}, "where.json cannot be read"),
    ],
)
def test_a_record_of_another_form_is_refused(change: dict, said: str, tmp_path: Path) -> None:
    write_where(tmp_path)
    file = tmp_path / "where.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=said):
        Where(file)
    for text in ("{", "[" * 100_000, "[]", "\x00"):
        file.write_text(text)
        with pytest.raises(ValueError, match="where.json cannot be read"):
            Where(file)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"grid": [8, 14]}, r"the grid of videomae is \[8, 14\]"),
        ({"grid": "no"}, "the grid of videomae is 'no'"),
        ({"candidates": []}, r"candidates of videomae are \[\]"),
        ({"shown": [{"clip": 99}]}, "shown clips of videomae are .*99.* its 40 clips"),
        ({"shown": [{"clip": -1}]}, "shown clips of videomae are .*-1.* its 40 clips"),
        ({"shown": "three"}, "shown clips of videomae are three"),
    ],
)
def test_a_target_of_another_form_is_refused_by_name(change: dict, said: str, tmp_path: Path) -> None:
    write_where(tmp_path)
    file = tmp_path / "where.json"
    record = json.loads(file.read_text())
    record["targets"]["videomae"] |= change
    file.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=said):
        Where(file).told("videomae", "converter")
        Where(file).pictures("videomae")


def test_a_record_without_its_tensors_is_refused(tmp_path: Path) -> None:
    write_where(tmp_path)
    tensors = tmp_path / "where.safetensors"
    moved = tensors.rename(tmp_path / "elsewhere")
    tensors.symlink_to(moved)
    with pytest.raises(ValueError, match=r"where.safetensors cannot be read \(there is no such file\)"):
        Where(tmp_path / "where.json")
