"""Losses against their closed forms, and what each must not see."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from distill import losses


@pytest.fixture
def tokens() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(3, 40, 8, generator=generator) for _ in range(2))  # type: ignore[return-value]


@pytest.mark.parametrize("name", ["mse", "smooth_l1", "cosine", "gram", "moments"])
def test_zero_on_itself_and_positive_elsewhere(name: str, tokens: tuple[torch.Tensor, torch.Tensor]) -> None:
    ours, theirs = tokens
    loss = getattr(losses, name)
    assert float(loss(theirs, theirs)) == pytest.approx(0, abs=1e-6)
    assert float(loss(ours, theirs)) > 0.01
    assert loss(ours.bfloat16(), theirs.bfloat16()).dtype == torch.float32


def test_cosine_and_gram_ignore_length(tokens: tuple[torch.Tensor, torch.Tensor]) -> None:
    _, theirs = tokens
    assert float(losses.cosine(3 * theirs, theirs)) == pytest.approx(0, abs=1e-6)
    assert float(losses.gram(3 * theirs, theirs)) == pytest.approx(0, abs=1e-6)


def test_gram_ignores_a_rotation_and_samples_tokens(tokens: tuple[torch.Tensor, torch.Tensor]) -> None:
    ours, theirs = tokens
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(1))).Q
    assert float(losses.gram(theirs @ rotation, theirs)) == pytest.approx(0, abs=1e-6)
    few = losses.gram(ours[:, ::4], theirs[:, ::4], tokens=10)
    assert float(losses.gram(ours, theirs, tokens=10)) == pytest.approx(float(few))
    assert float(losses.gram(ours, theirs, tokens=13)) == pytest.approx(float(few))  # at most 13, evenly spaced: 10
    assert float(losses.gram(ours[:, :1], theirs[:, :1])) == 0


def test_moments_is_the_mean_and_deviation_of_the_batch(tokens: tuple[torch.Tensor, torch.Tensor]) -> None:
    ours, theirs = (x.flatten(0, 1) for x in tokens)
    expected = F.mse_loss(ours.mean(0), theirs.mean(0)) + F.mse_loss(ours.std(0), theirs.std(0))
    assert float(losses.moments(*tokens)) == pytest.approx(float(expected))
