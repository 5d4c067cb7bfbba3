"""Command: runs -> a table of runs x targets, with floors and references as rows, and what each run costs.

python -m distill.scoreboard RUN [RUN ...]             # each run for itself; --csv, --markdown or --latex for documents
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
from distill.table import COST, FORMATS, Cell, Row, cost_values, number

MUST_AGREE = ("split", "view", "data", "normaliser")
LOWER_IS_BETTER = ("nmse", "smooth_l1")


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
    targets = sorted({target for summary in summaries.values() for target in summary["targets"]})
    for target in targets:
        check_comparable({run: found for run, found in summaries.items() if target in found["targets"]}, target)
    known = sorted({name for summary in summaries.values() for found in summary["targets"].values() for name in found})
    if metric not in known:
        raise ValueError(f"no run has the metric {metric!r}; there are {', '.join(known)}")

    def values(by_target: dict[str, Any]) -> list[float | None]:
        return [by_target.get(target, {}).get(metric) for target in targets]

    ours = [[*values(summary["targets"]), *cost_values(summary["cost"])] for summary in summaries.values()]
    lower = [metric in LOWER_IS_BETTER] * len(targets) + [True] * len(COST)
    best = [best_of(column, lower=low) for column, low in zip(zip(*ours, strict=True), lower, strict=True)]
    digits = [3] * len(targets) + list(COST.values())
    rows = []
    for (run, summary), row in zip(summaries.items(), ours, strict=True):
        cells = [
            Cell(value, number(value, places), value is not None and value == top)
            for value, top, places in zip(row, best, digits, strict=True)
        ]
        rows.append(Row(f"{run} ({summary['family']})", cells))
        references = {f"{name} (reference)": found for name, found in summary.get("references", {}).items()}
        beside = summary["floors"] | references
        for name, found in beside.items():
            there = zip(targets, values(found), strict=True)
            cells = [Cell(value, number(value) if target in found else "") for target, value in there]
            rows.append(Row(name, cells + [Cell(None, "")] * len(COST), below=True))
    return FORMATS[style]([f"{metric} on test", *targets, *COST], rows)


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
    """Raises ValueError where runs on one target were scored on other clips or in another space, naming all that
    differs. Runs of other sets of targets are held against each other by the space of this one."""
    (first, reference), *others = summaries.items()
    for run, summary in others:
        digests = [at["digests"] | {"normaliser": space_of(at, target)} for at in (reference, summary)]
        alone = set(summary["targets"]) == set(reference["targets"])
        if not alone and not all("spaces" in at for at in (reference, summary)):
            raise ValueError(
                f"{first} and {run} cannot be compared on {target}: one of them does not say in which space it scored "
                "this target alone; evaluate it again, or give runs of the same targets"
            )
        differ = [
            f"their {name} differs ({str(ours)[:12]} and {str(theirs)[:12]})"
            for name in MUST_AGREE
            if (ours := digests[0].get(name)) != (theirs := digests[1].get(name))
        ]
        if differ:
            raise ValueError(
                f"{first} and {run} cannot be compared on {target}: {', '.join(differ)}; give runs on the same data "
                "and view"
            )


def space_of(summary: dict[str, Any], target: str) -> str | None:
    """The digest of the space in which a target was scored: its own, or in older summaries that of all together."""
    return summary.get("spaces", {}).get(target) or summary["digests"].get("normaliser")


def best_of(values: Sequence[float | None], *, lower: bool) -> float | None:
    """The best value; None where there is nothing to compare."""
    found = [value for value in values if value is not None]
    return (min(found) if lower else max(found)) if len(found) > 1 else None


if __name__ == "__main__":
    sys.exit(main())
