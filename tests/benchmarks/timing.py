"""Runs that are compared with each other: in turn, in one process, so that all meet the same load."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from converters import Converter

Runs = dict[str, Callable[[], object]]
PRECISIONS = ("fp32", "bf16")


def precise(precision: str) -> AbstractContextManager[object]:
    return torch.autocast("cpu", dtype=torch.bfloat16) if precision == "bf16" else nullcontext()


def training_step(
    model: nn.Module, tokens: Tensor, *, precision: str, asked: Mapping[str, Tensor] | None = None
) -> Callable[[], object]:
    """Forward and backward of a converter, at the positions `asked` of each target or at all, or of a plain module."""

    def run() -> object:
        model.zero_grad(set_to_none=True)
        with precise(precision):
            if isinstance(model, Converter):
                answers = list(model(tokens, positions=asked, standardised=True).values())
            else:
                answers = [model(tokens)]
        return torch.stack([(answer.float() - 1).square().mean() for answer in answers]).sum().backward()

    return run


def medians(runs: Runs, rounds: int) -> dict[str, float]:
    """Milliseconds of each run: one that does not count, then `rounds`, all runs in turn."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(1 + rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(values[1:]) for name, values in times.items()}
