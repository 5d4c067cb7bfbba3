"""Times every scan against mambapy's: forward + backward, fp32, milliseconds of one core, best of several.

OMP_NUM_THREADS=1 python tests/benchmarks/scan.py --mambapy /path/to/it

mambapy is needed for this table alone: pip install --no-deps --target /path/to/it mambapy
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from converters import create_converter, mixers
from converters.scan import long_convolution, s4d, selective, ssd
from teachers.layout import TokenLayout


def best(step: Callable[[], object], repeats: int) -> float:
    """Milliseconds of the fastest call, after one to warm up."""
    step()
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        step()
        times.append(time.process_time() - begin)
    return 1000 * min(times)


def trained(scan: Callable[..., Tensor], *given: Tensor) -> Callable[[], object]:
    leaves = [part.detach().requires_grad_() for part in given]

    def step() -> object:
        answer = scan(*leaves)
        return torch.autograd.grad(answer, leaves, torch.ones_like(answer))

    return step


def mambapy_scan(path: str) -> Callable[..., Tensor] | None:
    """Its parallel scan with the products around it, as its Mamba block has them."""
    sys.path.append(path)
    try:
        from mambapy.pscan import pscan
    except ImportError:
        return None

    def scan(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        share = x.shape[2] // b.shape[2]
        write, read = (part.repeat_interleave(share, dim=2) for part in (b, c)) if b.shape[2] > 1 else (b, c)
        states = pscan((dt[..., None] * a).exp(), (dt * x)[..., None] * write)
        return (states * read).sum(dim=3) if b.shape[2] > 1 else (states @ c[:, :, 0, :, None]).squeeze(3)

    return scan


def family_steps(other: Callable[..., Tensor] | None) -> None:
    """A training step of the whole branch, full geometry, one clip: every mixer, and Mamba-1 on mambapy's scan."""
    student, targets = TokenLayout((8, 16, 16), 1024), {"videomae": TokenLayout((8, 14, 14), 768)}
    x, spent = torch.randn(1, *student.shape), {}
    print(f"{'branch':22} {'ms':>8} {'of mambapy':>11}", flush=True)
    for name, mixer in [("on mambapy", "selective"), *((name, name) for name in mixers.MIXERS)]:
        if name == "on mambapy" and other is None:
            continue
        branch = create_converter("mamba", student=student, targets=targets, options={"mixer": mixer})
        queries = branch.queries()
        torch.nn.init.normal_(branch.branch.outputs["videomae"].weight, std=0.02)
        ours = mixers.selective
        mixers.selective = other if name == "on mambapy" else ours  # type: ignore[assignment]
        try:
            spent[name] = best(lambda: branch.branch(x, queries)["videomae"].square().mean().backward(), 2)  # noqa: B023
        finally:
            mixers.selective = ours
        print(f"{name:22} {spent[name]:8.1f} {spent[name] / spent.get('on mambapy', float('nan')):11.4f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--states", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--mambapy", default="", help="folder that holds the package mambapy")
    arguments = parser.parse_args()
    l, d, n, heads = arguments.length, arguments.width, arguments.states, arguments.width // 64
    x, b, c = torch.randn(1, l, d), torch.randn(1, l, 1, n), torch.randn(1, l, 1, n)
    steps, a = F.softplus(torch.randn(1, l, d) - 4), -torch.arange(1.0, n + 1).expand(d, n)
    complex_rate = torch.complex(-0.05 * torch.ones(d, n // 2), 0.1 * torch.arange(n // 2).expand(d, -1))
    tasks = {
        "ssd": trained(ssd, x.unflatten(2, (heads, -1)), steps[..., :heads], a[:heads, 0], b, c),
        "selective": trained(selective, x, steps, a, b, c),
        "s4d": trained(s4d, x, complex_rate, torch.randn(d, n // 2, dtype=torch.complex64)),
        "hyena": trained(long_convolution, x, torch.randn(l, d)),
    }
    other = mambapy_scan(arguments.mambapy)
    if other is None:
        print("mambapy is not there: its time and the ratios are left out (see --help)")
    reference = best(trained(other, x, steps, a, b, c), 5) if other else float("nan")
    print(f"{'scan':12} {'ms':>8} {'of mambapy':>11}", flush=True)
    print(f"{'mambapy':12} {reference:8.1f} {1.0:11.4f}", flush=True)
    for name, task in tasks.items():
        spent = best(task, arguments.repeats)
        print(f"{name:12} {spent:8.1f} {spent / reference:11.4f}", flush=True)
    family_steps(other)


if __name__ == "__main__":
    main()
