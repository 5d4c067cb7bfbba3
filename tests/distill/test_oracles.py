"""The field oracle against its own samples and known values: a wrong optimum would make every regret wrong."""

from __future__ import annotations

import pytest
import torch

from distill.fields import MEDIUM, TINY_STUDENT, Fields, axis_places, covariance, falling
from distill.oracles import FieldOracle, NonlinearOracle, RetrievalOracle, RoutedOracle
from teachers.layout import TokenLayout


@pytest.mark.parametrize(("noise", "expected"), [(0.3, 0.970), (1.0, 0.840)])
def test_bayes_r2_is_the_known_one(noise: float, expected: float) -> None:
    assert FieldOracle(noise=noise).bayes_r2() == pytest.approx(expected, abs=1e-3)


def test_kriging_reaches_the_closed_form_on_samples() -> None:
    oracle = FieldOracle(noise=0.5, seed=3)
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
    found = oracle.reliability()
    assert found.shape == (1, 8 * 14 * 14)
    cross, kernel = torch.ones(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    for axis in range(3):  # one dense solve over all 2048 places, for some targets
        places, wanted = axis_places(oracle.student, axis), axis_places(oracle.teacher, axis)
        length = torch.tensor(oracle.lengths[axis], dtype=torch.float64)
        kernel = torch.kron(kernel, covariance(places, places, length))
        cross = torch.kron(cross, covariance(wanted, places, length))
    some = cross[::97]
    noisy = kernel + oracle.noise**2 * torch.eye(2048, dtype=torch.float64)
    assert torch.allclose(found[0, ::97], (some * torch.linalg.solve(noisy, some.T).T).sum(1), atol=1e-8)
    assert 0.9 < oracle.bayes_r2() < 1


def test_errors_name_the_value() -> None:
    with pytest.raises(ValueError, match="channels=65"):
        FieldOracle(channels=65)
    with pytest.raises(ValueError, match=r"factors=\(1.0, 2.0\) must be 16 numbers above 0"):
        FieldOracle(factors=(1.0, 2.0))
    with pytest.raises(ValueError, match=r"factors=\(1.0, -0.5\)"):
        FieldOracle(channels=2, factors=(1.0, -0.5))
    with pytest.raises(ValueError, match="pooled"):
        FieldOracle(teacher=TokenLayout(grid=None, dim=48))


def share_of_variance(student_estimate: torch.Tensor, teacher: torch.Tensor) -> float:
    return float(1 - (student_estimate - teacher).square().sum() / teacher.square().sum())


@pytest.mark.parametrize(("degrees", "noise", "expected"), [((2,), 0.3, 0.942), ((1, 2), 0.3, 0.956)])
def test_nonlinear_optimum_is_the_known_one(degrees: tuple[int, ...], noise: float, expected: float) -> None:
    oracle = NonlinearOracle(noise=noise, degrees=degrees)
    assert oracle.bayes_r2() == pytest.approx(expected, abs=1e-3)


def test_nonlinear_optimum_is_reached_by_the_conditional_mean() -> None:
    """E[He2(g) | x] = (m^2 + v - 1) / sqrt 2 with the kriging mean m and variance v = 1 - r."""
    oracle = NonlinearOracle(noise=0.6, degrees=(2,))
    student, teacher = oracle.sample(200, torch.Generator().manual_seed(2))
    mean, variance = oracle.kriging(student), 1 - oracle.reliability().T
    best = ((mean.square() + variance - 1) / 2**0.5) @ oracle.reading.T.double()
    assert share_of_variance(best, teacher.double()) == pytest.approx(oracle.bayes_r2(), abs=6e-3)


def test_routed_optimum_is_the_known_one_and_the_displacement_is_there() -> None:
    oracle = RoutedOracle()
    assert oracle.bayes_r2() == pytest.approx(0.948, abs=0.012)
    student, _ = oracle.sample(50, torch.Generator().manual_seed(1))
    found = student @ oracle.spare_directions
    assert torch.allclose(found, found[:, :1].expand_as(found), atol=1e-4)
    assert float(found.std()) == pytest.approx(1, abs=0.1)
    still = RoutedOracle(reach=(0.0, 0.0, 0.0))
    assert still.bayes_r2() == pytest.approx(FieldOracle(noise=0.3).bayes_r2())
    student, teacher = still.sample(100, torch.Generator().manual_seed(3))
    best = still.kriging(student) @ still.reading.T.double()
    assert share_of_variance(best, teacher.double()) == pytest.approx(still.bayes_r2(), abs=4e-3)


def test_routed_fields_move_with_the_clip() -> None:
    """At a displacement of one student cell the teacher sees the neighbour's field."""
    oracle = RoutedOracle(TINY_STUDENT, TINY_STUDENT, noise=0.0)
    shift = torch.tensor([[0.0, 0.0, 1 / 8]])
    student, fields = Fields.sample(oracle, 1, torch.Generator().manual_seed(1), shifts=shift)
    seen = (student @ oracle.mixing).unflatten(1, TINY_STUDENT.grid)
    asked = fields.unflatten(1, TINY_STUDENT.grid)
    assert torch.allclose(asked[..., :-1, :], seen[..., 1:, :], atol=1e-2)


def looked_up(oracle: RetrievalOracle, student: torch.Tensor) -> torch.Tensor:
    """V m_k(q), read off the markers."""
    spare = student @ oracle.spare_directions
    marker = spare[..., : oracle.keys].argmax(dim=1)
    carried = spare[..., oracle.keys :].gather(1, marker[..., None].expand(-1, -1, oracle.width))
    return carried[:, oracle.asks] @ oracle.values.T


def test_retrieval_optimum_is_kriging_and_look_up() -> None:
    oracle = RetrievalOracle()
    student, teacher = oracle.sample(100, torch.Generator().manual_seed(5))
    best = oracle.kriging(student) @ oracle.reading.T.double() + looked_up(oracle, student).double()
    assert share_of_variance(best, teacher.double()) == pytest.approx(oracle.bayes_r2(), abs=4e-3)
    assert share_of_variance(oracle.kriging(student) @ oracle.reading.T.double(), teacher.double()) < 0.6


VARIED = {"channels": 12, "factors": falling(2.0, 0.5, 12), "decay": 1.5, "noise": 0.6}


@pytest.mark.parametrize("make", [FieldOracle, RetrievalOracle])
def test_kriging_field_by_field_reaches_the_closed_form_on_samples(make: type[FieldOracle | RetrievalOracle]) -> None:
    oracle = make(**VARIED)
    student, teacher = oracle.sample(200, torch.Generator().manual_seed(6))
    if isinstance(oracle, RetrievalOracle):
        teacher = teacher - looked_up(oracle, student)
    best = oracle.kriging(student) @ oracle.reading.T.double()
    expected = oracle.mean_reliability()
    assert share_of_variance(best, teacher.double()) == pytest.approx(expected, abs=6e-3)
    assert expected > float(oracle.reliability().mean()) + 0.02  # the strong fields are the long ones
    alike = FieldOracle(channels=12, noise=0.6).kriging(student) @ oracle.reading.T.double()
    assert share_of_variance(alike, teacher.double()) < expected - 0.01


def test_every_field_has_its_own_reliability() -> None:
    oracle = FieldOracle(**VARIED)
    for factor, row in zip(oracle.factors, oracle.reliability(), strict=True):
        lengths = (0.35 * factor, 0.18 * factor, 0.18 * factor)
        alone = FieldOracle(channels=1, noise=0.6, lengths=lengths)
        assert torch.allclose(row, alone.reliability()[0])


def test_equal_factors_and_no_decay_change_no_sample() -> None:
    plain, varied = FieldOracle(), FieldOracle(factors=(1.0,) * 16)
    for one, other in zip(*(at.sample(3, torch.Generator().manual_seed(1)) for at in (plain, varied)), strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    assert torch.equal(plain.reading, varied.reading)
    assert plain.bayes_r2() == pytest.approx(varied.bayes_r2())


def test_medium_power_falls_and_stays_the_same_in_sum() -> None:
    oracle = FieldOracle(**MEDIUM)
    power = oracle.reading.square().sum(dim=0)
    assert float(power[:8].sum() / power.sum()) == pytest.approx(0.5, abs=0.1)
    assert float(power.sum()) == pytest.approx(192, rel=0.1)
    assert 0.5 < oracle.bayes_r2() < RetrievalOracle(**MEDIUM, noise=1.0).bayes_r2() < 1
    assert [tuple(part.shape) for part in oracle.sample(2, torch.Generator())] == [(2, 256, 256), (2, 196, 192)]
