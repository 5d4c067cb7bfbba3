"""What a run says at its end: the table in the terminal, and the entries of the bundle's model card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.floors import MAIN
from distill.runfolder import RunFolder
from distill.table import format_table, number
from shards.column import STUDENT
from shards.store import FeatureStore

Summary = dict[str, Any]
SHOWN = ("r2c", "r2", "cos_std", "cka", "nmse", "cosine")
STANDIN_WARNING = (
    "The backbones are stand-ins: two random layers each, in which pixels alone predict the teacher well. "
    "These numbers show that the machinery works, and nothing about any model."
)


def end_table(
    summaries: Mapping[str, Summary], folders: Mapping[str, RunFolder], *, store: Path, notices: Sequence[str] = ()
) -> str:
    """The contestants beside their floors on the test clips, their costs, what the clips are, and where things lie."""
    first = next(iter(summaries.values()))
    names = {name: name if len(summaries) > 1 else summary["family"] for name, summary in summaries.items()}
    lines: list[str] = []
    for target in first["targets"]:
        lines += ["", f"{target}, {first['clips']['test']} test clips", "", target_table(summaries, names, target)]
        for name, summary in summaries.items():
            gain, whose = summary["gain"].get(target), f"{name}: " if len(summaries) > 1 else ""
            lines += [f"{whose}gain over ridge, paired: {difference(gain)}"] if gain else []
        lines += lead_lines(summaries, target)
        lines += mark_lines(first["marks"].get(target, {}))
    lines.append("")
    lines += [
        cost_line(summary["cost"], f"{name}: " if len(summaries) > 1 else "") for name, summary in summaries.items()
    ]
    lines += ["clips: " + ", ".join(f"{count} {name}" for name, count in first["clips"].items()), *notices]
    if first["weights"] == "standin":
        lines.append(STANDIN_WARNING)
    for folder in folders.values():
        lines += [f"run       {folder.path}", f"bundle    {folder.bundle}"]
    return "\n".join([*lines, f"features  {store}"])


def target_table(summaries: Mapping[str, Summary], names: Mapping[str, str], target: str) -> str:
    """The contestants' metrics on a target, then each floor: once where it is the same for all, else by contestant."""
    rows = [row(names[name], s["targets"][target], s["intervals"][target]["r2c"]) for name, s in summaries.items()]
    floors: dict[str, dict[str, dict[str, float | None]]] = {}
    for name, summary in summaries.items():
        for floor, found in summary["floors"].items():
            if target in found:
                floors.setdefault(floor, {})[name] = found[target]
    for floor, by_contestant in floors.items():
        first, *others = by_contestant.values()
        if all(other == first for other in others):
            rows.append(row(floor, first))
        else:
            rows += [row(f"{name}/{floor}", found) for name, found in by_contestant.items()]
    return format_table([MAIN + " / floors", "r2c", "95%", *SHOWN[1:]], rows)


def lead_lines(summaries: Mapping[str, Summary], target: str) -> list[str]:
    """The lead of the contestant with the best r2c over each other, on the same clips; better needs its lower end above
    0."""
    scores = {name: summary["targets"][target]["r2c"] for name, summary in summaries.items()}
    best = max(scores, key=lambda name: float("-inf") if scores[name] is None else scores[name])
    lines = []
    for rival, found in summaries[best]["lead"].items():
        sure = (found[target]["low"] or 0) > 0
        claim = f"{best} is better than {rival}" if sure else f"{best} leads {rival}, not for certain"
        lines.append(f"{claim}, paired: {difference(found[target])}")
    return lines


def difference(found: Mapping[str, float | None]) -> str:
    """A paired difference with its interval."""
    return f"{number(found['value'], 4)} ({spread(found['low'], found['high'], 4)})"


def cost_line(cost: Mapping[str, Any], whose: str) -> str:
    return (
        f"{whose}{cost['parameters'] / 1e6:.2f} M parameters, {cost['macs'] / 1e9:.2f} GMAC and "
        f"{cost['latency_ms']:.0f} ms a clip ({cost['device']}, {cost['threads']} threads, fp32, batch 1, all targets)"
    )


def mark_lines(marks: Mapping[str, str]) -> list[str]:
    """What cannot be trusted, a line for each reason with the metrics that it concerns."""
    reasons: dict[str, list[str]] = {}
    for metric, reason in marks.items():
        reasons.setdefault(reason, []).append(metric)
    return [f"not to be trusted: {', '.join(metrics)} ({reason})" for reason, metrics in reasons.items()]


def row(name: str, found: dict[str, float | None], low_high: list[float | None] | None = None) -> list[str]:
    """One line of the table."""
    between = spread(*low_high) if low_high else ""
    return [name, number(found["r2c"]), between, *(number(found[metric]) for metric in SHOWN[1:])]


def spread(low: float | None, high: float | None, digits: int = 3) -> str:
    return f"{number(low, digits)} .. {number(high, digits)}"


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
        },
    }
