"""Trains converter families on the oracles and prints the share of the Bayes R2 that they reach, and their regret.

python tests/benchmarks/oracles.py --families perceiver dsconv --oracles field-1.0 routed --seeds 3 --out FILE

Steps follow from the oracle, width and learning rate from the family, unless they are given. Regret is (1 - R2) /
(1 - R2 of Bayes). The medium oracles train on a finite set (--clips 200) by epochs and keep the weights that were best
on clips set aside; the tiny ones see new clips in every step. tests/distill/test_quality.py runs the same trainings.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from peers import PEERS, peer_converter
from torch import Tensor

from converters import create_converter
from converters.converter import Converter
from converters.ridge import NormalEquations
from distill.engine import parameter_groups
from distill.fields import MEDIUM
from distill.oracles import FieldOracle, NonlinearOracle, Oracle, RetrievalOracle, RoutedOracle

HELD_OUT_SEED, HELD_OUT_CLIPS = 2026, 500  # drawn for no design and for no learning rate
CHOICE_SEED, CHOICE_CLIPS, CHOICE_EVERY = 2027, 100, 100  # clips and steps by which weights are chosen on a finite set
BATCH = 16
DECAY, FINITE_DECAY = 0.02, 1.0  # the latter holds overfitting off: regret 1.50 for 1.55 (dsconv, 200 clips, 250 steps)
RIDGE_CLIPS = 256  # of fresh ones, for the start
FRESH = 0  # in place of a number of clips
Clips = tuple[Tensor, Tensor]
Skip = Literal["linear", "none"]


@dataclass(frozen=True)
class Task:
    """An oracle, the steps in which a family learns it, and on how many clips."""

    make: Callable[[], Oracle]
    steps: int
    clips: int = FRESH


ORACLES: dict[str, Task] = {
    "field-0.3": Task(lambda: FieldOracle(noise=0.3), 600),
    "field-1.0": Task(lambda: FieldOracle(noise=1.0), 1000),
    "nonlinear": Task(lambda: NonlinearOracle(noise=0.3, degrees=(2,)), 1000),
    "routed": Task(lambda: RoutedOracle(), 2400),
    "routed-0.3": Task(lambda: RoutedOracle(reach=(0.3, 0.3, 0.3)), 2400),
    "routed-0.4": Task(lambda: RoutedOracle(reach=(0.4, 0.4, 0.4)), 2400),
    "retrieval": Task(lambda: RetrievalOracle(), 800),
    "medium-field": Task(lambda: FieldOracle(**MEDIUM, noise=0.5), 800, clips=1000),
    "medium-nonlinear": Task(lambda: NonlinearOracle(**MEDIUM, noise=0.5), 800, clips=1000),
    "medium-routed": Task(lambda: RoutedOracle(**MEDIUM, noise=0.5), 800, clips=1000),
    "medium-retrieval": Task(lambda: RetrievalOracle(**MEDIUM, noise=0.5), 800, clips=1000),
}


@dataclass(frozen=True)
class Setting:
    """A family's learning rate and options, the same at both geometries: 32 latents, 64 learned tokens of a clip."""

    lr: float
    options: Mapping[str, Any] = field(default_factory=dict)


SETTINGS: dict[str, Setting] = {
    "perceiver": Setting(6e-3, {"width": 96, "latents": 32, "heads": 1}),
    "dsconv": Setting(4e-3, {"width": 96}),
    "mamba": Setting(3e-3, {"width": 96}),
    "tokenlearner": Setting(6e-3, {"width": 96, "tokens": 16, "heads": 1}),
    "mlp": Setting(3e-3, {"parameters": 160_000}),
    "linear": Setting(1e-3),
    "perceiver:small": Setting(6e-3, {"size": "small", "width": 96, "heads": 1}),
    "perceiver-pytorch": Setting(3e-3, {"width": 96, "latents": 128}),  # 128 as the perceiver's size "small"
}


@dataclass(frozen=True)
class Exam:
    """Clips that no training sees, and the best possible R2 on them in expectation."""

    student: Tensor
    teacher: Tensor
    bayes_r2: float

    @classmethod
    def of(cls, oracle: Oracle, *, clips: int = HELD_OUT_CLIPS, seed: int = HELD_OUT_SEED) -> Exam:
        return cls(*draw(oracle, clips, torch.Generator().manual_seed(seed)), oracle.bayes_r2())

    def r2(self, converter: Converter) -> float:
        with torch.inference_mode():
            converted = torch.cat([converter(part)["teacher"] for part in self.student.split(50)])
        return float(1 - (converted - self.teacher).square().sum() / self.teacher.square().sum())


@dataclass(frozen=True)
class Result:
    """One training; shares are R2 on held-out clips by the R2 of Bayes. chosen: the step whose weights they are of."""

    oracle: str
    family: str
    seed: int
    skip: str
    clips: int
    start: float
    share: float
    regret: float
    parameters: int
    steps: int
    chosen: int
    lr: float
    decay: float
    seconds: float

    HEADER: ClassVar[str] = (
        f"{'oracle':16} {'family':12} clips seed    start    share   regret   M params  steps chosen  seconds"
    )

    def row(self) -> str:
        return (
            f"{self.oracle:16} {self.family:12} {self.clips or 'fresh':>5} {self.seed:4} {self.start:8.4f} "
            f"{self.share:8.4f} {self.regret:8.3f} {self.parameters / 1e6:10.3f} {self.steps:6} {self.chosen:6} "
            f"{self.seconds:8.0f}"
        )

    def append(self, file: Path) -> None:
        """As a JSON line."""
        with file.open("a") as lines:
            lines.write(json.dumps(asdict(self)) + "\n")


def draw(oracle: Oracle, clips: int, data: torch.Generator) -> Clips:
    """Clips in parts of 500, or 100 at the medium width, for the fields of thousands at once would fill the memory."""
    part = 2**15 // oracle.student.dim // 100 * 100
    student, teacher = zip(*(oracle.sample(min(part, clips - at), data) for at in range(0, clips, part)), strict=True)
    return torch.cat(student), torch.cat(teacher)


def fresh(oracle: Oracle, batch: int, data: torch.Generator) -> Iterator[Clips]:
    """Batches of new clips, for ever."""
    while True:
        yield oracle.sample(batch, data)


def epochs(clips: Clips, batch: int, data: torch.Generator) -> Iterator[Clips]:
    """Batches of the same clips, for ever, shuffled anew in each epoch; a last part of a batch is left out."""
    student, teacher = clips
    if len(student) < batch:
        raise ValueError(f"{len(student)} clips do not fill a batch of {batch}")
    while True:
        for part in torch.randperm(len(student), generator=data).split(batch):
            if len(part) == batch:
                yield student[part], teacher[part]


def set_ridge(converter: Converter, batches: Iterator[Clips], count: int) -> None:
    """The skip becomes the ridge of the first `count` batches."""
    equations = NormalEquations(converter.student.dim, converter.targets["teacher"].dim)
    for number in range(count):
        student, teacher = next(batches)
        rows = converter.skips["teacher"].design(student, converter.queries()["teacher"])
        equations.add(rows["grid"], {"true": teacher}, fold=number % 5)
    converter.skips["teacher"].set_({"grid": equations.solve()["true"].weight.float()})


def train(
    converter: Converter, batches: Iterator[Clips], *, steps: int, lr: float, decay: float, choose: Exam | None
) -> int:
    """AdamW, 5% warm-up, cosine, clipping at 1; the skip at a tenth of the rate. The step whose weights are kept: the
    last, or the one of the best R2 in `choose`, the start among them."""
    groups = parameter_groups(dict(converter.named_parameters()), lr=lr, slow={"skips": 0.1}, weight_decay=decay)
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), fused=True)
    warmup = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, 1 / warmup, total_iters=warmup),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps - warmup),
        ],
        [warmup],
    )
    best = (choose.r2(converter), 0, weights(converter)) if choose else None
    for step in range(1, steps + 1):
        student, teacher = next(batches)
        loss = (converter(student)["teacher"] - teacher).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(converter.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if choose and best and (step % CHOICE_EVERY == 0 or step == steps):
            best = max(best, (choose.r2(converter), step, weights(converter)), key=lambda at: at[0])
    if best is None:
        return steps
    converter.load_state_dict(best[2])
    return best[1]


def weights(converter: Converter) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in converter.state_dict().items()}


def build(family: str, oracle: Oracle, *, skip: Skip, options: dict[str, Any], seed: int) -> Converter:
    """A family's converter, or one around a peer."""
    layouts: dict[str, Any] = {"student": oracle.student, "targets": {"teacher": oracle.teacher}}
    if family not in PEERS:
        return create_converter(family.partition(":")[0], **layouts, skip=skip, options=options, seed=seed)
    torch.manual_seed(seed)
    return peer_converter(PEERS[family](oracle.student, oracle.teacher, **options), **layouts, skip=skip)


def learn(
    name: str,
    family: str,
    *,
    seed: int = 0,
    exam: Exam | None = None,
    steps: int | None = None,
    lr: float | None = None,
    decay: float | None = None,
    batch: int = BATCH,
    skip: Skip = "linear",
    options: Mapping[str, Any] | None = None,
    clips: int | None = None,
) -> Result:
    """Trains one family on one oracle. options: over those of the family's setting. exam: the oracle's, if at hand.
    clips: of the training set, drawn once; FRESH draws new ones in every step."""
    task, setting, since = ORACLES[name], SETTINGS[family], time.perf_counter()
    oracle, data = task.make(), torch.Generator().manual_seed(seed)
    steps, lr, clips = steps or task.steps, lr or setting.lr, task.clips if clips is None else clips
    decay = decay if decay is not None else (DECAY if clips == FRESH else FINITE_DECAY)
    exam = exam or Exam.of(oracle)
    choose = None if clips == FRESH else Exam.of(oracle, clips=CHOICE_CLIPS, seed=CHOICE_SEED)
    batches = fresh(oracle, batch, data) if clips == FRESH else epochs(draw(oracle, clips, data), batch, data)
    converter = build(family, oracle, skip=skip, options={**setting.options, **(options or {})}, seed=seed)
    if skip == "linear":
        set_ridge(converter, batches, RIDGE_CLIPS // batch if clips == FRESH else clips // batch)
    before = exam.r2(converter)
    chosen = train(converter, batches, steps=steps, lr=lr, decay=decay, choose=choose)
    after = exam.r2(converter)
    return Result(
        oracle=name,
        family=family,
        seed=seed,
        skip=skip,
        clips=clips,
        start=before / exam.bayes_r2,
        share=after / exam.bayes_r2,
        regret=(1 - after) / (1 - exam.bayes_r2),
        parameters=converter.num_parameters(),
        steps=steps,
        chosen=chosen,
        lr=lr,
        decay=decay,
        seconds=time.perf_counter() - since,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--families", nargs="+", default=["perceiver"], choices=list(SETTINGS))
    parser.add_argument("--oracles", nargs="+", default=list(ORACLES), choices=list(ORACLES))
    parser.add_argument("--seeds", type=int, default=1, help="how many, from 0")
    parser.add_argument(
        "--clips", type=int, help=f"of the training set, {FRESH}: new ones for ever; default: the oracle's"
    )
    parser.add_argument("--steps", type=int, help="default: the oracle's")
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--lr", type=float, help="default: the family's")
    parser.add_argument("--decay", type=float, help=f"of weights; default: {DECAY}, on a finite set {FINITE_DECAY}")
    parser.add_argument("--skip", default="linear", choices=["linear", "none"])
    parser.add_argument("--options", type=json.loads, default={}, help="over the family's own options, as JSON")
    parser.add_argument("--peers", default="", help="folder that holds the package perceiver-pytorch")
    parser.add_argument("--out", type=Path, help="a JSON line of every run is appended to this file")
    arguments = parser.parse_args()
    sys.path += [arguments.peers] if arguments.peers else []
    given = {name: getattr(arguments, name) for name in ("clips", "steps", "batch", "lr", "decay", "skip", "options")}
    print(Result.HEADER, flush=True)
    for name in arguments.oracles:
        exam = Exam.of(ORACLES[name].make())
        for family in arguments.families:
            for seed in range(arguments.seeds):
                result = learn(name, family, seed=seed, exam=exam, **given)
                print(result.row(), flush=True)
                if arguments.out:
                    result.append(arguments.out)


if __name__ == "__main__":
    main()
