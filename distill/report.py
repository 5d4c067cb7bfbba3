"""What a run says at its end: the table in the terminal, and the entries of the bundle's model card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from distill.curve import curve_lines
from distill.floors import MAIN, TWIN
from distill.head_table import head_lines
from distill.runfolder import RunFolder
from distill.table import COST, cost_cells, difference, format_table, number, pixels_text, shortened, spread
from shards.column import STUDENT
from shards.store import FeatureStore

Summary = dict[str, Any]
Pair = Mapping[str, float | None]  # value, low, high
APART = ("targets", "from_twin")  # of what a summary says of a deficiency, what the card leaves out
SHOWN = ("r2c", "r2", "cos_std", "cka", "nmse", "cosine")
STANDIN_WARNING = (
    "The backbones are stand-ins: two random layers each, in which pixels alone predict the teacher well. "
    "These numbers show that the machinery works, and nothing about any model."
)


def end_table(
    summaries: Mapping[str, Summary], folders: Mapping[str, RunFolder], *, store: Path, notices: Sequence[str] = ()
) -> str:
    """The contestants beside their floors on the test clips, what sets them apart, their cost, what the clips are, and
    where things lie."""
    (name, first), *others = summaries.items()
    lines = comparison(summaries)
    lines += ["", f"cost: {measured(first['cost'])}" if others else cost_line(first["cost"])]
    lines += ["clips: " + ", ".join(f"{count} {name}" for name, count in first["clips"].items()), *notices]
    if first["weights"] == "standin":
        lines.append(STANDIN_WARNING)
    lines.append(f"run       {folders[name].path.parent if others else folders[name].path}")
    lines += [f"bundle    {folder.bundle}" for folder in folders.values()]
    return "\n".join([*lines, f"features  {store}"])


def comparison(summaries: Mapping[str, Summary]) -> list[str]:
    """The contestants beside their floors, target by target, what sets them apart, which factors survive, and what
    heads tell."""
    first, *others = summaries.values()
    lines: list[str] = []
    for target in first["targets"]:
        lines += ["", f"{target}, {first['clips']['test']:.0f} test clips", "", target_table(summaries, target)]
        if others:
            lines += ["", *standings(summaries, target)]
        elif gain := first["gain"].get(target):
            lines.append(f"gain over ridge, paired: {difference(gain)}")
        there = {metric for metric, value in first["targets"][target].items() if value is not None}
        marks = first["marks"].get(target, {})
        lines += floor_lines(summaries, target)
        lines += regret_lines(summaries, target) + pixel_lines(summaries, target)
        lines += mark_lines({metric: reason for metric, reason in marks.items() if metric in there})
    return lines + curve_lines(summaries) + survival_lines(summaries) + head_lines(summaries)


def target_table(summaries: Mapping[str, Summary], target: str) -> str:
    """The contestants' metrics on a target, then each floor: once where all have the same, else by contestant."""
    names = [summary["family"] for summary in summaries.values()] if len(summaries) == 1 else list(summaries)
    found = [(summary["targets"][target], summary["intervals"][target]["r2c"]) for summary in summaries.values()]
    rows = [row(name, *scores) for name, scores in zip(names, found, strict=True)]
    floors: dict[str, dict[str, dict[str, float | None]]] = {}
    for name, summary in summaries.items():
        references = {f"{reference} (reference)": at for reference, at in summary.get("references", {}).items()}
        for floor, by_target in (summary["floors"] | references).items():
            shown = floor == TWIN and summary["deficiency"]["twin"] in summaries
            if target in by_target and not shown:
                floors.setdefault(floor, {})[name] = by_target[target]
    for floor, by_contestant in floors.items():
        first, *others = by_contestant.values()
        if len(by_contestant) == len(summaries) and all(other == first for other in others):
            rows.append(row(floor, first))
        else:
            rows += [row(f"{name}/{floor}", scores) for name, scores in by_contestant.items()]
    return format_table([MAIN + " / floors", "r2c", "95%", *SHOWN[1:]], rows)


def standings(summaries: Mapping[str, Summary], target: str) -> list[str]:
    """Every contestant's gain over ridge, the lead that the best on val has over it on the same test clips, and its
    cost; then where that lead is one: its lower end must be above 0, and the interval be one to trust."""
    on_val = {name: summary["chosen"]["r2c"][target] for name, summary in summaries.items()}
    best = max(on_val, key=lambda name: float("-inf") if on_val[name] is None else on_val[name])
    leads = {rival: found[target] for rival, found in summaries[best]["lead"].items()}
    rows = []
    for name, summary in summaries.items():
        gain, cost = summary["gain"].get(target), summary["cost"]
        cells = [difference(gain) if gain else "-", difference(leads[name]) if name in leads else ""]
        rows.append([name, *cells, *cost_cells(cost)])
    table = format_table(["contestant", "gain over ridge, paired", f"lead of {best}, paired", *COST], rows)
    return [table, *verdicts(best, {name: (name, lead) for name, lead in leads.items()}, summaries[best], target)]


def floor_lines(summaries: Mapping[str, Summary], target: str) -> list[str]:
    """For every contestant which floors it is better than, on the same test clips."""
    lines = []
    for name, summary in summaries.items():
        floors = {floor: found for floor, found in summary.get("above", {}).items() if floor in summary["floors"]}
        over = {floor: found[target] for floor, found in floors.items() if target in found and floor != TWIN}
        told = {floor: (f"{floor} ({difference(found)})", found) for floor, found in over.items()}
        lines += verdicts(summary["family"] if len(summaries) == 1 else name, told, summary, target)
    return lines


def verdicts(who: str, others: Mapping[str, tuple[str, Pair]], summary: Summary, target: str) -> list[str]:
    """Whom it is better than, is not told apart from, and is worse than, by paired intervals that do not hold 0; marked
    ones tell nothing apart. others: name -> how it is called where it is not beaten, and the lead over it."""
    trusted = "r2c" not in summary["marks"].get(target, {})
    found: dict[str, list[str]] = {"is better than": [], "is not told apart from": [], "is worse than": []}
    for name, (called, lead) in others.items():
        low, high = lead["low"], lead["high"]
        if trusted and low is not None and low > 0:
            found["is better than"].append(name)
        elif trusted and high is not None and high < 0:
            found["is worse than"].append(called)
        else:
            found["is not told apart from"].append(called)
    return [f"{who} {verdict} {', '.join(names)}" for verdict, names in found.items() if names]


def survival_lines(summaries: Mapping[str, Summary]) -> list[str]:
    """For every contestant and kind of probe a table of what is told from its tokens; none without probes."""
    lines = []
    for name, summary in summaries.items():
        tasks = next(iter(summary["probes"].values()), {})
        whose = f"{name}: " if len(summaries) > 1 else ""
        for kind in next(iter(tasks.values()), {}):
            title = f"{whose}accuracy of {kind} probes on test, teacher -> converted (* less, paired, 95%)"
            lines += ["", title, "", survival_table(summary, kind), *agreement_lines(summary, kind)]
    return lines


def agreement_lines(summary: Summary, kind: str) -> list[str]:
    """How often the teacher's own probe answers alike on both tokens, beyond chance: one line for all targets."""
    found = {target: [task[kind]["kappa"] for task in tasks.values()] for target, tasks in summary["probes"].items()}
    means = {
        target: fmean(known) for target, at in found.items() if (known := [each for each in at if each is not None])
    }
    told = ", ".join(f"{target} {number(value, 2)}" for target, value in means.items())
    return [f"agreement of the teacher's probe with itself (kappa, mean over tasks): {told}"] if told else []


def survival_table(summary: Summary, kind: str) -> str:
    """Tasks as rows: what is told from the student, from each teacher and what was converted to it, and by chance. With
    four targets at most 120 columns wide."""
    probes, rows = summary["probes"], []
    for task, first in next(iter(probes.values())).items():
        cells = [number(first[kind]["student"]["value"], 2)]
        for target, tasks in probes.items():
            found = tasks[task][kind]
            pair = " -> ".join(number(found[tokens]["value"], 2) for tokens in ("teacher", "converted"))
            high, trusted = found["difference"]["high"], "r2c" not in summary["marks"].get(target, {})
            cells.append(pair + ("*" if trusted and high is not None and high < 0 else " "))
        rows.append([shortened(task, 20), *cells, number(first[kind]["chance"], 2)])
    return format_table(["task", STUDENT, *(shortened(target, 18) for target in probes), "chance"], rows)


def cost_line(cost: Mapping[str, Any]) -> str:
    return (
        f"{cost['parameters'] / 1e6:.2f} M parameters, {cost['macs'] / 1e9:.2f} GMAC and "
        f"{cost['latency_ms']:.0f} ms a clip ({measured(cost)})"
    )


def measured(cost: Mapping[str, Any]) -> str:
    return f"{cost['device']}, {cost['threads']} threads, fp32, batch 1, all targets"


def regret_lines(summaries: Mapping[str, Summary], target: str) -> list[str]:
    """On an oracle, what every contestant and floor leaves of the best R2."""
    lines = []
    for name, summary in summaries.items():
        if told := summary.get("oracle"):
            found, who = told["regret"][target], summary["family"] if len(summaries) == 1 else name
            best = f"{who}: regret (1 - R2) / (1 - R2 of Bayes, {number(told['bayes_r2'])}) is {difference(found)}"
            floors = [f"{floor} {number(at[target], 2)}" for floor, at in told["floors"].items() if target in at]
            lines.append(f"{best}; floors: {', '.join(floors)}")
    return lines


def pixel_lines(summaries: Mapping[str, Summary], target: str) -> list[str]:
    """By how many pixels the teacher's own view would have to be moved for the same error, as a line."""
    told = []
    for name, summary in summaries.items():
        if found := summary.get("equivalent_pixels", {}).get(target):
            told.append(f"{summary['family'] if len(summaries) == 1 else name} {pixels_text(found)}")
    return [f"as far from the teacher as a view moved by pixels of its input: {', '.join(told)}"] if told else []


def mark_lines(marks: Mapping[str, str]) -> list[str]:
    """What cannot be trusted, a line for each reason with the metrics that it concerns."""
    reasons: dict[str, list[str]] = {}
    for metric, reason in marks.items():
        reasons.setdefault(reason, []).append(metric)
    return [f"not to be trusted: {', '.join(metrics)} ({reason})" for reason, metrics in reasons.items()]


def row(name: str, found: dict[str, float | None], low_high: list[float | None] | None = None) -> list[str]:
    """One line of the table."""
    between = spread(*low_high) if low_high else ""
    return [name, number(found["r2c"]), between, *(number(found.get(metric)) for metric in SHOWN[1:])]


def model_card(summary: dict[str, Any], store: FeatureStore) -> dict[str, Any]:
    """The entries of converters.bundle's card."""
    names = (STUDENT, *summary["targets"])
    return {
        "name": summary["recipe"],
        "origins": {name: store.columns[name].origin for name in names},
        "digests": summary["digests"],
        "metrics": summary["targets"],
        "training": {
            "view": store.manifest.view,
            "clips": summary["clips"],
            "floors": summary["floors"],
            "gain": summary["gain"],
            "deficiency": {key: value for key, value in (summary["deficiency"] or {}).items() if key not in APART},
        },
    }
