"""Averaged pixels against plain loops."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch

from teachers import create_backbone

SMALL = {"grid": [4, 2, 2], "frames": 8, "pixels": 16, "cells": 2}


def test_tokens_are_area_means_in_their_order() -> None:
    backbone = create_backbone("pixels", options=SMALL)
    video = torch.rand(1, 8, 3, 16, 16)
    tokens = backbone(video)[0].reshape(4, 2, 2, 2, 2, 2, 3)
    assert backbone.layout.shape == (16, 24)
    for t, y, x, frame, i, j, colour in product(*map(range, (4, 2, 2, 2, 2, 2, 3))):
        top, left = y * 8 + i * 4, x * 8 + j * 4
        cell = video[0, 2 * t + frame, colour, top : top + 4, left : left + 4]
        assert torch.isclose(tokens[t, y, x, frame, i, j, colour], cell.mean(), atol=1e-6)


def test_values_stay_in_the_range_of_pixels() -> None:
    tokens = create_backbone("pixels", options=SMALL)(torch.ones(1, 8, 3, 16, 16))
    assert torch.equal(tokens, torch.ones(1, 16, 24))


def test_weights_do_not_matter() -> None:
    assert create_backbone("pixels").origin == create_backbone("pixels", weights="pretrained").origin


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": 7}, "7 frames do not divide into 4 time bins"),
        ({"pixels": 18}, "18 pixels do not divide into 2 rows of 2 cells; set pixels to a multiple of 4"),
        ({"grid": [4, 2, 3]}, "16 pixels do not divide into 3 columns"),
        ({"grid": [4, 2]}, r"grid \(4, 2\)"),
        ({"cells": 0}, "cells 0 must be positive"),
    ],
)
def test_impossible_geometries_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_backbone("pixels", options={**SMALL, **changes})


def test_special_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\['cls'\]"):
        create_backbone("pixels", special=("cls",))
