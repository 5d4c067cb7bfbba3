"""The model card of a bundle: what a stranger must know before loading it."""

from __future__ import annotations

import json
import re
from typing import Any

from converters.converter import Converter

NON_COMMERCIAL = re.compile(r"(^|[^a-z])(nc|non-?commercial)([^a-z]|$)", re.IGNORECASE)
ORIGIN = ("function", "weights", "checkpoint", "revision", "licence")
CARD_METRICS = 24  # rows of the table; the rest is in config.json


def non_commercial(config: dict[str, Any]) -> list[tuple[str, str]]:
    """(backbone, licence) of every origin whose licence forbids commercial use."""
    licences = [(name, origin.get("licence") or "") for name, origin in _origins(config).items()]
    return [(name, licence) for name, licence in licences if NON_COMMERCIAL.search(str(licence))]


def render(config: dict[str, Any], converter: Converter) -> str:
    """README.md: front matter, geometry, origins, metrics, how to load."""
    targets = ", ".join(converter.targets)
    title = config.get("name") or f"{converter.family}: student to {targets}"
    warnings = [
        f"> **Non-commercial.** The weights of {name} are {licence}; what was trained on their answers is for "
        "non-commercial use only."
        for name, licence in non_commercial(config)
    ]
    standins = [name for name, origin in _origins(config).items() if origin.get("weights") == "standin"]
    if standins:
        warnings.append(
            f"> **Stand-ins.** The weights of {', '.join(standins)} are random: this converter shows that the "
            "machinery works, and nothing about any model."
        )
    sections = [
        _front_matter(config, converter),
        f"# {title}",
        *warnings,
        f"A {converter.family} converter of {config['parameters']:,} parameters. It turns the tokens of a frozen video "
        f"student into those of {targets}, in the backbones' own units.",
        "## Load",
        "```python\nfrom converters import load_converter\n\n"
        'converter = load_converter("this/folder")  # needs torch, numpy, einops, safetensors\n'
        f"tokens = converter(student_tokens)  # {_call(converter)}\n```",
        "## Geometry",
        _table(
            ("tokens", "layout", "grid (t h w)", "extent (t, y, x)"),
            [_geometry("student", converter.student)]
            + [_geometry(name, layout) for name, layout in converter.targets.items()],
        ),
        "Order: grid in t-h-w, then special tokens. A place is a fraction of the clip's view.",
        "## Origins",
        _table(("backbone", *ORIGIN), _origin_rows(config, converter)),
        "## Metrics",
        _metrics(config),
        _floors(config),
        "## Digests",
        _table(("of", "digest"), sorted((name, value) for name, value in (config.get("digests") or {}).items())),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _front_matter(config: dict[str, Any], converter: Converter) -> str:
    tags = ("video", "representation-conversion", converter.family, *converter.targets)
    # A JSON string is a YAML string: names from outside cannot break out of it.
    lines = [
        "---",
        f"license: {_licence(config)}",
        "library_name: tokenbridge",
        "tags:",
        *(f"- {json.dumps(tag)}" for tag in tags),
        "---",
    ]
    return "\n".join(lines)


def _licence(config: dict[str, Any]) -> str:
    """apache-2.0 where nobody else's weights had a say, or all of theirs are known and allow it; else other."""
    theirs = [origin for origin in _origins(config).values() if origin.get("weights") not in (None, "standin")]
    known = all(origin.get("licence") for origin in theirs)
    return "apache-2.0" if known and not non_commercial(config) else "other"


def _call(converter: Converter) -> str:
    answers = ", ".join(f'"{name}": (b, {at.num_tokens}, {at.dim})' for name, at in converter.targets.items())
    return f"(b, {converter.student.num_tokens}, {converter.student.dim}) -> {{{answers}}}"


def _geometry(name: str, layout: Any) -> tuple[str, ...]:
    extent = ", ".join(f"{low:g}-{high:g}" for low, high in layout.extent)
    return name, layout.describe(), " x ".join(map(str, layout.grid or ())) or "none", extent if layout.grid else "none"


def _origins(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    origins = config.get("origins") or {}
    return {name: origin for name, origin in origins.items() if isinstance(origin, dict)}


def _origin_rows(config: dict[str, Any], converter: Converter) -> list[tuple[str, ...]]:
    origins = _origins(config)
    names = ["student", *converter.targets]
    return [(name, *(str(origins.get(name, {}).get(field) or "not given") for field in ORIGIN)) for name in names]


def _metrics(config: dict[str, Any]) -> str:
    rows = [
        (target, metric, f"{value:.4f}")
        for target, metrics in (config.get("metrics") or {}).items()
        if isinstance(metrics, dict)
        for metric, value in metrics.items()
        if isinstance(value, (int, float))
    ]
    more = f"\n\nAnd {len(rows) - CARD_METRICS} more in config.json." if len(rows) > CARD_METRICS else ""
    return (_table(("target", "metric", "value"), rows[:CARD_METRICS]) or "None were given.") + more


def _floors(config: dict[str, Any]) -> str:
    """r2c of the floors that the converter must beat, where the run measured them."""
    training = config.get("training")
    floors = training.get("floors") if isinstance(training, dict) else None
    rows = [
        (floor, target, f"{metrics['r2c']:.4f}")
        for floor, by_target in (floors.items() if isinstance(floors, dict) else ())
        if isinstance(by_target, dict)
        for target, metrics in by_target.items()
        if isinstance(metrics, dict) and isinstance(metrics.get("r2c"), (int, float))
    ]
    return "\n\n".join(["Its floors, on the same clips:", _table(("floor", "target", "r2c"), rows)]) if rows else ""


def _table(head: tuple[str, ...], rows: list[Any]) -> str:
    if not rows:
        return ""
    lines = [head, tuple("---" for _ in head), *rows]
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)
