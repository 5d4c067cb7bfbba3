"""The reduced-rank oracle: its curve against samples, and the hard rank of a converter against the curve."""

from __future__ import annotations

import pytest
import torch

from converters import create_converter
from converters.bottleneck import reduced_rank
from converters.ridge import NormalEquations
from distill.oracles import FieldOracle

RANKS = (1, 2, 4, 8, 16)


@pytest.fixture(scope="module")
def oracle() -> FieldOracle:
    """So smooth that trilinear ridge is nearly the best converter, of power that falls as n^-1.5."""
    return FieldOracle(lengths=(0.5, 0.35, 0.35), noise=0.1, decay=1.5)


def r2(converted: torch.Tensor, teacher: torch.Tensor) -> float:
    return float(1 - (converted - teacher).square().sum() / teacher.square().sum())


def best(oracle: FieldOracle, student: torch.Tensor, rank: int) -> torch.Tensor:
    """The best conversion, of which the leading components of these very clips are kept."""
    answers = oracle.bayes(student)
    kept = torch.linalg.eigh(answers.flatten(0, 1).T @ answers.flatten(0, 1)).eigenvectors.flip(1)[:, :rank]
    return answers @ kept @ kept.T


def test_the_curve_is_that_of_samples(oracle: FieldOracle) -> None:
    noisy = FieldOracle(noise=1.0, decay=1.5)
    student, teacher = noisy.sample(300, torch.Generator().manual_seed(1))
    for rank in RANKS:
        assert r2(best(noisy, student, rank), teacher) == pytest.approx(noisy.bayes_r2(rank), abs=0.01)
    assert noisy.bayes_r2(16) == pytest.approx(noisy.bayes_r2())
    assert noisy.bayes_r2(1) < 0.6 * noisy.bayes_r2() and oracle.bayes_r2(4) < 0.9


def test_the_curve_of_shrunk_answers_is_that_of_samples(oracle: FieldOracle) -> None:
    noisy = FieldOracle(noise=1.0, decay=1.5)
    student, teacher = noisy.sample(300, torch.Generator().manual_seed(1))
    answers = noisy.bayes(student)
    u, s, v = torch.linalg.svd(answers.flatten(0, 1), full_matrices=False)
    for taken in (0.3, 1.0, 3.0):
        left = (s - taken * len(u) ** 0.5).clamp(min=0)
        assert r2((u * left @ v).view_as(answers), teacher) == pytest.approx(noisy.shrunk_r2(taken), abs=0.02)
    assert noisy.shrunk_r2(0) == pytest.approx(noisy.bayes_r2()) and oracle.shrunk_r2(99) == 0


def test_hard_rank_matches_eckart_young(oracle: FieldOracle) -> None:
    generator = torch.Generator().manual_seed(0)
    targets = {"field": oracle.teacher}
    whole = create_converter("linear", student=oracle.student, targets=targets)
    skip, asked = whole.skips["field"], whole.queries()["field"]
    equations = NormalEquations(oracle.student.dim, oracle.teacher.dim)
    for number in range(20):
        student, teacher = oracle.sample(8, generator)
        equations.add(skip.design(student, asked)["grid"], {"true": teacher}, fold=number % 5)
    ridge = equations.solve()["true"]
    student, teacher = oracle.sample(1000, torch.Generator().manual_seed(99))
    for rank in RANKS:
        converter = create_converter("linear", student=oracle.student, targets=targets, rank=rank)
        first, parts = reduced_rank({"grid": ridge.weight}, ridge.predictable, rank)
        converter.bottlenecks["field"].set_(first.float())
        converter.skips["field"].set_({"grid": parts["grid"].float()})
        with torch.inference_mode():
            found = r2(torch.cat([converter(some)["field"] for some in student.split(100)]), teacher)
        assert found == pytest.approx(oracle.bayes_r2(rank), rel=0.01), rank
