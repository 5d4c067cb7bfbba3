"""The field oracle against its own samples and known values: a wrong optimum would make every regret wrong."""

from __future__ import annotations

import pytest
import torch

from distill.oracles import FieldOracle
from teachers.layout import TokenLayout


@pytest.mark.parametrize(("noise", "expected"), [(0.3, 0.970), (1.0, 0.840)])
def test_bayes_r2_is_the_known_one(noise: float, expected: float) -> None:
    assert FieldOracle(noise=noise).bayes_r2() == pytest.approx(expected, abs=1e-3)


def test_kriging_reaches_the_closed_form_on_samples() -> None:
    oracle = FieldOracle(noise=1.0, seed=3)
    student, teacher = oracle.sample(200, torch.Generator().manual_seed(1))
    error = (oracle.bayes(student) - teacher).square().sum()
    assert float(1 - error / teacher.square().sum()) == pytest.approx(oracle.bayes_r2(), abs=4e-3)


def test_samples_have_unit_fields_and_repeat() -> None:
    oracle = FieldOracle(noise=0.0)
    first, _ = oracle.sample(50, torch.Generator().manual_seed(7))
    again, _ = oracle.sample(50, torch.Generator().manual_seed(7))
    assert torch.equal(first, again)
    assert float((first @ oracle.mixing).square().mean()) == pytest.approx(1, abs=0.05)


def test_full_geometry_is_exact_too() -> None:
    oracle = FieldOracle(TokenLayout(grid=(8, 16, 16), dim=32), TokenLayout(grid=(8, 14, 14), dim=32), channels=8)
    assert oracle.reliability().shape == (8 * 14 * 14,)
    assert 0.9 < oracle.bayes_r2() < 1


def test_errors_name_the_value() -> None:
    with pytest.raises(ValueError, match="channels=65"):
        FieldOracle(channels=65)
    with pytest.raises(ValueError, match="pooled"):
        FieldOracle(teacher=TokenLayout(grid=None, dim=48))
