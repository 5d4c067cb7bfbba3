"""Trains converter families on the oracles at the tiny geometry and prints the share of the Bayes R2 that they reach.

python tests/benchmarks/oracles.py --families perceiver dsconv --oracles field nonlinear --steps 1500 --seeds 1
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import torch

from converters import create_converter
from converters.converter import Converter
from converters.ridge import NormalEquations
from distill.oracles import FieldOracle, NonlinearOracle, Oracle, RetrievalOracle, RoutedOracle

ORACLES: dict[str, Callable[[], Oracle]] = {
    "field-0.3": lambda: FieldOracle(noise=0.3),
    "field-1.0": lambda: FieldOracle(noise=1.0),
    "nonlinear": lambda: NonlinearOracle(noise=0.3, degrees=(2,)),
    "routed": lambda: RoutedOracle(),
    "retrieval": lambda: RetrievalOracle(),
}


def share(converter: Converter, oracle: Oracle, clips: tuple[torch.Tensor, torch.Tensor]) -> float:
    """R2 on held-out clips, as a share of the best possible."""
    student, teacher = clips
    with torch.inference_mode():
        converted = torch.cat([converter(part)["teacher"] for part in student.split(50)])
    return float(1 - (converted - teacher).square().sum() / teacher.square().sum()) / oracle.bayes_r2()


def start(family: str, oracle: Oracle, *, options: dict, skip: str, seed: int, data: torch.Generator) -> Converter:
    """A converter whose skip is the ridge of 256 clips."""
    converter = create_converter(
        family, student=oracle.student, targets={"teacher": oracle.teacher}, skip=skip, options=options, seed=seed
    )
    if skip == "linear":
        equations = NormalEquations(oracle.student.dim, oracle.teacher.dim)
        for number in range(16):
            student, teacher = oracle.sample(16, data)
            rows = converter.skips["teacher"].design(student, converter.queries()["teacher"])
            equations.add(rows["grid"], {"true": teacher}, fold=number % 5)
        converter.skips["teacher"].set_({"grid": equations.solve()["true"].weight.float()})
    return converter


def train(converter: Converter, oracle: Oracle, *, steps: int, batch: int, lr: float, data: torch.Generator) -> None:
    """AdamW on fresh clips, 5% warm-up, cosine, clipping at 1; the skip at a tenth of the rate."""
    skips = set(converter.skips.parameters())
    groups = [
        {"params": [p for p in converter.parameters() if p not in skips], "lr": lr},
        {"params": list(skips), "lr": lr / 10},
    ]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], betas=(0.9, 0.99), weight_decay=0.02, fused=True)
    warmup = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, 1 / warmup, total_iters=warmup),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps - warmup),
        ],
        [warmup],
    )
    for _ in range(steps):
        student, teacher = oracle.sample(batch, data)
        loss = (converter(student)["teacher"] - teacher).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(converter.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--families", nargs="+", default=["perceiver"])
    parser.add_argument("--oracles", nargs="+", default=list(ORACLES), choices=list(ORACLES))
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--skip", default="linear", choices=["linear", "none"])
    parser.add_argument("--options", type=json.loads, default={}, help="the family's options, as JSON")
    arguments = parser.parse_args()
    print(f"{'oracle':10} {'family':14} seed    start    share   M params  seconds", flush=True)
    for name in arguments.oracles:
        oracle = ORACLES[name]()
        held_out = oracle.sample(200, torch.Generator().manual_seed(10**6))
        for family in arguments.families:
            for seed in range(arguments.seeds):
                data = torch.Generator().manual_seed(seed)
                begin = time.perf_counter()
                setting = {"options": arguments.options, "skip": arguments.skip, "seed": seed, "data": data}
                converter = start(family, oracle, **setting)
                before = share(converter, oracle, held_out)
                train(converter, oracle, steps=arguments.steps, batch=arguments.batch, lr=arguments.lr, data=data)
                after, parameters = share(converter, oracle, held_out), converter.num_parameters() / 1e6
                seconds = time.perf_counter() - begin
                print(
                    f"{name:10} {family:14} {seed:4} {before:8.4f} {after:8.4f} {parameters:10.3f} {seconds:8.0f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
