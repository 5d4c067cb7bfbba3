"""What a run says at its end: the table in the terminal, and the entries of the bundle's model card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.floors import MAIN
from distill.table import format_table, number
from shards.column import STUDENT
from shards.store import FeatureStore

SHOWN = ("r2c", "r2", "cos_std", "cka", "nmse", "cosine")
STANDIN_WARNING = (
    "The backbones are stand-ins: two random layers each, in which pixels alone predict the teacher well. "
    "These numbers show that the machinery works, and nothing about any model."
)


def end_table(summary: dict[str, Any], *, folder: Path, store: Path, notices: Sequence[str] = ()) -> str:
    """The converter beside its floors on the test clips, its cost, what its clips are, and where things lie."""
    lines: list[str] = []
    for target in summary["targets"]:
        rows = [row(summary["family"], summary["targets"][target], summary["intervals"][target]["r2c"])]
        rows += [row(name, found[target]) for name, found in summary["floors"].items() if target in found]
        lines += ["", f"{target}, {summary['clips']['test']} test clips", ""]
        lines.append(format_table([MAIN + " / floors", "r2c", "95%", *SHOWN[1:]], rows))
        gain = summary["gain"].get(target)
        if gain:
            lines.append(
                f"gain over ridge, paired: {number(gain['value'], 4)} ({spread(gain['low'], gain['high'], 4)})"
            )
        lines += mark_lines(summary["marks"].get(target, {}))
    cost = summary["cost"]
    lines += [
        "",
        f"{cost['parameters'] / 1e6:.2f} M parameters, {cost['macs'] / 1e9:.2f} GMAC and "
        f"{cost['latency_ms']:.0f} ms a clip ({cost['device']}, {cost['threads']} threads, fp32, batch 1, all targets)",
        "clips: " + ", ".join(f"{count} {name}" for name, count in summary["clips"].items()),
        *notices,
    ]
    if summary["weights"] == "standin":
        lines.append(STANDIN_WARNING)
    lines += [f"run       {folder}", f"bundle    {folder / 'bundle'}", f"features  {store}"]
    return "\n".join(lines)


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
