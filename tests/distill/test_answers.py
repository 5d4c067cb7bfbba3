"""Accuracy, macro-F1 and calibration of a classifier's answers, by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from distill.answers import expected_calibration_error, macro_f1, scores, told


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_calibration_error_by_hand() -> None:
    """Confidences 0.9, 0.9, 0.9, 0.6 with hits 1, 1, 0, 1: bins of 0.9 and 0.6."""
    chances = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.4, 0.6], [0.5, 0.5]], dtype=torch.float64)
    truth = torch.tensor([0, 0, 0, 1, -1])
    by_hand = 3 / 4 * (0.9 - 2 / 3) + 1 / 4 * (1 - 0.6)
    assert expected_calibration_error(chances.log(), truth) == pytest.approx(by_hand)
    several = torch.tensor([[0.9, 0.2], [0.88, 0.6], [0.1, 0.6]], dtype=torch.float64).logit()
    held = torch.tensor([[1, 0], [0, 1], [0, -1]])
    one, other = (2 * abs(0.89 - 0.5) + 0.1) / 3, (0.2 + 0.4) / 2
    assert expected_calibration_error(several, held) == pytest.approx((one + other) / 2)


def test_accuracy_and_f1_by_hand() -> None:
    logits = torch.tensor([[3.0, 1, 2, -math.inf], [3, 2, 1, -math.inf], [1, 3, 2, -math.inf], [0, 1, 2, -math.inf]])
    truth = torch.tensor([0, 1, 1, 3])  # nobody says 3, for train does not have it
    assert told(logits, truth).tolist() == [1, 0, 1, 0]
    assert told(logits, truth, top=2).tolist() == [1, 1, 1, 0] and told(logits, truth, top=4).tolist() == [1, 1, 1, 0]
    assert macro_f1(logits, truth) == pytest.approx((2 / 3 + 2 / 3 + 0 + 0) / 4)
    assert told(logits, torch.tensor([-1, 0, 0, 2]))[0].isnan() and "top5" not in scores(logits, truth)
    assert scores(normal(9, 6), torch.arange(9) % 6)["top5"] > 0.5
    held = torch.tensor([[1, 0, -1], [1, 1, 0]])
    several = torch.tensor([[2.0, 1, 1], [-1, 1, -1]])
    assert told(several, held).tolist() == pytest.approx([1 / 2, 2 / 3])
    assert macro_f1(several, held) == pytest.approx((2 / 3 + 2 / 3) / 2)
