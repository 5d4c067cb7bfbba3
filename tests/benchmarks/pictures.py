"""One picture per dial, from what head.py has written with --json: strength against r2c, and against accuracy.

    python tests/benchmarks/pictures.py FOUND.json --out docs/pictures

Needs matplotlib, which nothing else here does. Bars of accuracy are 95% intervals between seeds of its difference from
the whole converter's, so they say which arm differs from it, not how sure its own height is.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

from distill.naming import MASKED

ARMS = {  # Okabe and Ito's colours
    "converted": ("converted tokens", "#0072B2", "o"),
    "converted_supervised": ("+ residual", "#D55E00", "s"),
    "random_residual": ("+ random residual", "#999999", "^"),
}


def dials(found: Mapping[str, Any]) -> dict[str, list[str]]:
    """dial -> its blocks in the order of strength; masks that are on at test make a dial of their own."""
    blocks: dict[str, list[str]] = {}
    for name in found:
        kind, _, _ = name.partition("-")
        blocks.setdefault(kind + (MASKED if name.endswith(MASKED) else ""), []).append(name)
    return {dial: names for dial, names in blocks.items() if len(names) > 1}


def strength(name: str) -> str:
    return name.removesuffix(MASKED).partition("-")[2].replace("_", ".")


def draw(dial: str, names: Sequence[str], found: Mapping[str, Any], path: Path) -> None:
    whole, ours = found[names[0]]["whole"], [found[name]["deficient"] for name in names]
    x = range(len(names) + 1)
    figure, (above, below) = plt.subplots(2, 1, figsize=(5, 5), sharex=True, height_ratios=(2, 1), layout="constrained")
    for arm, (label, colour, marker) in ARMS.items():
        values = [whole[arm], *(at[arm] for at in ours)]
        spread = None
        if arm == "converted_supervised":
            seeds = [found[name]["whole"]["seeds"] for name in names]
            spread = [0.0, *((at["high"] - at["low"]) / 2 if at["low"] is not None else 0.0 for at in seeds)]
        above.errorbar(x, values, yerr=spread, label=label, color=colour, marker=marker, capsize=3)
        above.axhline(whole[arm], color=colour, linewidth=0.8, linestyle=":")
    above.set_ylabel("accuracy, mean over tasks")
    above.legend(frameon=False)
    below.plot(x, [whole["r2c"], *(at["r2c"] for at in ours)], color="black", marker="o")
    below.set_ylabel("r2c")
    below.set_xticks(x, ["whole", *map(strength, names)])
    below.set_xlabel(f"strength of {dial.replace('_', ' ')}")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("found", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args(argv)
    plt.rcParams |= {"svg.hashsalt": "tokenbridge", "svg.fonttype": "none"}  # the same bytes every time, and few
    asked.out.mkdir(parents=True, exist_ok=True)
    found = json.loads(asked.found.read_text())
    for dial, names in dials(found).items():
        draw(dial, names, found, asked.out / f"{dial.replace(' ', '_')}.svg")


if __name__ == "__main__":
    main()
