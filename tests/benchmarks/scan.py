"""Times every scan against mambapy's, and the mamba family's branch with each: forward + backward, fp32, in turn.

python tests/benchmarks/scan.py --mambapy DIR

mambapy is needed for the ratios alone: pip install --no-deps --target DIR mambapy. Its algorithm is `selective`'s,
Mamba-1; the others are what one would take instead.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from unittest.mock import patch

import torch
import torch.nn.functional as F
from timing import Runs, medians
from torch import Tensor

from converters import create_converter, mixers
from converters.scan import long_convolution, s4d, selective, ssd
from teachers.layout import TokenLayout

MAMBAPY = "mambapy"


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


def table(label: str, runs: Runs, rounds: int) -> None:
    """Medians, and what share of the first they are, if that is mambapy's."""
    times = medians(runs, rounds)
    reference = times.get(MAMBAPY, float("nan"))
    print(f"\n| {label} | ms | of mambapy |\n|---|---|---|")
    for name, spent in times.items():
        print(f"| {name} | {spent:.1f} | {spent / reference:.3f} |", flush=True)


def branch_steps(other: Callable[..., Tensor] | None) -> Runs:
    """A training step of the whole branch, full geometry, one clip: every mixer, and Mamba-1 on mambapy's scan."""
    student, targets = TokenLayout((8, 16, 16), 1024), {"videomae": TokenLayout((8, 14, 14), 768)}
    x = torch.randn(1, *student.shape)

    def step(mixer: str, scan: Callable[..., Tensor]) -> Callable[[], object]:
        converter = create_converter("mamba", student=student, targets=targets, options={"mixer": mixer})
        branch, queries = converter.branch, converter.queries()
        torch.nn.init.normal_(branch.outputs["videomae"].weight, std=0.02)

        def run() -> object:
            with patch.object(mixers, "selective", scan):
                return branch(x, queries)["videomae"].square().mean().backward()

        return run

    ours = {name: step(name, selective) for name in mixers.MIXERS}
    return ({MAMBAPY: step("selective", other)} if other else {}) | ours


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--states", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--mambapy", default="", help="folder that holds the package mambapy")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
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
    reference = {MAMBAPY: trained(other, x, steps, a, b, c)} if other else {}
    table("scan", reference | tasks, arguments.rounds)
    table("branch", branch_steps(other), arguments.rounds)


if __name__ == "__main__":
    main()
