"""Command: runs -> a table of runs x targets, with floors and references as rows, and what each run costs.

python -m distill.scoreboard RUN [RUN ...]             # each run for itself; --csv, --markdown or --latex for documents
python -m distill.scoreboard --seeds RUN [RUN ...]     # those of one recipe and several seeds as one, in full
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from distill.comparable import differing
from distill.report import comparison
from distill.seeds import by_recipe, one_of
from distill.table import COST, FORMATS, Cell, Row, cost_values, number, pixels_text

FURTHER = ("equivalent_pixels", "regret")  # metrics that have a section of their own in a summary
LOWER_IS_BETTER = ("nmse", "smooth_l1", *FURTHER)
OWN = ""
MARK = "!"
NOTHING = Cell(None, "")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 1 where runs cannot be read or compared."""
    parser = argparse.ArgumentParser(prog="python -m distill.scoreboard", description="Compares finished runs.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run folder (it holds summary.json)")
    parser.add_argument("--seeds", action="store_true", help="means over runs that differ in train.seed alone, in full")
    parser.add_argument("--metric", default="r2c", help="which metric to show (default: r2c)")
    formats = parser.add_mutually_exclusive_group()
    formats.add_argument("--csv", action="store_const", const="csv", dest="format", help="unrounded, the best unmarked")
    formats.add_argument("--markdown", action="store_const", const="markdown", dest="format")
    formats.add_argument("--latex", action="store_const", const="latex", dest="format", help="a tabular with booktabs")
    arguments = parser.parse_args(argv)
    if arguments.seeds and arguments.format:
        parser.error(f"--seeds prints what a run says at its end, as text alone; leave --{arguments.format} out")
    try:
        if arguments.seeds:
            print(seeds_board(arguments.runs))
        else:
            print(scoreboard(arguments.runs, metric=arguments.metric, style=arguments.format or "text"))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def scoreboard(runs: Sequence[Path], *, metric: str = "r2c", style: str = "text") -> str:
    """The table. Raises ValueError where runs cannot be compared, naming what differs, or a metric is unknown."""
    summaries = {str(run): read_summary(run) for run in runs}
    targets = comparable_targets(summaries)
    measured = {run: cells_of(summary, metric) for run, summary in summaries.items()}
    if not any(found[OWN] for found in measured.values()):
        known = {name for summary in summaries.values() for at in summary["targets"].values() for name in at}
        known |= {name for name in FURTHER if any(cells_of(summary, name)[OWN] for summary in summaries.values())}
        raise ValueError(f"no run has the metric {metric!r}; there are {', '.join(sorted(known))}")
    ours = [
        [*(found[OWN].get(target, NOTHING) for target in targets), *cost_row(summaries[run]["cost"])]
        for run, found in measured.items()
    ]
    lower = [metric in LOWER_IS_BETTER] * len(targets) + [True] * len(COST)
    columns = [[cell.value for cell in column] for column in zip(*ours, strict=True)]
    best = [best_of(column, lower=low) for column, low in zip(columns, lower, strict=True)]
    rows = []
    for (run, found), row in zip(measured.items(), ours, strict=True):
        cells = [
            replace(cell, best=cell.value is not None and cell.value == top)
            for cell, top in zip(row, best, strict=True)
        ]
        rows.append(Row(f"{run} ({summaries[run]['family']})", cells))
        for name, by_target in found.items():
            if name != OWN and by_target:
                told = [by_target.get(target, NOTHING) for target in targets]
                rows.append(Row(name, told + [NOTHING] * len(COST), below=True))
    marked = any(cell.text.endswith(MARK) for row in rows for cell in row.cells)
    title = f"{metric} on test" + f" ({MARK} of too few clips)" * marked
    return FORMATS[style]([title, *targets, *COST], rows)


def cells_of(summary: dict[str, Any], metric: str) -> dict[str, dict[str, Cell]]:
    """A metric of a run (OWN) and of its floors and references, by target; marked where it has too few clips."""
    oracle, pixels = summary.get("oracle") or {}, summary.get("equivalent_pixels") or {}
    if metric == "equivalent_pixels":
        return {OWN: {at: Cell(told["value"], pixels_text(told)) for at, told in pixels.items()}}
    if metric == "regret":
        found = {OWN: {target: at["value"] for target, at in oracle.get("regret", {}).items()}} | oracle.get(
            "floors", {}
        )
    else:
        references = {f"{name} (reference)": at for name, at in summary.get("references", {}).items()}
        tables = {OWN: summary["targets"]} | summary["floors"] | references
        found = {
            name: {target: scores[metric] for target, scores in by_target.items() if metric in scores}
            for name, by_target in tables.items()
        }
    marks = {target: MARK * (metric in at) for target, at in summary.get("marks", {}).items()}
    return {
        name: {target: Cell(value, number(value) + marks.get(target, "")) for target, value in by_target.items()}
        for name, by_target in found.items()
    }


def cost_row(cost: dict[str, Any]) -> list[Cell]:
    return [Cell(value, number(value, places)) for value, places in zip(cost_values(cost), COST.values(), strict=True)]


def comparable_targets(summaries: dict[str, dict[str, Any]]) -> list[str]:
    """All targets. Raises ValueError where runs that share one cannot be compared, naming all that differs."""
    targets = sorted({target for summary in summaries.values() for target in summary["targets"]})
    found = {}
    for target in targets:
        first, *others = (run for run, summary in summaries.items() if target in summary["targets"])
        found |= {(first, run): differing(summaries[first], summaries[run]) for run in others}
    if any(found.values()):
        lines = [f"{a} and {b} cannot be compared: {told(values)}" for (a, b), values in found.items() if values]
        raise ValueError("\n       ".join([*lines, "give runs on the same data and view, evaluated by one version"]))
    return targets


def told(different: Mapping[str, tuple[Any, Any]]) -> str:
    return ", ".join(
        f"their {name} differs ({' and '.join('not told' if at is None else str(at)[:12] for at in values)})"
        for name, values in different.items()
    )


def seeds_board(runs: Sequence[Path]) -> str:
    """What a run says at its end, of the means over seeds; intervals span those of all seeds.

    Raises ValueError where a seed comes twice, or the runs cannot be compared.
    """
    groups = by_recipe(runs)
    summaries = {str(run): read_summary(run) for run in runs}
    comparable_targets(summaries)
    counts = {len(group) for group in groups}
    if len(counts) > 1:
        some = ", ".join(f"{group[0]} {len(group)}" for group in groups)
        raise ValueError(f"the recipes have different numbers of seeds ({some}); give the same for each")
    names = [group[0].resolve().name for group in groups]  # a contestant's folder is named after it
    labels = names if len(set(names)) == len(names) else [str(group[0]) for group in groups]
    found = {label: one_of([summaries[str(run)] for run in group]) for label, group in zip(labels, groups, strict=True)}
    first, *_ = counts
    head = f"means over {first} seeds; intervals span those of all seeds: what lies outside one lies outside each"
    return "\n".join([head, *comparison(found)])


def read_summary(run: Path) -> dict[str, Any]:
    """A run's summary.json. Raises FileNotFoundError for an unfinished run, ValueError for a file that is not one."""
    path = run / "summary.json"
    if not path.exists():
        raise FileNotFoundError(f"{run} has no summary.json; it is no run folder, or its run has not ended")
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        missing = {"targets", "floors", "cost", "digests", "family"} - set(summary)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} cannot be read ({error})") from None
    if missing:
        raise ValueError(f"{path} lacks {', '.join(sorted(missing))}; it is not the summary of a run")
    return summary


def best_of(values: Sequence[float | None], *, lower: bool) -> float | None:
    """The best value; None where there is nothing to compare."""
    found = [value for value in values if value is not None]
    return (min(found) if lower else max(found)) if len(found) > 1 else None


if __name__ == "__main__":
    sys.exit(main())
