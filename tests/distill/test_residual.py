"""What is left of a student beside converted tokens is that of other clips, on train as on test."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from distill.residual import principal_basis, residual, standardise


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def crossed(clips: int, *, width: int = 40, seed: int = 0) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Converted (n width) and student (n 16), half of whose fields the converted show; standardised by train."""
    fields, noise = normal(clips + 1000, 12, seed=seed), normal(clips + 1000, width, seed=seed + 1)
    converted = fields[:, :6] @ normal(6, width, seed=seed + 2) + 0.5 * noise
    student = fields @ normal(12, 16, seed=seed + 3)
    places = torch.arange(clips + 1000)
    splits = {"train": places[:clips], "val": places[clips : clips + 500], "test": places[clips + 500 :]}
    return standardise(converted, splits["train"]), standardise(student, splits["train"]), splits


@pytest.mark.parametrize("clips", [30, 40, 400])
def test_the_residual_of_train_is_that_of_other_clips(clips: int) -> None:
    converted, student, splits = crossed(clips)
    found = residual(converted, student, splits=splits, groups=[str(clip) for clip in range(len(student))])
    train = splits["train"]
    fitted = torch.linalg.lstsq(converted[train], student[train], driver="gelsd").solution
    in_sample = (student[train] - converted[train] @ fitted).square().sum() / student[train].square().sum()
    assert float(in_sample) < (0.01 if clips <= 40 else 0.55)
    assert found.share["train"] == pytest.approx(found.share["test"], rel=0.2) and found.share["test"] > 0.4
    sizes = {split: float(found.values[rows].square().mean()) for split, rows in splits.items()}
    assert sizes["val"] == pytest.approx(sizes["train"]) and sizes["test"] == pytest.approx(sizes["train"], rel=0.1)
    assert found.scale == pytest.approx(1, abs=0.1)


def test_the_residual_holds_nothing_of_the_converted() -> None:
    converted, student, splits = crossed(2000, width=8)
    found = residual(converted, student, splits=splits, groups=[str(clip) for clip in range(len(student))])
    for rows in splits.values():
        assert (converted[rows].T @ found.values[rows] / len(rows)).abs().max() < 0.2
    assert (converted.T @ student / len(student)).abs().max() > 0.5


def test_a_group_never_stands_on_both_sides() -> None:
    """Every clip twice: were its twin among those that it is predicted from, 60 clips of 40 dims would leave less."""
    converted, student, splits = crossed(30)
    twins = torch.cat([splits["train"], splits["train"], splits["val"], splits["test"]])
    places = torch.arange(len(twins))
    splits = {"train": places[:60], "val": places[60:560], "test": places[560:]}
    groups = [str(place) for place in twins.tolist()]
    apart = residual(converted[twins], student[twins], splits=splits, groups=groups)
    mixed = residual(
        converted[twins], student[twins], splits=splits, groups=[str(place) for place in places.tolist()]
    )  # fmt: skip
    assert apart.share["train"] == pytest.approx(apart.share["test"], rel=0.2)
    assert mixed.share["train"] < 0.5 * mixed.share["test"]


def test_converted_tokens_that_say_nothing_leave_all_of_the_student() -> None:
    converted, student, splits = crossed(60)
    found = residual(converted * 0, student, splits=splits, groups=[str(clip) for clip in range(len(student))])
    assert torch.equal(found.values[splits["train"]], student[splits["train"]]) and found.share["test"] == 1


def test_principal_directions() -> None:
    values = normal(400, 5) * torch.tensor([0.1, 3, 0.2, 2, 0.1]) + 7
    basis = principal_basis(values, 2)
    assert torch.allclose(basis.T @ basis, torch.eye(2, dtype=torch.float64), atol=1e-9)
    assert basis[1, 0].abs() > 0.98 and basis[3, 1].abs() > 0.98
