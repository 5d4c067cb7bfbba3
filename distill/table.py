"""Plain-text tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

COST = ("M params", "GMAC", "ms/clip")


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned by the widest cell, the first to the left, numbers to the right."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    rule = "  ".join("-" * width for width in widths)
    text = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([text[0], rule, *text[1:]])


def number(value: float | None, digits: int = 3) -> str:
    """A number of a summary; those that could not be had are a dash."""
    return "-" if value is None else f"{value:.{digits}f}"


def shortened(name: str, width: int) -> str:
    return name if len(name) <= width else name[: width - 2] + ".."


def cost_cells(cost: Mapping[str, float]) -> list[str]:
    """A summary's cost under the columns of COST."""
    return [f"{cost['parameters'] / 1e6:.2f}", f"{cost['macs'] / 1e9:.2f}", f"{cost['latency_ms']:.0f}"]


def difference(found: Mapping[str, float | None]) -> str:
    """A paired difference with its interval."""
    return f"{number(found['value'], 4)} ({spread(found['low'], found['high'], 4)})"


def spread(low: float | None, high: float | None, digits: int = 3) -> str:
    return f"{number(low, digits)} .. {number(high, digits)}"
