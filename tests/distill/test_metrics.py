"""Alignment metrics against closed forms, brute force, and the table of converters that mislead."""

from __future__ import annotations

import itertools

import pytest
import torch

from distill.metrics import Alignment, Statistics, group_weights, interval, minibatch_cka, unbiased_hsic


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def world() -> dict:
    """64 train and 32 test clips of a teacher with strong position means, uneven channels and a little content."""
    places, width = 24, 16
    scale = torch.logspace(-1, 1, width)
    means = 3 * scale * (normal(places, width, seed=1) + 2)
    train, test = (means + scale * normal(clips, places, width, seed=clips) for clips in (640, 32))
    mean = train.mean(0)
    deviation = (train - mean).square().mean((0, 1)).sqrt()
    return {"teacher": test, "statistics": Statistics(mean, deviation, train.mean((0, 1))), "scale": scale}


def measure(world: dict, converted: torch.Tensor) -> dict[str, float]:
    metric = Alignment(world["statistics"], num_clips=len(converted), cka_positions=24)
    for clips in torch.arange(len(converted)).split(5):
        metric.update(clips, converted[clips], world["teacher"][clips])
    return metric.compute()


def test_definitions(world: dict) -> None:
    teacher, stats = world["teacher"], world["statistics"]
    converted = teacher + 0.3 * world["scale"] * normal(*teacher.shape, seed=9)
    found = measure(world, converted)

    def energy(x: torch.Tensor) -> float:
        return float((x / stats.scale).double().square().sum())

    error = energy(converted - teacher)
    assert found["r2c"] == pytest.approx(1 - error / energy(teacher - stats.mean))
    assert found["r2"] == pytest.approx(1 - error / energy(teacher - stats.global_mean))
    assert found["nmse"] == pytest.approx(error / teacher.numel())
    ours, theirs = ((x - stats.mean) / stats.scale for x in (converted, teacher))
    assert found["smooth_l1"] == pytest.approx(float(torch.nn.functional.smooth_l1_loss(ours, theirs)), rel=1e-5)
    assert found["cos_std"] == pytest.approx(float(torch.cosine_similarity(ours, theirs, dim=-1).mean()), abs=1e-6)
    raw = torch.cosine_similarity(converted, teacher, dim=-1).double().mean()
    assert found["cosine"] == pytest.approx(float(raw), abs=1e-6)


def test_misleading_converters(world: dict) -> None:
    teacher, stats = world["teacher"], world["statistics"]
    perfect = measure(world, teacher)
    assert perfect["r2c"] == 1 and perfect["cka"] == pytest.approx(1)
    average = measure(world, stats.mean.expand_as(teacher))
    assert average["r2c"] == pytest.approx(0, abs=1e-6) and average["cosine"] > 0.9 and average["r2"] > 0.5
    constant = measure(world, stats.global_mean.expand_as(teacher))
    assert constant["r2c"] < -1 and constant["cosine"] > 0.8 and constant["r2"] == pytest.approx(0, abs=1e-6)
    noise = measure(world, teacher + 0.7 * stats.scale * normal(*teacher.shape, seed=3))
    assert noise["r2c"] == pytest.approx(0.51, abs=0.02) and noise["cosine"] > 0.95
    rotation = torch.linalg.qr(normal(16, 16)).Q
    turned = measure(world, ((teacher - stats.mean) / stats.scale) @ rotation * stats.scale + stats.mean)
    assert turned["cka"] == pytest.approx(1) and turned["r2c"] < 0
    shrunk = measure(world, stats.mean + 0.3 * (teacher - stats.mean))
    assert shrunk["cos_std"] == pytest.approx(1) and shrunk["r2c"] == pytest.approx(0.51, abs=1e-3)
    other = measure(world, teacher.roll(1, dims=0))
    assert abs(other["cka"]) < 0.1 and other["r2c"] < -0.5


def test_ranks_sum_to_the_same(world: dict) -> None:
    teacher = world["teacher"]
    converted = teacher + normal(*teacher.shape, seed=5)
    whole = measure(world, converted)
    parts = []
    for rank in range(2):
        metric = Alignment(world["statistics"], num_clips=32, cka_positions=24)
        for clip in range(rank, 32, 2):
            metric.update(torch.tensor([clip]), converted[clip : clip + 1], teacher[clip : clip + 1])
        parts.append(metric)
    for name in ("clips", "channels", "positions", "kept"):
        setattr(parts[0], name, getattr(parts[0], name) + getattr(parts[1], name))
    assert parts[0].compute() == pytest.approx(whole)


def test_a_missing_or_doubled_clip_is_an_error(world: dict) -> None:
    metric = Alignment(world["statistics"], num_clips=3)
    metric.update(torch.tensor([0, 0]), world["teacher"][:2], world["teacher"][:2])
    with pytest.raises(ValueError, match="clip 0 of 3"):
        metric.compute()
    with pytest.raises(ValueError, match=r"\(2, 23, 16\)"):
        metric.update(torch.tensor([0, 1]), world["teacher"][:2, 1:], world["teacher"][:2])


def test_hsic_is_the_u_statistic() -> None:
    """Brute force over all quadruples of distinct clips (Gretton et al. 2005)."""
    n = 6
    x, y = normal(n, 3).double(), normal(n, 4, seed=2).double()
    k, m = x @ x.T, y @ y.T
    total = 0.0
    for i, j, q, r in itertools.permutations(range(n), 4):
        total += float(k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]))
    expected = total / len(list(itertools.permutations(range(n), 4)))
    assert float(unbiased_hsic(k, m)) == pytest.approx(expected)


def test_cka_of_independent_data_is_near_zero_and_needs_four_clips() -> None:
    x, y = normal(16, 32, 64), normal(16, 32, 64, seed=4)
    assert abs(minibatch_cka(x, y)) < 0.05
    assert minibatch_cka(x, 3 * x + 1) == pytest.approx(1)
    assert minibatch_cka(normal(16, 300, 8), normal(16, 300, 8), clips=100) == pytest.approx(1)
    assert torch.isnan(torch.tensor(minibatch_cka(x[:, :3], y[:, :3])))


def test_bootstrap_draws_groups_not_clips() -> None:
    weights = group_weights(["a", "a", "b", "c"], resamples=500)
    assert torch.equal(weights[:, 0], weights[:, 1])
    assert weights[:, [0, 2, 3]].sum(1).unique().tolist() == [3]
    low, high = interval(torch.arange(1001, dtype=torch.float64))
    assert (low, high) == pytest.approx((25, 975))


def test_r2c_by_channel_and_position(world: dict) -> None:
    teacher = world["teacher"]
    converted = teacher.clone()
    converted[:, :, 3] = world["statistics"].mean[:, 3]
    converted[:, 5] = world["statistics"].mean[5]
    metric = Alignment(world["statistics"], num_clips=32)
    metric.update(torch.arange(32), converted, teacher)
    assert float(metric.r2c_by_channel()[3]) == pytest.approx(0, abs=1e-6)
    assert float(metric.r2c_by_position()[5]) == pytest.approx(0, abs=1e-6)
    assert metric.r2c_by_channel()[4] > 0.9 and metric.r2c_by_position()[6] > 0.9
