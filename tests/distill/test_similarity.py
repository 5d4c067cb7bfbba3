"""CKA, neighbours and Procrustes against other packages, brute force and closed forms; their bias at few clips."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from scipy.spatial import procrustes as scipy_procrustes

from distill.similarity import (
    CKA_CLIPS,
    KNN_CLIPS,
    Similarity,
    hsics,
    mutual_neighbours,
    num_blocks,
    procrustes,
    ratio,
    reading_order,
    unbiased_hsic,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def similar(ours: torch.Tensor, theirs: torch.Tensor) -> dict[str, float]:
    """Of tokens (n p e), all of which enter CKA."""
    found = Similarity(num_clips=len(ours), width=ours.shape[2], device=torch.device("cpu"))
    order = torch.tensor(reading_order(len(ours)))
    for clips in order.split(5):
        found.update(clips, (ours[clips], theirs[clips]), (ours[clips].mean(1), theirs[clips].mean(1)))
    return found.compute()


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


@pytest.mark.parametrize("clips", [8, 32, 128])
def test_cka_of_gaussians_is_the_closed_form_at_any_size_of_a_minibatch(clips: int) -> None:
    """|S_xy|^2 / (|S_xx| |S_yy|) in Frobenius norms; centred kernels, as one package has them, give more."""
    mixing = normal(12, 12, seed=1)
    x = normal(512, clips, 12, seed=2)
    y = x @ mixing.T + 2 * normal(512, clips, 12, seed=3)
    cross, own = mixing.double(), mixing.double() @ mixing.double().T + 4 * torch.eye(12, dtype=torch.float64)
    expected = float(cross.square().sum() / (12**0.5 * own.square().sum().sqrt()))
    assert ratio(torch.cat([hsics(x, y), torch.ones(1)])) == pytest.approx(expected, abs=0.015)
    assert biased_cka(x, y) > expected + 1.5 / clips


def biased_cka(x: torch.Tensor, y: torch.Tensor) -> float:
    """Kornblith et al. 2019, directly: centred features, Frobenius norms; the mean over positions."""
    x, y = (rows.double() - rows.double().mean(1, keepdim=True) for rows in (x, y))
    products = [(a.transpose(1, 2) @ b).square().sum((1, 2)) for a, b in ((x, y), (x, x), (y, y))]
    return float(products[0].mean() / (products[1].mean() * products[2].mean()).sqrt())


def test_bias_of_independent_data_at_few_clips() -> None:
    """48 channels: what looks alike though nothing is shared."""
    x, y = normal(16, 32, 48), normal(16, 32, 48, seed=4)
    assert abs(ratio(torch.cat([hsics(x, y), torch.ones(1)]))) < 0.03
    assert biased_cka(x, y) > 0.5
    for clips, expected in ((48, 0.76), (480, 0.27)):
        a, b = (rows.double() - rows.double().mean(0) for rows in (normal(clips, 48), normal(clips, 48, seed=4)))
        found = procrustes(a.T @ b, torch.stack([a.square().sum(), b.square().sum()]))
        assert found == pytest.approx(expected, abs=0.03)
    assert mutual_neighbours(normal(400, 8), normal(400, 8, seed=1)) == pytest.approx(10 / 399, abs=0.01)


def test_the_trap_of_clips_that_depend() -> None:
    """Tokens of a clip share its mean: pooled over tokens, independent clips look alike; clip by clip they do not."""
    clips, tokens, width = 8, 64, 16
    ours, theirs = (
        normal(clips, 1, width, seed=seed) + 0.3 * normal(clips, tokens, width, seed=seed + 9) for seed in (1, 2)
    )
    pooled = ratio(torch.cat([hsics(ours.flatten(0, 1)[None], theirs.flatten(0, 1)[None]), torch.ones(1)]))
    assert pooled > 0.4
    many = [normal(512, 1, width, seed=seed) + 0.3 * normal(512, 4, width, seed=seed + 9) for seed in (1, 2)]
    assert abs(similar(*many)["cka"]) < 0.03


def test_cka_needs_four_clips() -> None:
    few = [normal(3, 2, 4, seed=seed) for seed in (0, 1)]
    assert np.isnan(similar(*few)["cka"]) and np.isnan(similar(*few)["knn"])
    assert similar(few[0].repeat(2, 1, 1), few[0].repeat(2, 1, 1))["cka"] == pytest.approx(1)
    assert similar(torch.zeros(8, 2, 4), normal(8, 2, 4))["cka"] == 0


def test_neighbours_are_those_of_a_tree() -> None:
    """Cosine neighbours are Euclidean ones of rows of length 1, which scipy's k-d tree finds."""
    x, y = normal(150, 6), normal(150, 6) + normal(150, 6, seed=3)
    near = []
    for rows in (x, y):
        unit = (rows / rows.norm(dim=1, keepdim=True)).numpy()
        near.append(cKDTree(unit).query(unit, k=11)[1][:, 1:])
    shared = [len(set(a) & set(b)) / 10 for a, b in zip(*near, strict=True)]
    assert mutual_neighbours(x, y) == pytest.approx(float(np.mean(shared)), abs=1e-9)
    lengths = torch.logspace(-2, 2, 150)[:, None]
    assert mutual_neighbours(lengths * x, y) == pytest.approx(mutual_neighbours(x, y)), "length does not count"
    assert mutual_neighbours(x, 3 * x @ torch.linalg.qr(normal(6, 6)).Q) == 1
    assert np.isnan(mutual_neighbours(x[:19], y[:19]))


def test_neighbours_of_many_clips_are_those_of_every_third() -> None:
    """Past KNN_CLIPS a fixed part stands for all."""
    x, y = normal(1100, 1, 6), normal(1100, 1, 6) + normal(1100, 1, 6, seed=3)
    assert -(-1100 // KNN_CLIPS) == 3
    assert similar(x, y)["knn"] == mutual_neighbours(x[::3, 0], y[::3, 0]) != mutual_neighbours(x[1::3, 0], y[1::3, 0])


@pytest.mark.parametrize("side", [0, 1])
def test_a_clip_that_is_not_finite_makes_no_number(side: int) -> None:
    both = [normal(100, 3, 8, seed=seed) for seed in (0, 1)]
    assert all(np.isfinite(value) for value in similar(*both).values())
    both[side][40, 1, 2] = torch.nan
    assert all(np.isnan(value) for value in similar(*both).values())


@pytest.mark.parametrize("both", [True, False])
def test_procrustes_does_not_see_turns_scales_and_orders(both: bool) -> None:
    ours, theirs = normal(120, 1, 8), normal(120, 1, 8) + normal(120, 1, 8, seed=6)
    turn = torch.linalg.qr(normal(8, 8)).Q
    for change in (lambda x: x @ turn, lambda x: 3 * x, lambda x: x[..., torch.arange(8).roll(3)]):
        found = similar(change(ours), change(theirs) if both else theirs)["procrustes"]
        assert found == pytest.approx(similar(ours, theirs)["procrustes"], abs=1e-6)


def test_procrustes_is_that_of_scipy_and_streams() -> None:
    ours, theirs = normal(120, 1, 8), normal(120, 1, 8) @ normal(8, 8, seed=5) + normal(120, 1, 8, seed=6) + 40
    disparity = scipy_procrustes(ours[:, 0].numpy(), theirs[:, 0].numpy())[2]
    assert similar(ours, theirs)["procrustes"] == pytest.approx((1 - disparity) ** 0.5, abs=1e-6)
    turned = 3 * ours @ torch.linalg.qr(normal(8, 8)).Q - 7
    assert similar(ours, turned)["procrustes"] == pytest.approx(1, abs=1e-6)
    assert np.isnan(similar(ours[:79], theirs[:79])["procrustes"]), "79 clips are fewer than 10 x 8 channels"


def test_every_clip_is_read_once_by_one_rank_and_minibatches_stay_whole() -> None:
    for clips, world in ((7, 1), (100, 2), (1000, 3), (64, 8)):
        shares = [reading_order(clips, rank=rank, world=world) for rank in range(world)]
        assert sorted(clip for share in shares for clip in share) == list(range(clips))
        owner = {clip: rank for rank, share in enumerate(shares) for clip in share}
        for block in range(num_blocks(clips)):
            assert len({owner[clip] for clip in range(block, clips, num_blocks(clips))}) == 1


def test_neighbours_in_the_list_are_in_different_minibatches() -> None:
    blocks = num_blocks(10 * CKA_CLIPS)
    assert blocks == 10 and reading_order(10 * CKA_CLIPS)[:3] == [0, 10, 20]


def test_memory_is_bounded() -> None:
    """20000 clips: what is held never exceeds two minibatches and the neighbours' subset."""
    clips, width = 20_000, 4
    found = Similarity(num_clips=clips, width=width, device=torch.device("cpu"))
    most = 0
    for part in torch.tensor(reading_order(clips)).split(100):
        rows = normal(len(part), 1, width)
        found.update(part, (rows, rows), (rows[:, 0], rows[:, 0]))
        most = max(most, sum(len(rows) for rows in found.open.values()))
    assert most < 2 * CKA_CLIPS and found.means.shape[1] <= KNN_CLIPS and not found.open
    assert found.compute()["cka"] == pytest.approx(1)
