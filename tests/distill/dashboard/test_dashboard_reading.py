"""What the dashboard reads: metrics that grow, break or are huge, summaries of strangers, recipes, sets of runs."""

from __future__ import annotations

import builtins
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_folders import lines, recipe, summary, write_run

from distill.dashboard import journal
from distill.dashboard.api import Api
from distill.dashboard.journal import Journal, thin
from distill.dashboard.runs import Run, Runs, digest, settings


def line(step: object, value: object, **names: object) -> str:
    return json.dumps({"split": "val", "target": None, "metric": "r2c", "step": step, "value": value} | names) + "\n"


def test_a_reading_goes_on_where_the_last_one_ended(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text(line(1, 0.1) + line(2, 0.2)[:20])
    found = Journal(file)
    found.read_on()
    assert found.points(0, 9)["value"] == [0.1]  # type: ignore[index]
    assert found.complaints() == ["metrics.jsonl: the last line is half written (20 bytes)"]
    before = found.offset
    with open(file, "a") as appended:
        appended.write(line(2, 0.2)[20:] + line(3, 0.3))
    found.read_on()
    assert found.points(0, 9)["value"] == [0.1, 0.2, 0.3] and not found.complaints()  # type: ignore[index]
    assert found.lines == 3 and found.offset > before


@pytest.mark.parametrize("longer", [False, True])
def test_a_file_that_a_resumed_run_wrote_anew_is_read_anew(longer: bool, tmp_path: Path) -> None:
    file, other = tmp_path / "metrics.jsonl", tmp_path / "other"
    file.write_text(line(1, 0.1) + line(2, 0.2))
    found = Journal(file)
    found.read_on()
    other.write_text("".join(line(step, 0.5) for step in range(1, 9 if longer else 2)))
    os.replace(other, file)
    found.read_on()
    assert set(found.points(0, 99)["value"]) == {0.5}  # type: ignore[index]
    file.unlink()
    found.read_on()
    assert found.listed() == []


def test_what_is_broken_is_counted_and_the_rest_is_shown(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    bad = [
        b"{nonsense\n",
        b"[1, 2]\n",
        b'{"split": "val", "metric": "r2c", "step": "one", "value": 1}\n',
        b'{"split": "val", "metric": ["r2c"], "step": 1, "value": 1}\n',
        b'{"split": "val", "metric": "r2c", "step": 1, "value": "high"}\n',
        b'{"split": "val", "metric": "r2c", "target": null, "step": 2, "value": NaN}\n',
        b'{"split": "val", "metric": "r2c", "step": 1, "value": 1' + b"0" * 400 + b"}\n",
        b"[" * 100_000 + b"\n",
        b"\xff\xfe\n",
        b"\n",
        b"x" * (3 * journal.CHUNK) + b"\n",
    ]
    file.write_bytes(line(1, 0.1).encode() + b"".join(bad) + line(3, 0.3).encode() + b'{"split')
    found = Journal(file)
    found.read_on()
    assert found.points(0, 9) == {
        **{"split": "val", "target": None, "metric": "r2c", "converter": None, "points": 3, "last": 0.3},
        **{"step": [1.0, 2.0, 3.0], "value": [0.1, None, 0.3]},
    }
    said = "\n".join(found.complaints())
    for part in (
        "3 lines not JSON (the first is line 2)",
        "1 line not an object (the first is line 3)",
        "1 line without a step (the first is line 4)",
        "1 line without split and metric (the first is line 5)",
        "1 line without a number as value (the first is line 6)",
        "1 line without a finite value (the first is line 7)",
        "1 line a number that is too large (the first is line 8)",
        f"1 line longer than {journal.CHUNK} bytes (the first is line 12)",
        "half written (7 bytes)",
    ):
        assert part in said, said
    assert found.lines == 13


def test_two_lines_that_are_whole_only_together_are_not_taken_for_two(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"a": [1\n2]}\n' + line(1, 0.1))
    found = Journal(file)
    found.read_on()
    assert found.problems == {"not JSON": (1, 2)} and found.points(0, 9)["value"] == [0.1]  # type: ignore[index]


def test_an_enormous_file_is_read_piece_by_piece_in_bounded_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "CHUNK", 4096)
    monkeypatch.setattr(journal, "POINTS", 400)
    monkeypatch.setattr(journal, "SERIES", 5)
    file, spike = tmp_path / "metrics.jsonl", 7_777
    with open(file, "w") as out:
        for step in range(20_000):
            out.write(
                line(step, 9.0 if step == spike else step / 20_000, metric=f"m{step % 8}" if step > 19_900 else "r2c")
            )
    found = Journal(file)
    found.read_on(budget=10_000)
    assert 0 < found.offset == 10_000 < file.stat().st_size
    found.read_on()
    assert sum(len(series.step) for series in found.series.values()) < 5 * 400
    points = found.points(0, 100)
    assert points is not None and len(points["step"]) < 140 and points["points"] > 19_000
    assert max(points["value"]) == 9.0 and points["step"][0] == 0 and len(found.series) == 5
    assert "of more than 5 metrics" in found.complaints()[0]


def test_a_pipe_or_a_link_in_the_place_of_a_file_is_not_opened(tmp_path: Path) -> None:
    secret, folder = tmp_path / "secret", tmp_path / "run"
    secret.write_text(line(1, 0.1))
    folder.mkdir()
    (folder / "metrics.jsonl").symlink_to(secret)
    os.mkfifo(folder / "summary.json")
    (folder / "recipe.yaml").write_text(recipe())
    run = Run(folder, "run")
    run.journal.read_on()
    assert run.journal.listed() == [] and run.brief()["state"] == "quiet"


def test_thinning_keeps_ends_extremes_and_the_start() -> None:
    value = np.random.default_rng(0).normal(size=100_000)
    value[[3, 54_321]] = [50, -50]
    value[70_000:80_000] = np.nan
    chosen = thin(value, 600)
    assert 300 < len(chosen) < 900 and {0, 1, 2, 3, 54_321, 99_999} <= set(chosen.tolist())
    assert len(chosen[chosen < 1000]) > 60  # logarithmic at the start
    assert np.diff(chosen).max() < 1100  # and even over the whole
    assert thin(value[:10], 600).tolist() == list(range(10))


def test_steps_that_go_back_are_shown_in_their_order(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(line(step, step / 10) for step in (3, 1, 2)))
    found = Journal(file)
    found.read_on()
    points = found.points(0, 9)
    assert points is not None and points["step"] == [1, 2, 3] and points["value"] == [0.1, 0.2, 0.3]
    assert "seconds" not in points and "bytes" not in points


def test_what_a_run_has_taken_stands_beside_every_step(tmp_path: Path) -> None:
    """Between steps in proportion, from 0 on; nothing beyond the last, and nothing of what is not a number."""
    file, taken = tmp_path / "metrics.jsonl", {"split": "train", "target": None}
    file.write_text(
        "".join(line(step, 0.5) for step in (1, 2, 3, 4, 5))
        + line(2, 10.0, metric="seconds", **taken)
        + line(3, None, metric="seconds", **taken)
        + line(4, 30.0, metric="seconds", **taken)
        + line(9, 99.0, metric="seconds", split="val")
    )
    found = Journal(file)
    found.read_on()
    points = found.points(0, 9)
    assert points is not None and points["seconds"] == [5, 10, 20, 30, None] and "bytes" not in points


def test_recipes_are_read_by_key() -> None:
    told = settings(recipe(lr=0.002, seed=3))
    assert told["converter.family"] == "perceiver" and told["train.lr"] == "0.002" and told["train.seed"] == "3"
    assert told["train.betas"] == "- 0.9 - 0.99" and told["targets.videomae.backbone"] == "videomae"
    assert digest(told) == digest(settings(recipe(lr=0.002, seed=4, name="other")))
    assert digest(told) != digest(settings(recipe(lr=0.001, seed=3)))
    assert settings(": : :\n\t- x\nplain\n\x00") is not None and digest({}) == ""


def test_the_list_says_of_every_run_what_it_is(tmp_path: Path) -> None:
    write_run(tmp_path / "b" / "done", seed=3)
    write_run(tmp_path / "a" / "going", finished=False, steps=40)
    old = write_run(tmp_path / "a" / "old", finished=False)
    os.utime(old / "metrics.jsonl", (1, 1))
    for name in ("checkpoints", "bundle"):
        write_run(tmp_path / "b" / "done" / name)
    (tmp_path / "empty").mkdir()
    found = Api([tmp_path]).list()
    briefs = {brief["name"]: brief for brief in found["runs"]}
    assert list(briefs) == ["a/going", "a/old", "b/done"]
    assert [brief["state"] for brief in briefs.values()] == ["running", "quiet", "finished"]
    assert briefs["a/going"]["step"] == 40 and briefs["a/going"]["validated"]["vivit"] == pytest.approx(0.57, abs=0.01)
    done = briefs["b/done"]
    assert (done["family"], done["seed"], done["steps"], done["set"]) == ("perceiver", 3, 100, found["sets"][0]["id"])
    assert done["targets"]["vivit"]["r2c"] == 0.4 and done["gain"]["vivit"]["low"] == 0.09


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"targets": {"videomae": {"r2c"', "summary.json cannot be read (Expecting"),
        ("[" * 100_000, "summary.json cannot be read"),
        ("[]", "not the summary of a run"),
        ('{"targets": {"videomae": [1]}}', "not the summary of a run"),
        ('{"targets": {"videomae": {"r2c": "high"}}}', "not the summary of a run"),
    ],
)
def test_a_summary_that_is_damaged_is_said_to_be(content: str, said: str, tmp_path: Path) -> None:
    (write_run(tmp_path / "run") / "summary.json").write_text(content)
    (brief,) = Api([tmp_path]).list()["runs"]
    assert said in brief["problems"][0] and brief["state"] == "running" and brief["step"] == 100


@pytest.mark.parametrize("name", ["summary.json", "metrics.jsonl", "recipe.yaml", "where.json"])
def test_a_file_that_may_not_be_read_is_said_to_be(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of somebody else's run, say. The others are shown, and all else of this one."""
    closed, _ = [write_run(tmp_path / name, where=True) for name in ("closed", "open")]

    def refusing(opened: Callable[..., Any]) -> Callable[..., Any]:
        def opening(path: Any, *given: Any, **named: Any) -> Any:
            if str(path) == str(closed / name):
                raise PermissionError(13, "Permission denied", str(path))
            return opened(path, *given, **named)

        return opening

    api = Api([tmp_path])
    with monkeypatch.context() as patched:
        for module, function in ((os, "open"), (io, "open"), (builtins, "open")):
            patched.setattr(module, function, refusing(getattr(module, function)))
        refused(api, name, closed)
    assert all(not one["problems"] for one in Api([tmp_path]).list()["runs"])
    assert name == "where.json" or all(not one["problems"] for one in api.list()["runs"]), "once it may be read, it is"


def refused(api: Api, name: str, closed: Path) -> None:
    first, second = api.list()["runs"]
    assert (first["name"], second["name"], second["problems"]) == (closed.name, "open", [])
    told = {path: json.loads(api.answer(f"runs/{first['id']}{path}") or b"null") for path in ("", "/series", "/where")}
    text = json.dumps([told, api.list()["runs"]])
    assert f"{name} cannot be read" in text and "Permission denied" in text and str(closed) not in text
    assert bool(told["/series"]["series"]) == (name != "metrics.jsonl")
    assert len(told["/series"]["problems"]) <= 1


def test_a_large_file_that_may_not_be_read_is_in_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which the list reads the end alone."""
    folder = write_run(tmp_path / "run", finished=False)
    monkeypatch.setattr("distill.dashboard.runs.TAIL", 100)
    monkeypatch.setattr("distill.dashboard.runs.progress", lambda path: (folder / "gone").read_text())
    (found,) = Runs([tmp_path]).scan()
    assert found.brief()["problems"] == ["metrics.jsonl cannot be read (No such file or directory)"]
    (folder / "summary.json").write_text(json.dumps(summary(family="perceiver", r2c=0.5)))
    assert found.brief()["problems"] == []


def test_a_summary_with_the_targets_alone_and_nan_is_shown(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "summary.json").write_text('{"targets": {"videomae": {"r2c": NaN}}, "floors": {"x": 3}, "lead": 7}')
    answer = Api([tmp_path]).answer("runs")
    assert answer is not None and b"NaN" not in answer
    (brief,) = json.loads(answer)["runs"]
    assert brief["targets"] == {"videomae": {"r2c": None}} and brief["floors"] == {} and brief["lead"] == {}


def test_every_line_that_a_run_logs_is_read(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", steps=50)
    found = Journal(folder / "metrics.jsonl")
    found.read_on()
    assert found.lines == len(list(lines(50))) == 165 and not found.complaints()
    assert [(one["split"], one["target"], one["metric"], one["points"]) for one in found.listed()] == [
        *[("train", None, metric, 50) for metric in ("loss", "seconds", "bytes")],
        *[("val", target, "r2c", 5) for target in ("videomae", "timesformer", "vivit")],
    ]
