"""What the dashboard reads while it is written: files that are replaced, numbers that are none, several that ask."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from run_folders import write_run

from distill.dashboard.api import Api
from distill.dashboard.journal import MARK, Journal, State, opened
from distill.dashboard.runs import Run


def line(step: int, value: object, metric: str = "r2c") -> str:
    return json.dumps({"split": "val", "target": None, "metric": metric, "step": step, "value": value}) + "\n"


def values(journal: Journal) -> list[float | None]:
    points = journal.points(0, 10_000)
    assert points is not None
    return points["value"]


FIRST = [0.1] * 1000


@pytest.mark.parametrize(
    "second",
    [[0.2, *FIRST[1:]], [*FIRST[:-1], 0.2], [*FIRST[:-40], 0.2, *FIRST[-39:]], [0.2] * 1000],
    ids=["first line", "last line", "within the last bytes", "every line"],
)
def test_another_file_under_a_number_that_is_used_again_is_read_anew(second: list[float], tmp_path: Path) -> None:
    """Written in place: the inode is the same, as it may be after two replacements, and the file is longer."""
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(line(1000 + step, value) for step, value in enumerate(FIRST)))
    journal, inode = Journal(file), file.stat().st_ino
    journal.read_on()
    assert values(journal) == FIRST and journal.offset > 2 * MARK
    file.write_text("".join(line(1000 + step, value) for step, value in enumerate([*second, 0.3])))
    assert file.stat().st_ino == inode
    journal.read_on()
    assert values(journal) == [*second, 0.3] and not journal.complaints()


def test_a_third_file_in_the_place_of_the_first_is_read_anew(tmp_path: Path) -> None:
    """Replaced twice between two readings, as often as it takes until the first one's inode comes back."""
    file, other = tmp_path / "metrics.jsonl", tmp_path / "other"
    for _ in range(20):
        file.write_text("".join(line(step, 0.1) for step in range(10)))
        journal, inode = Journal(file), file.stat().st_ino
        journal.read_on()
        for value in (0.2, 0.3):
            other.write_text("".join(line(step, value) for step in range(30)))
            os.replace(other, file)
        journal.read_on()
        assert values(journal) == [0.3] * 30
        if file.stat().st_ino == inode:
            return
    pytest.skip("this file system does not use an inode again")


def test_what_is_read_piece_by_piece_is_known_again(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(line(step, 0.1) for step in range(500)))
    journal = Journal(file)
    for _ in range(200):
        journal.read_on(budget=997)
    assert journal.offset == file.stat().st_size and values(journal) == [0.1] * 500 and journal.lines == 500


def test_only_files_are_opened(tmp_path: Path) -> None:
    file, link, pipe = (tmp_path / name for name in ("file", "link", "pipe"))
    file.write_text("there")
    link.symlink_to(file)
    os.mkfifo(pipe)
    assert [opened(path) for path in (link, pipe, tmp_path, tmp_path / "nothing", file / "below")] == [None] * 5
    with opened(file) as found:  # type: ignore[union-attr]
        assert found.read() == b"there"
    with pytest.raises(OSError, match="File name too long"):
        opened(tmp_path / ("x" * 300))


@pytest.mark.parametrize("entry", [line(1, 10**400), line(10**400, 1.0)], ids=["value", "step"])
def test_a_metric_whose_first_number_is_too_large_has_no_series_yet(entry: str, tmp_path: Path) -> None:
    """One without a point would have no last value to be listed with."""
    folder = write_run(tmp_path / "run", finished=False, steps=1)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(entry.replace("r2c", "huge"))
    api = Api([tmp_path])
    (brief,) = api.list()["runs"]
    found = json.loads(api.answer(f"runs/{brief['id']}/series") or b"")
    assert [one["metric"] for one in found["series"]] == ["loss", "seconds", "bytes"]
    assert found["problems"] == ["metrics.jsonl: 1 line a number that is too large (the first is line 4)"]
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(line(2, 0.5, "huge"))
    found = json.loads(api.answer(f"runs/{brief['id']}/series") or b"")
    assert [(one["metric"], one["last"]) for one in found["series"]][-1] == ("huge", 0.5)


@pytest.fixture
def often() -> Iterator[None]:
    """Threads take turns as often as can be."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_what_is_told_of_a_journal_is_of_one_moment(often: None, tmp_path: Path) -> None:
    """One thread reads on, line by line, others ask: the share read is that of the points and complaints beside it."""
    file, count = tmp_path / "metrics.jsonl", 1500
    good, bad = line(1000, 0.5), "{nonsense".ljust(len(line(1000, 0.5)) - 1) + "\n"
    file.write_text((good + bad) * count)
    journal, wrong, asked = Journal(file), list[str](), 0

    def ask() -> None:
        nonlocal asked
        while (state := journal.state()).read < 1:
            asked += 1
            points = sum(one["points"] for one in state.series)
            if not points <= round(state.read * 2 * count) <= 2 * points + 1:
                wrong.append(f"{points} points of {state.read}")
            for at, said in enumerate(state.problems):
                if at or (f" {points} line" not in said and f" {points - 1} line" not in said):
                    wrong.append(f"{points} points beside {said}")

    readers = [threading.Thread(target=ask) for _ in range(2)]
    journal.read_on(budget=len(good))
    for reader in readers:
        reader.start()
    for _ in range(2 * count):
        journal.read_on(budget=len(good))
    for reader in readers:
        reader.join()
    assert asked and not wrong and journal.state().read == 1


@pytest.mark.parametrize("ask", ["state", "listed", "complaints"])
def test_a_journal_that_is_being_read_tells_nothing_until_that_is_over(ask: str, tmp_path: Path) -> None:
    journal = Journal(tmp_path / "metrics.jsonl")
    asking = threading.Thread(target=getattr(journal, ask))
    with journal.lock:
        asking.start()
        asking.join(0.2)
        assert asking.is_alive()
    asking.join(20)
    assert not asking.is_alive()


def test_the_server_tells_a_run_from_one_look_at_its_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two would be of two moments, between which another request reads on."""
    write_run(tmp_path / "run", finished=False, steps=3)
    api, looks, state = Api([tmp_path]), list[Journal](), Journal.state
    (name,) = api.known()
    monkeypatch.setattr(Journal, "state", lambda journal: (looks.append(journal), state(journal))[1])
    found = json.loads(api.answer(f"runs/{name}/series") or b"")
    assert len(found["series"]) == 3 and found["read"] == 1 and found["problems"] == [] and len(looks) == 1


def test_a_file_is_not_said_to_be_read_before_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An export asks until the share is 1."""
    write_run(tmp_path / "run", finished=False, steps=3)
    api = Api([tmp_path])
    (name,) = api.known()
    monkeypatch.setattr(Journal, "state", lambda journal: State([], [], 0.99996))
    assert json.loads(api.answer(f"runs/{name}/series") or b"")["read"] == 0.999


@pytest.mark.parametrize("name", ["metrics.jsonl", "summary.json", "where.json"])
def test_the_stamp_of_a_run_is_another_whenever_a_file_is(name: str, tmp_path: Path) -> None:
    """A page asks again by it: after a rewrite of the same size, a replacement of the same time, a removal."""
    file = write_run(tmp_path / "run", steps=3, where=True) / name
    run, text = Run(tmp_path / "run", "run"), file.read_text()
    stamps = [run.stamp()]
    assert run.stamp() == stamps[0]
    os.utime(file, ns=(1, file.stat().st_mtime_ns + 1))
    stamps.append(run.stamp())
    kept = file.stat()
    (tmp_path / "other").write_text(text)
    os.utime(tmp_path / "other", ns=(1, kept.st_mtime_ns))
    os.replace(tmp_path / "other", file)
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (kept.st_size, kept.st_mtime_ns)
    stamps.append(run.stamp())
    with open(file, "a") as appended:
        appended.write(" ")
    os.utime(file, ns=(1, kept.st_mtime_ns))
    stamps.append(run.stamp())
    file.unlink()
    stamps.append(run.stamp())
    assert len(set(map(str, stamps))) == len(stamps) == 5
