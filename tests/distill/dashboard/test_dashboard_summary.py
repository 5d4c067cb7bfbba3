"""A summary.json of another form than a run writes: what has the form is read, the rest is left out and named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from run_folders import summary, write_deprived, write_run
from safetensors.numpy import load_file, save_file

from distill.dashboard import export
from distill.dashboard.__main__ import main
from distill.dashboard.api import Api
from distill.dashboard.summary import FORM, read_summary

HEAD = {"videomae": {"label": {"all": {"converted": {"accuracy": {"value": 0.5, "low": 0.4, "high": 0.6}}}}}}
LEFT = {"rank_recovery": {"k": 3, "of": 9, "r2": [0.9, 0.2]}, "mask": {"on": 0.1, "deviation": 0.2}}
WHOLE = summary(
    marks={"videomae": {"r2c": "2 test groups"}},
    above={"ridge": {"videomae": {"value": 0.1, "low": 0.05, "high": 0.2}}},
    lead={"mamba": {"videomae": {"value": 0.1, "low": 0.05, "high": 0.2}}},
    equivalent_pixels={"videomae": {"value": 1.5, "beyond": None}},
    oracle={"regret": {"videomae": {"value": 1.1, "low": 1.0, "high": 1.2}}},
    references={"bayes": {"videomae": {"r2": 0.9}}},
    rank_recovery={"videomae": LEFT["rank_recovery"]},
    deficiency={"kind": "masking", "strength": 0.3, "twin": None, "targets": {"videomae": LEFT}, "from_twin": {}},
    head=HEAD,
)
LIST: list[Any] = []
JUNK = [
    *(3, LIST, [3], "x", True, float("nan"), 10**400, {"videomae": 3}, {"videomae": []}, {"videomae": {"r2c": "x"}}),
    *({"videomae": {"r2c": [1]}}, {"videomae": {"r2c": {"value": {}}}}, {"ridge": {"videomae": {"r2c": True}}}),
    *({"r2c": [1, 2]}, {"kind": 3, "targets": [1]}, {"kind": {}, "targets": {"videomae": {"rank_recovery": "x"}}}),
    *({"regret": 3}, {"videomae": {"label": {"all": {"converted": {"alarms": 3}}}}}),
]


def write(path: Path, found: Any) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "summary.json").write_text(json.dumps(found))
    return path


@pytest.mark.parametrize("name", [*FORM, "probes"])
def test_junk_in_a_section_stops_neither_list_nor_comparison_nor_export(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "COMPARED", 3)
    for number, junk in enumerate(JUNK):
        write(tmp_path / f"{number:02d}", WHOLE | {name: junk})
    good = write_run(tmp_path / "good")
    api = Api([tmp_path])
    assert len(json.loads(api.answer("runs") or b"")["runs"]) == len(JUNK) + 1
    for number in range(len(JUNK)):
        pair = [str(tmp_path / f"{number:02d}"), str(good)]
        for each in (pair, pair[::-1]):
            assert main(["--compare", *each]) in (0, 1, 2)
        last = capsys.readouterr().out.splitlines()[-1]
        assert "worse" in last or "not comparable" in last
    assert main([str(tmp_path), "--export", str(tmp_path / "report.html")]) == 0


@pytest.mark.parametrize("name", list(FORM))
def test_a_whole_section_is_read_as_it_is_and_an_empty_one_is_no_fault(name: str, tmp_path: Path) -> None:
    found, problem = read_summary(write(tmp_path / "run", WHOLE) / "summary.json")
    assert problem is None and found is not None
    kept = {"chosen": {"r2c": WHOLE["chosen"]["r2c"]}, "cost": {n: WHOLE["cost"][n] for n in FORM["cost"]}}
    kept["deficiency"] = WHOLE["deficiency"]
    assert found[name] == kept.get(name, WHOLE[name])
    if name != "targets":
        assert read_summary(write(tmp_path / "run", WHOLE | {name: None}) / "summary.json")[1] is None


@pytest.mark.parametrize(
    ("entries", "named", "left"),
    [
        ({"marks": {"t": 3, "videomae": {"cka": "few"}}}, "marks.t", {"marks": {"videomae": {"cka": "few"}}}),
        ({"chosen": {"r2c": [1]}}, "chosen.r2c", {"chosen": {}}),
        ({"gain": {"vivit": {"value": 1, "low": "x"}}}, "gain.vivit.low", {"gain": {"vivit": {"value": 1}}}),
        ({"floors": 3, "lead": "x"}, "floors, lead", {}),
        ({"spaces": dict.fromkeys("abcdefg", 1)}, "spaces.a, spaces.b, .* and 2 more", {"spaces": {}}),
        ({"cost": {"macs": float("inf"), "parameters": 10**30}}, "cost.parameters", {"cost": {"macs": None}}),
    ],
)
def test_what_is_left_out_is_named(entries: dict, named: str, left: dict, tmp_path: Path) -> None:
    write_run(tmp_path / "run", **entries)
    found, problem = read_summary(tmp_path / "run" / "summary.json")
    assert problem is not None and found is not None
    with pytest.raises(ValueError, match=f"left out, for a run writes it in another form: {named}"):
        raise ValueError(problem)
    assert {name: found[name] for name in left} == left
    (brief,) = Api([tmp_path]).list()["runs"]
    assert brief["state"] == "finished" and brief["problems"] == [problem]


@pytest.mark.parametrize(
    ("b", "status", "said"),
    [
        ({"targets": {"videomae": {"r2": 0.5}}}, 2, "not comparable on videomae: A and B do not both have a number"),
        ({"targets": {"videomae": {"r2c": None}}}, 2, "not comparable on videomae"),
        ({"targets": {"videomae": {"r2c": float("nan")}}}, 2, "not comparable on videomae"),
        ({"targets": {"videomae": {"r2c": 0.9}, "vivit": {"r2c": None}}}, 2, "not comparable on vivit"),
        ({"targets": {"videomae": {"r2c": 0.1}, "vivit": {}}}, 1, "B is worse on videomae; not comparable on vivit"),
        ({"marks": {"videomae": 3}}, 0, "B is not shown to be worse"),
    ],
)
def test_no_number_is_neither_better_nor_worse(
    b: dict, status: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    targets = {target: {"r2c": 0.6, "r2": 0.7} for target in b.get("targets", ("videomae", "vivit"))}
    whole = summary() | {"targets": targets}
    first, second = write(tmp_path / "a", whole), write(tmp_path / "b", whole | b)
    assert main(["--compare", str(first), str(second)]) == status
    assert said in capsys.readouterr().out.splitlines()[-1]


def test_one_group_of_clips_gives_a_difference_without_an_interval(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Clips without any spread have no r2c, resampled or not: the difference of the summaries stands alone."""
    folders = [write_run(tmp_path / name, r2c=r2c, where=True) for name, r2c in (("a", 0.6), ("b", 0.7))]
    for folder in folders:
        spread_nothing(folder)
    assert main(["--compare", *map(str, folders)]) == 0
    assert "no interval" in capsys.readouterr().out


def spread_nothing(folder: Path) -> None:
    tensors = load_file(folder / "where.safetensors")
    save_file({name: of * ("/spread/" not in name) for name, of in tensors.items()}, folder / "where.safetensors")


def test_a_deprived_run_keeps_what_its_page_shows(tmp_path: Path) -> None:
    write_deprived(tmp_path)
    before = json.loads((tmp_path / "strong" / "summary.json").read_text())
    found, problem = read_summary(tmp_path / "strong" / "summary.json")
    assert problem is None and found is not None and found["head"] == before["head"]
    assert found["deficiency"]["from_twin"] == before["deficiency"]["from_twin"]
    assert found["deficiency"]["targets"]["videomae"]["rank_recovery"]["r2"]
