"""What the heads told, as the end table shows it: arms side by side, what they gained, and the alarms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from distill.table import format_table, number, shortened

Summary = Mapping[str, Any]
COLUMNS = {  # arm -> its column
    "converted": "conv",
    "converted_supervised": "+resid",
    "converted_pca": "+pca",
    "student": "stud",
    "student_rank": "rank q",
    "teacher": "teach",
    "random_residual": "random",
    "shuffled_residual": "shuff",
    "wrong_teacher": "wrong",
    "permuted_labels": "perm",
}
Raised = list[tuple[str, str]]  # a head and a sentence
FEW = 3  # alarms that are shown one by one
ALARMING = ("converted", "student", "student_rank", "converted_pca", "converted_supervised", "teacher")  # no control


def head_lines(summaries: Mapping[str, Summary]) -> list[str]:
    """For every target a table of accuracies on test, a row for each contestant, task and number of labels, and the
    alarms. Nothing without heads. At most 120 columns wide."""
    tables: dict[str, list[list[str]]] = {}
    alarms: dict[str, dict[str, Raised]] = {}
    for name, target, task, budget, arms in cells(summaries):
        where = [shortened(name, 14)] if len(summaries) > 1 else []
        first = " ".join([*where, shortened(task, 12), budget])
        shown = [accuracy_cell(summaries[name], arms.get(arm)) for arm in COLUMNS]
        tables.setdefault(target, []).append([first, *shown, number(arms["converted"]["chance"], 2)])
        raised = alarms.setdefault(target, {arm: [] for arm in ALARMING})
        for arm in ALARMING:
            raised[arm] += [(first, text) for text in arms.get(arm, {}).get("alarms", ())]
    lines = []
    for target, rows in tables.items():
        lines += ["", f"{target}: accuracy of heads on pooled tokens, test (* more than conv alone, paired, 95%)", ""]
        lines.append(format_table(["head", *COLUMNS.values(), "chance"], rows))
        for arm, raised in alarms[target].items():
            lines += alarm_lines(arm, raised, len(rows))
    return lines


def alarm_lines(arm: str, raised: Raised, heads: int) -> list[str]:
    """Every alarm of an arm; where they are many, the first of them and how many heads raise one."""
    if len(raised) <= FEW:
        return [f"alarm: {head}, {arm}: {text}" for head, text in raised]
    (head, text), where = raised[0], dict.fromkeys(head for head, _ in raised)
    return [f"alarm: {arm}, {len(where)} of {heads} heads (all in summary.json), the first: {head}: {text}"]


def cells(summaries: Mapping[str, Summary]) -> Iterator[tuple[str, str, str, str, Mapping[str, Any]]]:
    """(contestant, target, task, budget, arms)"""
    for name, summary in summaries.items():
        for target, tasks in (summary["head"] or {}).items():
            for task, budgets in tasks.items():
                for budget, arms in budgets.items():
                    yield name, target, task, budget, arms


def accuracy_cell(summary: Summary, arm: Mapping[str, Any] | None) -> str:
    if arm is None:
        return ""
    low, trusted = arm["difference"]["low"], not any("r2c" in marks for marks in summary["marks"].values())
    return number(arm["accuracy"]["value"], 2) + ("*" if trusted and low is not None and low > 0 else " ")
