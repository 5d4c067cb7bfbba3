"""Full, Nystrom and Performer attention among latents: time of the core alone, and distance from exact attention.

    python tests/benchmarks/mixing.py [--latents 192 512 1024 2048] [--rounds 5]

One clip, 5 heads of 64, the perceiver's default landmarks and features. Time: forward + backward, milliseconds of one
core, the fastest of the rounds, all taking turns. Error: of the answer to exact attention in float64, relative to its
norm; "mean" answers every query with the values' mean. Errors on three inputs: independent normal queries, keys and
values, whose logits have deviation 1; the same with logits doubled; and what an untrained perceiver's latents ask, hold
and say after reading a smooth clip. Independent tokens are the hardest case: no landmark can stand for two of them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from converters import create_converter
from converters.approximation import Nystrom, Performer
from converters.attention import Attend, attend
from teachers.layout import TokenLayout

HEADS, CHANNELS, LANDMARKS, FEATURES = 5, 64, 32, 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--latents", type=int, nargs="+", default=[192, 512, 1024, 2048])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    mixings: dict[str, Attend] = {
        "full": attend,
        "nystrom": Nystrom(LANDMARKS),
        "performer": Performer(CHANNELS, FEATURES),
    }
    print("| latents | mixing | ms fp32 | ms bf16 | error, normal | logits x 2 | perceiver |")
    print("|---|" + "---|" * 6)
    for latents in arguments.latents:
        given = [torch.randn(1, HEADS, latents, CHANNELS) for _ in range(3)]
        half = [part.bfloat16() for part in given]
        cases = [given, [given[0] * 2, *given[1:]], started(latents)]
        runs = {
            (name, at): trained(mix, *part) for name, mix in mixings.items() for at, part in enumerate([given, half])
        }
        times = fastest(runs, arguments.rounds)
        for name, mix in {**mixings, "mean": mean}.items():
            spent = [f"{times[name, at]:.1f}" if (name, at) in times else "" for at in range(2)]
            errors = [f"{error(mix, *case):.2f}" for case in cases]
            print(f"| {latents} | {name} | {' | '.join(spent + errors)} |", flush=True)


@torch.no_grad()
def started(latents: int) -> list[Tensor]:
    """Queries, keys and values among the latents of a new perceiver, in the order that it gives them for Nystrom."""
    student, targets = TokenLayout((8, 16, 16), 1024), {"y": TokenLayout(None, 8)}
    options = {"latents": latents, "mixing": "nystrom", "width": HEADS * CHANNELS}
    converter = create_converter("perceiver", student=student, targets=targets, options=options)
    seen: list[Tensor] = []
    nystrom = converter.branch.mix[0].attention.attend
    nystrom.register_forward_pre_hook(lambda _module, given: seen.extend(given[:3]))
    smooth = F.interpolate(torch.randn(1, 1024, 2, 2, 2), student.grid, mode="trilinear").flatten(2).transpose(1, 2)
    converter(smooth + 0.5 * torch.randn(smooth.shape))
    return seen


def mean(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    return v.mean(dim=-2, keepdim=True).expand_as(q)


def trained(mix: Attend, *given: Tensor) -> Callable[[], object]:
    leaves = [part.detach().requires_grad_() for part in given]

    def step() -> object:
        answer = mix(*leaves, None)
        return torch.autograd.grad(answer, leaves, torch.ones_like(answer))

    return step


def fastest(runs: dict[tuple[str, int], Callable[[], object]], rounds: int) -> dict[tuple[str, int], float]:
    """Milliseconds of each, after one to warm up."""
    times = dict.fromkeys(runs, float("inf"))
    for at in range(rounds + 1):
        for name, run in runs.items():
            begin = time.process_time()
            run()
            if at:
                times[name] = min(times[name], 1000 * (time.process_time() - begin))
    return times


@torch.no_grad()
def error(mix: Attend, *given: Tensor) -> float:
    exact = attend(*(part.double() for part in given))
    return ((mix(*given, None).double() - exact).norm() / exact.norm()).item()


if __name__ == "__main__":
    main()
