"""Nystrom's and Performer's attention against exact attention in float64."""

from __future__ import annotations

import pytest
import torch
from small import draw

from converters.approximation import Nystrom, Performer, nystrom, orthogonal_gaussian, performer, pseudo_inverse
from converters.attention import attend

APPROXIMATIONS = {
    "nystrom": lambda q, k, v: nystrom(q, k, v, 5),
    "performer": lambda q, k, v: performer(q, k, v, draw(24, q.shape[-1], seed=9)),
}


def exact(q, k, v):
    logits = torch.einsum("bhqc,bhmc->bhqm", q.double(), k.double()) / q.shape[-1] ** 0.5
    return logits.softmax(dim=-1) @ v.double()


def inputs(tokens, channels=8, size=1.0):
    q, k, v = (draw(2, 3, tokens, channels, seed=seed) for seed in range(3))
    return q * size, k * size, v


def features(count, channels, seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return orthogonal_gaussian(count, channels)


def error(answer, true):
    return ((answer.double() - true).norm() / true.norm()).item()


@pytest.mark.parametrize("landmarks", [12, 13])
def test_nystrom_with_a_landmark_for_every_token_is_exact(landmarks):
    given = inputs(12)
    torch.testing.assert_close(nystrom(*given, landmarks).double(), exact(*given), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tokens", [12, 13, 17])
def test_nystrom_loses_nothing_of_a_memory_whose_keys_repeat_run_by_run(tokens):
    """Runs of unequal length included."""
    run = torch.arange(tokens) * 6 // tokens
    base = torch.linalg.qr(draw(2, 3, 8, 8).double()).Q[:, :, :6] * 3
    k, v = base[:, :, run], draw(2, 3, tokens, 5, seed=2).double()
    q = k + 0.3 * draw(2, 3, tokens, 8, seed=3).double()
    torch.testing.assert_close(nystrom(q, k, v, 6), exact(q, k, v), atol=1e-6, rtol=1e-6)


def test_nystrom_of_queries_that_ask_for_nothing_is_the_mean():
    """Its inner matrix then has rank 1."""
    _, k, v = inputs(11)
    answer = nystrom(torch.zeros_like(k), k, v, 4)
    torch.testing.assert_close(answer, v.mean(dim=-2, keepdim=True).expand_as(v), atol=1e-5, rtol=1e-5)


def test_more_landmarks_err_less():
    place = torch.linspace(0, 3, 50)[:, None]
    q, k, v = (torch.sin(place * torch.arange(1, 9) / 2 + shift).expand(1, 1, 50, 8) for shift in (0.0, 0.3, 1.0))
    errors = [error(nystrom(2 * q, 2 * k, v, count), exact(2 * q, 2 * k, v)) for count in (2, 4, 7, 16, 31)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.05 and errors[-1] < 0.01


def test_the_pseudo_inverse_is_one():
    near = (4 * torch.eye(7).double() + draw(3, 7, 7).double()).softmax(dim=-1)
    flat = torch.full((1, 7, 7), 1 / 7, dtype=torch.double)
    for matrix in (near, flat):
        torch.testing.assert_close(pseudo_inverse(matrix), torch.linalg.pinv(matrix), atol=1e-4, rtol=1e-4)


def test_performers_error_falls_with_the_root_of_its_features():
    given = inputs(20, size=0.5)
    few, many = (
        sum(error(performer(*given, features(count, 8, seed)), exact(*given)) for seed in range(20)) / 20
        for count in (32, 512)
    )
    assert many < 0.12
    assert 3 < few / many < 5.5  # 16 times the features: 4


def test_performer_is_right_on_average():
    given = inputs(20, size=0.5)
    answers = torch.stack([performer(*given, features(64, 8, seed)) for seed in range(200)])
    single = sum(error(answer, exact(*given)) for answer in answers) / 200
    assert error(answers.mean(dim=0), exact(*given)) < 0.2 * single


def test_performers_gradients_approach_the_exact_ones():
    leaves = [part.requires_grad_() for part in inputs(10, channels=4, size=0.5)]
    pull = draw(2, 3, 10, 4, seed=5)
    true = torch.autograd.grad((exact(*leaves) * pull).sum(), leaves)
    ours = torch.autograd.grad((performer(*leaves, features(8192, 4, 0)) * pull).sum(), leaves)
    for mine, right in zip(ours, true, strict=True):
        assert error(mine, right.double()) < 0.1


@pytest.mark.parametrize("name", APPROXIMATIONS)
def test_gradients_are_those_of_the_answer(name):
    leaves = [part[:1, :1].double().requires_grad_() for part in inputs(7, channels=4)]
    assert torch.autograd.gradcheck(lambda *given: APPROXIMATIONS[name](*given), leaves)


@pytest.mark.parametrize("size", [30.0, 1e4])
@pytest.mark.parametrize("name", APPROXIMATIONS)
def test_large_logits_do_not_overflow(name, size):
    leaves = [part.requires_grad_() for part in inputs(12, size=size)]
    answer = APPROXIMATIONS[name](*leaves)
    gradients = torch.autograd.grad(answer.square().sum(), leaves)
    assert all(bool(part.isfinite().all()) for part in (answer, *gradients))
    if name == "performer":  # a weighted mean, whatever the weights
        values = leaves[2]
        assert (answer <= values.amax(dim=-2, keepdim=True) + 1e-5).all()
        assert (answer >= values.amin(dim=-2, keepdim=True) - 1e-5).all()


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", APPROXIMATIONS)
def test_bf16_is_close_to_fp32(name, autocast):
    given = [part.bfloat16() for part in inputs(12)]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        answer = APPROXIMATIONS[name](*given)
    assert answer.dtype == torch.bfloat16
    assert error(answer, APPROXIMATIONS[name](*(part.float() for part in given)).double()) < 0.01


def test_random_features_are_normal_and_at_right_angles():
    rows = features(400, 16, 0)
    inside = rows[:16] @ rows[:16].T
    torch.testing.assert_close(inside - inside.diag().diag(), torch.zeros(16, 16), atol=1e-4, rtol=0)
    assert abs(rows.square().mean() - 1) < 0.05 and abs(rows.mean()) < 0.05
    assert features(5, 16, 0).shape == (5, 16)


@pytest.mark.parametrize("module", [Nystrom(5), Performer(8, 24)])
def test_modules_stand_where_attention_stands(module):
    given = inputs(12)
    assert module(*given).shape == attend(*given).shape
    assert list(module.parameters()) == []
    assert len(module.state_dict()) == isinstance(module, Performer)
