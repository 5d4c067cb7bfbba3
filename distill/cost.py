"""What a converter costs: parameters, multiply-accumulates and wall time of one clip."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from converters.converter import Converter
from shards.store import Column


def count_macs(converter: Converter, tokens: Tensor) -> int:
    """Multiply-accumulates of one forward pass on (1 s d) tokens: matrix products and convolutions, as torch counts
    them. Attention is taken apart into its products first, for the counter misreads the fused kernels."""
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:  # with gradients: without them its module tracker stumbles (torch 2.13)
        converter(tokens)
    return counter.get_total_flops() // 2


def measure_latency(run: Callable[[], object], *, device: torch.device, repeats: int = 5) -> float:
    """Median wall time of `run` in milliseconds, without gradients, after one that is not counted."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        with torch.inference_mode():
            run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[1:])


def stored_bytes(column: Column) -> int:
    """What a clip of a column takes in its store, and is read for it."""
    return sum(math.prod(shape) * dtype.itemsize for dtype, shape in column.spec.values())


def measure_cost(converter: Converter, *, device: torch.device) -> dict[str, float | int | str]:
    """parameters, macs, latency_ms (one clip, fp32, all targets), threads and device."""
    tokens = torch.randn(1, *converter.student.shape, generator=torch.Generator().manual_seed(0)).to(device)
    return {
        "parameters": converter.num_parameters(),
        "macs": count_macs(converter, tokens),
        "latency_ms": round(measure_latency(lambda: converter(tokens), device=device), 3),
        "threads": torch.get_num_threads(),
        "device": device.type,
    }
