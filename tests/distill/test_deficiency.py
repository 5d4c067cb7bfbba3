"""Deficiency: the dial, every term and every measure against a closed form, and what a loss makes of them."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from converters import FAMILIES, Converter, create_converter
from converters.attention import watched
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
from distill.objective import Objective
from teachers.layout import TokenLayout

STUDENT = TokenLayout((2, 4, 4), 12)
TARGETS = {"tokens": TokenLayout((2, 3, 3), 8, ("cls",)), "pooled": TokenLayout(None, 6)}
OPTIONS = {
    "perceiver": {"width": 16, "latents": 6, "heads": 2},
    "dsconv": {"width": 16, "blocks": 1, "kernel": 3},
    "mamba": {"width": 16, "blocks": 1, "states": 4, "samples": 4},
    "tokenlearner": {"width": 16, "tokens": 4, "heads": 2, "samples": 4},
}
SETTINGS = {
    "kind": "combined",
    "strength": 0.5,
    "zero_until": 0.1,
    "full_from": 0.4,
    "nuclear": 3.0,
    "rank": None,
    "ratio": 0.5,
    "entropy": 0.2,
    "entropy_target": 0.0,
    "jacobian": 7.0,
    "every": 4,
    "directions": 2,
    "outputs": 3,
}


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def dials(kind: str, **settings: object) -> Dials:
    return Dials.of({**SETTINGS, "kind": kind, **settings}, steps=100, seed=1)


def stirred(family: str, **settings: object) -> Converter:
    converter = create_converter(
        family,
        student=STUDENT,
        targets=TARGETS,
        options=OPTIONS.get(family),
        **settings,  # type: ignore[arg-type]
    )
    with torch.no_grad():
        for number, parameter in enumerate(converter.parameters()):
            parameter.add_(0.1 * draw(*parameter.shape, seed=number))
    return converter


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
    weight = draw(8, 12)
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    least = float(s.sum()) / 8
    assert float(nuclear([u * s.sqrt(), s.sqrt()[:, None] * v], width=8)) == pytest.approx(least, rel=1e-5)
    for seed in range(5):
        turn = torch.eye(8) + 0.3 * draw(8, 8, seed=seed)
        assert float(nuclear([u * s.sqrt() @ turn, torch.linalg.inv(turn) @ (s.sqrt()[:, None] * v)], width=8)) > least


def test_a_weight_of_w_takes_half_of_it_from_every_singular_value() -> None:
    """Proximal map of the nuclear norm, by descent on the factors: what the weight's unit means."""
    wanted = torch.diag(torch.tensor([2.0, 1.0, 0.3, 0.1]))
    up, down = (torch.nn.Parameter(wanted.sqrt() + 0.01 * draw(4, 4, seed=seed)) for seed in (1, 2))
    optimizer = torch.optim.Adam([up, down], lr=0.03)
    for _ in range(400):
        optimizer.zero_grad()
        loss = (up @ down - wanted).square().sum() / 4 + 0.4 * nuclear([up, down], width=4)
        loss.backward()
        optimizer.step()
    assert torch.linalg.svdvals((up @ down).detach()).tolist() == pytest.approx([1.8, 0.8, 0.1, 0], abs=0.01)


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
    shown = [one.mask(STUDENT, step) for step in (5, 25, 70, 71, None)]
    assert [int(mask.sum()) // 2 for mask in shown] == [0, 4, 8, 8, 8]  # type: ignore[union-attr]
    assert torch.equal(one.mask(STUDENT, 70), shown[2]) and not torch.equal(shown[2], shown[3])  # type: ignore
    assert not torch.equal(other.mask(STUDENT, 70), shown[2])  # type: ignore[arg-type]
    assert dials("low_rank").mask(STUDENT, 70) is None and dials("jacobian").mask(STUDENT, None) is None


def test_entropy_of_attention_in_closed_form() -> None:
    q, k = torch.zeros(2, 3, 5, 4), draw(2, 3, 7, 4)
    assert float(attention_entropy(q, k)) == pytest.approx(1)
    bias = torch.full((2, 1, 1, 7), -math.inf)
    bias[..., 0] = bias[..., 3] = 0
    assert float(attention_entropy(q, k, bias.clamp(min=-1e4))) == pytest.approx(math.log(2) / math.log(7))
    assert float(attention_entropy(q, k[:, :, :1])) == 0
    many = draw(1, 2, 640, 4)
    weights = (many[:, :, ::10] @ k[:1, :2].mT / 2).softmax(-1)
    expected = -(weights * weights.log()).sum(-1).mean() / math.log(7)
    assert float(attention_entropy(many, k[:1, :2])) == pytest.approx(float(expected), rel=1e-5)
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


def test_variance_of_many_tokens_and_of_one() -> None:
    y = draw(3, 5, 4) + 10
    assert float(variance(y)) == pytest.approx(float(y.flatten(0, 1).var(dim=0, unbiased=False).mean()))
    assert float(variance(torch.full((1, 1, 4), 2.0))) == 4


# --- measures


def test_effective_rank_in_closed_form() -> None:
    assert effective_rank(torch.ones(7)) == pytest.approx(7)
    assert effective_rank(torch.tensor([3.0, 0, 0])) == pytest.approx(1)
    assert effective_rank(torch.tensor([0.5, 0.25, 0.25])) == pytest.approx(2**1.5)
    assert effective_rank(torch.zeros(3)) == 0


def test_recovered_components() -> None:
    r2, k = recovered(torch.tensor([0.0, 1, 5, 12, 1]).double(), torch.tensor([10.0, 10, 10, 10, 0]).double())
    assert r2.tolist() == pytest.approx([1, 0.9, 0.5, -0.2, -math.inf]) and k == 2


# --- in the loss


def batch(seed: int = 0) -> dict[str, torch.Tensor]:
    return {name: draw(2, *at.shape, seed=seed) for name, at in {"student": STUDENT, **TARGETS}.items()}


def built(family: str, at: Dials | None) -> Objective:
    rank, mask = (at.rank, at.ratio is not None) if at else (None, False)
    return Objective(stirred(family, rank=rank, mask_token=mask), weights={"mse": 1.0}, dials=at)


@pytest.mark.parametrize("family", list(OPTIONS))
@pytest.mark.parametrize("kind", ["low_rank", "masking", "jacobian", "combined"])
def test_terms_are_named_weighted_and_reach_the_converter(kind: str, family: str) -> None:
    at = dials(kind, strength=1.0)
    objective = built(family, at)
    attends = family in ("perceiver", "tokenlearner", "mamba")  # mamba for its special tokens
    names = {f"{target}/mse" for target in TARGETS}
    names |= {f"{target}/nuclear" for target in TARGETS if at.nuclear}
    names |= {"entropy"} if at.entropy and attends else set()
    positions = {"tokens": torch.tensor([0, 2, 5, 7, 11, 18])}
    late = objective(batch(), positions, 72)
    assert set(late) == {"loss", *names, *(f"{target}/jacobian" for target in TARGETS if at.jacobian)}
    weights = {"mse": 0.5, "nuclear": at.nuclear / 2, "entropy": at.entropy, "jacobian": 4 * at.jacobian / 2}
    total = sum(weights[name.rpartition("/")[2]] * float(value) for name, value in late.items() if name != "loss")
    assert float(late["loss"]) == pytest.approx(total, rel=1e-5)
    late["loss"].backward()
    assert [name for name, p in objective.named_parameters() if p.grad is None] == []
    assert set(objective(batch(), positions, 73)) == {"loss", *names}, "the Jacobian is looked at every fourth step"


@pytest.mark.parametrize("kind", ["low_rank", "masking", "jacobian", "combined"])
def test_nothing_is_lost_before_the_dial_turns(kind: str) -> None:
    objective = built("perceiver", dials(kind))
    plain = Objective(objective.converter, weights={"mse": 1.0})
    assert torch.equal(objective(batch(), None, 8)["loss"], plain(batch(), None)["loss"])
    assert not torch.equal(objective(batch(), None, 72)["loss"], plain(batch(), None)["loss"])


def test_a_step_s_terms_do_not_depend_on_what_came_before() -> None:
    for kind in ("masking", "jacobian"):
        objective = built("tokenlearner", dials(kind))
        first = objective(batch(), None, 72)
        objective(batch(1), None, 48)
        assert all(torch.equal(value, first[name]) for name, value in objective(batch(), None, 72).items())


def test_the_jacobian_under_autocast_is_not_rounding() -> None:
    objective = built("perceiver", dials("jacobian", directions=16))
    exact = objective(batch(), None, 72)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = objective(batch(), None, 72)
    for target in TARGETS:
        assert float(rough[f"{target}/jacobian"]) == pytest.approx(float(exact[f"{target}/jacobian"]), rel=0.01)


@torch.no_grad()
def mean_entropy(converter: Converter) -> float:
    found: list[float] = []
    with watched(converter, lambda q, k, bias: found.append(float(attention_entropy(q, k, bias)))):
        converter(batch()["student"])
    return sum(found) / len(found)


def test_the_entropy_hinge_draws_attention_together() -> None:
    objective = built("perceiver", dials("masking", ratio=0.0, entropy=1.0, strength=1.0))
    objective.weights = {"mse": 1e-9}
    optimizer = torch.optim.Adam(objective.parameters(), lr=1e-2)
    first = mean_entropy(objective.converter)
    for _ in range(15):
        optimizer.zero_grad()
        objective(batch(), None, 72)["loss"].backward()
        optimizer.step()
    assert mean_entropy(objective.converter) < 0.8 * first
    assert all(getattr(part, "watch", None) is None for part in objective.modules()), "left behind"


def test_every_family_is_here() -> None:
    assert set(OPTIONS) == set(FAMILIES) - {"mlp", "linear", "constant"}
