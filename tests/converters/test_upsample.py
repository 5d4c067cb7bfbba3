"""Upsampling: linear interpolation at the start, on the axes that need it."""

from __future__ import annotations

import pytest
import torch
from small import draw

from converters import create_converter
from converters.resample import trilinear
from converters.upsample import Upsample, finer_by
from teachers.layout import TokenLayout

GRID = (3, 5, 4)


def test_upsampling_starts_as_linear_interpolation():
    x = draw(2, 60, 6)
    up = Upsample(6, GRID, (2, 1, 3))
    assert up.grid == (6, 5, 12)
    fine = TokenLayout(up.grid, 6)
    torch.testing.assert_close(up(x), trilinear(x, GRID, fine.extent, fine.centres()), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("target", "factors"),
    [
        (TokenLayout((8, 14, 14), 8), (1, 1, 1)),
        (TokenLayout((16, 14, 14), 8), (2, 1, 1)),
        (TokenLayout((8, 14, 14), 8, (), ((0, 1), (0.25, 0.75), (0, 1))), (1, 2, 1)),
        (TokenLayout((1, 300, 20), 8), (1, 4, 1)),
    ],
)
def test_which_axes_are_upsampled(target, factors):
    student = TokenLayout((8, 16, 16), 8)
    assert finer_by(student, target) == factors
    branch = create_converter(
        "dsconv", student=student, targets={"y": target}, options={"resample": "transposed"}
    ).branch
    assert ("y" in branch.upsample) == (max(factors) > 1)
