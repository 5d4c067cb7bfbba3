"""Strength against what is left, from summaries."""

from __future__ import annotations

from typing import Any

import pytest
from test_report import contestant

from distill.curve import curve_lines

RANKS = {"teacher": 7.0, "tokens": 90, "clips": 10, "of_half": {"converted": 2.0, "teacher": 6.5}}


def left(k: int, effective: float, jacobian: float | None, on: float | None = None) -> dict[str, Any]:
    found = {
        "rank_recovery": {"k": k, "of": 24},
        "effective_rank": RANKS | {"converted": effective},
        "jacobian": {"value": jacobian, "standard_error": 0.1},
    }
    return found | ({"mask": {"on": on}} if on is not None else {})


TWIN = left(9, 6.0, 0.5)


def arm(r2c: float, kind: str, taken: dict[str, Any], at: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A summary of an arm beside a twin of r2c 0.9; its lead over the twin, `whole`, is what they differ by."""
    jacobian = at["jacobian"]["value"]
    changes = {
        "r2c": {"value": r2c - 0.9, "low": r2c - 1, "high": r2c - 0.8},
        "k": {"value": at["rank_recovery"]["k"] - 9},
        "effective_rank": {"value": at["effective_rank"]["converted"] - 6.0},
        "jacobian": {"value": None if jacobian is None else jacobian - 0.5},
    }
    if "mask" in at:
        changes["r2c_masked"] = {"value": at["mask"]["on"] - 0.9, "low": -1, "high": 0}
    deficiency = {"kind": kind, "strength": 1.0, "amounts": taken, "targets": {"videomae": at}, "twin": "whole"}
    deficiency |= {"from_twin": {"videomae": changes}}
    return contestant(r2c, r2c, {"whole": -0.3, "weak": -0.2}, None) | {"deficiency": deficiency, **more}


def whole() -> dict[str, Any]:
    none = {
        "kind": "none",
        "strength": 0.0,
        "amounts": {},
        "targets": {"videomae": TWIN},
        "twin": None,
        "from_twin": {},
    }
    return contestant(0.9, 0.9, {}, None) | {"deficiency": none}


def test_a_curve_is_sorted_by_what_was_taken_and_told_in_words() -> None:
    summaries = {
        "strong": arm(0.7, "low_rank", {"nuclear": 1.0, "rank": "full"}, left(3, 2.5, 0.2)),
        "whole": whole(),
        "weak": arm(0.8, "low_rank", {"nuclear": 0.1, "rank": "full"}, left(7, 2.0, 0.6)),
    }
    lines = curve_lines(summaries)
    assert (
        lines[1].startswith("videomae: what a deficiency left")
        and "effective rank 7.0, of half the clips 6.5" in lines[1]
    )
    rows = [line.split() for line in lines[3].splitlines()[2:]]
    assert rows == [
        ["whole", "none", "0.900", "9", "6.0", "0.500"],
        ["weak", "low_rank", "1", "0.800", "-0.1000", "(-0.2000", "..", "0.0000)", "7", "(-2)", "2.0", "(-4.0)"]
        + ["0.600", "(+0.100)"],
        ["strong", "low_rank", "1", "0.700", "-0.2000", "(-0.3000", "..", "-0.1000)", "3", "(-6)", "2.5", "(-3.5)"]
        + ["0.200", "(-0.300)"],
    ]
    assert lines[4:] == [
        "low_rank, whole < weak < strong: r2c falls; k* falls; eff. rank is not monotone (up from weak to strong), "
        "against theory; |J|^2 / var is not monotone (up from whole to weak)"
    ]


def test_a_rise_of_r2c_is_told_with_its_paired_interval() -> None:
    summaries = {
        "weak": arm(0.6, "low_rank", {"rank": 8}, left(7, 2.0, None)),
        "strong": arm(0.7, "low_rank", {"rank": 2}, left(7, 2.0, None)),
    }
    *_, last = curve_lines(summaries)
    assert last == (
        "low_rank, whole < weak < strong: r2c is not monotone (up from weak to strong; paired: 0.1000 (-0.2000 .. "
        "0.2000)), against theory; k* falls; eff. rank falls"
    )


def test_masks_have_a_column_and_kinds_are_apart() -> None:
    summaries = {
        "half": arm(0.9, "masking", {"mask_ratio": 0.5}, left(9, 6.0, 0.5, on=0.5)),
        "most": arm(0.92, "masking", {"mask_ratio": 0.9}, left(9, 6.0, 0.5, on=0.6)),
        "smooth": arm(0.8, "jacobian", {"jacobian": 1.0}, left(9, 6.0, 0.4)),
    }
    _, _, _, table, *words = curve_lines(summaries)
    assert [line.split()[0] for line in table.splitlines()[2:]] == ["whole", "smooth", "half", "most"]
    assert "0.500 (-0.400)" in table and table.splitlines()[3].split()[8:10] == ["-", "9"]
    assert words == [
        "masking, whole < half < most: r2c rises; r2c masked is not monotone (up from half to most), against theory; "
        "k* stays; eff. rank stays; |J|^2 / var stays"
    ]


def heads(alone: float, residual: float, twin: float | None, mark: str = "") -> dict[str, Any]:
    """Of two tasks, the mean of which is as given; `twin` told so much less than both arms."""

    def arm_of(value: float) -> dict[str, Any]:
        return {"accuracy": {"value": value}, "from_twin": None if twin is None else {"value": value - twin}}

    few, arms = {"converted": arm_of(0.0)}, {"converted": alone, "converted_supervised": residual}
    all_ = [{arm: arm_of(value + by) for arm, value in arms.items()} for by in (-0.1, 0.1)]
    return {"videomae" + mark: {"a": {"5": few, "all": all_[0]}, "b": {"5": few, "all": all_[1]}}}


def test_accuracy_with_and_without_the_residual() -> None:
    summaries = {
        "weak": arm(0.8, "low_rank", {"rank": 8}, left(7, 2.0, None), head=heads(0.6, 0.7, 0.75)),
        "strong": arm(0.7, "low_rank", {"rank": 2}, left(3, 1.0, None), head=heads(0.5, 0.72, 0.75)),
    }
    *_, what, _, table, last = curve_lines(summaries)
    assert what == "videomae: accuracy of heads on test, mean over tasks, with the most labels"
    header, _, whole_, weak, strong = table.splitlines()
    assert header.split()[-3:] == ["accuracy", "+", "residual"] and whole_.split()[-2:] == ["0.750", "0.750"]
    assert weak.split()[-4:] == ["0.600", "(-0.150)", "0.700", "(-0.050)"]
    assert strong.split()[-4:] == ["0.500", "(-0.250)", "0.720", "(-0.030)"]
    assert last.endswith("accuracy falls; + residual is not monotone (up from weak to strong)")
    blind = arm(0.9, "masking", {"mask_ratio": 0.5}, left(9, 6, None), head=heads(0.4, 0.6, 0.7, " with the mask on"))
    header, _, _, row = curve_lines({"blind": blind})[-1].splitlines()
    assert header.split()[-4:] == ["masked", "masked", "+", "residual"]
    assert row.split()[-4:] == ["0.400", "(-0.300)", "0.600", "(-0.100)"]
    alone = arm(0.9, "jacobian", {"jacobian": 1.0}, left(9, 6, None), head=heads(0.4, 0.6, None))
    assert curve_lines({"alone": alone})[-1].splitlines()[-1].split()[-2:] == ["0.400", "0.600"], "no twin, no change"


def test_settings_without_an_order_make_no_curve() -> None:
    one, other = {"nuclear": 1.0, "rank": 8}, {"nuclear": 0.1, "rank": 2}
    summaries = {name: arm(0.8, "low_rank", at, left(3, 2, 1)) for name, at in {"a": one, "b": other}.items()}
    *_, last = curve_lines(summaries)
    assert last == "low_rank: of these settings none is simply the stronger: no curve"
    *_, last = curve_lines({"a": summaries["a"], "same": summaries["a"]})
    assert last.endswith("no curve")


@pytest.mark.parametrize("deficiency", [None, whole()["deficiency"]])
def test_nothing_is_said_where_nobody_is_deficient(deficiency: dict[str, Any] | None) -> None:
    assert curve_lines({"converter": contestant(0.9, 0.9, {}, None) | {"deficiency": deficiency}}) == []
