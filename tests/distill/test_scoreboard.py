"""The scoreboard: its formats, what is marked, and which runs it refuses to compare."""

from __future__ import annotations

import csv
import io
import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from distill import scoreboard

COST = {"parameters": 4_000_000, "macs": 5_400_000_000, "latency_ms": 61.4, "bytes_read": 2_101_248}
SUMMARY: dict[str, Any] = {
    "family": "perceiver",
    "targets": {"video_mae": {"r2c": 0.5, "nmse": 0.5}},
    "floors": {"ridge": {"video_mae": {"r2c": 0.4, "nmse": 0.6}}},
    "references": {"large": {"video_mae": {"r2c": 0.9, "nmse": 0.1}}},
    "cost": COST,
    "digests": {"split": "1111", "view": "v", "data": "d", "normaliser": "n"},
    "spaces": {"video_mae": "s"},
}


def write(folder: Path, *, cost: dict[str, Any] | None = None, **changed: Any) -> Path:
    folder.mkdir()
    summary = deepcopy(SUMMARY) | changed
    summary["cost"] = COST | (cost or {})
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    better = {"video_mae": {"r2c": 0.6, "nmse": 0.4}}
    return [
        write(tmp_path / "a"),
        write(tmp_path / "b_50%", family="mamba", targets=better, cost={"parameters": 1_000_000, "latency_ms": 80}),
    ]


def printed(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert scoreboard.main([str(word) for word in words]) == 0
    return capsys.readouterr().out


def test_the_best_of_every_column_is_marked(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, *runs).splitlines()
    assert lines[0].split() == ["r2c", "on", "test", "video_mae", "M", "params", "GMAC", "ms/clip", "MB", "read"]
    assert lines[2].split()[2:] == ["0.500", "4.00", "5.40*", "61*", "2.101*"]
    assert lines[3].split() == ["ridge", "0.400"] and lines[4].split() == ["large", "(reference)", "0.900"]
    assert lines[5].split()[2:] == ["0.600*", "1.00*", "5.40*", "80", "2.101*"]
    errors = printed(capsys, *runs, "--metric", "nmse").splitlines()
    assert "0.400*" in errors[5] and "0.500*" not in errors[2], "of an error the lowest is the best"
    alone = printed(capsys, runs[0])
    assert alone.count("*") == 1, "nothing is the best of one; the last line says what the sign means"


def test_csv_holds_the_numbers_as_they_are(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    rows = list(csv.DictReader(io.StringIO(printed(capsys, *runs, "--csv"))))
    assert [row["kind"] for row in rows] == ["run", "beside", "beside"] * 2
    assert float(rows[0]["MB read"]) == 2.101248 and float(rows[0]["ms/clip"]) == 61.4
    assert rows[1] | {"run": ""} == rows[4] | {"run": ""} and rows[1]["name"] == "ridge" and rows[1]["GMAC"] == ""
    assert rows[3]["run"] == f"{runs[1]} (mamba)" and float(rows[3]["video_mae"]) == 0.6


def test_markdown_and_latex_escape_names_and_embolden(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    markdown = printed(capsys, *runs, "--markdown").splitlines()
    assert markdown[0] == r"| r2c on test | video\_mae | M params | GMAC | ms/clip | MB read |"
    assert markdown[5].endswith(r"/b\_50% (mamba) | **0.600** | **1.00** | **5.40** | 80 | **2.101** |")
    assert {line.count(" | ") for line in markdown} == {5}
    latex = printed(capsys, *runs, "--latex").splitlines()
    assert latex[0] == r"\begin{tabular}{lrrrrr}" and latex[2].startswith(r"r2c on test & video\_mae & ")
    assert r"/b\_50\% (mamba) & \textbf{0.600} & " in latex[7] and latex[7].endswith(r" \\")
    assert {line.count(" & ") for line in latex if line.endswith(r"\\")} == {5}


def test_all_that_differs_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = {"split": "2222", "view": "w", "data": "d", "normaliser": "m"}
    a, b = write(tmp_path / "a"), write(tmp_path / "b", digests=other, spaces={"video_mae": "t"})
    assert scoreboard.main([str(a), str(b)]) == 1
    said = capsys.readouterr().err
    for part in (
        "split differs (1111 and 2222)",
        "view differs (v and w)",
        "normaliser of video_mae differs (s and t)",
    ):
        assert part in said
    assert "data differs" not in said


def test_every_pair_that_cannot_be_compared_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digests = SUMMARY["digests"]
    runs = [write(tmp_path / name, digests=digests | {name: "other"}) for name in ("none", "split", "view")]
    assert scoreboard.main([*map(str, runs)]) == 1
    said = capsys.readouterr().err
    assert f"{runs[1]} cannot be compared: their split differs (1111 and other)" in said
    assert f"{runs[2]} cannot be compared: their view differs (v and other)" in said


def test_numbers_of_too_few_clips_are_marked(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    few = {"video_mae": {"r2c": "3 test clips, 8 needed"}}
    marked = write(runs[0].parent / "few", marks=few)
    lines = printed(capsys, runs[1], marked).splitlines()
    assert lines[0].startswith("r2c on test (! of too few clips)")
    cells = [line.split() for line in lines[2:8]]
    assert [at[2] for at in (cells[0], cells[3])] == ["0.600*", "0.500!"] and cells[4] == ["ridge", "0.400!"]
    assert "!" not in printed(capsys, runs[1], marked, "--metric", "nmse")
    assert "!" not in printed(capsys, runs[1], marked, "--csv")


def test_regret_and_equivalent_pixels_are_metrics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of an oracle's run, and of one whose references have shifts; the lower the better."""
    regret = {"video_mae": {"value": 1.07, "low": 1.06, "high": 1.08}}
    oracle = {"regret": regret, "floors": {"ridge": {"video_mae": 1.58}}}
    near, far = {"value": 1.25, "beyond": None}, {"value": None, "beyond": 4.0}
    a = write(tmp_path / "a", oracle=oracle, equivalent_pixels={"video_mae": far})
    b = write(tmp_path / "b", equivalent_pixels={"video_mae": near})
    lines = printed(capsys, a, b, "--metric", "regret").splitlines()
    assert [line.split()[2:3] for line in (lines[2], lines[4])] == [["1.070"], ["4.00*"]], (
        "b has no regret, and the same cost"
    )
    assert lines[3].split() == ["ridge", "1.580"]
    lines = printed(capsys, a, b, "--metric", "equivalent_pixels").splitlines()
    assert [line.split()[2:-4] for line in lines[2:4]] == [[">", "4"], ["1.25"]]
    assert scoreboard.main([str(b), "--metric", "regret"]) == 1
    said = capsys.readouterr().err
    assert "no run has the metric 'regret'; there are equivalent_pixels, nmse, r2c" in said


def test_runs_of_other_targets_are_held_by_the_space_of_the_one_they_share(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = SUMMARY["targets"]["video_mae"]
    both, digests = {"video_mae": scores, "vivit": scores}, SUMMARY["digests"] | {"normaliser": "both"}
    a = write(tmp_path / "a")
    same = write(tmp_path / "same", targets=both, digests=digests, spaces={"video_mae": "s", "vivit": "z"})
    assert scoreboard.main([str(a), str(same)]) == 0
    other = write(tmp_path / "other", targets=both, digests=digests, spaces={"video_mae": "t", "vivit": "z"})
    assert scoreboard.main([str(a), str(other)]) == 1
    assert "normaliser of video_mae differs (s and t)" in capsys.readouterr().err
    summary = json.loads((same / "summary.json").read_text())
    del summary["spaces"]
    (same / "summary.json").write_text(json.dumps(summary))
    assert scoreboard.main([str(a), str(same)]) == 1
    assert "normaliser of video_mae differs (s and not told)" in capsys.readouterr().err


def test_seeds_have_no_format_of_documents(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        scoreboard.main(["--seeds", "--csv", *map(str, runs)])
    assert "leave --csv out" in capsys.readouterr().err
