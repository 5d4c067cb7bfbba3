"""Run B minus run A: what differs in their numbers and recipes, or why they cannot be compared."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from distill.comparable import differing, held_together
from distill.dashboard.runs import Run
from distill.dashboard.summary import rounded, section
from distill.dashboard.where import RECORD, Where, paired

PAIRED = "paired over groups of test clips"
NO_NUMBER = "no r2c of both: neither is shown to be better"
UNPAIRED = "no interval: the run folders hold no numbers by clip (where.json) of both"


def compare(a: Run, b: Run) -> dict[str, Any]:
    """`refused`, or `targets`: metric -> a, b and difference, by target, r2c with its interval where that can be had;
    and in any case the digests and the entries of the recipes that differ."""
    found: dict[str, Any] = {"a": a.name, "b": b.name, "recipe": recipe_difference(a, b)}
    summaries = [run.summary()[0] for run in (a, b)]
    if missing := [run.name for run, summary in zip((a, b), summaries, strict=True) if summary is None]:
        return found | {
            "refused": f"{' and '.join(missing)} has no summary.json that can be read: not ended, or damaged"
        }
    ours, theirs = summaries
    assert ours is not None and theirs is not None
    found["digests"] = {name: list(each) for name, each in held_together(ours, theirs).items()}
    if different := differing(ours, theirs):
        values = "; ".join(
            f"{name}: {' and '.join('not told' if v is None else str(v)[:12] for v in each)}"
            for name, each in different.items()
        )
        return found | {"refused": f"they differ in {', '.join(different)} ({values}): their numbers mean other things"}
    common = [target for target in ours["targets"] if target in theirs["targets"]]
    if not common:
        return found | {"refused": f"no target in common: {', '.join(ours['targets'])}; {', '.join(theirs['targets'])}"}
    found["targets"] = {target: differences(ours["targets"][target], theirs["targets"][target]) for target in common}
    found["notes"] = {target: with_interval(a, b, target, found["targets"][target]) for target in common}
    found["marks"] = {t: {**section(ours, "marks").get(t, {}), **section(theirs, "marks").get(t, {})} for t in common}
    return rounded(found)


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    return {
        metric: {
            "a": value,
            "b": theirs[metric],
            "value": None if None in (value, theirs[metric]) else theirs[metric] - value,
        }
        for metric, value in ours.items()
        if metric in theirs
    }


def with_interval(a: Run, b: Run, target: str, found: dict[str, Any]) -> str:
    """Adds `low` and `high` to the difference in r2c, from the clips of both or from the summary of their contest.
    Says where they come from."""
    if found.get("r2c", {}).get("value") is None:
        return NO_NUMBER
    try:
        by_clip = from_clips(a, b, target)
    except (ValueError, TypeError, SafetensorError) as error:
        return f"no interval: {error}"
    lead = section(b.summary()[0] or {}, "lead").get(a.path.name, {}) if a.path.parent == b.path.parent else {}
    for interval, source in ((by_clip, PAIRED), (lead.get(target), f"{PAIRED}, from the contest's summary")):
        low, high = ((interval or {}).get(end) for end in ("low", "high"))
        if low is not None and high is not None and not math.isnan(low + high):
            found["r2c"] |= {"low": low, "high": high}
            return source
    return UNPAIRED


def from_clips(a: Run, b: Run, target: str) -> dict[str, float] | None:
    files = [where_of(run) for run in (a, b)]
    if None in files:
        return None
    ours, theirs = files
    assert ours is not None and theirs is not None
    if target not in ours.targets or target not in theirs.targets:
        return None
    if (ours.keys, ours.groups) != (theirs.keys, theirs.groups):
        raise ValueError(f"where.json of {a.name} and of {b.name} list other test clips")
    return paired(theirs.by_clip(target), ours.by_clip(target), ours.groups)


def where_of(run: Run) -> Where | None:
    return run.cached(RECORD, Where)


def recipe_difference(a: Run, b: Run) -> list[list[str | None]]:
    """[key, value in A, value in B] of what the recipes do not share, beside name and folder."""
    ours, theirs = a.settings(), b.settings()
    keys = [*ours, *(key for key in theirs if key not in ours)]
    return [
        [key, ours.get(key), theirs.get(key)] for key in keys if ours.get(key) != theirs.get(key) and key[:4] != "run."
    ]


def check(a: Path, b: Path, *, tolerance: float) -> tuple[str, int]:
    """The comparison as text, and an exit status: 0, 1 where B is worse in r2c on a target by more than the tolerance
    (the upper end of the interval says so, without one the difference itself), 2 where they cannot be compared, or not
    on every target that they share: without a number, or with one of too few clips."""
    found = compare(Run(a, str(a)), Run(b, str(b)))
    lines = [f"A {a}", f"B {b}"]
    lines += [f"recipe  {key}: {ours} -> {theirs}" for key, ours, theirs in found["recipe"]]
    if "refused" in found:
        return "\n".join([*lines, f"not comparable: {found['refused']}"]), 2
    worse, unknown = [], []
    for target, metrics in found["targets"].items():
        lines.append(f"\n{target} ({found['notes'][target]})")
        lines += [f"  {metric:<15} {row(at)}" for metric, at in metrics.items()]
        lines += [f"  not to be trusted: {metric} ({why})" for metric, why in found["marks"][target].items()]
        change = metrics.get("r2c", {}).get("high", metrics.get("r2c", {}).get("value"))
        if change is None:
            unknown.append(f"{target}: A and B do not both have a number for r2c")
        elif mark := found["marks"][target].get("r2c"):
            unknown.append(f"{target}: r2c is not to be trusted ({mark})")
        elif change < -tolerance:
            worse.append(target)
    verdict = f"B is worse on {', '.join(worse)}" if worse else "B is not shown to be worse"
    if unknown:
        missing = f"not comparable on {'; on '.join(unknown)}"
        verdict = f"{verdict}; {missing}" if worse else missing
    return "\n".join([*lines, "", f"{verdict} (r2c, tolerance {tolerance:g})"]), 1 if worse else 2 if unknown else 0


def row(at: dict[str, float | None]) -> str:
    a, b, value = ("-" if at[key] is None else f"{at[key]:.4f}" for key in ("a", "b", "value"))
    interval = f" ({at['low']:.4f} .. {at['high']:.4f})" if at.get("low") is not None else ""
    return f"A {a:>8}  B {b:>8}  B - A {value:>8}{interval}"
