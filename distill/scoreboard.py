"""Command: runs -> a table of runs x targets, with floors as rows and what each run costs.

python -m distill.scoreboard RUN [RUN ...]             # each run for itself
python -m distill.scoreboard --seeds RUN [RUN ...]     # those of one recipe and several seeds as one, in full
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distill.report import comparison
from distill.seeds import by_recipe, one_of
from distill.table import COST, cost_cells, format_table, number

MUST_AGREE = ("split", "view", "data", "normaliser")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 1 where runs cannot be read or compared."""
    parser = argparse.ArgumentParser(prog="python -m distill.scoreboard", description="Compares finished runs.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run folder (it holds summary.json)")
    parser.add_argument("--seeds", action="store_true", help="means over runs that differ in train.seed alone, in full")
    parser.add_argument("--metric", default="r2c", help="which metric to show (default: r2c)")
    arguments = parser.parse_args(argv)
    try:
        if arguments.seeds:
            print(seeds_board(arguments.runs))
        else:
            print(scoreboard(arguments.runs, metric=arguments.metric))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def scoreboard(runs: Sequence[Path], *, metric: str = "r2c") -> str:
    """The table. Raises ValueError where runs cannot be compared, naming what differs, or a metric is unknown."""
    summaries = {str(run): read_summary(run) for run in runs}
    for target in sorted({target for summary in summaries.values() for target in summary["targets"]}):
        check_comparable({run: found for run, found in summaries.items() if target in found["targets"]}, target)
    targets = sorted({target for summary in summaries.values() for target in summary["targets"]})
    known = sorted({name for summary in summaries.values() for found in summary["targets"].values() for name in found})
    if metric not in known:
        raise ValueError(f"no run has the metric {metric!r}; there are {', '.join(known)}")
    values = {t: [s["targets"][t].get(metric) for s in summaries.values() if t in s["targets"]] for t in targets}
    best = {target: best_of(found, metric) for target, found in values.items()}
    rows = []
    for run, summary in summaries.items():
        cells = [cell(summary["targets"].get(target, {}).get(metric), best[target]) for target in targets]
        rows.append([f"{run} ({summary['family']})", *cells, *cost_cells(summary["cost"])])
        for floor, found in summary["floors"].items():
            cells = [cell(found.get(target, {}).get(metric)) if target in found else "" for target in targets]
            rows.append([f"    {floor}", *cells, "", "", ""])
    return format_table([f"{metric} on test", *targets, *COST], rows) + "\n* best run of the column"


def seeds_board(runs: Sequence[Path]) -> str:
    """What a run says at its end, of the means over seeds; intervals span those of all seeds.

    Raises ValueError where a seed comes twice, or the runs cannot be compared.
    """
    groups = by_recipe(runs)
    summaries = {str(run): read_summary(run) for run in runs}
    for target in sorted({target for summary in summaries.values() for target in summary["targets"]}):
        check_comparable({run: found for run, found in summaries.items() if target in found["targets"]}, target)
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


def check_comparable(summaries: dict[str, dict[str, Any]], target: str) -> None:
    """Raises ValueError where runs on one target were scored on other clips or in another space."""
    (first, reference), *others = summaries.items()
    for run, summary in others:
        for name in MUST_AGREE:
            ours, theirs = reference["digests"].get(name), summary["digests"].get(name)
            alone = set(summary["targets"]) == set(reference["targets"])
            if ours != theirs and (name != "normaliser" or alone):
                raise ValueError(
                    f"{first} and {run} cannot be compared on {target}: their {name} differs "
                    f"({str(ours)[:12]} and {str(theirs)[:12]}); give runs on the same data and view"
                )


def best_of(values: Sequence[float | None], metric: str) -> float | None:
    """The best value; None where there is nothing to compare."""
    found = [value for value in values if value is not None]
    lower_is_better = metric in ("nmse", "smooth_l1")
    return (min(found) if lower_is_better else max(found)) if len(found) > 1 else None


def cell(value: float | None, best: float | None = None) -> str:
    return number(value) + ("*" if value is not None and value == best else "")


if __name__ == "__main__":
    sys.exit(main())
