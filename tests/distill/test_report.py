"""What a run says at its end."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from distill.report import STANDIN_WARNING, end_table, floor_lines, model_card, survival_table, target_table
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
    "chosen": {"weights": "last", "r2c": {"videomae": 0.8}},
    "probes": {},
    "deficiency": None,
    "head": None,
    "cost": {"parameters": 4_770_000, "macs": 5_400_000_000, "latency_ms": 61.4, "bytes_read": 2_101_248}
    | {"threads": 2, "device": "cpu"},
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


def test_floors_are_told_apart_by_the_interval() -> None:
    """Marks take its word away, and neither twins nor references are floors."""
    pairs = {
        "ridge": (0.1, 0.3),
        "mlp": (0.0, 0.3),
        "pixels": (-0.3, -0.1),
        "twin": (-0.3, -0.1),
        "large": (-0.3, -0.1),
    }
    above = {name: {"videomae": {"value": 0.2, "low": low, "high": high}} for name, (low, high) in pairs.items()}
    floors = {name: SUMMARY["floors"]["ridge"] for name in ("ridge", "mlp", "pixels", "twin")}

    def said(**entries: Any) -> list[str]:
        return floor_lines({"x": SUMMARY | {"marks": {}, "floors": floors, "above": above} | entries}, "videomae")

    assert said() == [
        "perceiver is better than ridge",
        "perceiver is not told apart from mlp (0.2000 (0.0000 .. 0.3000))",
        "perceiver is worse than pixels (0.2000 (-0.3000 .. -0.1000))",
    ]
    ridge = {"ridge": above["ridge"]}
    assert said(marks=SUMMARY["marks"], above=ridge) == [
        "perceiver is not told apart from ridge (0.2000 (0.1000 .. 0.3000))"
    ]
    assert said(above={}) == [] == floor_lines({"x": SUMMARY}, "videomae")


def test_a_twin_that_is_a_contestant_has_one_row() -> None:
    summaries = {name: contestant(0.9, 0.9, {}, None) for name in ("whole", "low")}
    summaries["low"]["floors"] = summaries["low"]["floors"] | {"twin": {"videomae": METRICS}}
    for twin, expected in (("whole", []), ("low/twin", ["low/twin"])):
        summaries["low"]["deficiency"] = {"twin": twin}
        rows = [line.split()[0] for line in target_table(summaries, "videomae").splitlines()]
        assert rows[2:] == ["whole", "low", "ridge", *expected]


def contestant(r2c: float | None, val: float | None, lead: dict[str, float], mlp: float | None) -> dict[str, Any]:
    """A summary of one of several, on the same floors but for the MLP; r2c on test and on val."""
    floors = {"ridge": {"videomae": METRICS}}
    if mlp is not None:
        floors["mlp"] = {"videomae": METRICS | {"r2c": mlp}}
    leads = {rival: {"videomae": {"value": 0.1, "low": low, "high": 0.2}} for rival, low in lead.items()}
    return (
        SUMMARY
        | {"targets": {"videomae": METRICS | {"r2c": r2c}}, "floors": floors, "lead": leads, "marks": {}}
        | {"chosen": {"weights": "last", "r2c": {"videomae": val}}}
    )


def test_a_contest_has_one_table_and_is_better_only_for_certain() -> None:
    summaries = {
        "small": contestant(0.95, 0.7, {"wide": -0.2, "deep": -0.2, "none": -0.2}, 0.1),
        "wide": contestant(0.9, 0.9, {"small": 0.01, "deep": 0.0, "none": 0.02}, 0.2),
        "deep": contestant(0.8, 0.8, {"small": -0.1, "wide": -0.2, "none": 0.03}, 0.3),
        "none": contestant(None, None, {"small": -0.1, "wide": -0.2, "deep": -0.2}, 0.3),
    }
    folders = {name: RunFolder(Path("runs/x") / name) for name in summaries}
    lines = end_table(summaries, folders, store=Path("features/y")).splitlines()
    at = lines.index("videomae, 3 test clips") + 4
    expected = [*summaries, "ridge", "small/mlp", "wide/mlp", "deep/mlp", "none/mlp"]
    assert [line.split()[0] for line in lines[at : at + 9]] == expected
    assert [line.split()[1] for line in lines[at : at + 6]] == ["0.950", "0.900", "0.800", "-", "0.800", "0.100"]
    header = lines[at + 10]
    assert "lead of wide, paired" in header and header.split()[-6:] == ["M", "params", "GMAC", "ms/clip", "MB", "read"]
    gain, cost = "0.0500 (0.0100 .. 0.0900)", ["4.77", "5.40", "61", "2.101"]
    rows = {line.split()[0]: line for line in lines[at + 12 : at + 16]}
    assert list(rows) == list(summaries) and all(gain in line and line.split()[-4:] == cost for line in rows.values())
    assert "0.1000 (0.0100 .. 0.2000)" in rows["small"] and "0.1000" not in rows["wide"]
    assert lines[at + 16 : at + 18] == ["wide is better than small, none", "wide is not told apart from deep"]
    assert "cost: cpu, 2 threads, fp32, batch 1, all targets" in lines
    assert lines[-6] == "run       runs/x" and lines[-5] == "bundle    runs/x/small/bundle"


def test_nothing_is_better_on_clips_too_few_to_tell() -> None:
    """One test group: every resample is the same, so that the interval has no width."""
    reason = "1 test groups, too few for an interval"
    summaries = {"wide": contestant(0.9, 0.9, {"deep": 0.1}, 0.2), "deep": contestant(0.8, 0.8, {"wide": -0.2}, 0.2)}
    folders = {name: RunFolder(Path("runs/x") / name) for name in summaries}
    for marks, verdict in (
        ({}, "wide is better than deep"),
        ({"videomae": {"cka": reason}}, "wide is better than deep"),
        ({"videomae": {"r2c": reason}}, "wide is not told apart from deep"),
    ):
        marked = {name: summary | {"marks": marks} for name, summary in summaries.items()}
        lines = end_table(marked, folders, store=Path("features/y")).splitlines()
        assert [line for line in lines if line.startswith("wide is")] == [verdict]
        assert (f"not to be trusted: r2c ({reason})" in lines) == ("not told" in verdict)


def test_a_floor_that_one_contestant_lacks_is_named_after_those_that_have_it() -> None:
    summaries = {
        "wide": contestant(0.9, 0.9, {"deep": 0.1}, 0.2),
        "deep": contestant(0.8, 0.8, {"wide": -0.2}, None),
    }
    rows = [line.split()[0] for line in target_table(summaries, "videomae").splitlines()[2:]]
    assert rows == ["wide", "deep", "ridge", "wide/mlp"]


def told(teacher: float, converted: float | None, high: float | None, kappa: float | None = None) -> dict[str, Any]:
    """What one kind of probe found of one task."""
    values = {"student": 0.5, "teacher": teacher, "converted": converted, "converted_by_teacher_probe": 0.1}
    spans = {name: {"value": value, "low": 0.0, "high": 1.0} for name, value in values.items()}
    return {
        **spans,
        "difference": {"value": -0.1, "low": -0.2, "high": high},
        "chance": 0.25,
        "clips": 40,
        "kappa": kappa,
    }


def test_what_survives_has_a_table_for_every_contestant_and_kind() -> None:
    found = {
        "shape": {"linear": told(0.9, 0.874, 0.1), "attentive": told(1.0, 0.2, -0.1, kappa=0.25)},
        "size": {"linear": told(0.8, None, None), "attentive": told(0.7, 0.6, 0.0, kappa=0.35)},
    }
    probed = SUMMARY | {"marks": {}, "probes": {"videomae": found}}
    folders = {"converter": RunFolder(Path("runs/x"))}
    lines = end_table({"converter": probed}, folders, store=Path("f")).splitlines()
    at = lines.index("accuracy of attentive probes on test, teacher -> converted (* less, paired, 95%)") + 2
    assert [line.split() for line in lines[at : at + 4] if "-----" not in line] == [
        ["task", "student", "videomae", "chance"],
        ["shape", "0.50", "1.00", "->", "0.20*", "0.25"],
        ["size", "0.50", "0.70", "->", "0.60", "0.25"],
    ]
    assert any(line.split() == ["size", "0.50", "0.80", "->", "-", "0.25"] for line in lines)
    kappas = [line for line in lines if "kappa" in line]
    assert kappas == ["agreement of the teacher's probe with itself (kappa, mean over tasks): videomae 0.30"]
    assert "0.87 " in next(line for line in lines if line.startswith("shape"))
    assert lines[at + 2].index("0.20") == lines[at + 3].index("0.60"), "the mark moves no number"

    lead = {"videomae": {"value": 0.1, "low": 0.1, "high": 0.2}}
    both = {name: probed | {"lead": {other: lead}} for name, other in (("wide", "deep"), ("deep", "wide"))}
    text = end_table(both, {name: RunFolder(Path("runs/x") / name) for name in both}, store=Path("f"))
    titles = [line for line in text.splitlines() if "probes on test" in line]
    assert [title.split(" probes")[0] for title in titles] == [
        f"{name}: accuracy of {kind}" for name in ("wide", "deep") for kind in ("linear", "attentive")
    ]
    assert "probes on test" not in end_table({"converter": SUMMARY}, folders, store=Path("f"))


def test_a_loss_on_clips_too_few_to_tell_bears_no_mark() -> None:
    found = {"videomae": {"shape": {"linear": told(0.9, 0.1, -0.5)}}}
    marks = {"videomae": {"r2c": "1 test groups, too few for an interval"}}
    assert "0.10*" in survival_table(SUMMARY | {"probes": found, "marks": {}}, "linear")
    assert "*" not in survival_table(SUMMARY | {"probes": found, "marks": marks}, "linear")


def test_what_survives_fits_a_terminal() -> None:
    tasks = {f"a-factor-with-a-long-name-{n}": {"linear": told(1.0, 1.0, -0.1)} for n in range(2)}
    probes = {f"a_target_with_a_long_name_{n}": tasks for n in range(4)}
    lines = survival_table(SUMMARY | {"probes": probes, "marks": {}}, "linear").splitlines()
    assert max(map(len, lines)) <= 120 and "a-factor-with-a-lo.." in lines[2] and "a_target_with_a_.." in lines[0]


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
