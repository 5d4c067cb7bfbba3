"""Cost: exact for maps that can be counted by hand."""

from __future__ import annotations

import time

import pytest
import torch

from converters import create_converter
from distill.cost import count_macs, measure_cost, measure_latency
from teachers.layout import TokenLayout

STUDENT = TokenLayout(grid=(2, 4, 4), dim=12)


@pytest.mark.parametrize(
    ("target", "macs"),
    [
        (TokenLayout(grid=(2, 3, 3), dim=8), 18 * 12 * 8),
        (TokenLayout(grid=(4, 4, 4), dim=8), 32 * 12 * 8),  # mapped before the resample: the student's rows are fewer
        (TokenLayout(grid=None, dim=6), 12 * 6),
        (TokenLayout(grid=(2, 3, 3), dim=8, special=("cls",)), 19 * 12 * 8),
    ],
)
def test_macs_of_a_linear_converter(target: TokenLayout, macs: int) -> None:
    converter = create_converter("linear", student=STUDENT, targets={"x": target})
    assert count_macs(converter, torch.randn(1, 32, 12)) == macs


def test_macs_of_attention_are_those_of_its_products() -> None:
    attention = torch.nn.functional.scaled_dot_product_attention

    class Attend(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return attention(x[:, None], x[:, None], x[:, None])

    assert count_macs(Attend(), torch.randn(1, 32, 12, requires_grad=True)) == 2 * 32 * 32 * 12  # type: ignore[arg-type]


def test_latency_is_a_median_without_the_first() -> None:
    waits = iter([0.2, 0.001, 0.001, 0.001, 0.001, 0.1])
    found = measure_latency(lambda: time.sleep(next(waits)), device=torch.device("cpu"))
    assert 1 <= found < 50


def test_cost_says_everything() -> None:
    converter = create_converter("linear", student=STUDENT, targets={"x": TokenLayout(grid=None, dim=6)})
    cost = measure_cost(converter, device=torch.device("cpu"))
    assert cost["parameters"] == 12 * 6 + 6 and cost["macs"] == 72 and cost["device"] == "cpu"
    assert cost["threads"] == torch.get_num_threads() and float(cost["latency_ms"]) > 0
