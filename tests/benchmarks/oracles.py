"""Trains converter families on the oracles at the tiny geometry and prints the share of the Bayes R2 that they reach.

python tests/benchmarks/oracles.py --families perceiver dsconv --oracles field-1.0 routed --seeds 3 --out FILE

Steps follow from the oracle, width and learning rate from the family, unless they are given. Regret is (1 - R2) /
(1 - R2 of Bayes). tests/distill/test_quality.py runs the same trainings.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from converters import create_converter
from converters.converter import Converter
from converters.ridge import NormalEquations
from distill.oracles import FieldOracle, NonlinearOracle, Oracle, RetrievalOracle, RoutedOracle

HELD_OUT_SEED, HELD_OUT_CLIPS = 2026, 500  # drawn for no design and for no learning rate
BATCH = 16


@dataclass(frozen=True)
class Task:
    """An oracle, and the steps in which a family learns it."""

    make: Callable[[], Oracle]
    steps: int


ORACLES: dict[str, Task] = {
    "field-0.3": Task(lambda: FieldOracle(noise=0.3), 600),
    "field-1.0": Task(lambda: FieldOracle(noise=1.0), 1200),
    "nonlinear": Task(lambda: NonlinearOracle(noise=0.3, degrees=(2,)), 1000),
    "routed": Task(lambda: RoutedOracle(), 3000),
    "routed-0.3": Task(lambda: RoutedOracle(reach=(0.3, 0.3, 0.3)), 3000),
    "routed-0.4": Task(lambda: RoutedOracle(reach=(0.4, 0.4, 0.4)), 3000),
    "retrieval": Task(lambda: RetrievalOracle(), 1000),
}


@dataclass(frozen=True)
class Setting:
    """A family's learning rate and options at the tiny geometry."""

    lr: float
    options: Mapping[str, Any] = field(default_factory=dict)


SETTINGS: dict[str, Setting] = {
    "perceiver": Setting(6e-3, {"width": 96, "latents": 32}),
    "dsconv": Setting(4e-3, {"width": 96}),
    "mamba": Setting(3e-3, {"width": 96}),
    "tokenlearner": Setting(6e-3, {"width": 96}),
    "mlp": Setting(3e-3, {"parameters": 160_000}),
    "linear": Setting(1e-3),
}


@dataclass(frozen=True)
class Exam:
    """Clips that no training sees, and the best possible R2 on them in expectation."""

    student: Tensor
    teacher: Tensor
    bayes_r2: float

    @classmethod
    def of(cls, oracle: Oracle, *, clips: int = HELD_OUT_CLIPS, seed: int = HELD_OUT_SEED) -> Exam:
        return cls(*oracle.sample(clips, torch.Generator().manual_seed(seed)), oracle.bayes_r2())

    def r2(self, converter: Converter) -> float:
        with torch.inference_mode():
            converted = torch.cat([converter(part)["teacher"] for part in self.student.split(50)])
        return float(1 - (converted - self.teacher).square().sum() / self.teacher.square().sum())


@dataclass(frozen=True)
class Result:
    """One training; shares are R2 on held-out clips by the R2 of Bayes."""

    oracle: str
    family: str
    seed: int
    skip: str
    start: float
    share: float
    regret: float
    parameters: int
    steps: int
    lr: float
    seconds: float

    HEADER = f"{'oracle':12} {'family':13} seed    start    share   regret   M params  steps  seconds"

    def row(self) -> str:
        return (
            f"{self.oracle:12} {self.family:13} {self.seed:4} {self.start:8.4f} {self.share:8.4f} {self.regret:8.3f} "
            f"{self.parameters / 1e6:10.3f} {self.steps:6} {self.seconds:8.0f}"
        )


def begin(
    family: str, oracle: Oracle, *, options: Mapping[str, Any], skip: str, seed: int, data: torch.Generator
) -> Converter:
    """A converter whose skip is the ridge of 256 clips."""
    converter = create_converter(
        family,
        student=oracle.student,
        targets={"teacher": oracle.teacher},
        skip=skip,  # type: ignore[arg-type]
        options=options,
        seed=seed,
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


def learn(
    name: str,
    family: str,
    *,
    seed: int = 0,
    exam: Exam | None = None,
    steps: int | None = None,
    lr: float | None = None,
    batch: int = BATCH,
    skip: str = "linear",
    options: Mapping[str, Any] | None = None,
) -> Result:
    """Trains one family on one oracle. options: over those of the family's setting. exam: the oracle's, if at hand."""
    oracle, setting, since = ORACLES[name].make(), SETTINGS[family], time.perf_counter()
    exam = exam or Exam.of(oracle)
    steps, lr = steps or ORACLES[name].steps, lr or setting.lr
    data = torch.Generator().manual_seed(seed)
    converter = begin(family, oracle, options={**setting.options, **(options or {})}, skip=skip, seed=seed, data=data)
    before = exam.r2(converter)
    train(converter, oracle, steps=steps, batch=batch, lr=lr, data=data)
    after = exam.r2(converter)
    return Result(
        oracle=name,
        family=family,
        seed=seed,
        skip=skip,
        start=before / exam.bayes_r2,
        share=after / exam.bayes_r2,
        regret=(1 - after) / (1 - exam.bayes_r2),
        parameters=converter.num_parameters(),
        steps=steps,
        lr=lr,
        seconds=time.perf_counter() - since,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--families", nargs="+", default=["perceiver"], choices=list(SETTINGS))
    parser.add_argument("--oracles", nargs="+", default=list(ORACLES), choices=list(ORACLES))
    parser.add_argument("--steps", type=int, help="default: the oracle's")
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--lr", type=float, help="default: the family's")
    parser.add_argument("--seeds", type=int, default=1, help="how many, from 0")
    parser.add_argument("--skip", default="linear", choices=["linear", "none"])
    parser.add_argument("--options", type=json.loads, default={}, help="over the family's own options, as JSON")
    parser.add_argument("--out", type=Path, help="a JSON line of every run is appended to this file")
    arguments = parser.parse_args()
    print(Result.HEADER, flush=True)
    for name in arguments.oracles:
        exam = Exam.of(ORACLES[name].make())
        for family in arguments.families:
            for seed in range(arguments.seeds):
                result = learn(
                    name,
                    family,
                    seed=seed,
                    exam=exam,
                    steps=arguments.steps,
                    lr=arguments.lr,
                    batch=arguments.batch,
                    skip=arguments.skip,
                    options=arguments.options,
                )
                print(result.row(), flush=True)
                if arguments.out:
                    with arguments.out.open("a") as file:
                        file.write(json.dumps(asdict(result)) + "\n")


if __name__ == "__main__":
    main()
