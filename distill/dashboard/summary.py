"""What the dashboard reads of a summary.json. Nothing else of the file goes further, and what does has the form below.

Anybody may have written the file: an entry of another form is left out, and said to be.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LARGEST = 2**26  # bytes of a summary or recipe that are read
NAMED = 5  # entries of another form that are named; the others are counted
ANY = "*"  # in a form: whatever the name. Other names stand for themselves
ABSENT = object()
Summary = Mapping[str, Any]


def each(form: Any) -> dict[str, Any]:
    return {ANY: form}


# A form is float (a number or null), str, [form] (a list of such), or a dict of forms by name.
SCORES = each(each(float))  # target -> metric
SPAN = {"value": float, "low": float, "high": float}
RECOVERY = {"k": float, "of": float, "r2": [float]}
ARM = {"accuracy": SPAN, "difference": SPAN, "chance": float, "alarms": [str]}
LEFT = {
    "rank_recovery": RECOVERY,
    "effective_rank": {"converted": float, "teacher": float},
    "jacobian": {"value": float},
    "mask": {"on": float, "deviation": float},
}
FORM = {
    "targets": SCORES,
    "intervals": each(each([float])),
    "marks": each(each(str)),
    "floors": each(SCORES),
    "references": each(SCORES),
    "gain": each(SPAN),
    "above": each(each(SPAN)),
    "lead": each(each(SPAN)),
    "equivalent_pixels": each({"value": float, "beyond": float}),
    "oracle": {"regret": each(SPAN)},
    "rank_recovery": each(RECOVERY),
    "deficiency": {
        "kind": str,
        "strength": float,
        "twin": str,
        "targets": each(LEFT),
        "from_twin": each(each(SPAN)),
    },
    "head": each(each(each(each(ARM)))),  # target -> task -> labels of a class -> arm
    "family": str,
    "weights": str,
    "chosen": {"r2c": each(float)},
    "cost": {"parameters": float, "macs": float, "latency_ms": float},
    "clips": each(float),
    "digests": each(str),
    "spaces": each(str),
}
# Sections that the list of runs has whole.
LISTED = (
    *("targets", "floors", "references", "intervals", "marks", "gain", "above", "lead", "equivalent_pixels"),
    *("chosen", "cost", "clips", "digests", "spaces"),
)


def read_summary(path: Path) -> tuple[Summary | None, str | None]:
    """What the form says of a summary.json, and what is wrong with the file; None where it is none at all."""
    try:
        found = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        return None, f"summary.json cannot be read ({error})"
    wrong: list[str] = []
    summary = fitting(found, FORM, "", wrong)
    if summary is ABSENT or not summary.get("targets") or any(f"{name}.".startswith("targets.") for name in wrong):
        return None, "summary.json is not the summary of a run: it has no numbers under `targets`"
    return summary, complaint(wrong) if wrong else None


def fitting(found: Any, form: Any, name: str, wrong: list[str]) -> Any:
    """What of an entry has the form, ABSENT where nothing has. Adds the names of what has another one to `wrong`."""
    if found is None:
        return None if form in (float, str) else ABSENT
    if isinstance(form, dict) and isinstance(found, dict):
        known = found if ANY in form else [key for key in form if key in found]
        parts = {
            key: fitting(found[key], form.get(ANY, form.get(key)), f"{name}.{key}".strip("."), wrong) for key in known
        }
        return {key: part for key, part in parts.items() if part is not ABSENT}
    if isinstance(form, list) and isinstance(found, list):
        return [part for value in found if (part := fitting(value, form[0], name, wrong)) is not ABSENT]
    if form is float and isinstance(found, int | float) and not isinstance(found, bool):
        if isinstance(found, float) or abs(found) < 2**63:
            return found if math.isfinite(found) else None
    elif form is str and isinstance(found, str):
        return found
    wrong.append(name)
    return ABSENT


def complaint(wrong: list[str]) -> str:
    more = f" and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
    return f"summary.json: left out, for a run writes it in another form: {', '.join(wrong[:NAMED])}{more}"


def read_short(path: Path) -> tuple[dict[str, Any] | None, str | None]:
    """What the list of runs needs of a summary, and what is wrong with the file."""
    summary, problem = read_summary(path)
    return (None if summary is None else shortened(summary)), problem


def shortened(summary: Summary) -> dict[str, Any]:
    deficiency = section(summary, "deficiency")
    found = {
        **{name: section(summary, name) for name in LISTED},
        "regret": section(section(summary, "oracle"), "regret"),
        "weights": summary.get("weights"),
        "deficiency": {name: deficiency.get(name) for name in ("kind", "strength", "twin")},
        "head": bool(section(summary, "head")),
    }
    if summary.get("family") is not None:
        found["family"] = summary["family"]
    return rounded(found)


def section(summary: Summary, name: str) -> dict[str, Any]:
    """Of a summary of the form above: one that is not there is empty."""
    return summary.get(name) or {}


def rounded(found: Any) -> Any:
    """Numbers to six digits; what JSON does not have becomes None."""
    if isinstance(found, float):
        return float(f"{found:.6g}") if math.isfinite(found) else None
    if isinstance(found, dict):
        return {key: rounded(value) for key, value in found.items()}
    return [rounded(value) for value in found] if isinstance(found, list) else found


def read_text(path: Path) -> str:
    with open(path, "rb") as file:
        return file.read(LARGEST).decode(errors="replace")
