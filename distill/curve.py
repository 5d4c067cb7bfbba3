"""Strength against what is left: deficient contestants beside their twin as a table, and in words what falls and rises.

Reads summaries only. A further column is an entry of LEFT or TOLD.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from statistics import mean
from typing import Any

from distill.naming import MASKED
from distill.table import difference, format_table, number

Summary = Mapping[str, Any]
Arms = Mapping[str, Summary]  # contestants of one twin, by name
Values = list[float | None]
Measure = Callable[[Summary, str], float | None]


@dataclass(frozen=True)
class Column:
    """A measure of a target. change, value: of (summary, target), less the twin's and as it is; None where there is
    none. falls: kinds of deficiency with whose strength it must fall, by theory, up to noise: the error of what is
    penalised cannot fall, nor can the penalty rise; fewer places hold less."""

    change: Measure
    value: Measure
    falls: tuple[str, ...] = ()
    digits: int = 3


def left(summary: Summary, target: str) -> Mapping[str, Any]:
    return summary["deficiency"]["targets"][target]


def change(key: str) -> Measure:
    return lambda summary, target: summary["deficiency"]["from_twin"][target].get(key, {}).get("value")


def told(arm: str, key: str, mark: str = "") -> Measure:
    """Accuracy of heads, or what else is an entry of theirs, with the most labels: the mean over tasks."""

    def measure(summary: Summary, target: str) -> float | None:
        tasks = (summary["head"] or {}).get(target + mark, {}).values()
        found = [(list(budgets.values())[-1][arm][key] or {}).get("value") for budgets in tasks]
        return mean(found) if found and None not in found else None

    return measure


def accuracy(arm: str, mark: str = "") -> Column:
    return Column(told(arm, "from_twin", mark), told(arm, "accuracy", mark))


LEFT = {
    "r2c": Column(change("r2c"), lambda s, t: s["targets"][t]["r2c"], ("low_rank", "jacobian")),
    "r2c masked": Column(
        change("r2c_masked"), lambda s, t: left(s, t).get("mask", {}).get("on"), ("masking", "combined")
    ),
    "k*": Column(change("k"), lambda s, t: left(s, t)["rank_recovery"]["k"], ("low_rank", "combined"), 0),
    "eff. rank": Column(
        change("effective_rank"), lambda s, t: left(s, t)["effective_rank"]["converted"], ("low_rank", "combined"), 1
    ),
    "|J|^2 / var": Column(change("jacobian"), lambda s, t: left(s, t)["jacobian"]["value"], ("jacobian",)),
}
TOLD = {  # by heads
    "accuracy": accuracy("converted"),
    "+ residual": accuracy("converted_supervised"),
    "masked": accuracy("converted", MASKED),
    "masked + residual": accuracy("converted_supervised", MASKED),
}


def curve_lines(summaries: Arms) -> list[str]:
    """For every twin and target a table of its deficient counterparts, then a line of words for every kind of
    deficiency that comes in several strengths; nothing where nobody is deficient."""
    by_twin: dict[tuple[str, str], dict[str, Summary]] = {}
    for name, summary in summaries.items():
        if (summary["deficiency"] or {}).get("twin"):
            by_twin.setdefault((summary["deficiency"]["twin"], summary["family"]), {})[name] = summary
    lines = []
    for (twin, _), arms in by_twin.items():
        arms = dict(sorted(arms.items(), key=lambda arm: (arm[1]["deficiency"]["kind"], amounts(arm[1]))))
        for target in next(iter(arms.values()))["targets"]:
            lines += ["", title(arms, target), *arms_table(twin, arms, target, LEFT)]
            if heads := arms_table(twin, arms, target, TOLD):
                lines += ["", f"{target}: accuracy of heads on test, mean over tasks, with the most labels", *heads]
            kinds = {summary["deficiency"]["kind"] for summary in arms.values()}
            for kind in sorted(kinds):
                lines += words(twin, {n: s for n, s in arms.items() if s["deficiency"]["kind"] == kind}, target)
    return lines


def title(arms: Arms, target: str) -> str:
    first = left(next(iter(arms.values())), target)
    ranks, count = first["effective_rank"], first["rank_recovery"]["of"]
    whole, half = number(ranks["teacher"], 1), number(ranks["of_half"]["teacher"], 1)
    return (
        f"{target}: what a deficiency left on test (and its change from the twin); the teacher has {count} components, "
        f"effective rank {whole}, of half the clips {half}"
    )


def arms_table(twin: str, arms: Arms, target: str, columns: Mapping[str, Column]) -> list[str]:
    """The twin, then every arm with its changes, r2c's with the paired interval; nothing where no arm has a value."""
    header, rows = ["", "deficiency"], [[twin, "none"], *([name, dial(summary)] for name, summary in arms.items())]
    for head, column in columns.items():
        found = values(column, arms, target)
        if all(value is None for value in found[1:]):
            continue
        header += [head, "from twin, paired"] if head == "r2c" else [head]
        rows[0] += [number(found[0], column.digits), ""] if head == "r2c" else [number(found[0], column.digits)]
        for row, value, summary in zip(rows[1:], found[1:], arms.values(), strict=True):
            text, by = number(value, column.digits), column.change(summary, target)
            if head == "r2c":
                row += [text, difference(summary["deficiency"]["from_twin"][target]["r2c"])]
            else:
                row.append(text if by is None else f"{text} ({by:+.{column.digits}f})")
    return ["", format_table(header, rows)] if len(header) > 2 else []


def values(column: Column, arms: Arms, target: str) -> Values:
    """Of the twin, as its arms imply it, then of every arm."""
    own = [column.value(summary, target) for summary in arms.values()]
    changes = [column.change(summary, target) for summary in arms.values()]
    known = [value - change for value, change in zip(own, changes, strict=True) if None not in (value, change)]
    return [known[0] if known else None, *own]


def dial(summary: Summary) -> str:
    found = summary["deficiency"]
    rank = found["amounts"].get("rank", "full")
    return f"{found['kind']} {found['strength']:g}" + ("" if rank == "full" else f", rank {rank:g}")


def amounts(summary: Summary) -> tuple[float, ...]:
    """How much was taken, each the more the larger."""
    found = summary["deficiency"]["amounts"]
    rank = found.get("rank", "full")
    rest = (found.get(name, 0.0) for name in ("nuclear", "mask_ratio", "entropy", "jacobian"))
    return (-inf if rank == "full" else -rank, *rest)


def words(twin: str, arms: Arms, target: str) -> list[str]:
    """What falls and rises from the twin to the strongest arm of a kind; nothing for a lone arm."""
    if len(arms) < 2:
        return []
    kind, taken = next(iter(arms.values()))["deficiency"]["kind"], [amounts(summary) for summary in arms.values()]
    if any(a == b or any(less < more for more, less in zip(a, b, strict=True)) for a, b in pairwise(taken)):
        return [f"{kind}: of these settings none is simply the stronger: no curve"]
    names, lines = [twin, *arms], []
    for head, column in (LEFT | TOLD).items():
        found = values(column, arms, target)
        if None in found:
            continue
        rises = [at for at, (a, b) in enumerate(pairwise(found), 1) if b > a]  # type: ignore[operator]
        falls = any(b < a for a, b in pairwise(found))  # type: ignore[operator]
        if not rises:
            lines.append(f"{head} falls" if falls else f"{head} stays")
        elif not falls:
            lines.append(f"{head} rises" + against(kind, column))
        else:
            up = ", ".join(f"{names[at - 1]} to {names[at]}" for at in rises)
            lines.append(f"{head} is not monotone (up from {up}{told_apart(arms, names, rises, head, target)})")
            lines[-1] += against(kind, column)
    return [f"{kind}, {' < '.join(names)}: " + "; ".join(lines)]


def against(kind: str, column: Column) -> str:
    return ", against theory" if kind in column.falls else ""


def told_apart(arms: Arms, names: Sequence[str], rises: Sequence[int], head: str, target: str) -> str:
    """Whether a rise of r2c is one: the paired interval between two arms of one run says so."""
    if head != "r2c":
        return ""
    leads = [arms[names[at]]["lead"].get(names[at - 1], {}).get(target) for at in rises]
    known = [lead for lead in leads if lead is not None]
    return "; paired: " + ", ".join(difference(lead) for lead in known) if known else ""
