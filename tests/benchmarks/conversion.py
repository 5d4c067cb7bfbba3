"""Converting the student's tokens against running the teachers; ratios in one run.

    python tests/benchmarks/conversion.py [--rounds 3] [--threads N]

Full geometry, one clip, random weights, the teachers 12 layers deep. In every round each thing runs once, in turn, so
that all meet the same load; a figure is the median of the rounds.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from unittest.mock import patch

import torch
from timing import PRECISIONS, medians, precise
from torch import Tensor

from converters import Converter, create_converter
from distill.cost import count_macs
from teachers import create_backbone
from teachers.layout import TokenLayout
from teachers.standin import CONFIGS

STUDENT = TokenLayout((8, 16, 16), 1024)
TEACHERS = ("videomae", "timesformer", "vivit")
DEPTH = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS), choices=PRECISIONS)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, load {os.getloadavg()}, batch 1, ms per clip")
    compare_forward(arguments.precisions, arguments.rounds)
    print(f"load at the end {os.getloadavg()}")


def compare_forward(precisions: Sequence[str], rounds: int) -> None:
    """Student tokens -> target tokens, beside video -> target tokens."""
    backbones = {name: full_depth(name) for name in TEACHERS}
    layouts = {name: backbone.layout for name, backbone in backbones.items()}
    converters = {name: converter_to({name: layout}) for name, layout in layouts.items()}
    converters["all"] = converter_to(layouts)
    videos = {name: torch.rand(1, at.frames, 3, at.pixels, at.pixels) for name, at in backbones.items()}
    tokens = torch.randn(1, *STUDENT.shape)
    models: Mapping[str, Any] = {**backbones, **{f"to {name}": at for name, at in converters.items()}}
    inputs = {**videos, **{f"to {name}": tokens for name in converters}}
    columns = []
    for precision in precisions:
        columns.append(medians({name: forward(at, inputs[name], precision) for name, at in models.items()}, rounds))
    sizes = {name: sum(part.numel() for part in model.parameters()) / 1e6 for name, model in models.items()}
    columns += [sizes, {name: macs(model, inputs[name]) for name, model in models.items()}]
    for column in columns:
        column["all"] = sum(column[name] for name in TEACHERS)
    names = " | ".join(precisions)
    print(f"\n| perceiver to | {names} | M parameters | GMAC | teacher: {names} | M | GMAC | teacher / it: {names} |")
    print("|---|" + "---|" * (3 * len(precisions) + 4))
    for name in converters:
        ours, theirs = ([column[at] for column in columns] for at in (f"to {name}", name))
        ratios = [theirs[at] / ours[at] for at in range(len(precisions))]
        print(f"| {name} | {' | '.join(f'{value:.4g}' for value in (*ours, *theirs, *ratios))} |")


def full_depth(name: str) -> Any:
    """The teacher with all its layers, as its published configuration has them, seeded."""
    with patch.dict(CONFIGS[name], num_hidden_layers=DEPTH):
        return create_backbone(name)


def converter_to(layouts: Mapping[str, TokenLayout]) -> Converter:
    return create_converter("perceiver", student=STUDENT, targets=layouts).eval()


def macs(model: Any, given: Tensor) -> float:
    """Billions, counted on the meta device, where the model then stays."""
    return count_macs(getattr(model, "network", model).to("meta"), given.to("meta")) / 1e9


def forward(model: Any, given: Tensor, precision: str) -> Callable[[], object]:
    def run() -> object:
        if not isinstance(model, Converter):  # a backbone sets its own precision
            model.autocast = torch.bfloat16 if precision == "bf16" else None
        with torch.inference_mode(), precise(precision):
            return model(given)

    return run


if __name__ == "__main__":
    main()
