"""What deficiency costs, and what low rank keeps where the best is known.

    python tests/benchmarks/deficiency.py --threads 1 [--sections cost rank] [--families perceiver dsconv]

cost: a training step at the full geometry (2048 x 1024 -> 1568 x 768) with and without each term, as a share of a plain
step of the same run; the Jacobian's is averaged over the steps from one estimate to the next. rank: on the reduced-rank
oracle, R2 of hard ranks, after training, beside Eckart and Young's bound; and of the soft penalty at several strengths,
beside the best answers with half the weight taken from every singular value, and Eckart and Young's bound for as many
directions as it leaves above a hundredth of the first.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable

import torch
from steps import FAMILIES, QUERIES, STUDENT, TARGETS, family, head, row
from timing import medians

from converters import Converter, create_converter
from converters.bottleneck import passing, reduced_rank
from converters.resample import stratified
from converters.ridge import NormalEquations, Ridge
from distill.deficiency import Dials, nuclear
from distill.objective import Objective
from distill.oracles import FieldOracle

WEIGHTS = {"mse": 1.0, "cosine": 0.5, "gram": 0.1}
SETTINGS = {
    "strength": 0.01,
    "zero_until": 0.0,
    "full_from": 0.0,
    "nuclear": 1.0,
    "rank": None,
    "ratio": 0.5,
    "entropy": 0.1,
    "entropy_target": 0.5,
    "jacobian": 1.0,
    "every": 8,
    "directions": 1,
    "outputs": 16,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sections", nargs="+", default=["cost", "rank"], choices=["cost", "rank"])
    parser.add_argument("--families", nargs="+", default=list(FAMILIES))
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=300, help="of training on the oracle")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(f"torch {torch.__version__}, {given.threads} threads, load {os.getloadavg()}")
    if "cost" in given.sections:
        head(
            "a step over a plain one", "plain, ms per clip", "jacobian, mean", "jacobian, every 8th", "low rank", "mask"
        )
        for name in given.families:
            cost(name, batch=given.batch, rounds=given.rounds)
    if "rank" in given.sections:
        rank_curve(given.steps)


# --- cost


def dials(kind: str, **settings: object) -> Dials:
    return Dials.of({**SETTINGS, "kind": kind, **settings}, steps=100, seed=0)


def objective_step(name: str, at: Dials | None, *, batch: int, step: int) -> Callable[[], object]:
    """Forward and backward of the objective of a family, at a step."""
    layouts = {"videomae": TARGETS["videomae"]}
    if at is None or at.kind == "jacobian":
        converter = family(name, layouts, {}, skip="linear")
    else:
        converter = create_converter(
            name, student=STUDENT, targets=layouts, rank=at.rank, mask_token=at.ratio is not None
        )
    objective = Objective(converter, weights=WEIGHTS, dials=at)
    tokens = {"student": torch.randn(batch, *STUDENT.shape), "videomae": torch.randn(batch, *TARGETS["videomae"].shape)}
    some = {"videomae": stratified(TARGETS["videomae"], QUERIES, torch.Generator().manual_seed(0))}

    def run() -> object:
        objective.zero_grad(set_to_none=True)
        return objective(tokens, some, step)["loss"].backward()

    return run


def cost(name: str, *, batch: int, rounds: int) -> None:
    runs = {
        "plain": objective_step(name, None, batch=batch, step=0),
        "jacobian": objective_step(name, dials("jacobian"), batch=batch, step=64),
        "low rank": objective_step(name, dials("low_rank"), batch=batch, step=64),
        "masking": objective_step(name, dials("masking", strength=1.0), batch=batch, step=64),
    }
    times = medians(runs, rounds)
    plain = times["plain"]
    seldom = times["jacobian"] / plain
    mean = 1 + (seldom - 1) / int(str(SETTINGS["every"]))
    row(name, plain / batch, mean, seldom, times["low rank"] / plain, times["masking"] / plain)


# --- rank


def rank_curve(steps: int) -> None:
    oracle = FieldOracle(lengths=(0.5, 0.35, 0.35), noise=0.1, decay=1.5)
    ridge = solved(oracle)
    head("hard rank", "Eckart-Young", "ridge of that rank", f"after {steps} steps")
    for rank in (1, 2, 4, 8, 16):
        converter = started(oracle, ridge, rank)
        first = r2(converter, oracle)
        train(converter, oracle, weight=0.0, steps=steps)
        row(str(rank), oracle.bayes_r2(rank), first, r2(converter, oracle))
    head("soft, weight", f"after {steps} steps", "soft-thresholded", "directions left", "Eckart-Young at as many")
    for weight in (0.0, 0.1, 0.3, 1.0, 2.0):
        converter = started(oracle, ridge, "full")
        train(converter, oracle, weight=weight, steps=steps)
        values = torch.linalg.svdvals(converter.effective_maps("field")["grid"].detach())
        count = int((values > 0.01 * values[0]).sum())
        row(f"{weight:g}", r2(converter, oracle), oracle.shrunk_r2(weight / 2), str(count), oracle.bayes_r2(count))


def solved(oracle: FieldOracle) -> Ridge:
    generator = torch.Generator().manual_seed(0)
    converter = create_converter("linear", student=oracle.student, targets={"field": oracle.teacher})
    asked, equations = converter.queries()["field"], NormalEquations(oracle.student.dim, oracle.teacher.dim)
    for number in range(20):
        student, teacher = oracle.sample(8, generator)
        design = converter.skips["field"].design(student, asked)["grid"]
        equations.add(design, {"true": teacher}, fold=number % 5)
    return equations.solve()["true"]


def started(oracle: FieldOracle, ridge: Ridge, rank: int | str) -> Converter:
    """A linear converter of a rank at its ridge."""
    converter = create_converter(
        "linear",
        student=oracle.student,
        targets={"field": oracle.teacher},
        rank=rank,  # type: ignore[arg-type]
    )
    through = converter.bottlenecks["field"]
    first, parts = reduced_rank({"grid": ridge.weight}, ridge.predictable, through.in_features)
    through.set_(first.float())
    converter.skips["field"].set_({"grid": parts["grid"].float()})
    return converter


def train(converter: Converter, oracle: FieldOracle, *, weight: float, steps: int) -> None:
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(converter.parameters(), lr=3e-3)
    for _ in range(steps):
        student, teacher = oracle.sample(16, generator)
        optimizer.zero_grad()
        passed: dict[str, torch.Tensor] = {}
        with passing(converter.bottlenecks, passed):
            error = (converter(student)["field"] - teacher).square().mean()
        (error + weight * nuclear(converter.bottlenecks["field"].weight, passed["field"])).backward()
        optimizer.step()


@torch.inference_mode()
def r2(converter: Converter, oracle: FieldOracle) -> float:
    student, teacher = oracle.sample(1000, torch.Generator().manual_seed(99))
    converted = torch.cat([converter(some)["field"] for some in student.split(100)])
    return float(1 - (converted - teacher).square().sum() / teacher.square().sum())


if __name__ == "__main__":
    main()
