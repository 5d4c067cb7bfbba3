"""Tables: plain text, and what documents take."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

COST = {"M params": 2, "GMAC": 2, "ms/clip": 0, "MB read": 3}  # of a clip -> decimals
LATEX = {sign: f"\\{sign}" for sign in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


@dataclass(frozen=True)
class Cell:
    """A value and how it is written; best: of its column."""

    value: float | None
    text: str
    best: bool = False


@dataclass(frozen=True)
class Row:
    """below: it belongs to the row above that is not."""

    name: str
    cells: Sequence[Cell]
    below: bool = False


def text_table(header: Sequence[str], rows: Sequence[Row]) -> str:
    lines = [["    " * row.below + row.name, *(cell.text + "*" * cell.best for cell in row.cells)] for row in rows]
    return format_table(header, lines) + "\n* best run of the column"


def csv_table(header: Sequence[str], rows: Sequence[Row]) -> str:
    """Numbers as they are, in the units of the header; `kind` tells runs from what stands beside them."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["kind", "run", "name", *header[1:]])
    run = ""
    for row in rows:
        run = run if row.below else row.name
        numbers = ["" if cell.value is None else cell.value for cell in row.cells]
        writer.writerow(["beside" if row.below else "run", run, row.name, *numbers])
    return out.getvalue().rstrip("\n")


def markdown_table(header: Sequence[str], rows: Sequence[Row]) -> str:
    """The best in bold."""

    def escaped(text: str) -> str:
        return "".join("\\" + sign if sign in "\\|`*_<>[]" else sign for sign in text)

    lines = [[*map(escaped, header)], ["---", *("---:" for _ in header[1:])]]
    for row in rows:
        cells = [f"**{cell.text}**" if cell.best else cell.text for cell in row.cells]
        lines.append(["&nbsp;&nbsp;" * row.below + escaped(row.name), *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def latex_table(header: Sequence[str], rows: Sequence[Row]) -> str:
    """A tabular for \\usepackage{booktabs}, the best in bold."""

    def escaped(text: str) -> str:
        return "".join(LATEX.get(sign, sign) for sign in text)

    lines = [" & ".join(map(escaped, header)) + r" \\", r"\midrule"]
    for row in rows:
        cells = [rf"\textbf{{{cell.text}}}" if cell.best else cell.text for cell in row.cells]
        lines.append(" & ".join([r"\quad " * row.below + escaped(row.name), *cells]) + r" \\")
    columns = "l" + "r" * (len(header) - 1)
    return "\n".join([rf"\begin{{tabular}}{{{columns}}}", r"\toprule", *lines, r"\bottomrule", r"\end{tabular}"])


FORMATS: dict[str, Callable[[Sequence[str], Sequence[Row]], str]] = {
    "text": text_table,
    "csv": csv_table,
    "markdown": markdown_table,
    "latex": latex_table,
}


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


def cost_values(cost: Mapping[str, float]) -> list[float | None]:
    """A summary's cost under the columns of COST; older ones do not say what is read."""
    read = cost.get("bytes_read")
    return [cost["parameters"] / 1e6, cost["macs"] / 1e9, cost["latency_ms"], None if read is None else read / 1e6]


def cost_cells(cost: Mapping[str, float]) -> list[str]:
    return [number(value, digits) for value, digits in zip(cost_values(cost), COST.values(), strict=True)]


def difference(found: Mapping[str, float | None]) -> str:
    """A paired difference with its interval."""
    return f"{number(found['value'], 4)} ({spread(found['low'], found['high'], 4)})"


def pixels_text(found: Mapping[str, float | None]) -> str:
    """An entry of equivalent_pixels."""
    return number(found["value"], 2) if found["beyond"] is None else f"> {found['beyond']:g}"


def spread(low: float | None, high: float | None, digits: int = 3) -> str:
    return f"{number(low, digits)} .. {number(high, digits)}"
