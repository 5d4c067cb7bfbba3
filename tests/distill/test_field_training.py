"""A seeded training on the field oracle: the skip is trilinear ridge at the start, the trained converter above it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from converters import create_converter
from converters.converter import Converter
from converters.ridge import NormalEquations
from distill.engine import Engine
from distill.objective import Objective
from distill.oracles import FieldOracle
from shards.ranks import Ranks

STEPS = 120


@pytest.fixture(scope="module")
def oracle() -> FieldOracle:
    return FieldOracle(noise=1.0)


def r2(converter: Converter, oracle: FieldOracle, student: torch.Tensor, teacher: torch.Tensor) -> float:
    """R2 of a converter, as a share of the best possible."""
    with torch.inference_mode():
        error = (converter(student)["field"] - teacher).square().sum()
    return float(1 - error / teacher.square().sum()) / oracle.bayes_r2()


def independent_ridge(oracle: FieldOracle, clips: list, penalty: float) -> torch.Tensor:
    """Trilinear ridge written down again: torch's own interpolation of the padded crop, and a dense solve."""
    (st, sy, sx), (tt, ty, tx) = oracle.student.grid, oracle.teacher.grid  # type: ignore[misc]
    low, high = oracle.teacher.extent[1]
    axis = [2 * (low + (torch.arange(n) + 0.5) / n * (high - low)) - 1 for n in (ty, tx)]
    time = 2 * (torch.arange(tt) + 0.5) / tt - 1
    t, y, x = torch.meshgrid(time, *axis, indexing="ij")
    places = torch.stack([x, y, t], dim=-1)
    designs, answers = [], []
    for student, teacher in clips:
        volume = student.transpose(1, 2).unflatten(2, (st, sy, sx))
        grid = places.expand(len(student), -1, -1, -1, -1)
        read = F.grid_sample(volume, grid, mode="bilinear", padding_mode="border", align_corners=False)
        designs.append(read.flatten(2).transpose(1, 2).flatten(0, 1).double())
        answers.append(teacher.flatten(0, 1).double())
    rows, wanted = torch.cat(designs), torch.cat(answers)
    square = rows.T @ rows
    square += penalty * square.diagonal().mean() * torch.eye(len(square), dtype=torch.float64)
    return torch.linalg.solve(square, rows.T @ wanted).T


def test_training_starts_at_the_ridge_and_ends_above_it(oracle: FieldOracle) -> None:
    generator = torch.Generator().manual_seed(0)
    options = {"width": 64, "latents": 32, "heads": 4, "blocks": 1}
    converter = create_converter(
        "perceiver", student=oracle.student, targets={"field": oracle.teacher}, options=options
    )
    skip, asked = converter.skips["field"], converter.queries()["field"]
    equations = NormalEquations(oracle.student.dim, oracle.teacher.dim)
    clips = [oracle.sample(8, generator) for _ in range(16)]
    for number, (student, teacher) in enumerate(clips):
        equations.add(skip.design(student, asked)["grid"], {"true": teacher}, fold=number % 5)
    ridge = equations.solve()["true"]
    skip.set_({"grid": ridge.weight.float()})
    assert torch.allclose(ridge.weight, independent_ridge(oracle, clips, ridge.penalty), atol=2e-5)

    held_out = oracle.sample(64, torch.Generator().manual_seed(99))
    start = r2(converter, oracle, *held_out)
    linear = create_converter("linear", student=oracle.student, targets={"field": oracle.teacher})
    linear.skips["field"].set_({"grid": ridge.weight.float()})
    assert start == r2(linear, oracle, *held_out)
    assert start == pytest.approx(0.89, abs=0.02)

    ranks = Ranks.join({})
    engine = Engine(
        Objective(converter, weights={"mse": 1.0}),
        device=ranks.device,
        steps=STEPS,
        micro_batch=16,
        lr=4e-3,
        slow={"skips": 0.1},
    )
    for _ in range(STEPS):
        student, teacher = oracle.sample(16, generator)
        engine.backward(engine.forward({"student": student, "field": teacher}, None)["loss"])
        engine.step()
    assert r2(converter, oracle, *held_out) > start + 0.01
