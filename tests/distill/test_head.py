"""The compensated head learns from a gate of zero, never makes the train loss worse, and says what it leaves unread."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from distill.head import DECAYS, Examples, Head, Loss, alarms, fit_factors, fit_head, reading, start_factors
from distill.head_oracles import LinearOracle
from distill.residual import principal_basis, residual, standardise

ORACLE = LinearOracle(
    classes=6, exposed=2, missed=2, others=4, student_width=10, teacher_width=4, spread=1.5, seed=1
)  # fmt: skip
RANK = 2


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def examples() -> dict[str, Examples]:
    """1040 clips in groups of two, six classes."""
    pooled = ORACLE.sample(1040, generator())
    places = torch.arange(1040)
    splits = {"train": places[:500], "val": places[500:640], "test": places[640:]}
    p, student = (standardise(rows, splits["train"]) for rows in (pooled.converted, pooled.student))
    r = residual(p, student, splits=splits, groups=[str(clip // 2) for clip in range(1040)]).values
    return {split: Examples(p[rows], r[rows], pooled.labels[rows]) for split, rows in splits.items()}


def fit(examples: dict[str, Examples], *, seed: int = 0, **chosen: Any) -> Head:
    known = torch.ones(6, dtype=torch.bool)
    return fit_head(examples["train"], examples["val"], known=known, generator=generator(seed), **chosen)


def loss_of(head: Head, seen: Examples) -> float:
    return float(Loss()(head(seen.p, seen.r), seen.truth))


def test_a_gate_of_zero_learns_beside_a_random_map_and_never_beside_none(examples: dict[str, Examples]) -> None:
    seen, offset = examples["train"], torch.zeros(500, 6, dtype=torch.float64)
    found = {}
    for map_start in (0.0, 1.0):
        start = start_factors(10, 6, RANK, map_start=map_start, generator=generator())
        assert float(start[2]) == 0 and float(start[1].norm()) == pytest.approx(map_start)
        basis, out, gate = fit_factors(seen, offset, start, loss=Loss(), decay=1e-3)
        found[map_start] = float(gate), float(Loss()(gate * (seen.r @ basis) @ out.T, seen.truth))
    assert found[0.0] == pytest.approx((0, math.log(6)))
    assert found[1.0][0] > 0.5 and found[1.0][1] < math.log(6) - 0.2


def test_what_is_said_already_is_not_said_twice(examples: dict[str, Examples]) -> None:
    """A residual that is p itself: the offset leaves it next to nothing to explain."""
    twice = {split: Examples(seen.p, seen.p, seen.truth) for split, seen in examples.items()}
    alone, both = (fit(twice, decays=(0.01,), rank=rank) for rank in (0, RANK))
    assert 0 <= loss_of(alone, twice["train"]) - loss_of(both, twice["train"]) < 0.05
    assert float(both.gate) < 0.7 * float(both.weight.norm())


@pytest.mark.parametrize("decay", [DECAYS[0], DECAYS[2], DECAYS[-1]])
def test_the_residual_never_makes_the_train_loss_worse(decay: float, examples: dict[str, Examples]) -> None:
    alone = fit(examples, decays=(decay,))
    both = fit(examples, decays=(decay,), rank=RANK)
    assert torch.equal(alone.weight, both.weight) and torch.equal(alone.bias, both.bias)
    assert loss_of(both, examples["train"]) < loss_of(alone, examples["train"])


def test_a_fitted_residual_is_in_its_canonical_form(examples: dict[str, Examples]) -> None:
    for chosen in ({"rank": RANK}, {"basis": principal_basis(examples["train"].r, RANK)}):
        head = fit(examples, **chosen)  # type: ignore[arg-type]
        assert torch.allclose(head.basis.T @ head.basis, torch.eye(RANK, dtype=torch.float64), atol=1e-8)
        assert float(head.out.norm()) == pytest.approx(1) and float(head.gate) > 0
        assert head.num_parameters == 6 * 4 + 6 + RANK * (10 + 6) + 1


def test_logits_are_what_the_formula_says(examples: dict[str, Examples]) -> None:
    head, seen = fit(examples, rank=RANK), examples["test"]
    for clip in (0, 7):
        by_hand = head.weight @ seen.p[clip] + head.bias + head.gate * head.out @ head.basis.T @ seen.r[clip]
        assert torch.allclose(head(seen.p, seen.r)[clip], by_hand)


def test_a_seed_gives_the_same_head_and_another_one_as_good(examples: dict[str, Examples]) -> None:
    torch.manual_seed(1)
    one = fit(examples, rank=RANK, decays=(1e-3,))
    torch.manual_seed(2)
    again, other = (fit(examples, rank=RANK, decays=(1e-3,), seed=seed) for seed in (0, 1))
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in one.state_dict().items())
    assert not torch.equal(one.basis, other.basis)
    assert loss_of(one, examples["train"]) == pytest.approx(loss_of(other, examples["train"]), abs=2e-3)


def test_convex_maps_are_solved(examples: dict[str, Examples]) -> None:
    """The gradient of the decayed loss vanishes."""
    head, seen = fit(examples, decays=(0.01,)), examples["train"]
    weight, bias = head.weight.clone().requires_grad_(), head.bias.clone().requires_grad_()
    (Loss()(seen.p @ weight.T + bias, seen.truth) + 0.005 * weight.square().sum()).backward()
    assert weight.grad is not None and bias.grad is not None
    assert weight.grad.abs().max() < 1e-3 and bias.grad.abs().max() < 1e-3


def test_a_loss_of_several_labels_by_hand() -> None:
    logits, held = torch.tensor([[1.0, -2], [0.5, 3], [9, 9]]), torch.tensor([[1, 0], [-1, 1], [-1, -1]])
    terms = [math.log1p(math.exp(-1)), math.log1p(math.exp(-2)), math.log1p(math.exp(-3))]
    assert float(Loss()(logits, held)) == pytest.approx(sum(terms) / 2)
    doubled = Loss(weights=torch.tensor([1.0, 2]))
    assert float(doubled(logits, held)) == pytest.approx((terms[0] + terms[1] + 2 * terms[2]) / 2)


def test_alarms_name_what_is_not_read() -> None:
    p, r = normal(300, 4), normal(300, 5, seed=1)
    whole, none = normal(3, 4, seed=2), torch.zeros(3, 4, dtype=torch.float64)

    def sentences(weight: Tensor, gate: float) -> list[str]:
        parts = {"basis": torch.eye(5, 2, dtype=torch.float64), "out": normal(3, 2, seed=3)}
        maps = parts | {"weight": weight, "bias": normal(3), "gate": torch.tensor(gate, dtype=torch.float64)}
        head = Head(known=torch.ones(3, dtype=torch.bool), several=False, decays=(1.0, 1.0), **maps)  # type: ignore[arg-type]
        return alarms(head, reading(head, p, r, generator=generator()))

    assert sentences(whole, 1.0) == []
    assert sentences(whole, 1e-4) == ["the gate stayed at 0.0001: the head does without the residual"]
    (ignored,) = sentences(whole, 0.02)
    assert "ignores the residual: 0.0% of the logits' variance" in ignored
    (ignored,) = sentences(none, 1.0)
    assert "ignores the converted tokens: 0.0%" in ignored and "change 0.0% of the answers" in ignored


def test_a_shift_of_all_logits_is_no_share() -> None:
    p, r = normal(200, 4), normal(200, 5, seed=1)
    maps = {"weight": torch.ones(3, 4).double(), "bias": torch.zeros(3).double(), "gate": torch.tensor(1.0).double()}
    parts = {"basis": torch.eye(5, 2, dtype=torch.float64), "out": normal(3, 2, seed=3), **maps}
    found = []
    for several in (False, True):
        head = Head(known=torch.ones(3, dtype=torch.bool), several=several, decays=(1.0, 1.0), **parts)  # type: ignore[arg-type]
        found.append(reading(head, p, r, generator=generator())["share_residual"])
    assert found[0] == pytest.approx(1) and 0.05 < found[1] < 0.95
