"""Deficiency: the dial, every term and every measure against a closed form."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from deprived import OPTIONS, SETTINGS, STUDENT, TARGETS, dials, draw, stirred

from distill.deficiency import (
    Dials,
    attention_entropy,
    effective_rank,
    generator,
    hinge,
    jacobian_norm,
    nuclear,
    recovered,
    relative_jacobian,
    tube_mask,
    variance,
)
from teachers.layout import TokenLayout


def test_the_dial_is_zero_then_linear_then_whole() -> None:
    at = dials("jacobian")
    assert [at.dial(step) for step in (0, 10, 25, 40, 99)] == pytest.approx([0, 0, 0.5, 1, 1])
    assert all(a <= b for a, b in pairwise(at.dial(step) for step in range(100)))
    step = dials("jacobian", zero_until=0.3, full_from=0.3)
    assert (step.dial(29), step.dial(30)) == (0, 1)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("low_rank", (1.5, "full", None, 0.0, 0.0)),
        ("masking", (0.0, None, 0.25, 0.1, 0.0)),
        ("jacobian", (0.0, None, None, 0.0, 3.5)),
        ("combined", (1.5, "full", 0.25, 0.1, 0.0)),
    ],
)
def test_strength_multiplies_what_belongs_to_the_kind(kind: str, expected: tuple) -> None:
    at = dials(kind)
    assert (at.nuclear, at.rank, at.ratio, at.entropy, at.jacobian) == pytest.approx(expected)
    assert dials("combined", rank=3).rank == 3


# --- low rank


def test_the_factors_penalty_is_at_its_least_the_nuclear_norm() -> None:
    answers = draw(40, 8)
    p, s, q = torch.linalg.svd(answers / 40**0.5, full_matrices=False)
    spread, passed = q.T * s.sqrt(), 40**0.5 * p * s.sqrt()
    torch.testing.assert_close(passed @ spread.T, answers)
    least = float(s.sum()) / 8
    assert float(nuclear(spread, passed.view(4, 10, 8))) == pytest.approx(least, rel=1e-5)
    for seed in range(5):
        turn = torch.eye(8) + 0.3 * draw(8, 8, seed=seed)
        assert float(nuclear(spread @ torch.linalg.inv(turn).T, (passed @ turn).view(4, 10, 8))) > least


def test_a_weight_of_w_takes_half_of_it_from_every_singular_value() -> None:
    """Proximal map of the nuclear norm, by descent on the factors: what the weight's unit means."""
    values = torch.tensor([2.0, 1.0, 0.3, 0.1])
    rows = 4 * torch.linalg.qr(draw(16, 4)).Q
    up, passed = (
        torch.diag(values.sqrt()) + 0.01 * draw(4, 4, seed=1),
        rows * values.sqrt() + 0.01 * draw(16, 4, seed=2),
    )
    factors = [torch.nn.Parameter(up), torch.nn.Parameter(passed[None])]
    optimizer = torch.optim.Adam(factors, lr=0.03)
    for _ in range(500):
        optimizer.zero_grad()
        answers = factors[1][0] @ factors[0].T
        ((answers - rows * values).square().mean() + 0.4 * nuclear(*factors)).backward()
        optimizer.step()
    assert torch.linalg.svdvals(answers.detach() / 4).tolist() == pytest.approx([1.8, 0.8, 0.1, 0], abs=0.01)


# --- masking


def test_tubes_hide_the_same_places_at_all_times() -> None:
    layout = TokenLayout((3, 4, 5), 2, ("cls",))
    mask = tube_mask(layout, 0.4, generator(0))
    assert mask.shape == (61,) and not mask[-1]
    frames = mask[:-1].view(3, 20)
    assert bool((frames == frames[0]).all()) and int(frames[0].sum()) == 8
    assert int(tube_mask(layout, 0.999, generator(0)).sum()) == 57, "a place is left"
    assert not tube_mask(layout, 0.0, generator(0)).any()
    for ratio in (1.0, -0.1):
        with pytest.raises(ValueError, match=rf"mask ratio is {ratio}; it must be at least 0 and below 1"):
            tube_mask(layout, ratio, generator(0))


def test_masks_are_a_function_of_seed_and_step() -> None:
    one, other = dials("masking", strength=1.0), Dials.of({**SETTINGS, "strength": 1.0}, steps=100, seed=2)
    shown = [one.mask(STUDENT, step) for step in (5, 25, 70, 71)]
    assert [int(mask.sum()) // 2 for mask in shown] == [0, 4, 8, 8]  # type: ignore[union-attr]
    assert torch.equal(one.mask(STUDENT, 70), shown[2]) and not torch.equal(shown[2], shown[3])  # type: ignore
    assert not torch.equal(other.mask(STUDENT, 70), shown[2])  # type: ignore[arg-type]
    assert dials("low_rank").mask(STUDENT, 70) is None and dials("jacobian").test_masks(STUDENT, 2) == []


def test_masks_of_a_test_differ_and_are_nested_in_the_ratio() -> None:
    half, more = (dials("masking", strength=1.0, ratio=ratio).test_masks(STUDENT, 3) for ratio in (0.5, 0.75))
    assert [int(mask.sum()) // 2 for mask in (*half, *more)] == [8, 8, 8, 12, 12, 12]
    assert not torch.equal(half[0], half[1]) and not torch.equal(half[1], half[2])
    assert all(bool(large[small].all()) for small, large in zip(half, more, strict=True))


def test_amounts_are_what_the_kind_takes() -> None:
    assert dials("combined", rank=3).amounts() == {"nuclear": 1.5, "rank": 3, "mask_ratio": 0.25, "entropy": 0.1}
    assert dials("jacobian").amounts() == {"jacobian": 3.5} and dials("low_rank", strength=0.0).amounts() == {
        "rank": "full"
    }


def test_entropy_of_attention_in_closed_form() -> None:
    logits = torch.zeros(2, 3, 5, 7)
    assert float(attention_entropy(logits)) == pytest.approx(1)
    logits[..., 1:3] = logits[..., 4:] = -1e4
    assert float(attention_entropy(logits)) == pytest.approx(math.log(2) / math.log(7))
    assert float(attention_entropy(logits[..., :1])) == 0
    logits = draw(1, 2, 64, 7)
    weights = logits.softmax(-1)
    expected = -(weights * weights.log()).sum(-1).mean() / math.log(7)
    assert float(attention_entropy(logits)) == pytest.approx(float(expected), rel=1e-5)
    assert float(hinge([torch.tensor(0.9), torch.tensor(0.2)], 0.5)) == pytest.approx(0.2)


# --- Jacobian


@pytest.mark.parametrize("family", ["linear", *OPTIONS])
def test_the_estimate_agrees_with_the_exact_jacobian_within_its_standard_error(family: str) -> None:
    converter, x = stirred(family), draw(1, *STUDENT.shape)
    converter.student_normaliser.scale.copy_(draw(12, seed=9).abs() + 2)
    scale, positions = converter.student_normaliser.scale, {"tokens": torch.tensor([0, 4, 18])}

    def answer(tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        return converter(tokens, positions=positions, standardised=True)

    found = jacobian_norm(answer, x, scale=scale, directions=64, generator=generator(3))
    assert set(found) == set(TARGETS)
    for name, (value, error) in found.items():
        here = torch.zeros_like(x, requires_grad=True)
        rows = [torch.autograd.grad(y, here, retain_graph=True)[0] for y in answer(x + scale * here)[name].flatten()]
        exact = float(torch.stack(rows).square().sum())
        assert abs(value - exact) < 3.5 * error + 1e-3 * exact and error < 0.2 * exact
    with pytest.raises(ValueError, match="directions is 1"):
        jacobian_norm(answer, x, scale=scale, directions=1, generator=generator(3))


def test_the_training_term_is_the_same_norm_over_the_variance() -> None:
    weight, x = draw(5, 12), draw(4, *STUDENT.shape)

    def answer(tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"y": tokens[:, :3] @ weight.T}

    base = answer(x)
    options = {"scale": torch.ones(12), "base": base, "directions": 400, "generator": generator(2)}
    found = relative_jacobian(answer, x, **options)["y"]  # type: ignore[arg-type]
    assert float(found) == pytest.approx(float(weight.square().sum() / 5 / variance(base["y"])), rel=0.03)


def test_no_scale_of_the_answer_makes_the_term_less() -> None:
    gain = torch.tensor(1.0, requires_grad=True)
    x = draw(4, *STUDENT.shape)

    def answer(tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"y": gain * tokens.tanh()[:, :3]}

    def term() -> torch.Tensor:
        one = torch.ones(12)
        return relative_jacobian(answer, x, scale=one, base=answer(x), directions=1, generator=generator(2))["y"]

    first = term()
    (slope,) = torch.autograd.grad(first, gain)
    assert abs(float(slope)) < 1e-4 * float(first.detach())
    gain.data.fill_(0.1)
    assert float(term().detach()) == pytest.approx(float(first.detach()), rel=1e-3)


def test_variance_is_that_of_all_clips_however_few_there_are() -> None:
    y = draw(400, 5, 4) + draw(400, 1, 4, seed=1) + 10
    whole = float(y.flatten(0, 1).var(dim=0).mean())
    assert float(variance(y)) == pytest.approx(whole, rel=0.01)
    assert float(torch.stack([variance(pair) for pair in y.split(2)]).mean()) == pytest.approx(whole, rel=0.1)
    assert float(variance(y[:3] + 5)) == pytest.approx(float(variance(y[:3])), rel=1e-3), "an offset is no variance"
    assert float(variance(torch.full((1, 2, 4), 2.0))) == 4 and float(variance(torch.full((3, 2, 4), 2.0))) == 0


# --- measures


def test_effective_rank_in_closed_form() -> None:
    assert effective_rank(torch.ones(7)) == pytest.approx(7)
    assert effective_rank(torch.tensor([3.0, 0, 0])) == pytest.approx(1)
    assert effective_rank(torch.tensor([0.5, 0.25, 0.25])) == pytest.approx(2**1.5)
    assert effective_rank(torch.zeros(3)) == 0


def test_recovered_components() -> None:
    r2, k = recovered(torch.tensor([0.0, 1, 5, 12, 1]).double(), torch.tensor([10.0, 10, 10, 10, 0]).double())
    assert r2.tolist() == pytest.approx([1, 0.9, 0.5, -0.2, -math.inf]) and k == 2
